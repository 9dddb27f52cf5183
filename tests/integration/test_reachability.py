"""Two homes in two networks: what is read where only some of a home's ports can be reached."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.homes import Federation, Home, wait_for
from support.networks import Network, require_namespaces

pytestmark = pytest.mark.long

SIZE_BYTES = (17 << 20) + 4321


@pytest.fixture
def network() -> Iterator[Network]:
    require_namespaces()
    made = Network()
    yield made
    made.close()


def homes(federation: Federation, network: Network, lane_host: str, node_host: str) -> list[Home]:
    """alice and bob on hosts of their own; bob may read her /media and holds no copy."""
    here, there = network.host("alice"), network.host("bob")
    alice = federation.found(
        "alice", address=here.address, prefix=here.prefix, lane_host=lane_host, node_host=node_host
    )
    alice.ok("datastore", "create", "/media", "--replicas", "1")
    alice.start()
    bob = federation.join("bob", address=there.address, prefix=there.prefix)
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
    network: Network,
    tmp_path: Path,
    lane_host: str,
    node_host: str,
) -> None:
    """The bytes come, by the best way there is."""
    alice, bob = homes(federation, network, lane_host, node_host)
    content = os.urandom(SIZE_BYTES)
    (tmp_path / "film").write_bytes(content)
    alice.ok("put", tmp_path / "film", "/media/film")
    wait_for(lambda: bob.run("ls", "/media").out.split() == ["film"], "bob to see the name")
    bob.ok("get", "/media/film", tmp_path / "got")
    assert hashlib.sha256((tmp_path / "got").read_bytes()).digest() == hashlib.sha256(content).digest()
    relayed = alice.status()["relayed_bytes"]
    assert (relayed >= SIZE_BYTES) == (node_host == "127.0.0.1"), relayed
