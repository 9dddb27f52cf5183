"""A home in one process: a real catalogue, a coordinator's desk over it, chunks in a dictionary."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from memory_library import MemorySource, MemorySources
from support.catalogs import FEDERATION, TestFederation

from collective.catalog import Catalog, DataStore, Reader, VersionReference
from collective.catalog.numbers import take_numbers
from collective.catalog.staging import commit_operations
from collective.core.errors import Unreachable
from collective.core.layout import CHUNK_SIZE_BYTES, VersionLayout
from collective.core.observe import SILENT, Observer
from collective.mount.changes import ToldNames
from collective.mount.committing import Author, GiveUp, PlainContent, SealedContent, Unsent
from collective.mount.filesystem import FileSystem
from collective.mount.journal import JournalSettings
from collective.mount.journal_folder import JournalFolder
from collective.mount.names import Space
from collective.mount.reading import ContentReader
from collective.mount.settings import MountSettings
from collective.mount.writing import Writer, Writing
from collective.wire import feed_pb2, submit_pb2

ALICE = f"alice.{FEDERATION}"
READ_BYTES = 1 << 20


@dataclass
class Desk:
    """A coordinator: commits to the catalogue, keeps contents, leases directories to one committer at a time."""

    catalog: Catalog
    contents: MutableMapping[bytes, bytes] = field(default_factory=dict)
    holders: dict[tuple[bytes, int], MemoryCommitter] = field(default_factory=dict)
    reachable: bool = True
    submitted: int = 0
    uploads: int = 0
    outcomes: list[submit_pb2.OperationOutcome] = field(default_factory=list)
    locks: dict[tuple[bytes, int], asyncio.Lock] = field(default_factory=dict)

    def check(self) -> None:
        if not self.reachable:
            raise Unreachable("the coordinator is away")

    async def open_source(self, reference: VersionReference) -> MemorySource:
        data = self.contents[reference.version_id]
        return MemorySource(SOURCES, data, VersionLayout(len(data), CHUNK_SIZE_BYTES))


SOURCES = MemorySources(None)  # type: ignore[arg-type]  # counts and gates only


class MemoryCommitter:
    """One mount's connection to the desk."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.session = 1
        self._give_up: GiveUp | None = None

    async def submit(
        self, store_id: bytes, operations: Sequence[submit_pb2.StagedOperation], *, exact: bool
    ) -> Sequence[submit_pb2.OperationOutcome]:
        self.desk.check()
        await asyncio.sleep(0)
        self.desk.check()
        for staged in operations:  # a directory made under a lease is its maker's too
            create = staged.operation.create
            if stat.S_ISDIR(create.mode) and self.desk.holders.get((store_id, create.parent)) is self:
                self.desk.holders[store_id, create.inode] = self
        outcomes, _ = commit_operations(
            self.desk.catalog, store_id, operations, actor_domain=ALICE, now=self.desk.catalog.clock.wall(), exact=exact
        )
        self.desk.submitted += len(operations)
        self.desk.outcomes += outcomes
        return outcomes

    async def lease_numbers(self, store_id: bytes, count: int) -> range:
        self.desk.check()
        await asyncio.sleep(0)
        numbers = take_numbers(self.desk.catalog, store_id, count)
        assert numbers is not None
        return numbers

    async def lease_directory(self, store_id: bytes, inode: int) -> float | None:
        self.desk.check()
        key = (store_id, inode)
        async with self.desk.locks.setdefault(key, asyncio.Lock()):
            holder = self.desk.holders.get(key)
            if holder is not None and holder is not self:
                assert holder._give_up is not None
                await holder._give_up(store_id, inode)
            self.desk.holders[key] = self
        return 3.0

    def on_connect(self, unsent: Unsent) -> None:
        self.unsent = unsent

    def on_recall(self, give_up: GiveUp) -> None:
        self._give_up = give_up

    def leases_valid_until(self) -> float:
        return float("inf") if self.desk.reachable else 0.0

    async def upload(self, content: PlainContent) -> SealedContent:
        self.desk.check()
        data = bytearray(content.size_bytes)
        previous = self.desk.contents[content.previous.version_id] if content.previous is not None else b""
        kept = min(len(previous), content.size_bytes)
        data[:kept] = previous[:kept]
        for start, end in content.changed:
            for offset in range(start, end, READ_BYTES):
                with memoryview(data)[offset : min(end, offset + READ_BYTES)] as view:
                    await content.read(offset, view)
        self.desk.check()
        version_id = os.urandom(16)
        self.desk.contents[version_id] = bytes(data)
        self.desk.uploads += 1
        store = self.desk.catalog.store(content.store_id)
        layout = feed_pb2.Layout(
            version_id=version_id, size_bytes=len(data), chunk_size_bytes=CHUNK_SIZE_BYTES, members=[ALICE]
        )
        sealed = feed_pb2.Content(size_bytes=len(data), version_id=version_id, key_name=store.key_name)
        return SealedContent(sealed, layout, [], [], len(data))

    async def await_level(self, store_id: bytes, version_id: bytes, level: str, timeout_seconds: float) -> str:
        self.desk.check()
        return level

    def may_write(self, store: DataStore, path: bytes | None) -> bool:
        return store.owner == ALICE

    def space(self) -> Space:
        return Space(1 << 40, 1 << 39)


def make_home(folder: Path, *paths: bytes, others: Sequence[str] = ()) -> TestFederation:
    """Alice's home with DataStores at `paths`, and other members; the catalogues open."""
    federation = TestFederation(folder)
    catalog = federation.add("alice")
    for name in others:
        federation.add(name)
    for path in paths:
        catalog.create_datastore(path, feed_pb2.MEDIA, 1, {})
    federation.sync()
    return federation


@contextmanager
def home_in_memory(folder: Path, *paths: bytes) -> Iterator[tuple[Desk, Callable[[], Reader]]]:
    """A fresh home; a desk, and what opens a reader of its database."""
    with desk_of(make_home(folder, *paths)) as opened:
        yield opened


@contextmanager
def desk_of(
    federation: TestFederation, contents: MutableMapping[bytes, bytes] | None = None
) -> Iterator[tuple[Desk, Callable[[], Reader]]]:
    """The desk of a home whose catalogue is open; all is closed at the end."""
    readers: list[Reader] = []

    def open_reader() -> Reader:
        readers.append(Reader.open(federation.folder("alice") / "catalog.db", ALICE))
        return readers[-1]

    try:
        yield Desk(federation.catalogs["alice"], {} if contents is None else contents), open_reader
    finally:
        for reader in readers:
            reader.close()
        federation.close()


class FolderContents(dict[bytes, bytes]):
    """Contents that outlive their process: a file each."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def __setitem__(self, version_id: bytes, data: bytes) -> None:
        (self._folder / version_id.hex()).write_bytes(data)

    def __getitem__(self, version_id: bytes) -> bytes:
        return (self._folder / version_id.hex()).read_bytes()


class RealClock:
    """Time as it passes."""

    wall = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)


@dataclass
class Mount:
    """One mount of the home, without a kernel."""

    files: FileSystem
    writing: Writing
    committer: MemoryCommitter

    async def settled(self) -> None:
        """Everything that was changed is in the catalogue."""
        await self.writing.drained()


@asynccontextmanager
async def mount_in_memory(
    desk: Desk,
    names: Reader,
    journals: Path,
    observer: Observer = SILENT,
    committer: MemoryCommitter | None = None,
    domain: str = ALICE,
) -> AsyncIterator[Mount]:
    """A file system over the home; its journal lies in `journals`, and is taken up again by the next one there."""
    journals.mkdir(exist_ok=True)
    folder = JournalFolder(journals, JournalSettings(reserve_bytes=0, reserve_share=0), b"boot" * 4, observer)
    journal = await folder.open()
    committer = committer or MemoryCommitter(desk)
    clock = RealClock()
    writer = Writer(committer, journal, Author(domain, f"client@{domain}"), clock)
    try:
        async with (
            ContentReader(desk.open_source, MountSettings(journals), observer) as reader,
            writer.begin(names, reader, desk.open_source, observer) as writing,
        ):
            told = ToldNames(writing.view, 5.0, writing.certain_since)
            files = FileSystem(
                writing.view, writing.files, told, clock.monotonic, committer.space, writing.changes, writing.forget
            )
            yield Mount(files, writing, committer)
    finally:
        await journal.close()
        folder.release()
