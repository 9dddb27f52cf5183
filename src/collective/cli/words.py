"""Words shared by the commands: how a home, an address and an endpoint are written, and how answers are printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import click

from collective.core.address import parse_address
from collective.core.errors import Refused
from collective.daemon.config import default_home
from collective.daemon.home import Home
from collective.daemon.runtime import run
from collective.wire import feed_pb2

__all__ = [
    "describe_peer",
    "endpoint_option",
    "home_of",
    "json_option",
    "note",
    "parse_endpoint",
    "path_and_owner",
    "print_json",
    "start",
]

Result = TypeVar("Result")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def home_of(context: click.Context, config_file: Path | None = None) -> Home:
    """The home that `--home`, COLLECTIVE_HOME or the default names."""
    root = context.find_root().obj
    return Home((Path(root) if root is not None else default_home()).absolute(), config_file)


def start(main: Coroutine[Any, Any, Result]) -> Result:
    """Run a command's coroutine."""
    return run(main)


def note(text: str) -> None:
    """Something the person should know, on stderr."""
    click.echo(f"note: {text}", err=True)


def describe_peer(peer: dict[str, Any]) -> str:
    """A member as the running coordinator sees it: state, how far behind, when it was last heard."""
    parts = [peer["state"]]
    if peer["entries_behind"]:
        parts.append(f"{peer['entries_behind']} entries behind")
    if peer["entries_ahead"]:
        parts.append(f"{peer['entries_ahead']} entries ahead of this home")
    if peer["heard_seconds_ago"] is not None:
        parts.append(f"heard {peer['heard_seconds_ago']:.0f} s ago")
    return ", ".join(parts)


def print_json(document: object) -> None:
    """One object on one line, the last of stdout."""
    click.echo(json.dumps(document))
    sys.stdout.flush()


def path_and_owner(text: str, known_domains: set[str]) -> tuple[bytes, str]:
    """(path, owner's domain or "") of an address as typed.

    A suffix `@…` is a domain only when the roster knows it: `/media/logo@2x.png` is a name. Paths are bytes.
    """
    raw = text.encode(errors="surrogateescape")
    if not raw.startswith(b"/"):
        raise Refused(f"{text!r} is not a path in the library", "write it from the top: /media/movies/film.mkv")
    _, separator, suffix = raw.rpartition(b"@")
    if separator:
        domain = suffix.decode(errors="replace").lower()
        if domain in known_domains:
            return parse_address(raw).resource, domain
    return _clean(raw, text), ""


def _clean(raw: bytes, text: str) -> bytes:
    parts = [part for part in raw.split(b"/") if part]
    for part in parts:
        if part in (b".", b".."):
            raise Refused(f"{text!r} has a '.' or '..' in it", "write the path without them")
        if len(part) > 255:
            raise Refused(f"a name in {text[:40]!r}… is {len(part)} bytes long", "names hold up to 255 bytes")
        if b"\0" in part:
            raise Refused("a name holds a NUL byte")
    return b"/" + b"/".join(parts)


def parse_endpoint(text: str) -> feed_pb2.Endpoint:
    """`TYPE:HOST:PORT[,LANEPORT]` or `HOST:PORT` (direct)."""
    first, _, rest = text.partition(":")
    kind, address = (first, rest) if first in ("lan", "direct", "vpn") else ("direct", text)
    address, _, lane_port = address.partition(",")
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isdigit() or (lane_port and not lane_port.isdigit()):
        raise Refused(f"{text!r} is not an endpoint", "write it as lan:192.168.1.20:8001 (TYPE:HOST:PORT)")
    return feed_pb2.Endpoint(type=kind, grpc=address, lane=f"{host}:{lane_port or int(port) + 1}")


endpoint_option = click.option(
    "--endpoint", "endpoints", multiple=True, metavar="TYPE:HOST:PORT", help="Where others reach this home."
)
