"""The path of a byte: into sealed chunks on a node, and back from whoever holds them; tickets, failover, hostility."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from collective.catalog import VersionReference, key_name_of
from collective.chunks import ChunkStore, derive_chunk_key, seal_chunk
from collective.core.address import FederatedAddress
from collective.core.clock import ManualClock
from collective.core.errors import CollectiveError, Conflict, Full, NotFound, Refused, Unreachable
from collective.core.observe import SILENT
from collective.daemon.runtime import SystemClock
from collective.identity import (
    ComponentKind,
    Credentials,
    MemberAuthority,
    RootAuthority,
    TrustStore,
    generate_leaf_key,
    generate_signing_key,
)
from collective.net.endpoints import parse_host_port
from collective.net.lane import LaneConnection, LaneServer, connect_lane
from collective.transfer.fetch import Fetcher
from collective.transfer.nodes import TicketOffice
from collective.transfer.push import Uploaded, UploadPlan, upload
from collective.transfer.serve_node import NodeDesk, NodePolicy, node_handlers
from collective.wire import control_pb2, feed_pb2, lane_pb2

STORE_ID, SECRET, STORE_KEY = b"s" * 32, b"x" * 32, b"k" * 32
CHUNK = 1 << 20
CLOCK = SystemClock()
FOREVER = 3600.0


class Parts:
    """A federation of certificates: members' credentials by name, made when first asked for."""

    def __init__(self) -> None:
        self.now = CLOCK.wall()
        self.root = RootAuthority.create("media.collective", self.now)
        self.trust = TrustStore(self.root.certificate, "alice.media.collective")
        self._authorities: dict[str, MemberAuthority] = {}

    def credentials(self, member: str, name: str, kind: ComponentKind) -> Credentials:
        domain = f"{member}.media.collective"
        if member not in self._authorities:
            key, request = MemberAuthority.create_request(domain)
            ca = self.root.sign_member(domain, request, self.now)
            self._authorities[member] = MemberAuthority(ca, key, self.root.certificate)
            self.trust.add_member(ca)
        authority = self._authorities[member]
        leaf = generate_leaf_key()
        certificate = authority.issue(kind, name, leaf.public_key(), self.now)
        return Credentials(certificate, leaf, authority.certificate, self.root.certificate)

    async def dial_as(self, credentials: Credentials, address: FederatedAddress, place: str) -> LaneConnection:
        host, port = parse_host_port(place)
        return await connect_lane(host, port, credentials=credentials, trust=self.trust, clock=CLOCK, expected=address)


@dataclass
class RunningNode:
    """One member's node on loopback, with the office that signs its tickets."""

    parts: Parts
    member: str
    folder: Path
    office: TicketOffice = field(init=False)

    async def start(self) -> None:
        signing = generate_signing_key()
        self.domain = f"{self.member}.media.collective"
        self.office = TicketOffice(self.domain, signing, CLOCK)
        self.policy = NodePolicy(self.domain)
        self.policy.update(signing.public_key(), 1)
        self.store = ChunkStore.open(self.folder, capacity_bytes=1 << 30)
        credentials = self.parts.credentials(self.member, "node-01", ComponentKind.NODE)

        async def dial(address: FederatedAddress, place: str) -> LaneConnection:
            return await self.parts.dial_as(credentials, address, place)

        self.desk = NodeDesk(self.store, self.policy, CLOCK, SILENT, dial, str(self.folder))
        self.server = LaneServer(credentials, self.parts.trust, node_handlers(self.desk), clock=CLOCK)
        self.port = await self.server.start("127.0.0.1", 0)

    @property
    def location(self) -> control_pb2.NodeLocation:
        return control_pb2.NodeLocation(address=f"node-01@{self.domain}", lane_addresses=[f"127.0.0.1:{self.port}"])

    async def stop(self) -> None:
        await self.server.stop()
        await self.store.close()


class World:
    """Nodes of alice and bob, a reader's home that knows one version and who holds it."""

    def __init__(self, parts: Parts, folder: Path) -> None:
        self.parts = parts
        self.folder = folder
        self.nodes: dict[str, RunningNode] = {}
        self.silent: set[str] = set()
        self.uploaded: Uploaded | None = None
        self.client = parts.credentials("carol", "client", ComponentKind.CLIENT)

    async def node(self, member: str) -> RunningNode:
        node = self.nodes[member] = RunningNode(self.parts, member, self.folder / member)
        await node.start()
        return node

    async def put(self, node: RunningNode, content: bytes, limit: int = 1 << 30) -> Uploaded:
        source = self.folder / "source"
        source.write_bytes(content)
        owner = self.parts.credentials(node.member, "client", ComponentKind.CLIENT)
        signed, _ = node.office.upload(node.domain, STORE_ID, limit)
        plan = UploadPlan(STORE_ID, SECRET, STORE_KEY, CHUNK, signed, [node.location])

        async def dial(address: FederatedAddress, place: str) -> LaneConnection:
            return await self.parts.dial_as(owner, address, place)

        self.uploaded = await upload(source, plan, dial)
        return self.uploaded

    # what the fetcher asks of a catalogue and of coordinators

    def store_key(self, name: bytes) -> bytes | None:
        return STORE_KEY if name == key_name_of(STORE_KEY) else None

    def layout(self, store_id: bytes, version_id: bytes) -> feed_pb2.Layout:
        assert self.uploaded is not None
        return self.uploaded.layout

    def holders(self, store_id: bytes, version_id: bytes) -> list[str]:
        return [node.domain for node in self.nodes.values()]

    def page(self, name: bytes) -> bytes | None:
        return None

    async def open(self, holder: str, store_id: bytes, version_id: bytes) -> control_pb2.OpenVersionReply:
        node = self.nodes[holder.split(".")[0]]
        if node.member in self.silent:
            await asyncio.sleep(FOREVER)
        assert self.uploaded is not None
        signed, expires = node.office.read("carol.media.collective", self.uploaded.layout.layout_hash)
        return control_pb2.OpenVersionReply(
            layout=self.uploaded.layout, pages=self.uploaded.pages, key_pages=self.uploaded.key_pages,
            signed_ticket=signed, nodes=[node.location], expires_milliseconds=expires,
        )  # fmt: skip

    async def fetch_pages(self, holder: str, store_id: bytes, version_id: bytes, names: list[bytes]) -> list[bytes]:
        raise Unreachable("not asked in these tests")

    def fetcher(self) -> Fetcher:
        async def dial(address: FederatedAddress, place: str) -> LaneConnection:
            return await self.parts.dial_as(self.client, address, place)

        return Fetcher(self, self, dial, "carol.media.collective", CLOCK, SILENT)  # type: ignore[arg-type]

    def reference(self) -> VersionReference:
        assert self.uploaded is not None
        layout = self.uploaded.layout
        return VersionReference(
            STORE_ID, layout.version_id, layout.size_bytes, tuple(layout.key_pages), key_name_of(STORE_KEY)
        )

    async def read_all(self, fetcher: Fetcher) -> bytes:
        source = await fetcher.open(self.reference())
        whole = bytearray()
        for index in range(source.layout.chunk_count):
            out = memoryview(bytearray(source.layout.chunk_size(index)))
            await source.fill(index, 0, -(-len(out) // 65_536), out)
            whole += out
        await source.close()
        return bytes(whole)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(Parts(), tmp_path)
    yield made
    for node in made.nodes.values():
        await node.stop()


async def copy(world: World, source: RunningNode, target: RunningNode) -> None:
    """Every chunk of one disk onto another."""
    at = source.store.chunk_after(b"")
    while at is not None:
        id_, size = at
        sealed = memoryview(bytearray(size))
        source.store.read_segments(id_, 0, -(-size // 65_552), sealed)
        await target.store.put(id_, sealed)
        at = source.store.chunk_after(id_)


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
    """With a second copy the right bytes come; without, an error that names the holder."""
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
    with pytest.raises(Unreachable, match=r"alice\.media\.collective"):
        await world.read_all(fetcher)
    bob = await world.node("bob")
    await world.put(bob, content)
    assert await world.read_all(fetcher) == content
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


class Lane:
    """One caller's lane to a node, with short words for its calls."""

    def __init__(self, lane: LaneConnection) -> None:
        self.lane = lane

    async def ask(self, method: int, request: object, body: bytes = b"") -> bytes:
        reply = await self.lane.call(method, request.SerializeToString(), body, timeout_seconds=10)  # type: ignore[attr-defined]
        return reply.head

    async def present(self, signed: bytes, layout: feed_pb2.Layout | None = None) -> int:
        request = lane_pb2.PresentRequest(signed_ticket=signed)
        if layout is not None:
            request.size_bytes, request.chunk_size_bytes = layout.size_bytes, layout.chunk_size_bytes
            request.coding_k, request.coding_m = layout.coding.k, layout.coding.m
            request.pages.extend(layout.pages)
        return lane_pb2.PresentReply.FromString(await self.ask(lane_pb2.LANE_PRESENT, request)).handle


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
