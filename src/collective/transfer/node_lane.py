"""The lane to a node of one's own, with an upload ticket: which chunks are there, and sending the others.

A broken connection is dialled again, with growing pauses, for a while; the ticket is shown anew on each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from collective.core.address import FederatedAddress, parse_address
from collective.core.errors import CollectiveError, Unreachable
from collective.net.lane import LaneConnection
from collective.wire import control_pb2, lane_pb2

__all__ = ["Dial", "NodeLane", "UploadPlan"]

WRITE_TIMEOUT_SECONDS = 120.0  # 8 MiB at half a megabit per second
DIAL_TRIES = 8
FIRST_PAUSE_SECONDS = 0.2
LAST_PAUSE_SECONDS = 3.0
IDS_PER_QUESTION = 512
Dial = Callable[[FederatedAddress, str], Awaitable[LaneConnection]]


@dataclass(frozen=True)
class UploadPlan:
    """What the coordinator gave: where to, with which ticket, under which secrets (32 bytes each)."""

    store_id: bytes
    store_secret: bytes
    store_key: bytes
    chunk_size_bytes: int
    signed_ticket: bytes
    nodes: Sequence[control_pb2.NodeLocation]


class NodeLane:
    """Dialled when needed; may serve several uploads of one plan at once. Close it when the last is over."""

    def __init__(self, plan: UploadPlan, dial: Dial) -> None:
        self._plan = plan
        self._dial = dial
        self._lane: LaneConnection | None = None
        self._handle = 0
        self._gate = asyncio.Lock()

    async def call(self, method: int, build: Callable[[int], bytes], body: memoryview | bytes = b"") -> bytes:
        """A call with the handle of this connection; dialled again when it breaks. Raises: Unreachable and others."""
        pause = FIRST_PAUSE_SECONDS
        for attempt in range(DIAL_TRIES):
            try:
                lane, handle = await self._open()
                return (await lane.call(method, build(handle), body, timeout_seconds=WRITE_TIMEOUT_SECONDS)).head
            except Unreachable:
                if attempt == DIAL_TRIES - 1:
                    raise
                await asyncio.sleep(pause)
                pause = min(pause * 2, LAST_PAUSE_SECONDS)
        raise AssertionError("the loop ends by return or raise")

    async def _open(self) -> tuple[LaneConnection, int]:
        async with self._gate:
            if self._lane is None or self._lane.is_closed:
                self._lane = await self._dial_first()
                shown = lane_pb2.PresentRequest(signed_ticket=self._plan.signed_ticket).SerializeToString()
                reply = await self._lane.call(lane_pb2.LANE_PRESENT, shown, timeout_seconds=10)
                self._handle = lane_pb2.PresentReply.FromString(reply.head).handle
            return self._lane, self._handle

    async def _dial_first(self) -> LaneConnection:
        last: CollectiveError = Unreachable("no storage node was named")
        for node in self._plan.nodes:
            for lane_address in node.lane_addresses:
                try:
                    return await self._dial(parse_address(node.address), lane_address)
                except CollectiveError as error:
                    last = error
        raise last

    async def present(self, ids: Sequence[bytes], sealed_sizes: Sequence[int]) -> list[bool]:
        """Which chunks the node has, whole. Raises: Unreachable and others."""
        found: list[bool] = []
        for at in range(0, len(ids), IDS_PER_QUESTION):
            part, sizes = ids[at : at + IDS_PER_QUESTION], sealed_sizes[at : at + IDS_PER_QUESTION]

            def ask(handle: int, part: Sequence[bytes] = part, sizes: Sequence[int] = sizes) -> bytes:
                return lane_pb2.HasRequest(handle=handle, chunk_ids=part, sealed_sizes=sizes).SerializeToString()

            found.extend(lane_pb2.HasReply.FromString(await self.call(lane_pb2.LANE_HAS, ask)).present)
        return found

    async def send(self, id_: bytes, sealed: memoryview) -> bool:
        """Send a chunk unless the node has it; whether it was sent. Returns when it is durable."""
        if all(await self.present([id_], [len(sealed)])):
            return False

        def write(handle: int) -> bytes:
            return lane_pb2.WriteRequest(handle=handle, chunk_id=id_).SerializeToString()

        reply = lane_pb2.WriteReply.FromString(await self.call(lane_pb2.LANE_WRITE, write, sealed))
        return not reply.already_there

    async def close(self) -> None:
        if self._lane is not None:
            await self._lane.close()
