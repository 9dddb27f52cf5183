"""Flights: fetches of segments on their way into slots, each begun once, whoever waits for it.

Theory: a flight is one `Source.fill` of up to a run, straight into the slot; a slot's segments belong to the flight
that fills them until it lands, then to the cache. Flights ahead of readers are taken from the read-ahead brains while
fewer than `parallel_fetches` run; each landing makes place for the next, other contents first, so after its reader
stops no more than its window is fetched.

    a flight ends in      segments become    who waits gets
    bytes                 valid              them
    an error, demanded    absent             the error
    an error, ahead       absent             nothing: a reader who needs them demands them anew
    its deadline          absent             the error; the slot is abandoned, should the fill still write into it
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass

from collective.core.errors import CollectiveError, Corrupt, Unreachable
from collective.core.layout import SEGMENT_BYTES
from collective.core.observe import Observer
from collective.mount.cache import Slot, SlotCache, segment_mask
from collective.mount.contents import Content
from collective.mount.names import Source
from collective.mount.readahead import RUN_BYTES, Span
from collective.mount.settings import MountSettings

__all__ = ["Flights", "ReadStatistics", "unexpected"]

_RUN_SEGMENTS = RUN_BYTES // SEGMENT_BYTES


@dataclass(eq=False, slots=True)
class _Flight:
    """One fill under way; `done` gets None, or the error."""

    mask: int
    ahead: bool
    done: asyncio.Future[CollectiveError | None]


@dataclass(slots=True)
class ReadStatistics:
    """Counted since the mount began."""

    reads: int = 0
    read_bytes: int = 0
    waited: int = 0
    fetched_demand_bytes: int = 0
    fetched_ahead_bytes: int = 0


class Flights:
    """All fetches of one mount. `start` runs a task that its owner ends; `shut` lets no new flight begin."""

    def __init__(
        self,
        cache: SlotCache,
        settings: MountSettings,
        observer: Observer,
        start: Callable[[Coroutine[object, object, None]], None],
    ) -> None:
        self._cache = cache
        self._settings = settings
        self._observer = observer
        self._start = start
        self._room: set[asyncio.Future[None]] = set()
        self._ahead_flights = 0
        self.count = 0
        """Under way now."""
        self._hungry: dict[Content, None] = {}
        self._closing = False
        self.statistics = ReadStatistics()

    def shut(self) -> None:
        self._closing = True

    def forget(self, content: Content) -> None:
        """Fetch nothing ahead for this content any more."""
        self._hungry.pop(content, None)

    def check_open(self) -> None:
        """Raises: Unreachable once shut."""
        if self._closing:
            raise Unreachable("the mount is being taken away")

    def fetch_ahead(self, content: Content) -> None:
        """Begin what the read-ahead brain wants, as far as flights and room allow."""
        source = content.source
        if source is None or self._closing:
            return
        now = asyncio.get_running_loop().time()
        while self._ahead_flights < self._settings.parallel_fetches:
            span = content.readahead.take(now)
            if span is None:
                self._hungry.pop(content, None)
                return
            index = span.start // source.layout.chunk_size_bytes
            size = source.layout.chunk_size(index)
            slot = self._cache.obtain((content.key, index), size, now, ahead=True)
            if slot is None:
                content.readahead.give_back(span)
                break
            if not slot.valid and not slot.pending and not slot.pins:
                slot.unread_since = now
            self.launch(content, source, slot, index, span, ahead=True)
        self._hungry[content] = None

    def launch(self, content: Content, source: Source, slot: Slot, index: int, span: Span, *, ahead: bool) -> None:
        """Start flights for those segments of `span` in chunk `index` that are neither there nor on their way."""
        self.check_open()
        for first, count in _stretches(slot.absent(self._within(source, index, span))):
            done: asyncio.Future[CollectiveError | None] = asyncio.get_running_loop().create_future()
            flight = _Flight(segment_mask(first, count), ahead, done)
            slot.pending |= flight.mask
            slot.pins += 1
            slot.flights.append(flight)
            content.busy += 1
            self._ahead_flights += ahead
            self.count += 1
            self._start(self._fly(content, source, slot, index, first, count, flight))

    async def land(self, slot: Slot, needed: int) -> None:
        """Wait for the flights that bring `needed`. Raises the error of a demanded one."""
        flights = [flight for flight in slot.flights if isinstance(flight, _Flight) and flight.mask & needed]
        await asyncio.wait([flight.done for flight in flights])
        for flight in flights:
            error = flight.done.result()
            if error is not None and (not flight.ahead or slot.abandoned):
                raise error

    async def make_room(self, content: Content, source: Source, index: int) -> Slot:
        loop = asyncio.get_running_loop()
        while True:
            slot = self._cache.obtain((content.key, index), source.layout.chunk_size(index), loop.time(), ahead=False)
            if slot is not None:
                return slot
            room: asyncio.Future[None] = loop.create_future()
            self._room.add(room)
            try:
                await room
            finally:
                self._room.discard(room)

    def unpin(self, slot: Slot) -> None:
        slot.pins -= 1
        if not slot.pins:
            for room in self._room:
                if not room.done():
                    room.set_result(None)

    async def _fly(
        self, content: Content, source: Source, slot: Slot, index: int, first: int, count: int, flight: _Flight
    ) -> None:
        out = slot.segments(first, count)
        error: CollectiveError | None = Unreachable("the mount is being taken away")
        try:
            async with asyncio.timeout(self._settings.deadline_seconds):
                await source.fill(index, first, count, out)
            error = None
            slot.valid |= flight.mask
            if flight.ahead:
                self.statistics.fetched_ahead_bytes += len(out)
            else:
                self.statistics.fetched_demand_bytes += len(out)
        except CollectiveError as failure:
            error = failure
        except TimeoutError:
            error = Unreachable("the bytes did not arrive before the deadline")
            self._cache.abandon(slot)
        except Exception as failure:
            error = unexpected(self._observer, "filling a slot", failure)
        finally:
            if error is not None:
                self._observer.event("mount.fetch_failed", ahead=flight.ahead, reason=error.message)
            slot.pending &= ~flight.mask
            slot.flights.remove(flight)
            content.busy -= 1
            self._ahead_flights -= flight.ahead
            self.count -= 1
            flight.done.set_result(error)
            self.unpin(slot)
            self._feed_hungry(content, failed=error is not None)

    def _feed_hungry(self, landed: Content, *, failed: bool) -> None:
        """A place became free: the others first, so that one reader does not take all of them."""
        if failed:
            self._hungry.pop(landed, None)  # until its reader asks again
        for content in list(self._hungry):
            if content is not landed:
                self.fetch_ahead(content)
        if landed in self._hungry:
            self.fetch_ahead(landed)

    def _within(self, source: Source, index: int, span: Span) -> int:
        """The segments of chunk `index` that `span` covers."""
        base = index * source.layout.chunk_size_bytes
        end = min(span.end - base, source.layout.chunk_size(index))
        first = max(0, span.start - base) // SEGMENT_BYTES
        return segment_mask(first, -(-end // SEGMENT_BYTES) - first)


def unexpected(observer: Observer, doing: str, failure: Exception) -> CollectiveError:
    """What nobody foresaw, told and made an error of ours, of a kind that is not tried again."""
    observer.event("mount.unexpected", doing=doing, kind=type(failure).__name__, reason=str(failure))
    return Corrupt(f"{doing} failed: {failure}")


def _stretches(mask: int) -> Iterator[tuple[int, int]]:
    """The (first, count) of every row of neighbours in a set of segments, cut at the edges of runs."""
    position = 0
    while mask >> position:
        if not mask >> position & 1:
            position += 1
            continue
        first = position
        edge = (first // _RUN_SEGMENTS + 1) * _RUN_SEGMENTS
        while position < edge and mask >> position & 1:
            position += 1
        yield first, position - first
