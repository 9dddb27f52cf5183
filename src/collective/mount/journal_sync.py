"""What makes a journal's segments survive the machine's death, and deletes those that nothing is needed of.

Theory: that a record is settled is itself a record, in a later segment. A segment whose file is gone while that record
is lost would leave the rest of what belonged together (a create's content without the create, changes without their
base) to whoever replays. So a segment that is *settled* is only set down here, and its file goes when a sync has made
everything durable that was written before.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from collective.core.errors import CollectiveError, Full
from collective.core.observe import Observer
from collective.mount.journal_segments import Segment, disk_failure

__all__ = ["SegmentSync"]

InThread = Callable[[set[Segment], Callable[[], None]], Awaitable[None]]
"""Runs a function in a thread; the segments stay open until it is over."""


class SegmentSync:
    """One journal's. `settled` are segments of which nothing counts, oldest first; their files are there still."""

    def __init__(self, folder: Path, in_thread: InThread, observer: Observer) -> None:
        self._folder = folder
        self._in_thread = in_thread
        self._observer = observer
        self._lock = asyncio.Lock()
        self.new_files = True
        self.settled: list[Segment] = []
        self.failure: CollectiveError | None = None
        """Why nothing can be made safe any more: what the kernel dropped after a failed sync cannot be told."""

    def check(self) -> None:
        """Raises: the failure."""
        if self.failure is not None:
            raise self.failure

    async def run(self, segments: Mapping[int, Segment]) -> Sequence[Segment]:
        """Everything appended to these before is on the disk when this returns; those who wait together share one sync.
        What is settled is synced too: after a power failure its name may be there still, and torn it would end what
        counts. The segments whose files went. Raises: Unreachable."""
        settled = self.settled[:]
        until = [(segment, segment.end) for segment in (*settled, *segments.values())]
        async with self._lock:
            self.check()
            there = {*self.settled, *segments.values()}  # else another sync made it go
            waiting = [
                (segment, segment.end)
                for segment, end in sorted(until, key=lambda one: one[0].number)
                if segment in there and segment.synced_end < end
            ]
            if waiting:
                await self._sync(waiting)
            # not what another sync was quicker with, nor what one that was given up has in its hands still
            gone = [segment for segment in settled if segment in self.settled and not segment.pins]
            for segment in gone:
                self.settled.remove(segment)
                segment.remove()
            return gone

    def give_up_oldest(self) -> Segment:
        """Delete the first settled segment's file at once: the disk is full, and its room is what saying so needs.
        Raises: Full, when a sync under way needs it."""
        segment = next((one for one in self.settled if not one.pins), None)
        if segment is None:
            raise Full("the disk of the mount's journal is full", "make room on the disk of the home")
        self.settled.remove(segment)
        segment.remove()
        return segment

    async def _sync(self, waiting: Sequence[tuple[Segment, int]]) -> None:
        folder = self._folder if self.new_files else None
        self.new_files = False
        try:
            await self._in_thread({segment for segment, _ in waiting}, lambda: _sync_segments(waiting, folder))
        except OSError as error:
            self.failure = disk_failure(error, "the mount's journal could not be made safe")
            self._observer.event("journal.sync_failed", reason=self.failure.message)
            raise self.failure from error
        except BaseException:  # cancelled: it may not have begun
            self.new_files = self.new_files or folder is not None
            raise
        for segment, end in waiting:
            segment.synced_end = end


def _sync_segments(waiting: Sequence[tuple[Segment, int]], folder: Path | None) -> None:
    """The data of the segments, oldest first, then the names of new ones."""
    for segment, _ in waiting:
        os.fdatasync(segment.descriptor)
    if folder is not None:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
