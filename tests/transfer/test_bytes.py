"""The path of a byte: into sealed chunks on a node, and back from whoever holds them; tickets, failover, hostility."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.nodes import CHUNK, CLOCK, FOREVER, SECRET, STORE_ID, Lane, Parts, World, copy

from collective.chunks import derive_chunk_key, seal_chunk
from collective.core.address import FederatedAddress
from collective.core.clock import ManualClock
from collective.core.errors import CollectiveError, Conflict, Corrupt, Full, NotFound, Refused, Unreachable
from collective.identity import ComponentKind, generate_signing_key
from collective.transfer.nodes import TicketOffice
from collective.transfer.serve_node import node_handlers
from collective.wire import lane_pb2


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(Parts(), tmp_path)
    yield made
    for node in made.nodes.values():
        await node.stop()


@pytest.mark.parametrize("size", [4097, 65_536, 65_537, CHUNK, CHUNK + 1, 3 * CHUNK + 12_345])
async def test_what_was_sent_comes_back(world: World, size: int) -> None:
    """Byte for byte, at sizes around the edges of segments and chunks."""
    node = await world.node("alice")
    content = random.Random(size).randbytes(size)
    await world.put(node, content)
    fetcher = world.fetcher()
    assert await world.read_all(fetcher) == content
    await fetcher.close()


async def test_holes_take_nothing_and_a_second_put_sends_nothing(world: World) -> None:
    """Zero chunks are holes; chunks that are there are not sent again."""
    node = await world.node("alice")
    content = bytes(CHUNK) + os.urandom(CHUNK) + bytes(2 * CHUNK) + b"end"
    first = await world.put(node, content)
    assert first.sent_bytes == CHUNK + 3
    assert node.store.status().chunk_count == 2
    assert (await world.put(node, content)).sent_bytes == 0
    fetcher = world.fetcher()
    assert await world.read_all(fetcher) == content
    await fetcher.close()


async def test_an_upload_stops_at_its_limit(world: World) -> None:
    """More than the ticket allows is refused."""
    node = await world.node("alice")
    with pytest.raises(Full):
        await world.put(node, os.urandom(3 * CHUNK), limit=CHUNK + 65_536)


async def test_a_source_that_changes_is_not_stored(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Size or time differ at the end: nothing is committed."""
    node = await world.node("alice")
    real = os.fstat
    calls = []

    def fstat(descriptor: int) -> os.stat_result:
        calls.append(descriptor)
        if len(calls) == 2:
            os.utime(world.folder / "source", ns=(1, 1))
        return real(descriptor)

    monkeypatch.setattr("collective.transfer.push.os.fstat", fstat)
    with pytest.raises(Conflict, match="changed"):
        await world.put(node, os.urandom(CHUNK))


async def test_a_dead_holder_costs_a_moment(world: World) -> None:
    """alice's node ends in the middle; bob's serves the rest."""
    alice, bob = await world.node("alice"), await world.node("bob")
    content = os.urandom(6 * CHUNK)
    await world.put(alice, content)
    await copy(world, alice, bob)
    fetcher = world.fetcher()
    source = await fetcher.open(world.reference())
    out = memoryview(bytearray(CHUNK))
    await source.fill(0, 0, 16, out)
    assert out == content[:CHUNK]
    await alice.server.stop()
    for index in range(1, 6):
        await source.fill(index, 0, 16, out)
        assert out == content[index * CHUNK : (index + 1) * CHUNK]
    assert fetcher.bytes_by_member()["bob.media.collective"] == 5 * CHUNK
    await source.close()
    await fetcher.close()


async def test_a_silent_holder_is_overtaken(world: World) -> None:
    """alice takes the call and never answers: bob is asked too, and the reader gets its bytes."""
    alice, bob = await world.node("alice"), await world.node("bob")
    content = os.urandom(2 * CHUNK)
    await world.put(alice, content)
    await copy(world, alice, bob)

    async def never(*arguments: object) -> tuple[bytes, list[bytes]]:
        await asyncio.sleep(FOREVER)
        raise AssertionError

    alice.server._handlers = {**node_handlers(alice.desk), lane_pb2.LANE_READ: never}  # type: ignore[dict-item]
    fetcher = world.fetcher()
    async with asyncio.timeout(20):
        assert await world.read_all(fetcher) == content
    assert fetcher.bytes_by_member() == {"bob.media.collective": 2 * CHUNK}
    await fetcher.close()


async def test_a_silent_coordinator_does_not_hold_up_the_opening(world: World) -> None:
    """One of the two best answers the ticket call: that is enough to begin."""
    alice, bob = await world.node("alice"), await world.node("bob")
    content = os.urandom(CHUNK)
    await world.put(alice, content)
    await copy(world, alice, bob)
    world.silent.add("alice")
    fetcher = world.fetcher()
    async with asyncio.timeout(20):
        assert await world.read_all(fetcher) == content
    await fetcher.close()


@pytest.mark.parametrize("segment", [0, 7, 15])
async def test_a_broken_byte_is_never_given_out(world: World, segment: int) -> None:
    """With a second copy the right bytes come; without, an error that names the holder, and that no waiting mends."""
    alice = await world.node("alice")
    content = os.urandom(CHUNK)
    await world.put(alice, content)
    (chunk,) = (path for path in (alice.folder / "chunks").rglob("*-*") if path.is_file())
    with chunk.open("r+b") as file:
        file.seek(segment * 65_552 + 1000)
        byte = file.read(1)
        file.seek(segment * 65_552 + 1000)
        file.write(bytes([byte[0] ^ 0x80]))
    fetcher = world.fetcher()
    with pytest.raises(Corrupt, match=r"alice\.media\.collective"):
        await world.read_all(fetcher)
    bob = await world.node("bob")
    await world.put(bob, content)
    assert await world.read_all(fetcher) == content
    await fetcher.close()
    assert not chunk.exists(), "the reader's complaint had the holder check its disk"
    assert alice.store.missing(b"", 10) == [bytes.fromhex(chunk.name.split("-")[0])]
    assert bob.store.missing(b"", 10) == []


async def test_a_broken_copy_beside_a_holder_that_is_away_may_be_waited_for(world: World) -> None:
    alice, bob = await world.node("alice"), await world.node("bob")
    content = os.urandom(CHUNK)
    await world.put(alice, content)
    await copy(world, alice, bob)
    (chunk,) = (path for path in (alice.folder / "chunks").rglob("*-*") if path.is_file())
    with chunk.open("r+b") as file:
        file.write(b"broken")
    fetcher = world.fetcher()
    source = await fetcher.open(world.reference())
    await bob.server.stop()
    with pytest.raises(Unreachable, match=r"bob\.media\.collective"):
        await source.fill(0, 0, 16, memoryview(bytearray(CHUNK)))
    await source.close()
    await fetcher.close()


async def test_all_holders_dead_is_told_with_reasons(world: World) -> None:
    """The error names every holder that was tried."""
    alice, bob = await world.node("alice"), await world.node("bob")
    await world.put(alice, os.urandom(CHUNK))
    await copy(world, alice, bob)
    fetcher = world.fetcher()
    source = await fetcher.open(world.reference())
    await alice.server.stop()
    await bob.server.stop()
    with pytest.raises(Unreachable) as caught:
        await source.fill(0, 0, 16, memoryview(bytearray(CHUNK)))
    assert "alice.media.collective" in caught.value.message
    assert "bob.media.collective" in caught.value.message
    await source.close()
    await fetcher.close()


async def test_tickets_open_what_they_say_and_nothing_else(world: World) -> None:
    """Another member's, ended, forged, for another layout, of an older policy; guessed ids; the wrong kind."""
    node = await world.node("alice")
    uploaded = await world.put(node, os.urandom(CHUNK))
    layout, carol = uploaded.layout, "carol.media.collective"
    raw = await world.parts.dial_as(world.client, FederatedAddress("node-01", node.domain), f"127.0.0.1:{node.port}")
    lane = Lane(raw)
    good, _ = node.office.read(carol, layout.layout_hash)

    for bad in (
        node.office.read("bob.media.collective", layout.layout_hash)[0],
        TicketOffice(node.domain, generate_signing_key(), CLOCK).read(carol, layout.layout_hash)[0],
        TicketOffice(node.domain, node.office.signing_key, ManualClock(1.0)).read(carol, layout.layout_hash)[0],
        node.office.read(carol, b"another layout's hash, 32 bytes!")[0],
        good[:-1],
        b"",
    ):
        with pytest.raises(CollectiveError) as caught:
            await lane.present(bad, layout)
        assert isinstance(caught.value, Refused), bad

    handle = await lane.present(good, layout)
    chunk = node.store.chunk_after(b"")
    assert chunk is not None
    read = lane_pb2.ReadRequest(handle=handle, chunk_id=chunk[0], segment_count=1)
    with pytest.raises(NotFound):  # the page was not shown yet
        await lane.ask(lane_pb2.LANE_READ, read)
    with pytest.raises(Refused):  # another page than the layout names
        await lane.ask(lane_pb2.LANE_PRESENT_PAGE, lane_pb2.PresentPageRequest(handle=handle), b"\x01" + bytes(36))
    await lane.ask(lane_pb2.LANE_PRESENT_PAGE, lane_pb2.PresentPageRequest(handle=handle), uploaded.pages[0])
    await lane.ask(lane_pb2.LANE_READ, read)

    other = seal_chunk(derive_chunk_key(SECRET, b"another file"), b"another file")
    await node.store.put(other.id, other.sealed)
    answers = []
    for guessed in (other.id, os.urandom(32)):
        with pytest.raises(NotFound) as absent:
            await lane.ask(lane_pb2.LANE_READ, lane_pb2.ReadRequest(handle=handle, chunk_id=guessed, segment_count=1))
        answers.append(absent.value.message)
    assert answers[0] == answers[1], "absent and forbidden are answered alike"

    with pytest.raises(Refused):  # a read ticket writes nothing
        await lane.ask(lane_pb2.LANE_WRITE, lane_pb2.WriteRequest(handle=handle, chunk_id=other.id), b"x")
    for method in (lane_pb2.LANE_NODE_STATUS, lane_pb2.LANE_PUSH, lane_pb2.LANE_HEADS, lane_pb2.LANE_KEEP_HEAD):
        with pytest.raises(Refused):  # for the node's own coordinator alone
            await lane.ask(method, lane_pb2.NodeStatusRequest())
    with pytest.raises(Refused):
        await lane.ask(lane_pb2.LANE_HAS, lane_pb2.HasRequest(chunk_ids=[chunk[0]]))

    node.policy.policy_epoch = 2  # the coordinator raised its policy: what was shown before is void
    with pytest.raises(Refused, match="ended"):
        await lane.ask(lane_pb2.LANE_READ, read)
    await raw.close()


async def test_a_chunk_that_is_not_its_id_is_refused(world: World) -> None:
    """Poison is noticed on arrival."""
    node = await world.node("alice")
    signed, _ = node.office.upload("carol.media.collective", STORE_ID, 1 << 20)
    raw = await world.parts.dial_as(world.client, FederatedAddress("node-01", node.domain), f"127.0.0.1:{node.port}")
    lane = Lane(raw)
    handle = await lane.present(signed)
    with pytest.raises(CollectiveError, match="not the ones its id names"):
        await lane.ask(lane_pb2.LANE_WRITE, lane_pb2.WriteRequest(handle=handle, chunk_id=bytes(32)), b"poison" * 10)
    assert node.store.status().chunk_count == 0
    await raw.close()


async def test_push_from_node_to_node(world: World) -> None:
    """A node sends what the other lacks, on its coordinator's word."""
    alice, bob = await world.node("alice"), await world.node("bob")
    content = os.urandom(3 * CHUNK)
    await world.put(alice, content)
    ids = []
    at = alice.store.chunk_after(b"")
    while at is not None:
        ids.append(at[0])
        at = alice.store.chunk_after(at[0])
    signed, _ = bob.office.upload("alice.media.collective", STORE_ID, 1 << 30)
    coordinator = world.parts.credentials("alice", "coord", ComponentKind.COORDINATOR)
    raw = await world.parts.dial_as(coordinator, FederatedAddress("node-01", alice.domain), f"127.0.0.1:{alice.port}")
    lane = Lane(raw)
    request = lane_pb2.PushRequest(
        lane_addresses=bob.location.lane_addresses, node_address=bob.location.address, signed_ticket=signed,
        chunk_ids=ids,
    )  # fmt: skip
    first = lane_pb2.PushReply.FromString(await lane.ask(lane_pb2.LANE_PUSH, request))
    again = lane_pb2.PushReply.FromString(await lane.ask(lane_pb2.LANE_PUSH, request))
    assert first.pushed_bytes == sum(bob.store.size_of(id_) for id_ in ids)
    assert (again.pushed_bytes, again.already_there) == (0, len(ids))
    await raw.close()
