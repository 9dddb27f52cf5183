"""Which journal a mount uses: one folder per mount, one lock each; the next mount takes over what a dead one left.

    <home>/mounts/journal-1/lock, 00000001.segment, …

What no mount takes over is sent by the home's heir (`journal_lock`), which has a journal for as long as that takes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path

from collective.core.errors import Conflict
from collective.core.observe import Observer
from collective.mount.journal import Journal
from collective.mount.journal_lock import JournalLock, is_locked
from collective.mount.journal_records import (
    BaseRecord,
    FillRecord,
    FlushRecord,
    OperationRecord,
    Record,
    TruncateRecord,
    WriteRecord,
)
from collective.mount.journal_recovery import recover
from collective.mount.journal_room import JournalSettings
from collective.mount.journal_segments import SUFFIX

__all__ = ["JournalFolder", "unfinished_journals"]

PREFIX = "journal-"
MOST_JOURNALS = 256  # mounts of one home at one time


def unfinished_journals(folder: Path) -> Mapping[int, bool]:
    """The journals that may hold something unsent, by number: whether somebody has each. Raises: Unreachable."""
    unfinished = {path.parent for path in folder.glob(f"{PREFIX}[0-9]*/*{SUFFIX}")}
    return {_number(path): is_locked(path) for path in unfinished}


def _number(path: Path) -> int:
    return int(path.name[len(PREFIX) :])


class JournalFolder:
    """The journals of one home. `boot_id` names this start of the machine."""

    def __init__(self, folder: Path, settings: JournalSettings, boot_id: bytes, observer: Observer) -> None:
        self._folder = folder
        self._settings = settings
        self._boot_id = boot_id
        self._observer = observer
        self._lock: JournalLock | None = None
        self.number = 0
        """Of the journal that is ours."""

    async def open(self) -> Journal:
        """A journal of one's own, with everything in `recovered` that mounts which are gone had not sent.

        What touches files that two of them had open stays where it is until the next start. Raises: Full, Unreachable,
        Conflict (too many mounts).
        """
        found = self._numbers()
        locked = [taken async for taken in self._take(found, as_heir=False)]
        if not locked:
            fresh = range(max(found, default=0) + 1, MOST_JOURNALS + 1)
            locked = [taken async for taken in self._take(fresh, as_heir=False, most=1)]
        if not locked:
            raise Conflict(f"{MOST_JOURNALS} mounts of this home are running", "unmount one")
        return await self._join(locked)

    async def open_left(self) -> Journal | None:
        """As `open`, for an heir: only what mounts which are gone had not sent; None when nothing is left."""
        unfinished = [number for number, taken in unfinished_journals(self._folder).items() if not taken]
        locked = [taken async for taken in self._take(sorted(unfinished), as_heir=True)]
        return await self._join(locked) if locked else None

    def release(self) -> None:
        """Others may have it; the journal is closed already."""
        assert self._lock is not None, "a journal was opened"
        self._lock.release()

    def _numbers(self) -> Sequence[int]:
        return sorted(map(_number, self._folder.glob(PREFIX + "[0-9]*")))

    async def _take(
        self, numbers: Iterable[int], *, as_heir: bool, most: int = MOST_JOURNALS
    ) -> AsyncIterator[tuple[int, JournalLock]]:
        """Those of the journals that nobody has, locked, `most` of them. Raises: Full, Unreachable."""
        for number in numbers:
            if not most:
                return
            lock = JournalLock(self._folder / f"{PREFIX}{number}")
            if await lock.take(as_heir=as_heir):
                most -= 1
                yield number, lock
            else:
                lock.release()

    async def _join(self, locked: Sequence[tuple[int, JournalLock]]) -> Journal:
        (self.number, self._lock), *others = locked
        journal = self._open(self.number)
        for number, lock in others:
            await self._adopt(journal, number)
            lock.release()
        return journal

    def _open(self, number: int) -> Journal:
        folder = self._folder / f"{PREFIX}{number}"
        return Journal(
            folder, self._settings, recover(folder, self._boot_id, self._observer), self._boot_id, self._observer
        )

    async def _adopt(self, journal: Journal, number: int) -> None:
        """Take over what another journal holds; it is empty afterwards, unless both have changes of one file."""
        other = self._open(number)
        inodes = {record.ino for record in other.recovered if not isinstance(record, OperationRecord)}
        ours = {record.ino for record in journal.recovered if not isinstance(record, OperationRecord)}
        if inodes & ours:
            self._observer.event("journal.left", journal=number, reason="another journal has changes of the same file")
        else:
            _copy(other, journal)
            await journal.sync()
            other.settle([record.seq for record in other.recovered])
        await other.close()


def _copy(source: Journal, target: Journal) -> None:
    olds: list[int] = []
    news: list[int] = []

    def mapped(seq: int) -> int:
        """The seq here of the last record there up to `seq`; 0 before the first."""
        index = bisect_right(olds, seq)
        return news[index - 1] if index else 0

    for record in source.recovered:
        data = source.read(record.seq, 0, record.size_bytes) if isinstance(record, WriteRecord) else b""
        taken = record
        if isinstance(taken, BaseRecord):
            taken = taken._replace(upto=mapped(taken.upto))
        elif isinstance(taken, FlushRecord):
            upto, place = mapped(taken.upto), mapped(taken.place)
            # a create that is settled there is not here: nothing to merge with
            create = mapped(taken.create_seq) if taken.create_seq in olds else 0
            taken = taken._replace(upto=upto, place=place, create_seq=create)
        elif isinstance(taken, FillRecord):
            if taken.create_seq not in olds:
                continue  # it was answered with its create
            taken = taken._replace(upto=mapped(taken.upto), create_seq=mapped(taken.create_seq))
        seq = _append(target, taken, data)
        olds.append(record.seq)
        news.append(seq)
        target.recovered = (*target.recovered, taken._replace(seq=seq))


def _append(target: Journal, record: Record, data: bytes) -> int:
    """A record of another journal, with the data of a write; its seq here. Raises: Full, Unreachable."""
    match record:
        case OperationRecord():
            return target.append_operation(record.store_id, record.operation, of_directory=record.of_directory)
        case WriteRecord():
            view = memoryview(data)
            return target.append_inline(record.ino, record.offset, view, record.time_ns, 0, record.store_id)
        case TruncateRecord():
            return target.append_truncate(record.ino, record.size_bytes, record.time_ns)
        case BaseRecord():
            return target.append_base(record)
        case FlushRecord() | FillRecord():
            return target.hold_flush(record)
