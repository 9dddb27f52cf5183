"""A member's own nodes at its coordinator: where they are dialled, what a repeated registration changes."""

from __future__ import annotations

import pytest

from collective.core.address import FederatedAddress
from collective.core.clock import ManualClock
from collective.core.errors import Unreachable
from collective.core.observe import SILENT
from collective.net.lane import LaneConnection
from collective.transfer.holders import LanePool
from collective.transfer.nodes import NodeDirectory, reachable_lanes
from collective.wire import control_pb2, feed_pb2


def endpoint(lane: str, grpc: str = "", kind: str = "lan") -> feed_pb2.Endpoint:
    return feed_pb2.Endpoint(type=kind, lane=lane, grpc=grpc)


async def no_dial(address: FederatedAddress, place: str) -> LaneConnection:
    raise Unreachable(f"{place} does not answer")


def test_a_node_that_listens_everywhere_is_where_its_coordinator_is() -> None:
    """Its own words would lead others to themselves; what it says plainly is taken as said."""
    own = [endpoint("", "192.168.1.10:8001"), endpoint("", "[fd00::10]:8001", "vpn")]
    lanes = [(found.type, found.lane) for found in reachable_lanes([endpoint("0.0.0.0:8003")], own)]
    assert lanes == [("lan", "192.168.1.10:8003"), ("vpn", "[fd00::10]:8003")]
    plain = [endpoint("10.0.0.7:8003"), endpoint("127.0.0.1:8003")]
    assert reachable_lanes(plain, own) == plain
    assert reachable_lanes([endpoint("[::]:8003")], []) == [endpoint("[::]:8003")], "nobody told where we are"


def test_registering_again_is_the_same_node() -> None:
    """What was learned of it stays; only another place makes it be dialled and asked anew."""
    directory = NodeDirectory(no_dial, SILENT)

    def register(lane: str, capacity: int = 5) -> object:
        return directory.register(
            control_pb2.RegisterNodeRequest(
                federated_address="node-01@alice.media.collective", capacity=capacity, endpoints=[endpoint(lane)]
            )
        )

    record = register("127.0.0.1:8003")
    (known,) = directory.all()
    known.status = lane_status = object()  # type: ignore[assignment]
    assert register("127.0.0.1:8003", capacity=7) is record
    assert directory.all() == [known]
    assert known.status is lane_status
    assert known.capacity_bytes == 7
    assert register("127.0.0.1:9003") is record
    assert known.status is None
    assert known.location().lane_addresses == ["127.0.0.1:9003"]


async def test_a_place_that_was_long_silent_is_not_dialled_again_at_once() -> None:
    """A black hole costs three seconds once, not for every read; a refusal that came at once costs nothing."""
    clock = ManualClock()
    dialled = []

    async def slow(address: FederatedAddress, place: str) -> LaneConnection:
        dialled.append(place)
        clock.advance(3.0 if place == "black-hole:1" else 0.0)
        raise Unreachable(f"{place} does not answer")

    pool = LanePool(slow, clock)
    node = control_pb2.NodeLocation(
        address="node-01@alice.media.collective", lane_addresses=["black-hole:1", "refuses:1"]
    )
    for _ in range(3):
        with pytest.raises(Unreachable):
            await pool.get(node, 0)
    assert dialled == ["black-hole:1", "refuses:1", "refuses:1", "refuses:1"]
    many = control_pb2.NodeLocation(address=node.address, lane_addresses=[f"scanned:{port}" for port in range(1, 500)])
    with pytest.raises(Unreachable):
        await pool.get(many, 1)
    assert sum(place.startswith("scanned") for place in dialled) == 8, "nobody is sent round the network"
    clock.advance(30.1)
    with pytest.raises(Unreachable):
        await pool.get(node, 0)
    assert dialled.count("black-hole:1") == 2
