"""Nodes, readers and certificates in one process: the path of a byte without coordinators."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from collective.catalog import VersionReference, key_name_of
from collective.chunks import ChunkStore
from collective.core.address import FederatedAddress
from collective.core.errors import Unreachable
from collective.core.observe import SILENT
from collective.daemon.loopwatch import LoopWatch
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
from collective.transfer.serve_node import NodeDesk, node_handlers
from collective.transfer.shown import NodePolicy
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

        self.desk = NodeDesk(
            self.store, self.policy, CLOCK, SILENT, dial, str(self.folder), LoopWatch(CLOCK, SILENT).told
        )
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

    def partial_holders(self, store_id: bytes, version_id: bytes) -> list[str]:
        return []

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

    async def read_segments(
        self, holder: str, request: control_pb2.ReadSegmentsRequest, into: memoryview
    ) -> tuple[int, int]:
        raise Unreachable("not asked in these tests")

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


async def copy(world: World, source: RunningNode, target: RunningNode) -> None:
    """Every chunk of one disk onto another."""
    at = source.store.chunk_after(b"")
    while at is not None:
        id_, size = at
        sealed = memoryview(bytearray(size))
        source.store.read_segments(id_, 0, -(-size // 65_552), sealed)
        await target.store.put(id_, sealed)
        at = source.store.chunk_after(id_)
