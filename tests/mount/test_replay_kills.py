"""What a mount leaves that dies, and what the next one makes of it: everything it had been told to keep, once."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
from replay_world import (
    ALICE,
    ROOT,
    Mount,
    World,
    answered_on_a_full_disk,
    changes,
    end_segment,
    mounted,
    replayed,
    until,
)
from support.committers import MemoryCommitter

from collective.core.sizes import KIB
from collective.mount.journal_records import FillRecord, OperationRecord
from collective.wire import feed_pb2, submit_pb2

STEPS = 30  # of a random program


def assert_all_applied(world: World) -> None:
    assert {one.outcome for one in world.outcomes} == {submit_pb2.APPLIED}, [one.reason for one in world.outcomes]


class Killed(BaseException):
    """The process is gone."""


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
        copy = world.killed()
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
        copy = world.killed()
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
        copy = world.killed()
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
    """Its create is sent as it was, with the data, and so is the removal."""
    committer = Overheard(world.catalog, world.contents)
    async with mounted(world, committer) as mount:
        number = await mount.put(b"file", b"content")
        await until(lambda: committer.asked)
        mount.unlink(number, b"file")
        mount.replay.forget(world.ino(number))
        mount.journal.write_held()
        copy = world.killed()
    heard = Overheard(world.catalog, world.contents)
    async with mounted(world, heard, copy):
        await until(lambda: heard.asked)
    assert heard.asked[0] == committer.asked[0], "nobody knows whether it had arrived"
    await replayed(world, copy)
    assert world.listing() == {}
    assert_all_applied(world)


async def test_a_base_that_finds_no_room_keeps_the_create_it_follows(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A content is answered while more of the file is written, and the disk is full: until the new base is written down
    all that the old one needs stays, so that a mount that dies meanwhile meets no conflict with itself."""
    async with mounted(world) as mount:
        await answered_on_a_full_disk(mount, monkeypatch)
        assert changes(mount.committer) == ["create"]
        mount.journal.write_held()
        copy = world.killed()
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
        copy = world.killed()
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
        copy = world.killed()
    async with mounted(world, world.committer(away), copy) as again:
        found = again.dirty.get(world.ino(number))
        assert was is not None
        assert found is not None
        assert again.pending_content(number) == bytes(5) + b"data"
        assert found.to_record() == was.to_record()


# ---------------------------------------------------------------- what goes together stays together


async def away(place: str) -> None:
    """A hook: nobody answers."""
    await asyncio.Event().wait()


async def answered_over_two_segments(mount: Mount) -> int:
    """A file whose create lies in one segment, and its content, and what goes with the create, in the next; all of it
    is answered, and nothing was written down since."""
    number = mount.create(b"file")
    end_segment(mount.journal)
    mount.opened(number)
    await mount.write(number, 0, b"content")
    mount.closed(number)
    await mount.replay.wait()
    assert changes(mount.committer) == ["create"]
    return number


@pytest.mark.parametrize("theirs", [b"theirs", b""])
async def test_what_was_answered_does_not_come_back(world: World, theirs: bytes) -> None:
    """All in a segment is settled, and the mount dies before it says so; somebody else has changed the file since."""
    async with mounted(world) as mount:
        number = await answered_over_two_segments(mount)
        copy = world.killed()
    world.write(number, theirs)
    await replayed(world, copy)
    assert world.listing() == {b"file": theirs}
    assert_all_applied(world)


async def test_nor_by_way_of_another_journal(world: World) -> None:
    """The dead mount's journal is taken over by one that was there before."""
    async with mounted(world) as mount:
        number = await answered_over_two_segments(mount)
        copy = world.killed()
    world.write(number, b"")
    shutil.move(copy / "journal-1", copy / "journal-2")
    (copy / "journal-1").mkdir()
    await replayed(world, copy)
    assert world.listing() == {b"file": b""}


@pytest.mark.parametrize("again_in", ["the segment of the first write", "a new segment"])
async def test_a_mount_does_not_conflict_with_itself(world: World, again_in: str) -> None:
    """A content is answered while more of the file is written; the mount dies before the next record."""
    gate = asyncio.Event()

    async def hook(place: str) -> None:
        if place == "submitted":
            await gate.wait()

    async with mounted(world, world.committer(hook)) as mount:
        number = mount.create(b"file")
        if again_in != "a new segment":
            end_segment(mount.journal)
        mount.opened(number)
        await mount.write(number, 0, b"first")
        mount.closed(number)
        await until(lambda: mount.committer.batches)
        mount.opened(number)
        if again_in == "a new segment":
            end_segment(mount.journal)
        await mount.write(number, 5, b"second")
        gate.set()
        await mount.replay.submitted(world.store_id)
        copy = world.killed()
    await replayed(world, copy)
    assert world.listing() == {b"file": b"firstsecond"}
    assert_all_applied(world)


async def test_a_segment_goes_when_a_sync_has_said_why(world: World) -> None:
    """And not before: whatever moment the machine dies at, what is left is all of a file's records, or none."""
    async with mounted(world) as mount:
        await answered_over_two_segments(mount)
        assert len(list((world.folder / "mounts").rglob("*.segment"))) == 2
        await mount.replay.tick(mount.clock.monotonic())
        assert len(list((world.folder / "mounts").rglob("*.segment"))) == 1
        assert await replayed(world, world.killed()) == []


async def test_a_large_write_lies_on_what_was_answered_meanwhile(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its data is put down by a thread while the content before it is answered; then the mount dies."""
    async with mounted(world) as mount:
        number = mount.create(b"file")
        mount.opened(number)
        await mount.write(number, 0, b"x" * 5000)
        gate = asyncio.Event()
        in_thread = mount.journal._in_thread

        async def slow(segments: object, function: Callable[[], object]) -> object:
            found = await in_thread(segments, function)
            await gate.wait()
            return found

        monkeypatch.setattr(mount.journal, "_in_thread", slow)
        writes = asyncio.create_task(mount.write(number, 5000, b"y" * (300 * KIB)))
        await asyncio.sleep(0)
        monkeypatch.setattr(mount.journal, "_in_thread", in_thread)
        mount.closed(number)
        await mount.replay.submitted(world.store_id)
        await until(lambda: world.listing().get(b"file") and not mount.replay._contents.is_under_way(world.ino(number)))
        gate.set()
        await writes
        copy = world.killed()
    await replayed(world, copy)
    assert world.read(b"file") == b"x" * 5000 + b"y" * (300 * KIB)


async def test_nobody_sees_the_empty_file_of_a_replaced_one(world: World) -> None:
    """conf is saved, then replaced by a large one whose upload takes its time, and the mount dies: until then the
    others see what was saved first."""
    gate = asyncio.Event()

    async def slow(place: str) -> None:
        if place == "upload":
            await gate.wait()

    async with mounted(world, world.committer(away)) as mount:
        old = await mount.put(b"conf", b"v1")
        new = await mount.put(b"tmp", b"new" * 5000)
        mount.rename(new, b"tmp", b"conf", old)
        mount.replay.forget(world.ino(old))
        mount.journal.write_held()
        copy = world.killed()
    async with mounted(world, world.committer(slow), copy) as again:
        await until(lambda: b"conf" in world.listing())
        assert world.read(b"conf") == b"v1"
        gate.set()
        await again.replay.wait()
    assert world.listing() == {b"conf": b"new" * 5000}


@pytest.mark.parametrize("is_open", [False, True])
async def test_a_replacement_that_comes_to_nothing_loses_nothing(world: World, is_open: bool) -> None:
    """Somebody else took away what was renamed over a new file: it stands as it was saved."""
    async with mounted(world) as mount:
        source = await mount.put(b"source", b"source")
        await mount.replay.wait()
    async with mounted(world, world.committer(away)) as mount:
        target = await mount.put(b"target", b"v1")
        mount.rename(source, b"source", b"target", target)
        (mount.replay.orphan if is_open else mount.replay.forget)(world.ino(target))
        mount.journal.write_held()
        copy = world.killed()
    world.change(feed_pb2.TreeOperation(unlink=feed_pb2.Unlink(parent=ROOT, name=b"source", inode=source)))
    await replayed(world, copy)
    assert world.listing() == {b"target": b"v1"}


async def test_a_damaged_content_keeps_nothing_else_from_going(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The segment that a small file's data lies in lost its end; the mount starts, and sends the rest."""
    async with mounted(world, world.committer(away)) as mount:
        number = mount.create(b"file")
        mount.opened(number)
        in_thread = mount.journal._in_thread

        async def at_the_end(segments: object, function: Callable[[], object]) -> object:
            found = await in_thread(segments, function)
            end_segment(mount.journal)
            return found

        with monkeypatch.context() as patched:
            patched.setattr(mount.journal, "_in_thread", at_the_end)
            await mount.write(number, 0, b"x" * (300 * KIB))
        mount.truncate(number, 4000)
        mount.closed(number)
        await mount.put(b"other", b"other")
        mount.journal.write_held()
        copy = world.killed()
    (segment, *_) = sorted(copy.rglob("*.segment"))
    os.truncate(segment, segment.stat().st_size - 299 * KIB)
    async with mounted(world, journals=copy) as again:
        await until(lambda: world.listing().get(b"other") == b"other")
        assert again.replay.trouble


@pytest.mark.parametrize("create_seq", [2, 3, 99])
async def test_a_fill_that_fits_nothing_is_passed_over(world: World, create_seq: int) -> None:
    """Of a rename, of another file's create, of none: the file's content goes the usual way."""
    async with mounted(world, world.committer(away)) as mount:
        number = mount.create(b"file")
        assert mount.journal.last_seq == 2
        other = mount.create(b"other")
        mount.rename(other, b"other", b"renamed")
        mount.opened(number)
        await mount.write(number, 0, b"data")
        create_seq = {2: 4}.get(create_seq, create_seq)
        mount.journal.hold_flush(FillRecord(0, world.ino(number), mount.journal.last_seq, create_seq, 5))
        mount.journal.write_held()
        copy = world.killed()
    await replayed(world, copy)
    assert world.listing() == {b"file": b"data", b"renamed": b""}
    assert_all_applied(world)


@pytest.mark.parametrize("size", [256 * KIB - 1, 256 * KIB])
async def test_a_large_first_write_is_taken_up(world: World, size: int) -> None:
    """What is put down by a thread says nothing of the file it belongs to; what is not does."""
    async with mounted(world, world.committer(away)) as mount:
        number = mount.create(b"file")
        mount.opened(number)
        await mount.write(number, 0, b"x" * size)
        copy = world.killed()
    await replayed(world, copy)
    assert world.listing() == {b"file": b"x" * size}


async def test_a_large_write_to_a_file_that_is_removed_meanwhile_is_not_taken_up(world: World) -> None:
    """Its create is on its way; the last name goes while a thread puts the data down; then the mount dies."""
    committer = Overheard(world.catalog, world.contents)
    async with mounted(world, committer) as mount:
        number = await mount.put(b"file", b"content")
        await until(lambda: committer.asked)
        mount.opened(number)
        writes = asyncio.create_task(mount.write(number, 0, b"b" * (400 * KIB)))
        await asyncio.sleep(0)
        mount.unlink(number, b"file")
        mount.replay.orphan(world.ino(number))
        await writes
        copy = world.killed()
    assert await replayed(world, copy) == ["create", "unlink"]
    assert world.listing() == {}
    assert_all_applied(world)
