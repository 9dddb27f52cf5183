"""Places to dial and to listen on: `HOST:PORT`, `TYPE:HOST:PORT`, and what a failed bind means in words."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from typing import Any

from collective.core.errors import CollectiveError, Misconfigured

__all__ = [
    "ENDPOINT_TYPES",
    "EVERYWHERE",
    "NetworkEndpoint",
    "check_bindable",
    "free_port",
    "open_listeners",
    "own_address_towards",
    "parse_endpoint",
    "parse_host_port",
    "reached_from_here",
]

EVERYWHERE = frozenset({"0.0.0.0", "::"})  # hosts that say where one listens, not where one is
ENDPOINT_TYPES = ("lan", "direct", "vpn")  # in the order they are tried


@dataclass(frozen=True, slots=True)
class NetworkEndpoint:
    """One way to reach a component: `type` is one of ENDPOINT_TYPES, `host` a name or address without brackets."""

    type: str
    host: str
    port: int

    @property
    def address(self) -> str:
        """`HOST:PORT`, IPv6 addresses in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.type}:{self.address}"


def parse_host_port(text: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT` (IPv6 as `[::1]:8001`; port 0 means any free one). Raises: Misconfigured."""
    host, separator, port_text = text.strip().rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    valid = separator and host and (bracketed or ":" not in host) and not any(c.isspace() or c == "/" for c in host)
    if not valid or not (port_text.isascii() and port_text.isdigit()) or int(port_text) > 65535:
        raise Misconfigured(f"{text!r} is not HOST:PORT", "for example 192.168.1.10:8001 or [fd00::1]:8001")
    return host, int(port_text)


def reached_from_here(host: str, port: int) -> str:
    """HOST:PORT at which a program of this machine reaches who listens on a host."""
    return NetworkEndpoint("lan", {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port).address


def parse_endpoint(text: str) -> NetworkEndpoint:
    """The endpoint `TYPE:HOST:PORT`; without a type it is `direct`. Raises: Misconfigured."""
    kind, separator, rest = text.strip().partition(":")
    if separator and kind in ENDPOINT_TYPES and ":" in rest:
        return NetworkEndpoint(kind, *parse_host_port(rest))
    if text.count(":") > 1 and not text.lstrip().startswith("["):
        raise Misconfigured(f"{text!r} is not TYPE:HOST:PORT", f"TYPE is one of {', '.join(ENDPOINT_TYPES)}")
    return NetworkEndpoint("direct", *parse_host_port(text))


def own_address_towards(host: str, port: int) -> str | None:
    """This machine's address on the way to another, None when there is no way. Nothing is sent."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)
            own: str = probe.getsockname()[0]
    except OSError:
        return None
    return own


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that was free a moment ago. Somebody else may take it before it is used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def open_listeners(host: str, port: int, backlog: int = 256) -> list[socket.socket]:
    """Listening, non-blocking sockets for every address `host` has here (port 0: one port for all of them).

    Raises: Misconfigured (in use, not allowed, not an address of this machine).
    """
    listeners: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in sorted(dict.fromkeys(found)):
            try:
                listeners.append(_listener(family, kind, protocol, (address[0], port, *address[2:]), backlog))
            except OSError as error:
                if not listeners or error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise  # a machine without IPv6 may still name ::1 as one of its addresses
            port = listeners[0].getsockname()[1]
    except OSError as error:
        for listener in listeners:
            listener.close()
        raise _listen_error(error, host, port) from error
    return listeners


def _listener(family: int, kind: int, protocol: int, address: tuple[Any, ...], backlog: int) -> socket.socket:
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener


def check_bindable(host: str, port: int) -> None:
    """Bind once and let go, so that a library which hides the reason need not be asked. Raises: Misconfigured."""
    for listener in open_listeners(host, port, backlog=1):
        listener.close()


def _listen_error(error: OSError, host: str, port: int) -> CollectiveError:
    """What to tell the owner of this machine when `host:port` cannot be listened on."""
    where = f"{host}:{port}"
    if error.errno == errno.EADDRINUSE:
        return Misconfigured(
            f"port {port} on {host} is already in use",
            f"stop what listens there (see `ss -ltnp 'sport = :{port}'`) or choose another port",
        )
    if error.errno == errno.EACCES:
        return Misconfigured(
            f"not allowed to listen on {where}", "ports below 1024 need privileges; choose a higher one"
        )
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return Misconfigured(
            f"{host} is not an address of this machine", "listen on 0.0.0.0, 127.0.0.1 or its own address"
        )
    return Misconfigured(f"cannot listen on {where}: {error.strerror or error}")
