"""What a storage node answers on its lane. It knows nothing of names and grants: it honours its coordinator's tickets.

What a read ticket opens is judged in *shown*; an upload ticket opens writing up to its limit. The node's own
coordinator reads without a ticket, to pass ranges on to those who cannot reach the node (*relay*).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError
from typing_extensions import Buffer

from collective.chunks import ChunkStore, room_for
from collective.core.address import FederatedAddress, parse_address
from collective.core.clock import Clock
from collective.core.errors import CollectiveError, Full, Refused, Unreachable
from collective.core.layout import SEALED_SEGMENT_BYTES
from collective.core.memory import fresh_buffer
from collective.core.observe import Observer
from collective.identity import ComponentKind
from collective.net.lane import LaneCaller, LaneConnection, LaneHandler
from collective.transfer.shown import NodePolicy, ShownTickets, no_such_chunk, segment_run
from collective.wire import feed_pb2, lane_pb2

__all__ = ["NodeDesk", "node_handlers"]

UPLOADS_KEPT = 1024  # whose bytes are counted; older ones have ended with their tickets
MISSING_TOLD = 1024  # ids of 32 bytes: half a lane head
PUSHES_AT_ONCE = 4  # chunks on the way to another node: 32 MiB
PUSH_CHUNK_TIMEOUT_SECONDS = 120.0
Dial = Callable[[FederatedAddress, str], Awaitable[LaneConnection]]


@dataclass
class NodeDesk:
    """The node's state beside its disk: counters, uploads under way."""

    store: ChunkStore
    policy: NodePolicy
    clock: Clock
    observer: Observer
    dial: Dial
    storage_path: str
    loop: Callable[[], lane_pb2.LoopHolds]
    served_bytes: int = 0
    received_bytes: int = 0
    _written: OrderedDict[bytes, int] = field(default_factory=OrderedDict)  # upload id -> sealed bytes taken

    def __post_init__(self) -> None:
        self._heads_gate = asyncio.Lock()
        self.shown = ShownTickets(self.policy, self.clock)

    # ------------------------------------------------------------ bytes

    async def read(self, caller: LaneCaller, head: bytes, body: memoryview) -> tuple[bytes, Sequence[Buffer]]:
        request = lane_pb2.ReadRequest.FromString(head)
        size = self._opened_size(caller, request)
        count, length = segment_run(size, request.first_segment, request.segment_count)
        if request.check:
            await asyncio.to_thread(self.store.check, request.chunk_id)
        memory = await caller.memory(room_for(length))
        hashes = self.store.read_hashes(request.chunk_id) if request.with_hashes else b""
        # the hop to a thread costs a tenth of a read: only what must wait for the disk takes it
        run = request.chunk_id, request.first_segment, count, memory
        out = self.store.read_cached(*run)
        if out is None:
            out = await asyncio.to_thread(self.store.read_segments, *run)
        self.served_bytes += length
        reply = lane_pb2.ReadReply(hash_bytes=len(hashes), sealed_size_bytes=size)
        return reply.SerializeToString(), (hashes, out)

    def _opened_size(self, caller: LaneCaller, request: lane_pb2.ReadRequest) -> int:
        """The sealed size of a chunk that is here and that the caller may read. Raises: NotFound, Refused."""
        if request.handle:
            size = self.shown.chunk_size(caller, request.handle, request.chunk_id)
            if not self.store.has(request.chunk_id) or self.store.size_of(request.chunk_id) != size:
                raise no_such_chunk()
            return size
        self._own_coordinator(caller)
        return self.store.size_of(request.chunk_id)

    async def write(self, caller: LaneCaller, head: bytes, body: memoryview) -> tuple[bytes, Sequence[Buffer]]:
        request = lane_pb2.WriteRequest.FromString(head)
        scope = self.shown.upload_scope(caller, request.handle)
        taken = self._written.get(scope.upload_id, 0)
        if self.store.has(request.chunk_id):
            return lane_pb2.WriteReply(already_there=True).SerializeToString(), ()
        if taken + len(body) > scope.byte_limit:
            raise Full(f"the upload's limit of {scope.byte_limit} bytes is used up", "begin a new upload")
        self._written[scope.upload_id] = taken + len(body)
        while len(self._written) > UPLOADS_KEPT:
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
            self.shown.upload_scope(caller, request.handle)
        else:
            self._own_coordinator(caller)
        if request.sealed_sizes and len(request.sealed_sizes) != len(request.chunk_ids):
            raise Refused("there are not as many sizes as chunks")
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
                memory = memoryview(fresh_buffer(room_for(size)))
                count = -(-size // SEALED_SEGMENT_BYTES)
                sealed = await asyncio.to_thread(self.store.read_segments, id_, 0, count, memory)
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
        request = lane_pb2.NodeStatusRequest.FromString(head)
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
            missing_chunks=self.store.missing(request.missing_after, MISSING_TOLD),
            loop=self.loop(),
        )
        return reply.SerializeToString(), ()

    async def keep_head(self, caller: LaneCaller, head: bytes, body: memoryview) -> tuple[bytes, Sequence[Buffer]]:
        self._own_coordinator(caller)
        request = lane_pb2.KeepHeadRequest.FromString(head)
        if len(request.feed_id) != 32:
            raise Refused("a feed id has 32 bytes")
        position = feed_pb2.Position.FromString(request.head)
        async with self._heads_gate:
            kept = _position((await asyncio.to_thread(self.store.heads)).get(request.feed_id, b""))
            # never back: an older head may have been overtaken on the way, or be signed over a database put back
            if (position.epoch_number, position.seq) > (kept.epoch_number, kept.seq):
                await asyncio.to_thread(self.store.keep_head, request.feed_id, request.head)
        return lane_pb2.KeepHeadReply().SerializeToString(), ()

    async def heads(self, caller: LaneCaller, head: bytes, body: memoryview) -> tuple[bytes, Sequence[Buffer]]:
        self._own_coordinator(caller)
        heads = await asyncio.to_thread(self.store.heads)
        rows = [
            feed_pb2.FeedHead(feed_id=feed_id, head=_position(kept)).SerializeToString()
            for feed_id, kept in heads.items()
        ]
        return lane_pb2.HeadsReply(heads=rows).SerializeToString(), ()


def _position(kept: bytes) -> feed_pb2.Position:
    """A head as it lies on the disk; one that is broken counts as none, so that it is renewed."""
    try:
        return feed_pb2.Position.FromString(kept)
    except DecodeError:
        return feed_pb2.Position()


def node_handlers(desk: NodeDesk) -> Mapping[int, LaneHandler]:
    """The lane calls that a node answers."""
    return {
        lane_pb2.LANE_PRESENT: desk.shown.present,
        lane_pb2.LANE_PRESENT_PAGE: desk.shown.present_page,
        lane_pb2.LANE_READ: desk.read,
        lane_pb2.LANE_WRITE: desk.write,
        lane_pb2.LANE_HAS: desk.has,
        lane_pb2.LANE_PUSH: desk.push,
        lane_pb2.LANE_NODE_STATUS: desk.status,
        lane_pb2.LANE_KEEP_HEAD: desk.keep_head,
        lane_pb2.LANE_HEADS: desk.heads,
    }
