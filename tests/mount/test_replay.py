"""From the journal into a real catalogue: order, merging, flushes, errors."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import stat
from pathlib import Path

import pytest
from replay_world import ALICE, MODE, ROOT, World, answered_on_a_full_disk, changes, mounted, until

from collective.core.errors import Full, Refused, Unreachable
from collective.core.sizes import MIB
from collective.mount import replay_contents
from collective.mount.committing import Author
from collective.mount.journal_records import FlushRecord
from collective.wire import feed_pb2, submit_pb2

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


# ---------------------------------------------------------------- no room


async def test_a_flush_that_could_not_be_written_down_is_sent_whole(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full for a moment just when an uploaded content's operation is written down."""
    monkeypatch.setattr(replay_contents, "FIRST_PAUSE_SECONDS", 0.001)
    async with mounted(world) as mount:
        hold, tries = mount.journal.hold_flush, []

        def full_once(record: FlushRecord) -> int:
            tries.append(record)
            if len(tries) == 1:
                raise Full("the disk is full")
            return hold(record)

        monkeypatch.setattr(mount.journal, "hold_flush", full_once)
        await mount.put(b"file", b"x" * 10_000)
        await mount.replay.wait()
        assert len(tries) == 2
    assert world.listing() == {b"file": b"x" * 10_000}


async def test_a_truncation_that_finds_no_room_leaves_nothing_behind(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program is told, and the file is as clean as before."""
    async with mounted(world) as mount:
        number = await mount.put(b"file", b"content")
        await mount.replay.wait()

        def full(*arguments: object, **more: object) -> int:
            raise Full("the disk is full")

        with monkeypatch.context() as patched:
            patched.setattr(mount.journal, "append_truncate", full)
            with pytest.raises(Full):
                mount.truncate(number, 3)
        assert len(mount.dirty) == 0
        assert mount.journal.unsettled_count == 0


async def test_all_of_a_removed_file_is_settled_though_its_base_found_no_room(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its create was answered while more was written and the disk was full; then the file is removed: whoever shows the
    create as under way is told that it is not."""
    async with mounted(world) as mount:
        create = mount.journal.last_seq + 1
        number = await answered_on_a_full_disk(mount, monkeypatch)
        assert create not in mount.settled
        mount.unlink(number, b"file")
        mount.closed(number)
        mount.replay.forget(world.ino(number))
        await mount.replay.wait()
        assert create in mount.settled
        assert mount.journal.unsettled_count == 0
    assert world.listing() == {}
