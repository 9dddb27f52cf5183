"""The machine dies: what of a journal is on the disk for sure, and what the next mount makes of that.

For sure are the names at the last fsync of the folder, and of each file the bytes at its last fdatasync. An unlink may
or may not have arrived.
"""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from random import Random

import pytest

from collective.core.observe import SILENT
from collective.mount.journal import Journal
from collective.mount.journal_recovery import recover
from collective.mount.journal_room import JournalSettings
from collective.mount.journal_segments import Segment
from collective.wire import feed_pb2

SETTINGS = JournalSettings(segment_bytes=1500, reserve_bytes=0, reserve_share=0.0)
INO = 7 << 40 | 100


class Disk:
    """A folder's disk."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.names: set[str] = set()
        self.bytes: dict[str, bytes] = {}
        self.unlinked: list[str] = []
        fdatasync, fsync, remove = os.fdatasync, os.fsync, Segment.remove
        one_at_a_time = threading.Lock()  # a sync that was given up may be under way still beside the next

        def data(descriptor: int) -> None:
            with one_at_a_time:
                fdatasync(descriptor)
                path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
                self.bytes[path.name] = path.read_bytes()

        def names(descriptor: int) -> None:
            with one_at_a_time:
                fsync(descriptor)
                if Path(os.readlink(f"/proc/self/fd/{descriptor}")) == folder:
                    self.names = {path.name for path in folder.glob("*.segment")}
                    self.unlinked.clear()

        def unlinked(segment: Segment) -> None:
            with one_at_a_time:
                self.unlinked.append(segment.path.name)
                remove(segment)

        monkeypatch.setattr(os, "fdatasync", data)
        monkeypatch.setattr(os, "fsync", names)
        monkeypatch.setattr(Segment, "remove", unlinked)

    def left(self, place: Path, arrived: int) -> Path:
        """What a power failure leaves now, with the first so many unlinks since the last fsync of the folder."""
        place.mkdir()
        for name in self.names - set(self.unlinked[:arrived]):
            (place / name).write_bytes(self.bytes.get(name, b""))
        return place


def open_journal(folder: Path, settings: JournalSettings = SETTINGS) -> Journal:
    folder.mkdir()
    return Journal(folder, settings, recover(folder, b"boot", SILENT), b"boot", SILENT)


@pytest.mark.parametrize("seed", range(40))
async def test_a_power_failure_takes_nothing_that_was_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Writers, settlements and syncs at once, some of them given up; whenever the machine dies after a sync returned,
    what was there when it began is there, and what was settled then does not come back."""
    random = Random(seed)
    journal = open_journal(tmp_path / "journal")
    disk = Disk(tmp_path / "journal", monkeypatch)
    live: set[int] = set()
    settled: set[int] = set()
    promised: set[int] = set()
    gone: set[int] = set()
    failures: list[tuple[Path, set[int], set[int]]] = []

    def fail() -> None:
        place = tmp_path / f"left-{len(failures)}"
        left = disk.left(place, random.randint(0, len(disk.unlinked)))
        failures.append((left, promised - settled, set(gone)))

    async def write() -> None:
        for _ in range(20):
            live.add(await journal.append_write(INO, 0, random.randbytes(random.choice([10, 700, 1400])), 1))
            if random.random() < 0.6:
                going = [seq for seq in sorted(live) if random.random() < 0.6]
                live.difference_update(going)
                settled.update(going)
                journal.settle(going)
            for _ in range(random.randint(0, 3)):
                await asyncio.sleep(0)

    async def sync() -> None:
        for _ in range(12):
            before, over = set(live), set(settled)
            task = asyncio.create_task(journal.sync())
            await asyncio.sleep(0)
            if random.random() < 0.2:
                task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                continue
            promised.update(before)
            gone.update(over)
            fail()

    await asyncio.gather(write(), write(), sync(), sync())
    await journal.close()
    assert failures
    for left, want, over in failures:
        found = {record.seq for record in recover(left, b"another boot", SILENT).records}
        assert want <= found, f"synced and lost (seed {seed})"
        assert not over & found, f"settled, synced, and back (seed {seed})"


async def test_a_sync_that_was_given_up_leaves_the_names_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is cancelled before a thread was free for it; a new segment's name is made durable all the same."""
    journal = open_journal(tmp_path / "journal")
    disk = Disk(tmp_path / "journal", monkeypatch)
    go_on = threading.Event()
    for _ in range(4):
        journal._executor.submit(go_on.wait)
    await journal.append_write(INO, 0, b"kept", 1)
    given_up = asyncio.create_task(journal.sync())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    go_on.set()
    await journal.sync()
    assert disk.names
    await journal.close()


async def test_what_waits_for_a_sync_is_no_reason_to_stop(tmp_path: Path) -> None:
    """All that was changed is settled, and nobody has synced yet: changes of names never wait, and have room."""
    settings = JournalSettings(segment_bytes=1500, reserve_bytes=0, reserve_share=0.0, bound_bytes=20_000)
    journal = open_journal(tmp_path / "journal", settings)
    operation = feed_pb2.TreeOperation(create=feed_pb2.Create(parent=1, name=b"n" * 200, inode=100))
    for _ in range(400):
        journal.settle([journal.append_operation(b"s" * 32, operation)])
    assert not journal.half_full
    await journal.sync()
    assert journal.size_bytes == sum(path.stat().st_size for path in (tmp_path / "journal").glob("*.segment"))
    await journal.close()
