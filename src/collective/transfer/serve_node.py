"""What a storage node answers on its lane. It knows nothing of names and grants: it honours its coordinator's tickets.

A caller shows a ticket and gets a handle for its connection. A read ticket names one layout; the caller shows what the
layout's hash covers, then its public pages, and may read the chunks they list, nothing else: absent and forbidden are
answered alike. An upload ticket opens writing up to its limit. Handles die with the ticket's end, with a raised policy
epoch, and with the connection.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from typing_extensions import Buffer

from collective.chunks import ChunkStore, compute_layout_hash, page_name
from collective.core.address import FederatedAddress, parse_address
from collective.core.clock import Clock
from collective.core.errors import CollectiveError, Full, NotFound, Refused, Unreachable
from collective.core.layout import SEALED_SEGMENT_BYTES, decode_page, sealed_size
from collective.core.observe import Observer
from collective.identity import ComponentKind, verify_ticket
from collective.net.lane import LaneCaller, LaneConnection, LaneHandler
from collective.wire import feed_pb2, lane_pb2, ticket_pb2

__all__ = ["NodeDesk", "NodePolicy", "node_handlers"]

HANDLES_PER_CONNECTION = 1024
LAYOUT_LAYOUTS_KEPT = 64  # presented layouts remembered for other connections of the same member
PUSHES_AT_ONCE = 4  # chunks on the way to another node: 32 MiB
PUSH_CHUNK_TIMEOUT_SECONDS = 120.0
Dial = Callable[[FederatedAddress, str], Awaitable[LaneConnection]]


@dataclass
class NodePolicy:
    """What the node's own coordinator told it: the key its tickets are signed with, and the policy epoch."""

    member_domain: str
    signing_key: Ed25519PublicKey | None = None
    policy_epoch: int = 0

    def update(self, signing_key: Ed25519PublicKey, policy_epoch: int) -> None:
        """Take the coordinator's word; epochs only rise."""
        self.signing_key = signing_key
        self.policy_epoch = max(self.policy_epoch, policy_epoch)

    def verify(self, signed: bytes, bearer: str, now: float) -> ticket_pb2.Ticket:
        """Raises: Refused, Unreachable (the coordinator has not been heard yet)."""
        if self.signing_key is None:
            raise Unreachable("this node has not heard from its coordinator yet", "try again in a moment")
        return verify_ticket(
            signed,
            signing_public_key=self.signing_key,
            issuer=self.member_domain,
            bearer=bearer,
            policy_epoch=self.policy_epoch,
            now=now,
        )


@dataclass
class _Handle:
    """One ticket shown on one connection. `chunks`: id -> sealed size, of the pages shown."""

    ticket: ticket_pb2.Ticket
    pages: list[bytes] = field(default_factory=list)
    chunks: dict[bytes, int] = field(default_factory=dict)


@dataclass
class NodeDesk:
    """The node's state beside its disk: counters, uploads under way."""

    store: ChunkStore
    policy: NodePolicy
    clock: Clock
    observer: Observer
    dial: Dial
    storage_path: str
    served_bytes: int = 0
    received_bytes: int = 0
    _written: OrderedDict[bytes, int] = field(default_factory=OrderedDict)  # upload id -> sealed bytes taken
    _layouts: OrderedDict[tuple[str, bytes], dict[bytes, int]] = field(default_factory=OrderedDict)

    # ------------------------------------------------------------ tickets

    async def present(self, caller: LaneCaller, head: bytes, body: memoryview) -> tuple[bytes, Sequence[Buffer]]:
        request = lane_pb2.PresentRequest.FromString(head)
        ticket = self.policy.verify(request.signed_ticket, caller.peer.member_domain, self.clock.wall())
        handle = _Handle(ticket)
        if ticket.HasField("read"):
            layout = feed_pb2.Layout(
                size_bytes=request.size_bytes,
                chunk_size_bytes=request.chunk_size_bytes,
                coding=feed_pb2.Coding(k=request.coding_k, m=request.coding_m),
                pages=request.pages,
            )
            if compute_layout_hash(layout) != ticket.read.layout_hash:
                raise Refused("the ticket is for another layout")
            handle.pages = list(request.pages)
            handle.chunks = self._chunks_of(caller.peer.member_domain, ticket.read.layout_hash)
        handles: dict[int, _Handle] = caller.state.setdefault("handles", {})
        numbers = caller.state.setdefault("numbers", itertools.count(1))
        if len(handles) >= HANDLES_PER_CONNECTION:
            del handles[next(iter(handles))]
        number = next(numbers)
        handles[number] = handle
        return lane_pb2.PresentReply(handle=number).SerializeToString(), ()

    def _chunks_of(self, member: str, layout_hash: bytes) -> dict[bytes, int]:
        """The chunks that this member has shown pages of, shared by its connections, bounded."""
        key = (member, layout_hash)
        chunks = self._layouts.pop(key, {})
        self._layouts[key] = chunks
        while len(self._layouts) > LAYOUT_LAYOUTS_KEPT:
            self._layouts.popitem(last=False)
        return chunks

    async def present_page(self, caller: LaneCaller, head: bytes, body: memoryview) -> tuple[bytes, Sequence[Buffer]]:
        request = lane_pb2.PresentPageRequest.FromString(head)
        handle = self._handle(caller, request.handle, "read")
        page = bytes(body)
        if request.page_index >= len(handle.pages) or page_name(page) != handle.pages[request.page_index]:
            raise Refused("the page is not the one the layout names")
        for chunk in decode_page(page):
            if chunk.id is not None:
                handle.chunks[chunk.id] = sealed_size(chunk.size_bytes)
        return lane_pb2.PresentPageReply().SerializeToString(), ()

    def _handle(self, caller: LaneCaller, number: int, scope: str) -> _Handle:
        """A handle that still counts. Raises: Refused."""
        handle: _Handle | None = caller.state.get("handles", {}).get(number)
        if handle is None or handle.ticket.WhichOneof("scope") != scope:
            raise Refused(f"there is no {scope} ticket under that handle", "show a ticket first")
        ticket = handle.ticket
        if ticket.expires_milliseconds <= self.clock.wall() * 1000 or ticket.policy_epoch < self.policy.policy_epoch:
            del caller.state["handles"][number]
            raise Refused("the ticket has ended", "ask the coordinator for a new one")
        return handle

    # ------------------------------------------------------------ bytes

    async def read(self, caller: LaneCaller, head: bytes, body: memoryview) -> tuple[bytes, Sequence[Buffer]]:
        request = lane_pb2.ReadRequest.FromString(head)
        size = self._handle(caller, request.handle, "read").chunks.get(request.chunk_id)
        if size is None or not self.store.has(request.chunk_id) or self.store.size_of(request.chunk_id) != size:
            raise NotFound("no such chunk under this ticket")
        whole = -(-size // SEALED_SEGMENT_BYTES)
        count = min(request.segment_count, whole - request.first_segment)
        if count <= 0:
            raise NotFound("no such segment in the chunk")
        length = min(count * SEALED_SEGMENT_BYTES, size - request.first_segment * SEALED_SEGMENT_BYTES)
        out = memoryview(bytearray(length))
        hashes = self.store.read_hashes(request.chunk_id) if request.with_hashes else b""
        # the hop to a thread costs a tenth of a read: only what must wait for the disk takes it
        if not self.store.read_cached(request.chunk_id, request.first_segment, count, out):
            await asyncio.to_thread(self.store.read_segments, request.chunk_id, request.first_segment, count, out)
        self.served_bytes += length
        reply = lane_pb2.ReadReply(hash_bytes=len(hashes), sealed_size_bytes=size)
        return reply.SerializeToString(), (hashes, out)

    async def write(self, caller: LaneCaller, head: bytes, body: memoryview) -> tuple[bytes, Sequence[Buffer]]:
        request = lane_pb2.WriteRequest.FromString(head)
        scope = self._handle(caller, request.handle, "upload").ticket.upload
        taken = self._written.get(scope.upload_id, 0)
        if self.store.has(request.chunk_id):
            return lane_pb2.WriteReply(already_there=True).SerializeToString(), ()
        if taken + len(body) > scope.byte_limit:
            raise Full(f"the upload's limit of {scope.byte_limit} bytes is used up", "begin a new upload")
        self._written[scope.upload_id] = taken + len(body)
        while len(self._written) > HANDLES_PER_CONNECTION:
            self._written.popitem(last=False)
        try:
            there = await self.store.put(request.chunk_id, body)
        except BaseException:
            self._written[scope.upload_id] = self._written.get(scope.upload_id, 0) - len(body)
            raise
        self.received_bytes += len(body)
        return lane_pb2.WriteReply(already_there=there).SerializeToString(), ()

    async def has(self, caller: LaneCaller, head: bytes, body: memoryview) -> tuple[bytes, Sequence[Buffer]]:
        """Which chunks are here: for the own coordinator, or for whoever may upload (whose bytes they would be)."""
        request = lane_pb2.HasRequest.FromString(head)
        if request.handle:
            self._handle(caller, request.handle, "upload")
        else:
            self._own_coordinator(caller)
        present = []
        sizes: list[int | None] = list(request.sealed_sizes) or [None] * len(request.chunk_ids)
        for id_, size in zip(request.chunk_ids, sizes, strict=True):
            present.append(len(id_) == 32 and self.store.has(id_) and size in (None, self.store.size_of(id_)))
        return lane_pb2.HasReply(present=present).SerializeToString(), ()

    # ------------------------------------------------------------ own coordinator

    def _own_coordinator(self, caller: LaneCaller) -> None:
        peer = caller.peer
        if peer.kind is not ComponentKind.COORDINATOR or peer.member_domain != self.policy.member_domain:
            raise Refused(f"{peer.address} is not this node's coordinator")

    async def push(self, caller: LaneCaller, head: bytes, body: memoryview) -> tuple[bytes, Sequence[Buffer]]:
        """Send chunks from this disk to another member's node; what is there already is left out."""
        self._own_coordinator(caller)
        request = lane_pb2.PushRequest.FromString(head)
        lane = await self._dial_first(parse_address(request.node_address), list(request.lane_addresses))
        try:
            shown = lane_pb2.PresentRequest(signed_ticket=request.signed_ticket).SerializeToString()
            reply = await lane.call(lane_pb2.LANE_PRESENT, shown, timeout_seconds=10)
            handle = lane_pb2.PresentReply.FromString(reply.head).handle
            return await self._push_all(lane, handle, list(request.chunk_ids))
        finally:
            await lane.close()

    async def _push_all(
        self, lane: LaneConnection, handle: int, chunk_ids: list[bytes]
    ) -> tuple[bytes, Sequence[Buffer]]:
        asked = lane_pb2.HasRequest(
            handle=handle, chunk_ids=chunk_ids, sealed_sizes=[self.store.size_of(id_) for id_ in chunk_ids]
        )
        told = await lane.call(lane_pb2.LANE_HAS, asked.SerializeToString(), timeout_seconds=30)
        present = lane_pb2.HasReply.FromString(told.head).present
        missing = [id_ for id_, there in zip(chunk_ids, present, strict=True) if not there]
        gate = asyncio.Semaphore(PUSHES_AT_ONCE)

        async def send(id_: bytes) -> int:
            async with gate:
                size = self.store.size_of(id_)
                sealed = memoryview(bytearray(size))
                await asyncio.to_thread(self.store.read_segments, id_, 0, -(-size // SEALED_SEGMENT_BYTES), sealed)
                write = lane_pb2.WriteRequest(handle=handle, chunk_id=id_).SerializeToString()
                await lane.call(lane_pb2.LANE_WRITE, write, sealed, timeout_seconds=PUSH_CHUNK_TIMEOUT_SECONDS)
                return size

        tasks = [asyncio.create_task(send(id_)) for id_ in missing]
        try:
            sizes = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        reply = lane_pb2.PushReply(pushed_bytes=sum(sizes), already_there=len(chunk_ids) - len(missing))
        return reply.SerializeToString(), ()

    async def _dial_first(self, address: FederatedAddress, lane_addresses: list[str]) -> LaneConnection:
        last: CollectiveError = Unreachable(f"{address} told no lane address")
        for lane_address in lane_addresses:
            try:
                return await self.dial(address, lane_address)
            except CollectiveError as error:
                last = error
        raise last

    async def status(self, caller: LaneCaller, head: bytes, body: memoryview) -> tuple[bytes, Sequence[Buffer]]:
        self._own_coordinator(caller)
        status = self.store.status()
        reply = lane_pb2.NodeStatusReply(
            capacity_bytes=status.capacity_bytes,
            used_bytes=status.used_bytes,
            free_bytes=status.free_bytes,
            chunk_count=status.chunk_count,
            quarantined_count=status.quarantined_count,
            served_bytes=self.served_bytes,
            received_bytes=self.received_bytes,
            storage_path=self.storage_path,
        )
        return reply.SerializeToString(), ()

    async def keep_head(self, caller: LaneCaller, head: bytes, body: memoryview) -> tuple[bytes, Sequence[Buffer]]:
        self._own_coordinator(caller)
        request = lane_pb2.KeepHeadRequest.FromString(head)
        if len(request.feed_id) != 32:
            raise Refused("a feed id has 32 bytes")
        await asyncio.to_thread(self.store.keep_head, request.feed_id, request.head)
        return lane_pb2.KeepHeadReply().SerializeToString(), ()

    async def heads(self, caller: LaneCaller, head: bytes, body: memoryview) -> tuple[bytes, Sequence[Buffer]]:
        self._own_coordinator(caller)
        heads = await asyncio.to_thread(self.store.heads)
        rows = [
            feed_pb2.FeedHead(feed_id=feed_id, head=feed_pb2.Position.FromString(kept)).SerializeToString()
            for feed_id, kept in heads.items()
        ]
        return lane_pb2.HeadsReply(heads=rows).SerializeToString(), ()


def node_handlers(desk: NodeDesk) -> Mapping[int, LaneHandler]:
    """The lane calls that a node answers."""
    return {
        lane_pb2.LANE_PRESENT: desk.present,
        lane_pb2.LANE_PRESENT_PAGE: desk.present_page,
        lane_pb2.LANE_READ: desk.read,
        lane_pb2.LANE_WRITE: desk.write,
        lane_pb2.LANE_HAS: desk.has,
        lane_pb2.LANE_PUSH: desk.push,
        lane_pb2.LANE_NODE_STATUS: desk.status,
        lane_pb2.LANE_KEEP_HEAD: desk.keep_head,
        lane_pb2.LANE_HEADS: desk.heads,
    }
