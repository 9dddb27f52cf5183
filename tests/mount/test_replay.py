"""From the journal into a real catalogue: order, merging, flushes, errors, and a kill at every await."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest
from support.catalogs import FEDERATION, TestFederation
from support.committers import MemoryCommitter, go_on

from collective.catalog import Catalog, Inline
from collective.catalog.namespace import NUMBER_BITS
from collective.core.clock import ManualClock
from collective.core.errors import Full, NotFound, Refused, Unreachable
from collective.core.observe import SILENT
from collective.core.sizes import MIB
from collective.mount.committing import Author
from collective.mount.dirty import DirtyFile, DirtyTable
from collective.mount.journal import Journal
from collective.mount.journal_folder import JournalFolder
from collective.mount.journal_records import OperationRecord
from collective.mount.journal_room import JournalSettings
from collective.mount.replay import Replay
from collective.wire import feed_pb2, submit_pb2

ALICE = f"alice.{FEDERATION}"
ROOT = 1
MODE = stat.S_IFREG | 0o644
STEPS = 30  # of a random program
SETTINGS = JournalSettings(reserve_bytes=0, reserve_share=0.0)


class Killed(BaseException):
    """The process is gone."""


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


@pytest.fixture
def world() -> Iterator[World]:
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


def changes(committer: MemoryCommitter) -> list[str]:
    return [str(one.operation.WhichOneof("change")) for batch in committer.batches for one in batch]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


# ---------------------------------------------------------------- order and merging


async def test_a_small_file_is_one_operation(world: World) -> None:
    """Created, written and closed within a batch: one create that carries the content, and its time."""
    async with mounted(world) as mount:
        number = await mount.put(b"small", b"hello")
        await mount.replay.wait()
        assert changes(mount.committer) == ["create"]
        assert world.read(b"small") == b"hello"
        assert world.catalog.get(world.ino(number)).mtime_ns == mount.now_ns
        assert len(mount.dirty) == 0
        assert mount.journal.recovered == ()
    assert list((world.folder / "mounts").glob("*/*.segment")) == [], "all settled, all gone"


async def test_many_small_files_travel_in_batches(world: World) -> None:
    """A thousand files: four batches or so, not thousands of calls."""
    async with mounted(world) as mount:
        for index in range(1000):
            await mount.put(b"%d" % index, b"content %d" % index)
        await mount.replay.wait()
        assert len(mount.committer.batches) <= 10
        assert changes(mount.committer) == ["create"] * 1000
    assert world.read(b"777") == b"content 777"


async def test_a_small_file_leaves_no_cycle_behind(world: World) -> None:
    """What comes and goes by the thousand must go by itself: looking for cycles took a tenth of a busy mount."""
    async with mounted(world) as mount:
        await mount.put(b"first", b"content")
        await mount.replay.wait()
        gc.collect()
        gc.disable()
        try:
            for index in range(300):
                await mount.put(b"%d" % index, b"content %d" % index)
            await mount.replay.wait()
            assert gc.collect() < 300
        finally:
            gc.enable()


async def test_a_create_that_is_sent_already_gets_its_content_later(world: World) -> None:
    """The program takes its time between create and close."""
    async with mounted(world) as mount:
        number = mount.create(b"slow")
        mount.opened(number)
        await until(lambda: mount.committer.batches)
        await mount.write(number, 0, b"later")
        mount.closed(number)
        await mount.replay.wait()
        assert changes(mount.committer) == ["create", "set_content"]
        assert world.read(b"slow") == b"later"


async def test_nobody_sees_the_empty_file_behind_a_rename(world: World) -> None:
    """write tmp, close, rename over: while the upload takes its time the old content stands, neighbours go on."""
    gate = asyncio.Event()

    async def hook(place: str) -> None:
        if place == "upload":
            await gate.wait()

    async with mounted(world) as mount:
        old = await mount.put(b"final", b"old")
        await mount.replay.wait()
        mount.committer.hook = hook
        tmp = await mount.put(b"tmp", b"new" * 5000)
        mount.rename(tmp, b"tmp", b"final", old)
        await mount.put(b"neighbour", b"here")
        await until(lambda: b"neighbour" in world.listing())
        assert world.read(b"final") == b"old"
        gate.set()
        await mount.replay.wait()
        assert world.listing() == {b"final": b"new" * 5000, b"neighbour": b"here"}


async def test_a_time_that_was_set_survives_the_content(world: World) -> None:
    """cp -p: write, utimens, close: the content that goes afterwards carries the time that was set."""
    async with mounted(world) as mount:
        number = mount.create(b"copy")
        mount.opened(number)
        await mount.write(number, 0, b"x" * 10_000)
        mount.set_mtime(number, 42)
        mount.closed(number)
        await mount.replay.wait()
        assert world.catalog.get(world.ino(number)).mtime_ns == 42


# ---------------------------------------------------------------- flushes


async def test_a_large_file_goes_while_it_is_written(world: World) -> None:
    """Nothing waits for the close: whole chunks go before, each once, provisionally; the close makes it final."""
    async with mounted(world) as mount:
        number = mount.create(b"large")
        mount.opened(number)
        block = os.urandom(MIB)
        for index in range(150):
            await mount.write(number, index * MIB, block)
        mount.closed(number)
        await mount.replay.wait()
        assert world.read(b"large") == block * 150
        contents = [
            one.operation.set_content
            for batch in mount.committer.batches
            for one in batch
            if one.operation.HasField("set_content")
        ]
        assert len(contents) >= 2
        assert [one.provisional for one in contents] == [True] * (len(contents) - 1) + [False]
        sent = sum(end - start for upload in mount.committer.uploads for start, end in upload.changed)
        assert sent == 150 * MIB, "no byte was sent twice"
        await until(lambda: mount.journal.size_bytes < 80 * MIB)  # a sync may hold segments for a moment


async def test_an_open_file_that_is_left_alone_is_sent_and_made_final_by_its_close(world: World) -> None:
    """Five seconds of quiet; the close sends no byte again."""
    async with mounted(world) as mount:
        number = mount.create(b"log")
        mount.opened(number)
        await mount.write(number, 0, b"line\n" * 2000)
        await mount.replay.tick(mount.clock.monotonic())
        mount.clock.advance(6)
        await mount.replay.tick(mount.clock.monotonic())
        await until(lambda: world.listing().get(b"log"))
        assert len(mount.committer.uploads) == 1
        mount.closed(number)
        await mount.replay.wait()
        assert len(mount.committer.uploads) == 1
        last = mount.committer.batches[-1][-1].operation.set_content
        assert not last.provisional
        assert last.content.size_bytes == 10_000
        assert len(mount.dirty) == 0


async def test_changes_during_a_flush_follow_it(world: World) -> None:
    """Written while the first content is on its way: expected on top of it, no conflict, nothing lost."""
    gate = asyncio.Event()

    async def hook(place: str) -> None:
        if place == "uploaded":
            await gate.wait()

    async with mounted(world, world.committer(hook)) as mount:
        number = await mount.put(b"file", b"a" * 10_000)
        await until(lambda: mount.committer.uploads)
        mount.opened(number)
        await mount.write(number, 5_000, b"b" * 10_000)
        mount.closed(number)
        assert mount.pending_content(number) == b"a" * 5_000 + b"b" * 10_000
        gate.set()
        await mount.replay.wait()
        assert world.read(b"file") == b"a" * 5_000 + b"b" * 10_000
        assert mount.committer.uploads[1].changed == [(5_000, 15_000)]
        assert {one.outcome for one in world.outcomes} == {submit_pb2.APPLIED}


async def test_flush_returns_when_the_library_has_it(world: World) -> None:
    """For fsync where two homes shall hold it: the file's changes are in the database, whatever else is not."""
    async with mounted(world) as mount:
        number = mount.create(b"file")
        mount.opened(number)
        await mount.write(number, 0, b"x" * 9_000)
        await mount.replay.flush(world.ino(number))
        assert world.read(b"file") == b"x" * 9_000


async def test_an_exact_call_waits_for_what_it_concerns(world: World) -> None:
    """`before` and `settle_directory` return when the queue has nothing of it left; other things may still wait."""
    gate = asyncio.Event()

    async def hook(place: str) -> None:
        if place == "upload":
            await gate.wait()

    async with mounted(world, world.committer(hook)) as mount:
        await mount.put(b"waits", b"x" * 10_000)
        folder = mount.create(b"folder", mode=stat.S_IFDIR | 0o755)
        inside = mount.operation()
        inside.create.CopyFrom(feed_pb2.Create(parent=folder, name=b"inside", inode=mount.number(), mode=MODE))
        await mount.replay.before(world.store_id, inside)
        assert world.catalog.lookup(world.ino(ROOT), b"folder").is_directory
        mount.create(b"more", parent=folder)
        await mount.replay.settle_directory(world.store_id, folder)
        assert world.catalog.lookup(world.ino(folder), b"more")
        gate.set()


async def test_a_content_that_others_replaced_meanwhile_is_not_overwritten(world: World) -> None:
    """What was expected to stand there does not: both contents are kept, under two names."""
    async with mounted(world) as mount:
        number = await mount.put(b"shared.txt", b"first")
        await mount.replay.wait()
        mount.opened(number)
        await mount.write(number, 0, b"ours!")
        theirs = Author(ALICE, f"client@{ALICE}").operation(mount.now_ns)
        theirs.set_content.inode = number
        theirs.set_content.content.CopyFrom(feed_pb2.Content(size_bytes=6, inline=b"theirs"))
        staged = [submit_pb2.StagedOperation(operation=theirs)]
        world.catalog.commit_operations(world.store_id, staged, actor_domain=ALICE, now=1.0, exact=True)
        mount.closed(number)
        await mount.replay.wait()
        assert world.outcomes[-1].outcome == submit_pb2.CONFLICT
        assert sorted(world.listing().values()) == [b"ours!", b"theirs"]
        assert world.read(b"shared.txt") == b"theirs"


# ---------------------------------------------------------------- gone files


async def test_a_file_removed_before_it_was_sent_is_not_sent(world: World) -> None:
    """Its content is dropped, its journal comes back, the name is made and removed."""
    gate = asyncio.Event()

    async def hook(place: str) -> None:
        if place == "upload":
            await gate.wait()

    async with mounted(world, world.committer(hook)) as mount:
        number = await mount.put(b"gone", b"x" * 10_000)
        mount.unlink(number, b"gone")
        mount.replay.forget(world.ino(number))
        await mount.replay.wait()
        gate.set()
        assert world.listing() == {}
        assert "set_content" not in changes(mount.committer)
    assert list((world.folder / "mounts").glob("*/*.segment")) == []


async def test_an_orphan_stays_readable_and_is_never_sent(world: World) -> None:
    """Unlinked while open, and written to afterwards: a later mount knows nothing of it."""
    async with mounted(world) as mount:
        number = mount.create(b"temporary")
        mount.opened(number)
        await mount.write(number, 0, b"a" * 10_000)
        mount.unlink(number, b"temporary")
        mount.replay.orphan(world.ino(number))
        await mount.write(number, 10_000, b"b" * 10)
        mount.truncate(number, 10_005)
        assert mount.pending_content(number) == b"a" * 10_000 + b"b" * 5
        copy = Path(shutil.copytree(world.folder / "mounts", world.folder / "killed"))
        mount.closed(number)
        mount.replay.forget(world.ino(number))
        await mount.replay.wait()
        assert mount.committer.uploads == []
        assert mount.journal.unsettled_count == 0
    async with mounted(world, journals=copy) as again:
        await again.replay.wait()
        assert again.committer.uploads == []
    assert world.listing() == {}
    assert {one.outcome for one in world.outcomes} == {submit_pb2.APPLIED}


# ---------------------------------------------------------------- errors


async def test_a_coordinator_that_is_away_costs_time_only(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same batch is sent again, in order, until somebody answers."""
    monkeypatch.setattr("collective.mount.replay_queue.FIRST_PAUSE_SECONDS", 0.001)
    async with mounted(world) as mount:
        mount.committer.submit_failure = Unreachable("away")
        number = await mount.put(b"tmp", b"data")
        mount.rename(number, b"tmp", b"final")
        tries = []
        mount.committer.hook = lambda place: _note(tries, place)
        await until(lambda: len(tries) >= 3)
        mount.committer.submit_failure = None
        await mount.replay.wait()
    assert world.listing() == {b"final": b"data"}


async def test_what_no_call_may_carry_is_left_and_all_else_goes_on(world: World) -> None:
    """Of a batch that is refused as a whole one content is about it: the others arrive, it is told at fsync and in the
    trouble, stays readable, and the next mount sends it when it may."""
    async with mounted(world) as mount:
        mount.committer.never = lambda staged: staged.operation.create.name == b"left" or staged.HasField("layout")
        left = await mount.put(b"large", b"x" * 10_000)
        mount.create(b"left")
        others = {b"%d" % index: b"content %d" % index for index in range(30)}
        for name, content in others.items():
            await mount.put(name, content)
        await until(lambda: world.ino(left) in mount.replay._contents.problems)
        with pytest.raises(Refused, match="not like this"):
            await mount.replay.flush(world.ino(left))
        with pytest.raises(Refused):  # and again, for as long as it is so
            await mount.replay.flush(world.ino(left))
        await mount.replay.wait()
        assert world.listing() == {**others, b"large": b""}
        assert mount.replay.trouble == "not like this"
        assert mount.pending_content(left) == b"x" * 10_000
        assert mount.journal.unsettled_count
    async with mounted(world) as again:
        await again.replay.wait()
        assert again.journal.unsettled_count == 0
    assert world.listing() == {**others, b"large": b"x" * 10_000, b"left": b""}


async def _note(tries: list[str], place: str) -> None:
    tries.append(place)
    await asyncio.sleep(0)


async def test_a_full_node_is_told_and_forgotten_when_it_has_room(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The content stays, the next fsync or close is told once, and others are not held up."""
    monkeypatch.setattr("collective.mount.replay_contents.FIRST_PAUSE_SECONDS", 0.001)
    async with mounted(world) as mount:
        mount.committer.upload_failure = Full("the node is full")
        numbers = [await mount.put(b"%d" % index, b"x" * 10_000) for index in range(20)]
        with pytest.raises(Full):
            await mount.replay.flush(world.ino(numbers[3]))
        await until(lambda: world.ino(numbers[4]) in mount.replay._contents.problems)
        assert isinstance(mount.replay.problem(world.ino(numbers[4])), Full)
        await mount.put(b"small", b"goes on")
        await until(lambda: world.listing().get(b"small") == b"goes on")
        mount.committer.upload_failure = None
        await mount.replay.wait()
        assert world.listing() == {**{b"%d" % index: b"x" * 10_000 for index in range(20)}, b"small": b"goes on"}
        assert mount.replay.problem(world.ino(numbers[4])) is None


# ---------------------------------------------------------------- kills


CHOICES = [
    *("put", "put", "put", "edit", "edit", "log", "log", "truncate", "replace", "unlink", "mtime"),
    *("pause", "pause", "quiet", "flush"),
]


class Program:
    """A random program that changes files one call after the other, and what must be there afterwards."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.files: dict[bytes, tuple[int, bytearray]] = {}
        self._coming: dict[bytes, bytes] = {}

    def images(self) -> list[dict[bytes, bytes]]:
        """What must be there: what the program was told is done, with or without what it is just doing."""
        done = {name: bytes(data) for name, (_, data) in self.files.items()}
        return [done, {**done, **self._coming}]

    async def run(self, mount: Mount, steps: int) -> None:
        for _ in range(steps):
            await self.step(mount)

    async def step(self, mount: Mount) -> None:
        random = self.random
        names = list(self.files)
        choice = random.choice(CHOICES)
        if choice == "put" or not names:
            name = b"file-%d" % random.randint(0, 10**9)
            data = bytearray(random.randbytes(random.choice([0, 10, 4096, 5000, 70_000])))
            number = mount.create(name)
            self.files[name] = (number, bytearray())
            await self._write(mount, name, 0, bytes(data))
            return
        name = random.choice(names)
        number, data = self.files[name]
        if choice == "edit":
            await self._write(
                mount, name, random.randint(0, len(data) + 100), random.randbytes(random.choice([5, 6000]))
            )
        elif choice == "truncate":
            size = random.choice([0, len(data) // 2, len(data) + 50])
            mount.truncate(number, size)
            del data[size:]
            data.extend(bytes(size - len(data)))
            mount.closed(number)
        elif choice == "replace":
            other = random.choice(names)
            if other != name:
                mount.rename(number, name, other, self.files[other][0])
                mount.replay.forget(mount.world.ino(self.files[other][0]))
                self.files[other] = self.files.pop(name)
        elif choice == "unlink":
            mount.unlink(number, name)
            mount.replay.forget(mount.world.ino(number))
            del self.files[name]
        elif choice == "mtime":
            mount.set_mtime(number, random.randint(1, 10**18))
        elif choice == "log":
            await self._write(mount, name, len(data), random.randbytes(random.choice([5, 6000])), close=False)
        elif choice == "quiet":
            mount.clock.advance(6)
            await mount.replay.tick(mount.clock.monotonic())
            await mount.replay.submitted(mount.world.store_id)
        elif choice == "flush":
            await mount.replay.flush(mount.world.ino(number))
        else:
            await mount.replay.submitted(mount.world.store_id)

    async def _write(self, mount: Mount, name: bytes, offset: int, data: bytes, *, close: bool = True) -> None:
        number, model = self.files[name]
        mount.opened(number)
        for at in range(0, len(data), 3000):
            piece = data[at : at + 3000]
            coming = model + bytes(max(0, offset + at - len(model)))
            coming[offset + at : offset + at + len(piece)] = piece
            self._coming = {name: bytes(coming)}
            await mount.write(number, offset + at, piece)
            model[:] = coming
            self._coming = {}
        if close:
            mount.closed(number)


@dataclass
class Death:
    """`images` is what the program had been told when its mount died, `journals` what that left."""

    images: list[dict[bytes, bytes]]
    journals: Path


async def run_until_killed(world: World, seed: int, kill_at: int, journals: Path) -> Death | None:
    """A program on a mount whose process is gone at the n-th await of its way out; None when it ended before."""
    program = Program(seed)
    live = world.folder / f"live-{seed}-{kill_at}"
    deaths: list[Death] = []
    count = 0

    async def hook(place: str) -> None:
        nonlocal count
        count += 1
        if deaths:
            raise Killed  # a dead process does nothing more
        if count == kill_at:
            shutil.copytree(live, journals)
            deaths.append(Death(program.images(), journals))
            raise Killed
        await asyncio.sleep(0)

    try:
        async with mounted(world, world.committer(hook), live) as mount:
            await program.run(mount, STEPS)
            await mount.replay.wait()
            assert world.listing() == program.images()[0]
    except (BaseExceptionGroup, Killed):
        if not deaths:
            raise
    return deaths[0] if deaths else None


@pytest.mark.parametrize("seed", range(8))
async def test_a_kill_at_every_await_loses_nothing(world: World, seed: int) -> None:
    """Whenever the mount dies: the next one brings everything it had been told to keep into the library, once."""
    kill_at = 1
    while (death := await run_until_killed(world, seed, kill_at, world.folder / f"dead-{seed}-{kill_at}")) is not None:
        async with mounted(world, journals=death.journals) as again:
            await again.replay.wait()
            assert len(again.dirty) == 0
            assert again.journal.unsettled_count == 0
        assert world.listing() in death.images, f"killed at {kill_at}"
        assert {one.outcome for one in world.outcomes} <= {submit_pb2.APPLIED}, [one.reason for one in world.outcomes]
        world.clear()
        kill_at += 1
    assert kill_at > 10


async def test_a_time_that_was_set_and_sent_is_not_lost_with_the_mount(world: World) -> None:
    """cp -p of a large file, killed while the content is on its way: the next mount's upload has that time."""

    async def hook(place: str) -> None:
        if place == "upload":
            await asyncio.Event().wait()

    async with mounted(world, world.committer(hook)) as mount:
        number = mount.create(b"copy")
        mount.opened(number)
        await mount.write(number, 0, b"x" * 10_000)
        mount.set_mtime(number, 42)
        mount.closed(number)
        await mount.replay.submitted(world.store_id)
        await until(lambda: "set_attributes" in changes(mount.committer))
        mount.journal.write_held()
        copy = Path(shutil.copytree(world.folder / "mounts", world.folder / "killed"))
    async with mounted(world, journals=copy) as again:
        await again.replay.wait()
    node = world.catalog.get(world.ino(number))
    assert (node.size_bytes, node.mtime_ns) == (10_000, 42)


async def test_a_killed_mount_is_taken_up_as_it_was(world: World) -> None:
    """The view of the next mount has the operations, the dirty table the contents, before anything is sent."""

    async def away(place: str) -> None:
        await asyncio.Event().wait()

    async with mounted(world, world.committer(away)) as mount:
        number = await mount.put(b"file", b"x" * 10_000)
        mount.set_mtime(number, 42)
        await mount.write(number, 3, b"open still")
        copy = Path(shutil.copytree(world.folder / "mounts", world.folder / "killed"))
    async with mounted(world, world.committer(away), copy) as again:
        kinds = [record.operation.WhichOneof("change") for record in again.journal.recovered
                 if isinstance(record, OperationRecord)]  # fmt: skip
        assert kinds == ["create", "set_attributes"]
        assert again.pending == {
            record.seq for record in again.journal.recovered if isinstance(record, OperationRecord)
        }
        file = again.dirty.get(world.ino(number))
        assert file is not None
        assert again.pending_content(number) == b"xxx" + b"open still" + b"x" * (10_000 - 13)


class Overheard(MemoryCommitter):
    """Notes what is asked of it, and answers nothing."""

    asked: Sequence[submit_pb2.StagedOperation] = ()

    async def submit(
        self, store_id: bytes, operations: Sequence[submit_pb2.StagedOperation], *, exact: bool
    ) -> Sequence[submit_pb2.OperationOutcome]:
        self.asked = [submit_pb2.StagedOperation.FromString(one.SerializeToString()) for one in operations]
        return await asyncio.get_running_loop().create_future()


async def write_over(mount: Mount, number: int) -> None:
    await mount.write(number, 0, b"first")
    await mount.write(number, 3, b"second")


async def leave_holes(mount: Mount, number: int) -> None:
    await mount.write(number, 0, b"first")
    mount.truncate(number, 2)
    await mount.write(number, 100, b"second")
    mount.truncate(number, 200)


async def leave_nothing(mount: Mount, number: int) -> None:
    await mount.write(number, 0, b"first")
    mount.truncate(number, 0)


async def write_and_set_time(mount: Mount, number: int) -> None:
    await mount.write(number, 0, b"first")
    mount.set_mtime(number, 42)


@pytest.mark.parametrize("write", [write_over, leave_holes, leave_nothing, write_and_set_time])
async def test_a_content_that_a_create_took_along_is_sent_again_byte_for_byte(
    world: World, write: Callable[[Mount, int], Awaitable[None]]
) -> None:
    """The journal has it once, in its writes. Nobody knows whether what was sent before the kill arrived: the next
    mount sends the very same, whatever was written to the file since, and what was written since comes after it."""
    committer = Overheard(world.catalog, world.contents)
    async with mounted(world, committer) as mount:
        number = mount.create(b"file")
        mount.opened(number)
        await write(mount, number)
        mount.closed(number)
        await until(lambda: committer.asked)
        expected = mount.pending_content(number)
        mount.opened(number)
        await mount.write(number, 1, b"more")
        mount.truncate(number, 3)
        after = mount.pending_content(number)
        mount.journal.write_held()
        copy = Path(shutil.copytree(world.folder / "mounts", world.folder / "killed"))
    assert committer.asked[0].operation.create.content.inline == expected
    again_heard = Overheard(world.catalog, world.contents)
    async with mounted(world, again_heard, copy) as again:
        await until(lambda: again_heard.asked)
        assert again_heard.asked[0] == committer.asked[0]
        again.journal.write_held()
        copy = Path(shutil.copytree(world.folder / "killed", world.folder / "killed again"))
    world.catalog.commit_operations(  # it had arrived
        world.store_id, committer.asked, actor_domain=ALICE, now=1.0, exact=False
    )
    assert world.read(b"file") == expected
    async with mounted(world, journals=copy) as third:
        await third.replay.wait()
    assert world.read(b"file") == after
    assert {one.outcome for one in world.outcomes} <= {submit_pb2.APPLIED}, [one.reason for one in world.outcomes]


async def test_a_file_removed_after_its_create_was_sent_stays_removed(world: World) -> None:
    """Its data is not in the journal any more when the mount dies; the create is, and so is the removal."""
    committer = Overheard(world.catalog, world.contents)
    async with mounted(world, committer) as mount:
        number = await mount.put(b"file", b"content")
        await until(lambda: committer.asked)
        mount.unlink(number, b"file")
        mount.replay.forget(world.ino(number))
        mount.journal.write_held()
        copy = Path(shutil.copytree(world.folder / "mounts", world.folder / "killed"))
    async with mounted(world, journals=copy) as again:
        await again.replay.wait()
        assert again.journal.unsettled_count == 0
    assert world.listing() == {}
    assert {one.outcome for one in world.outcomes} <= {submit_pb2.APPLIED}, [one.reason for one in world.outcomes]


async def test_a_base_that_finds_no_room_keeps_the_create_it_follows(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A content is answered while more of the file is written, and the disk is full: until the new base is written down
    all that the old one needs stays, so that a mount that dies meanwhile meets no conflict with itself."""
    async with mounted(world) as mount:
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
            await mount.replay.submitted(world.store_id)
        assert changes(mount.committer) == ["create"]
        mount.journal.write_held()
        copy = Path(shutil.copytree(world.folder / "mounts", world.folder / "killed"))
        async with mounted(world, journals=copy) as again:
            await again.replay.wait()
            assert again.journal.unsettled_count == 0
        assert world.read(b"file") == b"second"
        assert {one.outcome for one in world.outcomes} == {submit_pb2.APPLIED}


async def test_a_write_that_waited_for_room_lies_on_what_the_file_has_by_then(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two programs write to an empty file; the first must wait, the second's content is sent meanwhile. What the file
    lies on is said with the write, so it must be what is true then: after a kill both are there."""
    async with mounted(world) as mount:
        number = mount.create(b"file")
        mount.opened(number)
        gate = asyncio.Event()
        with monkeypatch.context() as patched:
            patched.setattr(mount.journal, "room", lambda size_bytes: gate.wait())
            waits = asyncio.create_task(mount.write(number, 10, b"waited"))
            await asyncio.sleep(0)
        mount.opened(number)
        await mount.write(number, 0, b"went")
        mount.closed(number)
        mount.closed(number)
        await mount.replay.submitted(world.store_id)
        await until(lambda: world.listing() == {b"file": b"went"})
        gate.set()
        await waits
        copy = Path(shutil.copytree(world.folder / "mounts", world.folder / "killed"))
    async with mounted(world, journals=copy) as again:
        await again.replay.wait()
    assert world.read(b"file") == b"went" + bytes(6) + b"waited"
    assert {one.outcome for one in world.outcomes} == {submit_pb2.APPLIED}, [one.reason for one in world.outcomes]


async def test_the_first_write_of_a_file_is_one_record(world: World) -> None:
    """Nothing but the create and the data is written for a small file before it is sent; taken up, it is the same."""

    async def away(place: str) -> None:
        await asyncio.Event().wait()

    async with mounted(world, world.committer(away)) as mount:
        number = mount.create(b"file")
        mount.opened(number)
        before = mount.journal.unsettled_count
        await mount.write(number, 5, b"data")
        assert mount.journal.unsettled_count == before + 1
        was = mount.dirty.get(world.ino(number))
        copy = Path(shutil.copytree(world.folder / "mounts", world.folder / "killed"))
    async with mounted(world, world.committer(away), copy) as again:
        found = again.dirty.get(world.ino(number))
        assert was is not None
        assert found is not None
        assert again.pending_content(number) == bytes(5) + b"data"
        assert found.to_record() == was.to_record()
