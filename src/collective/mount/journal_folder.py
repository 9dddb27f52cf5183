"""Which journal a mount uses: one folder per mount, one lock each; the next mount takes over what a dead one left.

    <home>/mounts/journal-1/lock, 00000001.segment, …

The lock is the kernel's (flock): it ends with its process however that ends.
"""

from __future__ import annotations

import fcntl
import os
from bisect import bisect_right
from dataclasses import replace
from pathlib import Path

from collective.core.errors import Conflict
from collective.core.observe import Observer
from collective.mount.journal import Journal
from collective.mount.journal_records import BaseRecord, FlushRecord, OperationRecord, WriteRecord
from collective.mount.journal_recovery import recover
from collective.mount.journal_room import JournalSettings
from collective.mount.journal_segments import disk_failure

__all__ = ["JournalFolder"]

PREFIX = "journal-"
MOST_JOURNALS = 256  # mounts of one home at one time


class JournalFolder:
    """The journals of one home. `boot_id` names this start of the machine."""

    def __init__(self, folder: Path, settings: JournalSettings, boot_id: bytes, observer: Observer) -> None:
        self._folder = folder
        self._settings = settings
        self._boot_id = boot_id
        self._observer = observer
        self._lock = -1

    async def open(self) -> Journal:
        """A journal of one's own, with everything in `recovered` that mounts which are gone had not sent.

        What touches files that two of them had open stays where it is until the next start. Raises: Full, Unreachable,
        Conflict (too many mounts).
        """
        found = sorted(int(path.name[len(PREFIX) :]) for path in self._folder.glob(PREFIX + "[0-9]*"))
        locked = [(number, lock) for number in found if (lock := self._take(number)) >= 0]
        fresh = max(found, default=0) + 1
        while not locked:
            if fresh > MOST_JOURNALS:
                raise Conflict(f"{MOST_JOURNALS} mounts of this home are running", "unmount one")
            if (lock := self._take(fresh)) >= 0:
                locked.append((fresh, lock))
            fresh += 1
        (number, self._lock), *others = locked
        journal = self._open(number)
        for number, lock in others:
            await self._adopt(journal, number)
            os.close(lock)
        return journal

    def release(self) -> None:
        """Others may have it; the journal is closed already."""
        os.close(self._lock)

    def _take(self, number: int) -> int:
        """The descriptor of the lock, -1 when somebody has it. Raises: Full, Unreachable."""
        folder = self._folder / f"{PREFIX}{number}"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise disk_failure(error, f"the journal at {folder} cannot be opened") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return -1
        return descriptor

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
            taken = replace(taken, upto=mapped(taken.upto))
        elif isinstance(taken, FlushRecord):
            upto, place = mapped(taken.upto), mapped(taken.place)
            # a create that is settled there is not here: nothing to merge with
            create = mapped(taken.create_seq) if taken.create_seq in olds else 0
            taken = replace(taken, upto=upto, place=place, create_seq=create)
        seq = target.append_record(taken, data)
        olds.append(record.seq)
        news.append(seq)
        target.recovered = (*target.recovered, replace(taken, seq=seq))
