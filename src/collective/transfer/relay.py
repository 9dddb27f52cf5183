"""A coordinator in the place of its nodes: sealed ranges for readers who cannot dial the nodes themselves.

    reader --PRESENT, PRESENT_PAGE, READ--> coordinator's lane --READ without a handle--> own node
    reader --ReadSegments (gRPC stream)---> coordinator        --READ without a handle--> own node

The caller's certificate and ticket are judged here exactly as the node would (*shown*); the node answers its own
coordinator. What passes is sealed, is checked by the reader against the chunk's id, and is not kept. Memory: a
member's callers together have `RANGES_PER_MEMBER` ranges of up to 8 MiB on the way, each lane connection what its
window lets wait, each stream one part of 1 MiB.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

from typing_extensions import Buffer

from collective.core.clock import Clock
from collective.core.errors import CollectiveError, Corrupt, NotFound, Refused, Unreachable
from collective.identity import ComponentKind, Level
from collective.net.lane import LaneCaller, LaneHandler, LaneReply
from collective.net.rpc import Caller, Row
from collective.transfer.holders import LanePool
from collective.transfer.nodes import NodeDirectory
from collective.transfer.shown import NodePolicy, ShownTickets, chunks_listed, no_such_chunk, segment_run
from collective.wire import control_pb2, lane_pb2

__all__ = ["RelayDesk", "relay_handlers", "relay_rows"]

RANGES_PER_MEMBER = 8
PART_SEGMENTS = 15  # whole segments in one message of the stream: just under 1 MiB
HASHES_BYTES = 128 * 32  # the longest hash list, of a chunk of 8 MiB
NODE_TIMEOUT_SECONDS = 10.0
READERS = frozenset({ComponentKind.COORDINATOR, ComponentKind.CLIENT})


@dataclass
class RelayDesk:
    """Passes ranges on. `policy` holds this coordinator's own key and epoch; `lanes` lead to its own nodes."""

    nodes: NodeDirectory
    lanes: LanePool
    policy: NodePolicy
    clock: Clock
    relayed_bytes: int = 0
    _gates: dict[str, asyncio.Semaphore] = field(
        default_factory=lambda: defaultdict(lambda: asyncio.Semaphore(RANGES_PER_MEMBER))
    )
    _turn: int = 0

    def __post_init__(self) -> None:
        self.shown = ShownTickets(self.policy, self.clock)

    async def read(self, caller: LaneCaller, head: bytes, body: memoryview) -> tuple[bytes, Sequence[Buffer]]:
        """LANE_READ, as a node answers it."""
        request = lane_pb2.ReadRequest.FromString(head)
        size = self.shown.chunk_size(caller, request.handle, request.chunk_id)
        _, length = segment_run(size, request.first_segment, request.segment_count)
        # before the gate: a connection that takes nothing holds up itself alone
        buffer = await caller.memory(_answer_bytes(request, length))
        async with self._gates[caller.peer.member_domain]:
            reply = await self._from_nodes(request, size, length, buffer)
        told = lane_pb2.ReadReply.FromString(reply.head)
        return told.SerializeToString(), (reply.body,)

    async def read_segments(
        self, caller: Caller, request: control_pb2.ReadSegmentsRequest
    ) -> AsyncIterator[control_pb2.ReadSegmentsReply]:
        """The same over gRPC, in parts, so that no call holds more than one."""
        if caller.identity is None:
            raise Refused("this call is for other components, not for the local socket")
        member = caller.identity.member_domain
        self.policy.verify_read(request.signed_ticket, member, self.clock.wall(), request.layout)
        size = chunks_listed(request.layout.pages, request.page_index, request.page).get(request.chunk_id)
        if size is None:
            raise no_such_chunk()
        count, _ = segment_run(size, request.first_segment, request.segment_count)
        async with self._gates[member]:
            for start in range(0, count, PART_SEGMENTS):
                part = lane_pb2.ReadRequest(
                    chunk_id=request.chunk_id,
                    first_segment=request.first_segment + start,
                    segment_count=min(PART_SEGMENTS, count - start),
                    with_hashes=request.with_hashes and not start,
                )
                _, length = segment_run(size, part.first_segment, part.segment_count)
                buffer = memoryview(bytearray(_answer_bytes(part, length)))
                reply = await self._from_nodes(part, size, length, buffer)
                hash_bytes = lane_pb2.ReadReply.FromString(reply.head).hash_bytes
                yield control_pb2.ReadSegmentsReply(
                    hashes=bytes(reply.body[:hash_bytes]), sealed=bytes(reply.body[hash_bytes:])
                )

    async def _from_nodes(self, request: lane_pb2.ReadRequest, size: int, length: int, buffer: memoryview) -> LaneReply:
        """Ask own nodes in turn until one has it; into the buffer. Raises: NotFound (none has), Unreachable (one does
        not answer)."""
        asked = lane_pb2.ReadRequest()
        asked.CopyFrom(request)
        asked.handle = 0
        last: CollectiveError = no_such_chunk()
        for node in self.nodes.all():
            self._turn += 1
            try:
                lane = await self.lanes.get(node.location(), self._turn)
                reply = await lane.call(
                    lane_pb2.LANE_READ, asked.SerializeToString(), into=buffer, timeout_seconds=NODE_TIMEOUT_SECONDS
                )
            except NotFound:
                continue
            except (Unreachable, Corrupt) as error:  # another node may have it, and whole
                last = error
                continue
            told = lane_pb2.ReadReply.FromString(reply.head)
            if told.sealed_size_bytes != size or len(reply.body) - told.hash_bytes != length:
                continue  # another chunk under the same id cannot be; a node that says so has none for us
            self.relayed_bytes += length
            return reply
        raise last

    async def close(self) -> None:
        await self.lanes.close()


def _answer_bytes(request: lane_pb2.ReadRequest, length: int) -> int:
    """The most that the answer's body can hold: hashes, when they are asked for, and sealed segments."""
    return length + (HASHES_BYTES if request.with_hashes else 0)


def relay_handlers(desk: RelayDesk) -> Mapping[int, LaneHandler]:
    """The lane calls of a node that its coordinator answers too."""
    return {
        lane_pb2.LANE_PRESENT: desk.shown.present,
        lane_pb2.LANE_PRESENT_PAGE: desk.shown.present_page,
        lane_pb2.LANE_READ: desk.read,
    }


def relay_rows(desk: RelayDesk) -> list[Row]:
    """The dispatch row of the fallback stream."""
    return [
        Row(
            method="/collective.v1.Federation/ReadSegments",
            kinds=READERS,
            local=False,
            right="a read ticket of this coordinator",
            level=Level.FEDERATED,
            handler=desk.read_segments,
        )
    ]
