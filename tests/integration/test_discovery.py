"""Homes that know each other by address alone: found by mDNS, by DNS, again after a move; a liar gets nothing."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from support.homes import Federation, Home, free_ports, wait_for
from support.networks import Network, require_namespaces

pytestmark = pytest.mark.long


@pytest.fixture
def network() -> Iterator[Network]:
    require_namespaces()
    made = Network()
    yield made
    made.close()


def events(home: Home, name: str) -> list[dict[str, Any]]:
    """What a home's coordinator logged under this name."""
    lines = (home.path / "coordinator.log").read_text().splitlines()
    told = [json.loads(line) for line in lines if line.startswith("{")]
    return [line for line in told if line["event"] == name]


def place(home: Home, other: str) -> str:
    """Where a home reaches another, "" when it does not."""
    row = next(row for row in home.status()["peers"] if row["member"].startswith(other))
    return str(row["endpoint"]) if row["connected"] else ""


def mdns_process(home: Home) -> list[Path]:
    """The folder in /proc of it, when it runs."""
    assert home.coordinator is not None
    children = Path(f"/proc/{home.coordinator.pid}/task/{home.coordinator.pid}/children").read_text().split()
    found = [Path(f"/proc/{pid}") for pid in children]
    return [path for path in found if b"\0mdns\0" in (path / "cmdline").read_bytes()]


@pytest.fixture
def pair(multicast: None, federation: Federation, monkeypatch: pytest.MonkeyPatch) -> list[Home]:
    """alice and bob, who told nobody where they are; bob's only bootstrap peer is alice's address. Not started."""
    monkeypatch.setenv("MDNS_ENABLED", "true")
    alice = federation.found("alice", hidden=True)
    bob = federation.join("bob", hidden=True)
    config = json.loads((bob.path / "config.json").read_text())
    assert config["coordinator"]["bootstrap_peers"] == ["coord@alice.media.collective"]
    assert "network" not in config
    return [alice, bob]


def test_two_homes_find_each_other_by_mdns_alone(pair: list[Home], federation: Federation, tmp_path: Path) -> None:
    """From one address to a file read, without a word about places; found again where one moves to; a clean stop."""
    alice, bob = pair
    alice.start()
    bob.start()
    federation.connected()
    assert place(alice, "bob") == f"127.0.0.1:{bob.ports[0]}"
    alice.ok("datastore", "create", "/media", "--replicas", "1")
    alice.ok("datastore", "grant", "/media", "read", "bob@media.collective")
    (tmp_path / "film").write_bytes(b"film" * 100_000)
    alice.ok("put", tmp_path / "film", "/media/film")
    wait_for(lambda: bob.run("ls", "/media").out.split() == ["film"], "bob to see the name")
    bob.ok("get", "/media/film", tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == (tmp_path / "film").read_bytes()
    (child,) = mdns_process(bob)
    assert bob.stop() == 0
    assert not child.exists(), "its mDNS process ended with it"
    bob.ports = free_ports(3)
    bob.start()
    wait_for(lambda: place(alice, "bob") == f"127.0.0.1:{bob.ports[0]}", "alice to find bob where he is now")
    (child,) = wait_for(lambda: mdns_process(bob), "bob's mDNS process")
    bob.kill_coordinator_alone()
    wait_for(lambda: not child.exists(), "the mDNS process of a killed coordinator to end")


def test_liars_on_the_network_get_nothing(pair: list[Home], federation: Federation) -> None:
    """A member and a stranger who announce themselves as bob: neither hears a word that is bob's, and he is found."""
    alice, bob = pair
    carol = federation.join("carol")
    alice.start("--debug")
    carol.start("--debug")
    wait_for(lambda: place(alice, "carol"), "alice to reach carol")
    stranger = Listener()
    root = x509.load_pem_x509_certificate((alice.path / "identity" / "root-ca.crt").read_bytes())
    liars = [announce("bob", root.fingerprint(SHA256()).hex(), port) for port in (carol.ports[0], stranger.port)]
    try:
        refused = wait_for(
            lambda: (
                {event["place"] for event in events(alice, "debug.gossip.not_found") if "127.0.0.1" in event["place"]}
                >= {f"127.0.0.1:{carol.ports[0]}", f"127.0.0.1:{stranger.port}"}
            ),
            "alice to be lied to",
        )
        assert refused
        reasons = [
            event["reason"]
            for event in events(alice, "debug.gossip.not_found")
            if event["place"] == f"127.0.0.1:{carol.ports[0]}"
        ]
        assert all("certificate" in reason for reason in reasons), reasons
        assert place(alice, "bob") == ""
        assert b"coord@" not in stranger.heard(), "what a stranger hears is a greeting of TLS, without a certificate"
        assert not [event for event in events(carol, "gossip.refused") if event["peer"].startswith("alice")]
        bob.start()
        wait_for(lambda: place(alice, "bob") == f"127.0.0.1:{bob.ports[0]}", "alice to find the true bob", 90)
    finally:
        for liar in liars:
            liar.communicate(timeout=20)
        stranger.close()


def announce(name: str, root: str, port: int) -> subprocess.Popen[bytes]:
    """Somebody who says to be a member of this federation."""
    return subprocess.Popen(
        [
            sys.executable, "-m", "collective.cli.main", "mdns", "--member", f"{name}.media.collective", "--root", root,
            "--host", "127.0.0.1", "--port", str(port), "--lane", str(port),
        ],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
    )  # fmt: skip


class Listener:
    """Takes connections, says nothing, and keeps what it hears."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])

    def heard(self) -> bytes:
        """All that the connections that wait have sent so far."""
        heard = b""
        self._socket.setblocking(False)
        while True:
            try:
                connection, _ = self._socket.accept()
            except BlockingIOError:
                return heard
            with connection:
                connection.settimeout(0.2)
                try:
                    heard += connection.recv(1 << 20)
                except OSError:
                    continue

    def close(self) -> None:
        self._socket.close()


def test_on_one_network_nothing_is_configured(federation: Federation, network: Network) -> None:
    """Two homes that listen everywhere meet by themselves, and again when a router gives one another address."""
    here, there = network.host("alice"), network.host("bob")
    alice = federation.found("alice", address="0.0.0.0", hidden=True, prefix=here.prefix)
    bob = federation.join("bob", address="0.0.0.0", hidden=True, prefix=there.prefix)
    alice.start()
    bob.start()
    federation.connected()
    assert place(alice, "bob") == f"{there.address}:{bob.ports[0]}"
    assert place(bob, "alice") == f"{here.address}:{alice.ports[0]}"
    network.move("bob", "10.77.0.99")
    wait_for(lambda: place(alice, "bob") == f"10.77.0.99:{bob.ports[0]}", "alice to find bob where he is now", 60)


def test_without_a_network_a_home_starts_all_the_same(federation: Federation, network: Network) -> None:
    """It says once that there is no mDNS, and announces itself when there is a network."""
    host = network.host("alice")
    network.move("alice", "")
    alice = federation.found("alice", address="0.0.0.0", hidden=True, prefix=host.prefix)
    alice.start()
    (told,) = wait_for(lambda: events(alice, "mdns.unavailable"), "the warning")
    assert "no address" in told["reason"]
    network.move("alice", "10.77.0.1")
    wait_for(lambda: events(alice, "mdns.announced"), "the announcement", 60)
    assert len(events(alice, "mdns.unavailable")) == 1
    assert alice.stop() == 0


@pytest.mark.parametrize("with_service", [True, False], ids=["SRV", "A"])
def test_a_home_is_found_by_dns(
    with_service: bool, federation: Federation, network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the SRV record of its domain, at any port; by an address of the domain, at port 8001."""
    monkeypatch.setenv("MDNS_ENABLED", "false")
    here, there, server = network.host("alice"), network.host("bob"), network.host("dns")
    (tmp_path / "resolv.conf").write_text(f"nameserver {server.address}\n")
    own_dns = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/resolv.conf && exec "$@"']
    alice = federation.found(
        "alice", address=here.address, prefix=[*here.prefix, *own_dns, str(tmp_path / "resolv.conf")]
    )
    bob = federation.join("bob", address=there.address, hidden=True, prefix=there.prefix)
    (bob.path / "peers.json").unlink()
    if with_service:
        records = [f"_collective._tcp.bob.media.collective SRV 0 0 {bob.ports[0]} home.example.org."]
        records.append(f"home.example.org A {there.address}")
    else:
        bob.ports = [8001, 8002, 8003]
        records = [f"bob.media.collective A {there.address}"]
    program = Path(__file__).parents[1] / "support" / "answer_dns.py"
    with subprocess.Popen(
        [*server.prefix, sys.executable, program, server.address, "53", *records], stdout=subprocess.PIPE, text=True
    ) as dns:
        try:
            assert dns.stdout is not None
            assert dns.stdout.readline() == "ready\n"
            bob.start()
            alice.start()
            federation.connected()
            assert place(alice, "bob") == (
                f"home.example.org:{bob.ports[0]}" if with_service else "bob.media.collective:8001"
            )
        finally:
            dns.kill()
