"""Two homes in two networks: what is read where only some of a home's ports can be reached."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.homes import Federation, Home, wait_for

SIZE_BYTES = (17 << 20) + 4321


@pytest.fixture
def other_network() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(our address, theirs, the words that run a command over there): a namespace behind a pair of interfaces."""
    name = f"far{os.getpid() % 10_000}"
    here, there = "10.213.77.1", "10.213.77.2"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if made.returncode:
        if os.environ.get("CI"):
            pytest.fail("CI must be able to make network namespaces")
        pytest.skip("network namespaces cannot be made here")
    inside = ("ip", "netns", "exec", name)
    try:
        for words in (
            ("ip", "link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b", "netns", name),
            ("ip", "addr", "add", f"{here}/30", "dev", f"{name}a"),
            ("ip", "link", "set", f"{name}a", "up"),
            (*inside, "ip", "addr", "add", f"{there}/30", "dev", f"{name}b"),
            (*inside, "ip", "link", "set", f"{name}b", "up"),
            (*inside, "ip", "link", "set", "lo", "up"),
        ):
            subprocess.run(words, check=True)
        yield here, there, inside
    finally:
        subprocess.run(["ip", "link", "del", f"{name}a"], check=False)  # the namespace alone takes it along late
        subprocess.run(["ip", "netns", "del", name], check=True)


def homes(federation: Federation, network: tuple[str, str, tuple[str, ...]], lane_host: str, node: str) -> list[Home]:
    """alice here, bob over there, who may read her /media; bob holds no copy."""
    here, there, inside = network
    alice = federation.found("alice", host=here, lane_host=lane_host, node_host=node)
    alice.ok("datastore", "create", "/media", "--replicas", "1")
    alice.start()
    bob = federation.join("bob", host=there, prefix=inside)
    bob.start()
    federation.connected()
    alice.ok("datastore", "grant", "/media", "read", "bob@media.collective")
    return [alice, bob]


@pytest.mark.parametrize(
    ("lane_host", "node_host"),
    [
        pytest.param("", "", id="everything can be reached"),
        pytest.param("0.0.0.0", "0.0.0.0", id="everything, and it listens everywhere"),
        pytest.param("", "127.0.0.1", id="the node cannot"),
        pytest.param("127.0.0.1", "127.0.0.1", id="only the gRPC port can"),
    ],
)
def test_a_film_is_read_from_another_network(
    federation: Federation,
    other_network: tuple[str, str, tuple[str, ...]],
    tmp_path: Path,
    lane_host: str,
    node_host: str,
) -> None:
    """The bytes come, by the best way there is."""
    alice, bob = homes(federation, other_network, lane_host, node_host)
    content = os.urandom(SIZE_BYTES)
    (tmp_path / "film").write_bytes(content)
    alice.ok("put", tmp_path / "film", "/media/film")
    wait_for(lambda: bob.run("ls", "/media").out.split() == ["film"], "bob to see the name")
    bob.ok("get", "/media/film", tmp_path / "got")
    assert hashlib.sha256((tmp_path / "got").read_bytes()).digest() == hashlib.sha256(content).digest()
    relayed = alice.status()["relayed_bytes"]
    assert (relayed >= SIZE_BYTES) == (node_host == "127.0.0.1"), relayed
