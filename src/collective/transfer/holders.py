"""One holder of a version as a reader sees it: its ticket, its nodes' lanes, how quickly it answers.

The tickets of the two best holders are fetched ahead, so that a dead one costs a moment. Lanes to a node are shared by
everything that a process reads. The ways to a holder's bytes, in order: the lanes of its nodes; where one of them
cannot be dialled, the lane of its coordinator, which stands last in what it answered; where that cannot be dialled
either, a gRPC stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from collective.core.address import FederatedAddress, parse_address
from collective.core.clock import Clock
from collective.core.errors import CollectiveError, NotFound, Refused, Unreachable
from collective.net.lane import LaneConnection
from collective.wire import control_pb2, feed_pb2, lane_pb2

__all__ = ["Dial", "Holder", "LanePool", "TicketProvider", "VersionFacts"]

LANES_PER_NODE = 2  # one connection tops out at a core's TLS
CALL_TIMEOUT_SECONDS = 10.0
RENEW_BEFORE_SECONDS = 30.0
COORDINATOR = "coord"  # the local part of every coordinator's address
PLACES_PER_NODE = 8  # a holder tells where its nodes are: no more than this is believed, dialled and remembered
NODES_PER_HOLDER = 32
FAILURES_KEPT = 256
REST_AFTER_FAILED_DIAL = 10.0  # times as long as the dial took: a black hole costs at most a tenth of the time
Dial = Callable[[FederatedAddress, str], Awaitable[LaneConnection]]


class VersionFacts(Protocol):
    """What a fetch asks of the catalogue about a version."""

    def layout(self, store_id: bytes, version_id: bytes) -> feed_pb2.Layout: ...

    def holders(self, store_id: bytes, version_id: bytes) -> list[str]: ...

    def partial_holders(self, store_id: bytes, version_id: bytes) -> list[str]: ...

    def page(self, name: bytes) -> bytes | None: ...

    def store_key(self, key_name: bytes) -> bytes | None: ...


class TicketProvider(Protocol):
    """Asks a member's coordinator for what opens its nodes."""

    async def open(self, holder_domain: str, store_id: bytes, version_id: bytes) -> control_pb2.OpenVersionReply: ...

    async def fetch_pages(
        self, holder_domain: str, store_id: bytes, version_id: bytes, names: Sequence[bytes]
    ) -> list[bytes]: ...

    async def read_segments(
        self, holder_domain: str, request: control_pb2.ReadSegmentsRequest, into: memoryview
    ) -> tuple[int, int]:
        """Where no lane can be dialled: as `Holder.read`."""
        ...


class LanePool:
    """Open lanes by node, a few each, dialled when needed. A place that could not be dialled rests for a while."""

    def __init__(self, dial: Dial, clock: Clock) -> None:
        self._dial = dial
        self._clock = clock
        self._lanes: dict[tuple[str, int], LaneConnection] = {}
        self._gates: dict[tuple[str, int], asyncio.Lock] = {}
        self._failed: dict[tuple[str, str], tuple[float, CollectiveError]] = {}  # (node, place) -> until, why

    async def get(self, node: control_pb2.NodeLocation, turn: int) -> LaneConnection:
        """A lane to the node; `turn` picks which of the few. Raises: Unreachable, Refused."""
        key = (node.address, turn % LANES_PER_NODE)
        async with self._gates.setdefault(key, asyncio.Lock()):
            lane = self._lanes.get(key)
            if lane is not None and not lane.is_closed:
                return lane
            lane = self._lanes[key] = await self._dial_first(node)
            return lane

    async def _dial_first(self, node: control_pb2.NodeLocation) -> LaneConnection:
        last: CollectiveError = Unreachable(f"{node.address} told no lane address")
        for place in node.lane_addresses[:PLACES_PER_NODE]:
            began = self._clock.monotonic()
            until, reason = self._failed.get((node.address, place), (0.0, last))
            if began < until:
                last = reason
                continue
            try:
                lane = await self._dial(parse_address(node.address), place)
            except CollectiveError as error:
                now = self._clock.monotonic()
                if len(self._failed) >= FAILURES_KEPT:
                    self._failed.clear()
                self._failed[node.address, place] = (now + (now - began) * REST_AFTER_FAILED_DIAL, error)
                last = error
            else:
                self._failed.pop((node.address, place), None)
                return lane
        raise last

    async def close(self) -> None:
        await asyncio.gather(*(lane.close() for lane in self._lanes.values()))
        self._lanes.clear()


@dataclass
class Holder:
    """Reads sealed segments of one version from one member. All calls raise CollectiveError kinds."""

    domain: str
    store_id: bytes
    version_id: bytes
    provider: TicketProvider
    lanes: LanePool
    clock: Clock
    latency_seconds: float = 0.05  # of a usual answer, smoothed
    bad_until: float = 0.0  # monotonic: asked last until then
    opened: control_pb2.OpenVersionReply | None = None
    _opening: asyncio.Lock = field(default_factory=asyncio.Lock)
    _handles: dict[tuple[int, int], _Shown] = field(default_factory=dict)
    _turn: int = 0

    async def ready(self) -> control_pb2.OpenVersionReply:
        """The ticket and what came with it, renewed before it ends."""
        async with self._opening:
            ends = self.opened.expires_milliseconds / 1000 - RENEW_BEFORE_SECONDS if self.opened else 0.0
            if self.opened is None or ends <= self.clock.wall():
                self.opened = await self.provider.open(self.domain, self.store_id, self.version_id)
                del self.opened.nodes[NODES_PER_HOLDER:]
                self._handles.clear()
            return self.opened

    async def read(
        self,
        chunk_id: bytes,
        page_index: int,
        page: bytes,
        first: int,
        count: int,
        into: memoryview,
        *,
        hashes: bool,
        check: bool = False,
    ) -> tuple[int, int]:
        """Sealed segments into `into`, the hash list before them when asked for: (hash bytes, all bytes)."""
        opened = await self.ready()
        if not opened.nodes:
            raise Unreachable(f"{self.domain} has no storage node at the moment")
        self._turn += 1
        request = lane_pb2.ReadRequest(
            chunk_id=chunk_id, first_segment=first, segment_count=count, with_hashes=hashes, check=check
        )
        last: CollectiveError = NotFound(f"{self.domain} does not have that chunk")
        unreached = False
        for node_index, node in enumerate(opened.nodes):
            stands_in = parse_address(node.address).local_part == COORDINATOR
            if stands_in and not unreached:
                break  # the nodes themselves have answered
            began = self.clock.monotonic()
            try:
                lane = await self.lanes.get(node, self._turn)
            except (Unreachable, Refused) as error:
                last, unreached = error, True
                continue
            try:
                request.handle = await self._show(lane, node_index, page_index, page)
                reply = await lane.call(
                    lane_pb2.LANE_READ, request.SerializeToString(), into=into, timeout_seconds=CALL_TIMEOUT_SECONDS
                )
            except (NotFound, Unreachable) as error:
                last, unreached = error, not stands_in and (unreached or isinstance(error, Unreachable))
                continue
            except Refused as error:
                self.opened = None  # the ticket ended or was voided: the next read asks for a new one
                last = error
                continue
            self._answered(began)
            return lane_pb2.ReadReply.FromString(reply.head).hash_bytes, len(reply.body)
        if unreached:
            return await self._read_by_stream(opened, request, page_index, page, into)
        raise last

    async def _read_by_stream(
        self,
        opened: control_pb2.OpenVersionReply,
        asked: lane_pb2.ReadRequest,
        page_index: int,
        page: bytes,
        into: memoryview,
    ) -> tuple[int, int]:
        request = control_pb2.ReadSegmentsRequest(
            signed_ticket=opened.signed_ticket,
            layout=opened.layout,
            page_index=page_index,
            page=page,
            chunk_id=asked.chunk_id,
            first_segment=asked.first_segment,
            segment_count=asked.segment_count,
            with_hashes=asked.with_hashes,
        )
        began = self.clock.monotonic()
        try:
            got = await self.provider.read_segments(self.domain, request, into)
        except Refused:
            self.opened = None
            raise
        self._answered(began)
        return got

    def _answered(self, began: float) -> None:
        self.latency_seconds += 0.2 * (self.clock.monotonic() - began - self.latency_seconds)

    async def _show(self, lane: LaneConnection, node_index: int, page_index: int, page: bytes) -> int:
        """Show ticket and page on a lane once; the handle."""
        key = (id(lane), node_index)
        shown = self._handles.get(key)
        if shown is None or shown.lane is not lane:
            shown = self._handles[key] = _Shown(lane)
        async with shown.gate:
            if shown.handle == 0:
                shown.handle = await self._present(lane)
            if page_index not in shown.pages:
                request = lane_pb2.PresentPageRequest(handle=shown.handle, page_index=page_index)
                await lane.call(
                    lane_pb2.LANE_PRESENT_PAGE, request.SerializeToString(), page, timeout_seconds=CALL_TIMEOUT_SECONDS
                )
                shown.pages.add(page_index)
            return shown.handle

    async def _present(self, lane: LaneConnection) -> int:
        assert self.opened is not None
        layout: feed_pb2.Layout = self.opened.layout
        request = lane_pb2.PresentRequest(
            signed_ticket=self.opened.signed_ticket,
            size_bytes=layout.size_bytes,
            chunk_size_bytes=layout.chunk_size_bytes,
            coding_k=layout.coding.k,
            coding_m=layout.coding.m,
            pages=layout.pages,
        )
        reply = await lane.call(
            lane_pb2.LANE_PRESENT, request.SerializeToString(), timeout_seconds=CALL_TIMEOUT_SECONDS
        )
        return lane_pb2.PresentReply.FromString(reply.head).handle


@dataclass
class _Shown:
    """What one connection was shown of this version."""

    lane: LaneConnection
    handle: int = 0
    pages: set[int] = field(default_factory=set)
    gate: asyncio.Lock = field(default_factory=asyncio.Lock)
