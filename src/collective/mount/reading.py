"""From a read request to bytes: what is missing is fetched once, whoever waits for it; read-ahead keeps the wire busy.

Theory: `read` looks into the cache and, when all is there, answers without giving up the processor. Else it launches a
*flight* (one `Source.fill` of up to a run, straight into the slot) for each stretch nobody is fetching yet, and
waits for exactly the flights that cover its segments. Flights ahead of readers are taken from the read-ahead brain
while fewer than `parallel_fetches` run; each landing takes the next, so after its reader stops no more than its window
is fetched. A failed flight ahead is forgotten (its reader will ask again); a failed demanded one is its readers' error.

    every buffer has one owner: a slot's segments belong to the flight that fills them until it lands, then to
    the cache. A view returned by `read` is good until the caller's next `await`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from types import TracebackType

from collective.core.errors import CollectiveError, Unreachable
from collective.core.layout import SEGMENT_BYTES
from collective.core.observe import Observer
from collective.mount.cache import Slot, SlotCache, segment_mask
from collective.mount.contents import Content, ContentTable
from collective.mount.names import ContentReference, OpenSource, Source
from collective.mount.readahead import RUN_BYTES, Span, Stream
from collective.mount.settings import MountSettings

__all__ = ["ContentReader", "ReadStatistics"]

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


class ContentReader:
    """Reads contents through the cache. An async context manager: leaving it breaks off all fetches."""

    def __init__(self, open_source: OpenSource, settings: MountSettings, observer: Observer) -> None:
        self._open_source = open_source
        self._settings = settings
        self._observer = observer
        self._cache = SlotCache(settings.cache_size_bytes)
        self._contents = ContentTable(settings)
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[None]] = set()
        self._opening: dict[Content, asyncio.Future[CollectiveError | None]] = {}
        self._room: set[asyncio.Future[None]] = set()
        self._ahead_flights = 0
        self._hungry: dict[Content, None] = {}
        self._closing = False
        self.statistics = ReadStatistics()

    async def __aenter__(self) -> ContentReader:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.shut()
        await self._group.__aexit__(kind, error, trace)

    async def shut(self) -> None:
        """Break off all fetches (their readers get EIO) and close all sources. May be repeated."""
        self._closing = True
        await asyncio.sleep(0)  # a task cancelled before its first step would settle nothing
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for content in self._contents.clear():
            await self._close_source(content)

    def open(self, reference: ContentReference) -> Content:
        """One more reader of this content; nobody is called yet."""
        return self._contents.acquire(reference)

    def close(self, content: Content) -> None:
        """One reader less; what is known of the content stays for a while."""
        for forgotten in self._contents.release(content):
            self._hungry.pop(forgotten, None)
            if forgotten.source is not None:
                self._start(self._close_source(forgotten))

    async def read(self, content: Content, offset: int, length: int) -> bytes | memoryview:
        """The bytes `offset` … of the content, fewer than `length` only at its end.

        The view is good until the caller's next `await`. Raises: CollectiveError; TimeoutError after the deadline.
        """
        length = min(length, content.size_bytes - offset)
        if length <= 0:
            return b""
        now = asyncio.get_running_loop().time()
        stream = content.readahead.observe(offset, length, now)
        self.statistics.reads += 1
        self.statistics.read_bytes += length
        ready = self._ready(content, offset, offset + length)
        if ready is not None:
            self._fetch_ahead(content)
            return ready
        self.statistics.waited += 1
        content.busy += 1
        try:
            async with asyncio.timeout(self._settings.deadline_seconds):
                return await self._assemble(content, stream, offset, offset + length)
        finally:
            content.busy -= 1

    # ------------------------------------------------------------------ a read

    def _ready(self, content: Content, start: int, end: int) -> memoryview | None:
        """The bytes, if they lie whole and valid in one slot."""
        if content.source is None:
            return None
        size = content.source.layout.chunk_size_bytes
        index = start // size
        if (end - 1) // size != index:
            return None
        slot = self._cache.find((content.key, index))
        first = (start - index * size) // SEGMENT_BYTES
        last = (end - 1 - index * size) // SEGMENT_BYTES
        if slot is None or not slot.holds(segment_mask(first, last - first + 1)):
            return None
        return self._touch(content, slot, index, start - index * size, end - index * size)

    async def _assemble(self, content: Content, stream: Stream, start: int, end: int) -> bytes | memoryview:
        source = await self._source(content)
        size = source.layout.chunk_size_bytes
        if (end - 1) // size == start // size:
            return await self._part(content, source, stream, start, end)
        whole = bytearray(end - start)  # across an edge of chunks: the only reads that are copied
        for index in range(start // size, (end - 1) // size + 1):
            begin, stop = max(start, index * size), min(end, (index + 1) * size)
            whole[begin - start : stop - start] = await self._part(content, source, stream, begin, stop)
        return memoryview(whole)

    async def _part(self, content: Content, source: Source, stream: Stream, start: int, end: int) -> memoryview:
        """The bytes `start` to `end`, which lie in one chunk."""
        size = source.layout.chunk_size_bytes
        index = start // size
        base = index * size
        first = (start - base) // SEGMENT_BYTES
        needed = segment_mask(first, (end - 1 - base) // SEGMENT_BYTES - first + 1)
        slot = await self._make_room(content, source, index)
        slot.pins += 1
        try:
            while not slot.holds(needed):
                if slot.absent(needed):
                    span = content.readahead.demand(stream, start, end)
                    self._launch(content, source, slot, index, self._within(source, index, span), ahead=False)
                self._fetch_ahead(content)
                await self._land(slot, needed)
            self._fetch_ahead(content)
            return self._touch(content, slot, index, start - base, end - base)
        finally:
            self._unpin(slot)

    async def _land(self, slot: Slot, needed: int) -> None:
        """Wait for the flights that bring `needed`. Raises the error of a demanded one."""
        flights = [flight for flight in slot.flights if isinstance(flight, _Flight) and flight.mask & needed]
        await asyncio.wait([flight.done for flight in flights])
        for flight in flights:
            error = flight.done.result()
            if error is not None and (not flight.ahead or slot.abandoned):
                raise error

    def _touch(self, content: Content, slot: Slot, index: int, start: int, end: int) -> memoryview:
        """The reader's view; whoever enters a chunk shows whether the one before it is done with."""
        slot.passed = False
        slot.unread_since = None
        if index and start < RUN_BYTES:
            before = self._cache.peek((content.key, index - 1))
            if before is not None:
                base = (index - 1) * before.size_bytes
                before.passed = content.readahead.passed(base, base + before.size_bytes)
        return slot.view[start:end]

    async def _source(self, content: Content) -> Source:
        while content.source is None:
            self._refuse_when_closing()
            opening = self._opening.get(content)
            if opening is None:
                opening = self._opening[content] = asyncio.get_running_loop().create_future()
                self._start(self._open(content, opening))
            await asyncio.wait([opening])
            error = opening.result()
            if error is not None:
                raise error
        return content.source

    async def _open(self, content: Content, opening: asyncio.Future[CollectiveError | None]) -> None:
        error: CollectiveError | None = Unreachable("the mount is being taken away")
        content.busy += 1
        try:
            async with asyncio.timeout(self._settings.deadline_seconds):
                content.source = await self._open_source(content.reference)
            error = None
        except CollectiveError as failure:
            error = failure
        except TimeoutError:
            error = Unreachable("nobody told where the content is before the deadline")
        except Exception as failure:
            error = self._unexpected("opening a source", failure)
        finally:
            content.busy -= 1
            del self._opening[content]
            opening.set_result(error)

    # ------------------------------------------------------------------ fetching

    def _fetch_ahead(self, content: Content) -> None:
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
            self._launch(content, source, slot, index, self._within(source, index, span), ahead=True)
        self._hungry[content] = None

    def _launch(self, content: Content, source: Source, slot: Slot, index: int, mask: int, *, ahead: bool) -> None:
        """Start flights for those segments of `mask` that are neither there nor on their way."""
        self._refuse_when_closing()
        for first, count in _stretches(slot.absent(mask)):
            done: asyncio.Future[CollectiveError | None] = asyncio.get_running_loop().create_future()
            flight = _Flight(segment_mask(first, count), ahead, done)
            slot.pending |= flight.mask
            slot.pins += 1
            slot.flights.append(flight)
            content.busy += 1
            self._ahead_flights += ahead
            self._start(self._fly(content, source, slot, index, first, count, flight))

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
            error = self._unexpected("filling a slot", failure)
        finally:
            if error is not None:
                self._observer.event("mount.fetch_failed", ahead=flight.ahead, reason=error.message)
            slot.pending &= ~flight.mask
            slot.flights.remove(flight)
            content.busy -= 1
            self._ahead_flights -= flight.ahead
            flight.done.set_result(error)
            self._unpin(slot)
            self._feed_hungry(content, failed=error is not None)

    def _feed_hungry(self, landed: Content, *, failed: bool) -> None:
        """A place became free: the others first, so that one reader does not take all of them."""
        if failed:
            self._hungry.pop(landed, None)  # until its reader asks again
        for content in list(self._hungry):
            if content is not landed:
                self._fetch_ahead(content)
        if landed in self._hungry:
            self._fetch_ahead(landed)

    async def _make_room(self, content: Content, source: Source, index: int) -> Slot:
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

    def _unpin(self, slot: Slot) -> None:
        slot.pins -= 1
        if not slot.pins:
            for room in self._room:
                if not room.done():
                    room.set_result(None)

    def _within(self, source: Source, index: int, span: Span) -> int:
        """The segments of chunk `index` that `span` covers."""
        base = index * source.layout.chunk_size_bytes
        end = min(span.end - base, source.layout.chunk_size(index))
        first = max(0, span.start - base) // SEGMENT_BYTES
        return segment_mask(first, -(-end // SEGMENT_BYTES) - first)

    # ------------------------------------------------------------------ tasks

    def _refuse_when_closing(self) -> None:
        if self._closing:
            raise Unreachable("the mount is being taken away")

    def _start(self, work: Coroutine[object, object, None]) -> None:
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _close_source(self, content: Content) -> None:
        source, content.source = content.source, None
        if source is None:
            return
        try:
            await source.close()
        except Exception as failure:
            self._unexpected("closing a source", failure)

    def _unexpected(self, doing: str, failure: Exception) -> CollectiveError:
        self._observer.event("mount.unexpected", doing=doing, kind=type(failure).__name__, reason=str(failure))
        return Unreachable(f"{doing} failed: {failure}")


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
