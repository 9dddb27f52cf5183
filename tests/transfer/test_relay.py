"""A coordinator in the place of its nodes: the same bytes, the same refusals, when nobody else can dial the node."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.nodes import CHUNK, CLOCK, Lane, Parts, RunningNode, World

from collective.core.address import FederatedAddress
from collective.core.errors import CollectiveError, Corrupt, NotFound, Refused, Unreachable
from collective.core.observe import SILENT
from collective.identity import ComponentKind
from collective.net.lane import LaneConnection, LaneServer
from collective.net.rpc import Caller
from collective.transfer.holders import LanePool
from collective.transfer.nodes import NodeDirectory
from collective.transfer.relay import RelayDesk, relay_handlers
from collective.wire import control_pb2, feed_pb2, lane_pb2

BLOCKED = "127.0.0.1:1"  # nothing listens there


class RelayWorld(World):
    """alice's node can be dialled by alice's coordinator alone; carol is told the coordinator's lane, or nothing."""

    lane_is_open = True
    streamed = 0

    async def start(self) -> None:
        node = self.behind = await self.node("alice")
        coordinator = self.parts.credentials("alice", "coord", ComponentKind.COORDINATOR)

        async def dial(address: FederatedAddress, place: str) -> LaneConnection:
            return await self.parts.dial_as(coordinator, address, place)

        self.directory = NodeDirectory(dial, SILENT)
        self.directory.register(
            control_pb2.RegisterNodeRequest(
                federated_address=node.location.address,
                endpoints=[feed_pb2.Endpoint(type="lan", lane=node.location.lane_addresses[0])],
            )
        )
        self.desk = RelayDesk(self.directory, LanePool(dial, CLOCK), node.policy, CLOCK)
        self.server = LaneServer(coordinator, self.parts.trust, relay_handlers(self.desk), clock=CLOCK)
        self.port = await self.server.start("127.0.0.1", 0)

    async def stop(self) -> None:
        await self.server.stop()
        await self.desk.close()
        await self.directory.close()
        await self.behind.stop()

    async def open(self, holder: str, store_id: bytes, version_id: bytes) -> control_pb2.OpenVersionReply:
        opened = await super().open(holder, store_id, version_id)
        opened.nodes[0].lane_addresses[:] = [BLOCKED]
        place = f"127.0.0.1:{self.port}" if self.lane_is_open else BLOCKED
        opened.nodes.append(control_pb2.NodeLocation(address="coord@alice.media.collective", lane_addresses=[place]))
        return opened

    async def read_segments(
        self, holder: str, request: control_pb2.ReadSegmentsRequest, into: memoryview
    ) -> tuple[int, int]:
        self.streamed += 1
        got = hash_bytes = 0
        async for reply in self.desk.read_segments(self.caller(), request):
            assert len(reply.sealed) <= 1 << 20
            for part in (reply.hashes, reply.sealed):
                into[got : got + len(part)] = part
                got += len(part)
            hash_bytes += len(reply.hashes)
        return hash_bytes, got

    def caller(self, member: str = "carol") -> Caller:
        leaf = self.parts.credentials(member, "client", ComponentKind.CLIENT)
        return Caller(leaf.identity)

    async def lane(self) -> tuple[Lane, LaneConnection]:
        raw = await self.parts.dial_as(
            self.client, FederatedAddress("coord", "alice.media.collective"), f"127.0.0.1:{self.port}"
        )
        return Lane(raw), raw


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[RelayWorld]:
    made = RelayWorld(Parts(), tmp_path)
    await made.start()
    yield made
    await made.stop()


@pytest.mark.parametrize("lane_is_open", [True, False])
async def test_a_node_that_cannot_be_dialled_is_read_through_its_coordinator(
    world: RelayWorld, lane_is_open: bool
) -> None:
    """Its lane first, the stream of the control wire where that is closed too; byte for byte."""
    world.lane_is_open = lane_is_open
    content = os.urandom(3 * CHUNK + 70_001)
    await world.put(world.behind, content)
    fetcher = world.fetcher()
    assert await world.read_all(fetcher) == content
    assert (world.streamed == 0) == lane_is_open
    assert world.desk.relayed_bytes >= len(content)
    await fetcher.close()


async def test_a_node_that_answers_is_not_asked_again_through_its_coordinator(world: RelayWorld) -> None:
    """When the node itself says that it does not have a chunk, that is the answer."""
    await world.put(world.behind, os.urandom(CHUNK))
    chunk = world.behind.store.chunk_after(b"")
    assert chunk is not None
    world.behind.store.quarantine(chunk[0], "a test")

    async def plainly(holder: str, store_id: bytes, version_id: bytes) -> control_pb2.OpenVersionReply:
        opened = await world.open(holder, store_id, version_id)
        opened.nodes[0].lane_addresses[:] = world.behind.location.lane_addresses
        return opened

    fetcher = world.fetcher()
    fetcher.provider = type("Provider", (), {"open": staticmethod(plainly)})()
    with pytest.raises(Corrupt, match="no such chunk"):
        await world.read_all(fetcher)
    assert world.streamed == 0
    await fetcher.close()


async def test_the_relay_refuses_what_the_node_refuses(world: RelayWorld) -> None:
    """Another member's ticket, a forged one, a page that was not named, a chunk that was not listed, no ticket."""
    uploaded = await world.put(world.behind, os.urandom(CHUNK))
    layout, office = uploaded.layout, world.behind.office
    chunk = world.behind.store.chunk_after(b"")
    assert chunk is not None
    good, _ = office.read("carol.media.collective", layout.layout_hash)
    others, _ = office.read("bob.media.collective", layout.layout_hash)
    upload, _ = office.upload("carol.media.collective", b"s" * 32, 1 << 20)
    other_layout, _ = office.read("carol.media.collective", bytes(32))

    lane, raw = await world.lane()
    for bad in (others, other_layout, good[:-1], b""):
        with pytest.raises(Refused):
            await lane.present(bad, layout)
    with pytest.raises(Refused):  # not as the node's own coordinator, though the relay is one
        await lane.ask(lane_pb2.LANE_READ, lane_pb2.ReadRequest(chunk_id=chunk[0], segment_count=1))
    for method in (lane_pb2.LANE_WRITE, lane_pb2.LANE_HAS, lane_pb2.LANE_HEADS, lane_pb2.LANE_PUSH):
        with pytest.raises(Refused, match="does not answer"):
            await lane.ask(method, lane_pb2.HeadsRequest())
    handle = await lane.present(good, layout)
    read = lane_pb2.ReadRequest(handle=handle, chunk_id=chunk[0], segment_count=1)
    with pytest.raises(NotFound):  # the page was not shown yet
        await lane.ask(lane_pb2.LANE_READ, read)
    await lane.ask(lane_pb2.LANE_PRESENT_PAGE, lane_pb2.PresentPageRequest(handle=handle), uploaded.pages[0])
    await lane.ask(lane_pb2.LANE_READ, read)
    for wrong in (
        lane_pb2.ReadRequest(handle=handle, chunk_id=os.urandom(32), segment_count=1),
        lane_pb2.ReadRequest(handle=handle, chunk_id=chunk[0], first_segment=1 << 20, segment_count=1),
    ):
        with pytest.raises(NotFound):
            await lane.ask(lane_pb2.LANE_READ, wrong)
    await raw.close()

    def request(ticket: bytes, **more: object) -> control_pb2.ReadSegmentsRequest:
        asked = control_pb2.ReadSegmentsRequest(
            signed_ticket=ticket, layout=layout, page=uploaded.pages[0], chunk_id=chunk[0], segment_count=1
        )
        asked.MergeFrom(control_pb2.ReadSegmentsRequest(**more))  # type: ignore[arg-type]
        return asked

    assert [len(reply.sealed) async for reply in world.desk.read_segments(world.caller(), request(good))] == [65_552]
    refused: list[tuple[Caller, control_pb2.ReadSegmentsRequest, type[CollectiveError]]] = [
        (world.caller("bob"), request(good), Refused),
        (world.caller(), request(others), Refused),
        (world.caller(), request(upload), Refused),
        (world.caller(), request(other_layout), Refused),
        (world.caller(), request(good, page_index=1), Refused),
        (world.caller(), request(good, page=uploaded.pages[0] + b"x"), Refused),
        (world.caller(), request(good, chunk_id=os.urandom(32)), NotFound),
        (world.caller(), request(good, first_segment=999), NotFound),
        (Caller(None), request(good), Refused),
    ]
    for caller, asked, kind in refused:
        with pytest.raises(kind):
            _ = [reply async for reply in world.desk.read_segments(caller, asked)]


async def test_a_dead_node_is_told_as_unreachable(world: RelayWorld) -> None:
    """Not as absent: a reader goes on to the next holder either way, but nobody draws conclusions."""
    await world.put(world.behind, os.urandom(CHUNK))
    await world.behind.server.stop()
    fetcher = world.fetcher()
    with pytest.raises(Unreachable):
        await world.read_all(fetcher)
    await fetcher.close()


async def test_a_node_gives_its_own_coordinator_without_a_ticket_and_nobody_else(world: RelayWorld) -> None:
    """Handle 0 is for the coordinator of the node's own member."""
    node: RunningNode = world.behind
    await world.put(node, os.urandom(CHUNK))
    chunk = node.store.chunk_after(b"")
    assert chunk is not None
    ask = lane_pb2.ReadRequest(chunk_id=chunk[0], segment_count=2)
    address, place = FederatedAddress("node-01", node.domain), node.location.lane_addresses[0]
    callers = [
        ("alice", "coord", ComponentKind.COORDINATOR, True),
        ("alice", "client", ComponentKind.CLIENT, False),
        ("alice", "node-02", ComponentKind.NODE, False),
        ("bob", "coord", ComponentKind.COORDINATOR, False),
    ]
    for member, name, kind, may in callers:
        raw = await world.parts.dial_as(world.parts.credentials(member, name, kind), address, place)
        if may:
            reply = await raw.call(lane_pb2.LANE_READ, ask.SerializeToString(), timeout_seconds=10)
            assert len(reply.body) == 2 * 65_552
        else:
            with pytest.raises(Refused):
                await Lane(raw).ask(lane_pb2.LANE_READ, ask)
        await raw.close()
