"""From a read request to bytes: what is missing is fetched, what is there is answered at once.

Theory: `read` looks into the cache and, when all is there, answers without giving up the processor. Else it launches
flights for the stretches nobody is fetching yet, waits for exactly the flights that cover its segments (never for
its chunk), and keeps the wire busy with what the read-ahead brain wants. When nobody who has the bytes can be reached
it waits (`patience`). A view returned by `read` is good until the caller's next `await`; a slot is pinned for as long
as a read waits on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import TracebackType

from collective.core.errors import CollectiveError, Unreachable
from collective.core.layout import SEGMENT_BYTES
from collective.core.observe import Observer
from collective.mount.cache import Slot, SlotCache, segment_mask
from collective.mount.contents import Content, ContentTable
from collective.mount.flights import Flights, unexpected
from collective.mount.names import ContentReference, OpenSource, Source
from collective.mount.patience import Patience
from collective.mount.readahead import RUN_BYTES, Stream
from collective.mount.settings import MountSettings

__all__ = ["ContentReader"]


class ContentReader:
    """Reads contents through the cache. An async context manager: leaving it breaks off all fetches."""

    def __init__(self, open_source: OpenSource, settings: MountSettings, observer: Observer) -> None:
        self._open_source = open_source
        self._settings = settings
        self._observer = observer
        self._cache = SlotCache(settings.cache_size_bytes)
        self._contents = ContentTable(settings)
        self._patience = Patience(settings.deadline_seconds, observer)
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[None]] = set()
        self._opening: dict[Content, asyncio.Future[CollectiveError | None]] = {}
        self._flights = Flights(self._cache, settings, observer, self._start)
        self.statistics = self._flights.statistics

    async def __aenter__(self) -> ContentReader:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.shut()
        await self._group.__aexit__(kind, error, trace)

    @property
    def is_fetching(self) -> bool:
        """Whether bytes are on their way."""
        return self._flights.count > 0

    async def shut(self) -> None:
        """Break off all fetches (their readers get EIO) and close all sources. May be repeated."""
        self._flights.shut()
        self._patience.shut()
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
            self._flights.forget(forgotten)
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
            self._flights.fetch_ahead(content)
            return ready
        self.statistics.waited += 1
        content.busy += 1
        try:
            async with asyncio.timeout(self._settings.deadline_seconds):
                return await self._patience.read(
                    content.outage,
                    lambda: self._assemble(content, stream, offset, offset + length),
                    content.reference.version_id.hex(),
                )
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
        slot = await self._flights.make_room(content, source, index)
        slot.pins += 1
        try:
            while not slot.holds(needed):
                if slot.absent(needed):
                    span = content.readahead.demand(stream, start, end)
                    self._flights.launch(content, source, slot, index, span, ahead=False)
                self._flights.fetch_ahead(content)
                await self._flights.land(slot, needed)
            self._flights.fetch_ahead(content)
            return self._touch(content, slot, index, start - base, end - base)
        finally:
            self._flights.unpin(slot)

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
            self._flights.check_open()
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
            error = unexpected(self._observer, "opening a source", failure)
        finally:
            content.busy -= 1
            del self._opening[content]
            opening.set_result(error)

    # ------------------------------------------------------------------ tasks

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
            unexpected(self._observer, "closing a source", failure)
