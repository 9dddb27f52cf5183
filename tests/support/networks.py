"""Several hosts on one machine: network namespaces joined by a bridge, lines that a test cuts with nftables.

    net = Network(); alice = net.host("alice"); net.cut("alice", "bob"); net.heal()

Everything is made by the test and taken away by `close`; traffic never leaves these namespaces.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_SERIAL = itertools.count(1)


def require_namespaces() -> None:
    """Skip on a machine without root, ip or nft; CI must have them."""
    missing = [tool for tool in ("ip", "nft", "nsenter") if shutil.which(tool) is None]
    if os.geteuid() != 0 or missing or not Path("/proc/self/ns/net").exists():
        reason = f"network namespaces need root, ip, nft and nsenter (missing: {', '.join(missing) or 'root'})"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


def _run(*words: str, text: str | None = None) -> None:
    subprocess.run(words, input=text, check=True, capture_output=True, text=True, timeout=30)


@dataclass(frozen=True)
class Host:
    """One namespace: its name for `nsenter --net=/run/netns/NAME`, and its address."""

    namespace: str
    address: str

    @property
    def prefix(self) -> list[str]:
        """Words before a command that shall run there; unlike `ip netns exec` they leave its mounts alone."""
        return ["nsenter", f"--net=/run/netns/{self.namespace}", "--"]


@dataclass
class Network:
    """One bridge and its hosts."""

    hosts: dict[str, Host] = field(default_factory=dict)
    _tag: str = field(default_factory=lambda: f"c{os.getpid() % 100_000}x{next(_SERIAL)}")

    def __post_init__(self) -> None:
        _run("ip", "netns", "add", self._bridge)
        _run("ip", "-n", self._bridge, "link", "add", "br0", "type", "bridge")
        _run("ip", "-n", self._bridge, "link", "set", "br0", "up")

    @property
    def _bridge(self) -> str:
        return f"{self._tag}-br"

    def host(self, name: str) -> Host:
        """A new host on the bridge."""
        number = len(self.hosts) + 1
        made = Host(f"{self._tag}-{name}", f"10.77.0.{number}")
        self.hosts[name] = made
        _run("ip", "netns", "add", made.namespace)
        _run(
            "ip", "-n", self._bridge, "link", "add", f"p{number}", "type", "veth", "peer", "name", "eth0",
            "netns", made.namespace,
        )  # fmt: skip
        _run("ip", "-n", self._bridge, "link", "set", f"p{number}", "master", "br0", "up")
        _run("ip", "-n", made.namespace, "addr", "add", f"{made.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _run("ip", "-n", made.namespace, "link", "set", device, "up")
        return made

    def move(self, name: str, address: str) -> None:
        """Give a host another address, or none; its `Host` keeps the one it was made with."""
        namespace = self.hosts[name].namespace
        _run("ip", "-n", namespace, "addr", "flush", "dev", "eth0", "scope", "global")
        if address:
            _run("ip", "-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")

    def cut(self, one: str, other: str) -> None:
        """Drop everything between two hosts, both ways, without a word to either."""
        self.cut_one_way(one, other)
        self.cut_one_way(other, one)

    def cut_one_way(self, sender: str, receiver: str) -> None:
        """Drop what `sender` sends to `receiver`; answers of the receiver still pass."""
        rules = (
            "table ip cut {\nchain in {\ntype filter hook input priority 0\n}\n}\n"
            f"add rule ip cut in ip saddr {self.hosts[sender].address} drop\n"
        )
        _run(*self.hosts[receiver].prefix, "nft", "-f", "-", text=rules)

    def heal(self) -> None:
        """Remove every cut."""
        for host in self.hosts.values():
            _run(*host.prefix, "nft", "flush", "ruleset")

    def close(self) -> None:
        """Take everything away; what still runs in a namespace keeps it until it ends."""
        for namespace in [*(host.namespace for host in self.hosts.values()), self._bridge]:
            _run("ip", "netns", "delete", namespace)


@pytest.fixture
def multicast() -> Iterator[None]:
    """Loopback's multicast, for one test of this machine at a time; skips where there is none, CI must have it."""
    with (Path(tempfile.gettempdir()) / f"multicast-{os.getuid()}.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        _require_multicast()
        yield


def _require_multicast() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        here, group = socket.inet_aton("127.0.0.1"), socket.inet_aton("224.0.0.251")
        try:
            receiver.bind(("", 0))
            receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group + here)
            receiver.settimeout(2)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, here)
            sender.sendto(b"there", ("224.0.0.251", receiver.getsockname()[1]))
            receiver.recv(16)
        except OSError as error:
            if os.environ.get("CI"):
                pytest.fail(f"there is no multicast on this machine's loopback: {error}")
            pytest.skip(f"there is no multicast on this machine's loopback: {error}")
