"""A home and the writing part of a mount of it, without files, names or a kernel: what replay needs, and no more."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.catalogs import FEDERATION, TestFederation
from support.committers import MemoryCommitter, go_on

from collective.catalog import Catalog, Inline
from collective.catalog.namespace import NUMBER_BITS
from collective.core.clock import ManualClock
from collective.core.errors import Full, NotFound
from collective.core.observe import SILENT
from collective.mount.committing import Author
from collective.mount.dirty import DirtyFile, DirtyTable
from collective.mount.journal import Journal
from collective.mount.journal_folder import JournalFolder
from collective.mount.journal_room import JournalSettings
from collective.mount.replay import Replay
from collective.wire import feed_pb2, submit_pb2

ALICE = f"alice.{FEDERATION}"
ROOT = 1
MODE = stat.S_IFREG | 0o644
SETTINGS = JournalSettings(reserve_bytes=0, reserve_share=0.0)


@dataclass
class World:
    """One home with one DataStore, and what mounts of it leave behind."""

    folder: Path
    federation: TestFederation
    catalog: Catalog
    store_id: bytes
    prefix: int
    contents: dict[bytes, bytes] = field(default_factory=dict)
    outcomes: list[submit_pb2.OperationOutcome] = field(default_factory=list)

    def committer(self, hook: Callable[[str], Awaitable[None]] = go_on) -> MemoryCommitter:
        committer = MemoryCommitter(self.catalog, self.contents, hook)
        committer.outcomes = self.outcomes
        return committer

    def ino(self, number: int) -> int:
        return self.prefix << NUMBER_BITS | number

    def read(self, name: bytes, parent: int = ROOT) -> bytes:
        """What the library has under a name. Raises: NotFound."""
        node = self.catalog.lookup(self.ino(parent), name)
        found = self.catalog.content(node)
        data = found.data if isinstance(found, Inline) else self.contents[found.version_id]
        assert len(data) == node.size_bytes
        return data

    def killed(self, name: str = "killed") -> Path:
        """What the mounts would leave that were killed at this very moment."""
        return Path(shutil.copytree(self.folder / "mounts", self.folder / name))

    def change(self, change: feed_pb2.TreeOperation) -> None:
        """Somebody else's."""
        operation = Author(ALICE, f"client@{ALICE}").operation(1_800_000_000_000_000_000)
        operation.MergeFrom(change)
        staged = [submit_pb2.StagedOperation(operation=operation)]
        self.catalog.commit_operations(self.store_id, staged, actor_domain=ALICE, now=1.0, exact=True)

    def write(self, number: int, data: bytes) -> None:
        """Somebody else's content of a file."""
        content = feed_pb2.Content(size_bytes=len(data), inline=data)
        self.change(feed_pb2.TreeOperation(set_content=feed_pb2.SetContent(inode=number, content=content)))

    def clear(self) -> None:
        """An empty DataStore, for the next run."""
        self.outcomes.clear()
        operations = []
        for name, node in self.catalog.list(self.ino(ROOT)):
            operation = Author(ALICE, f"client@{ALICE}").operation(1)
            operation.unlink.CopyFrom(feed_pb2.Unlink(parent=ROOT, name=name, inode=node.number))
            operations.append(submit_pb2.StagedOperation(operation=operation))
        self.catalog.commit_operations(self.store_id, operations, actor_domain=ALICE, now=1.0, exact=True)

    def listing(self) -> dict[bytes, bytes]:
        return {name: self.read(name) for name, node in self.catalog.list(self.ino(ROOT)) if not node.is_directory}


@contextmanager
def world_in_memory() -> Iterator[World]:
    """In memory where that can be had: these tests kill processes, not machines, and commit thousands of times."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        federation = TestFederation(Path(folder, "federation"))
        catalog = federation.add("alice")
        store = catalog.create_datastore(b"/media", feed_pb2.MEDIA, 1, {})
        federation.sync()
        yield World(Path(folder), federation, catalog, store.feed_id, store.inode_prefix)
        federation.close()


@dataclass
class Mount:
    """The writing part of a mount, with the words of a file system."""

    world: World
    journal: Journal
    dirty: DirtyTable
    committer: MemoryCommitter
    replay: Replay
    clock: ManualClock
    settled: list[int]
    author: Author = field(default_factory=lambda: Author(ALICE, f"client@{ALICE}"))
    now_ns: int = 1_700_000_000_000_000_000
    pending: set[int] = field(default_factory=set)

    def operation(self) -> feed_pb2.TreeOperation:
        self.now_ns += 1_000
        return self.author.operation(self.now_ns)

    def number(self) -> int:
        numbers = self.world.catalog.take_numbers(self.world.store_id, 1)
        assert numbers is not None
        return numbers[0]

    def create(self, name: bytes, parent: int = ROOT, mode: int = MODE) -> int:
        operation = self.operation()
        number = self.number()
        operation.create.CopyFrom(feed_pb2.Create(parent=parent, name=name, inode=number, mode=mode))
        self.replay.change(self.world.store_id, operation, of_directory=stat.S_ISDIR(mode))
        return number

    def rename(self, number: int, old: bytes, new: bytes, replaced: int = 0) -> None:
        operation = self.operation()
        operation.rename.CopyFrom(
            feed_pb2.Rename(
                inode=number, from_parent=ROOT, from_name=old, to_parent=ROOT, to_name=new, replaced_inode=replaced
            )
        )
        self.replay.change(self.world.store_id, operation)

    def unlink(self, number: int, name: bytes) -> None:
        operation = self.operation()
        operation.unlink.CopyFrom(feed_pb2.Unlink(parent=ROOT, name=name, inode=number))
        self.replay.change(self.world.store_id, operation)

    def set_mtime(self, number: int, mtime_ns: int) -> None:
        operation = self.operation()
        operation.set_attributes.inode = number
        operation.set_attributes.mtime_nanoseconds = mtime_ns
        self.replay.change(self.world.store_id, operation)

    def file(self, number: int) -> DirtyFile:
        """The file, about to be changed; its base is what the library has, or nothing for one just made."""
        ino = self.world.ino(number)
        if (found := self.dirty.get(ino)) is not None:
            return found
        try:
            node = self.world.catalog.get(ino)
            base = self.world.catalog.content(node)
            return self.dirty.begin(ino, self.world.store_id, base, node.size_bytes, node.mtime_ns)
        except NotFound:
            return self.dirty.begin(ino, self.world.store_id, Inline(b""), 0, self.now_ns)

    async def write(self, number: int, offset: int, data: bytes) -> None:
        self.now_ns += 1_000
        await self.replay.write(self.file(number), offset, data, self.now_ns)

    def truncate(self, number: int, size: int) -> None:
        self.now_ns += 1_000
        self.replay.truncate(self.file(number), size, self.now_ns)

    def opened(self, number: int) -> None:
        self.replay.opened(self.world.ino(number))

    def closed(self, number: int) -> None:
        self.replay.closed(self.world.ino(number))

    async def put(self, name: bytes, data: bytes) -> int:
        """A program that creates, writes and closes."""
        number = self.create(name)
        self.opened(number)
        if data:
            await self.write(number, 0, data)
        self.closed(number)
        return number

    def pending_content(self, number: int) -> bytes | None:
        """What is not in the library yet, None when all is."""
        file = self.dirty.get(self.world.ino(number))
        if file is None:
            return None
        parts = []
        for piece in file.plan(0, file.size_bytes):
            size = piece.end - piece.start
            if piece.seq > 0:
                parts.append(self.journal.read(piece.seq, piece.skip, size))
            elif piece.seq == 0:
                parts.append(bytes(size))
            elif isinstance(file.base, Inline):
                parts.append(file.base.data[piece.start : piece.end])
            else:
                parts.append(self.world.contents[file.base.version_id][piece.start : piece.end])
        return b"".join(parts)


@asynccontextmanager
async def mounted(
    world: World, committer: MemoryCommitter | None = None, journals: Path | None = None
) -> AsyncIterator[Mount]:
    folder = JournalFolder(journals or world.folder / "mounts", SETTINGS, b"boot", SILENT)
    journal = await folder.open()
    committer = committer or world.committer()
    dirty, clock, settled = DirtyTable(), ManualClock(), []
    author = Author(ALICE, f"client@{ALICE}")
    replay = Replay(journal, dirty, committer, committer.open_source, author, clock, SILENT, settled.extend)
    try:
        mount = Mount(world, journal, dirty, committer, replay, clock, settled)
        mount.pending = {record.seq for record in replay.recover()}
        async with replay:
            yield mount
    finally:
        await journal.close()
        folder.release()


def end_segment(journal: Journal) -> None:
    """What comes next goes into a new segment, as when this one is full."""
    journal.write_held()
    journal._active = journal._new_segment(journal._active.number + 1)


async def answered_on_a_full_disk(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> int:
    """The number of a file whose first content was answered while a second was written, and what that lies on could not
    be written down."""
    number = mount.create(b"file")
    mount.opened(number)
    await mount.write(number, 0, b"first")
    mount.closed(number)
    mount.opened(number)
    await mount.write(number, 0, b"second")

    def full(record: object) -> int:
        raise Full("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(mount.journal, "hold_base", full)
        await mount.replay.submitted(mount.world.store_id)
    return number


async def replayed(world: World, journals: Path) -> list[str]:
    """What the next mount sends; the journal is empty then."""
    async with mounted(world, journals=journals) as again:
        await again.replay.wait()
        assert again.journal.unsettled_count == 0
        return changes(again.committer)


def changes(committer: MemoryCommitter) -> list[str]:
    return [str(one.operation.WhichOneof("change")) for batch in committer.batches for one in batch]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)
