"""Faults on a real process and a real disk: kill -9, no space, a sync that fails, a disk that is not mounted."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from collective.chunks import ChunkStore, SealedChunk
from collective.chunks.disk import Disk
from collective.core.errors import Full, Misconfigured

MakeChunk = Callable[[int, int], SealedChunk]
WRITER = Path(__file__).with_name("write_chunks.py")
SIZES = (1, 1000, 65_536, 200_000, 1_000_000)  # as in the writer
KILLS = 20
NEVER_DONE = 1_000_000  # chunks a writer is given that shall be killed before it ends


def unavailable(reason: str) -> None:
    """Skip where a machine cannot run the test; a machine that must is not let off."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"in CI this must run: {reason}")
    pytest.skip(reason)


def start_writer(directory: Path, first: int, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, str(WRITER), str(directory), str(first), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def unmount(place: Path, *options: str) -> None:
    subprocess.run(["umount", *options, str(place)], check=True, timeout=20)


def names_in(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def run_writer(directory: Path, first: int, count: int, *, few_files: int, prefix: list[str]) -> list[list[str]]:
    command = [*prefix, sys.executable, str(WRITER), str(directory), str(first), str(count), str(few_files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return [line.split() for line in done.stdout.splitlines()]


async def test_what_was_acknowledged_before_kill_9_is_there_and_whole(tmp_path: Path, make_chunk: MakeChunk) -> None:
    """The same disk is killed under a writer at 20 random moments; each opening needs no repair."""
    moments = random.Random(20)
    kept: list[int] = []
    for kill in range(KILLS):
        process = start_writer(tmp_path, kill * NEVER_DONE, NEVER_DONE)
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        for _ in range(moments.choice((0, 1, 2, 5, moments.randrange(60)))):
            word, number = process.stdout.readline().split()
            assert word == "kept"
            kept.append(int(number))
        process.kill()
        kept.extend(int(line.split()[1]) for line in process.stdout if line.startswith("kept ") and line.endswith("\n"))
        process.stdout.close()
        assert process.wait() == -9
    store = ChunkStore.open(tmp_path, capacity_bytes=1 << 40)
    ids = {make_chunk(seed, SIZES[seed % len(SIZES)]).id for seed in kept}  # a byte's chunk comes from many seeds
    for id_ in ids:
        store.check(id_)
    assert len(kept) > KILLS
    found = store.status().chunk_count
    assert found >= len(ids)
    id_ = b""
    while (following := store.chunk_after(id_)) is not None:  # what was not acknowledged is whole, or is not there
        id_ = following[0]
        store.check(id_)
    assert store.status().chunk_count == found
    await store.close()


@pytest.mark.parametrize(
    ("few_files", "injection"),
    [
        pytest.param(1000, "fsync:error=EIO:when=1+", id="the data of each file"),
        pytest.param(0, "fsync:error=EIO:when=1+", id="the folder of the names"),
        pytest.param(0, "rename:error=EIO:when=1+", id="the name"),
        # strace counts by thread, and the opening syncs once: the committer's first group is let pass too
        pytest.param(0, "syncfs:error=EIO:when=2+", id="the file system's data"),
        pytest.param(0, "syncfs:error=ENOSPC:when=2+", id="no space found at the sync"),
    ],
)
async def test_a_write_whose_sync_fails_is_a_failed_write(
    tmp_path: Path, make_chunk: MakeChunk, few_files: int, injection: str
) -> None:
    if shutil.which("strace") is None:
        unavailable("strace is not installed")
    await ChunkStore.open(tmp_path, capacity_bytes=1).close()
    call = injection.split(":")[0]
    prefix = ["strace", "-f", "-o", "/dev/null", f"--trace={call}", f"--inject={injection}"]
    answers = run_writer(tmp_path, 0, 30, few_files=few_files, prefix=prefix)
    assert answers.pop(0) == ["open"]
    kept = {int(answer[1]) for answer in answers if answer[0] == "kept"}
    failed = {int(answer[1]) for answer in answers if answer[0] == "failed"}
    assert failed | kept == set(range(30))
    assert failed if call == "syncfs" else not kept
    kind = "Full" if "ENOSPC" in injection else "Misconfigured"
    assert all(answer[2:] == [kind, "absent"] for answer in answers if answer[0] == "failed")
    store = ChunkStore.open(tmp_path, capacity_bytes=1 << 40)
    for seed in range(30):
        chunk = make_chunk(seed, SIZES[seed % len(SIZES)])
        assert store.has(chunk.id) == (seed in kept)
        assert await store.put(chunk.id, chunk.sealed) == (seed in kept)
        store.check(chunk.id)
    await store.close()


async def test_one_failed_sync_fails_its_group_and_no_other(tmp_path: Path, make_chunk: MakeChunk) -> None:
    if shutil.which("strace") is None:
        unavailable("strace is not installed")
    await ChunkStore.open(tmp_path, capacity_bytes=1).close()
    prefix = ["strace", "-f", "-o", "/dev/null", "--trace=syncfs", "--inject=syncfs:error=EIO:when=3"]
    answers = run_writer(tmp_path, 0, 60, few_files=0, prefix=prefix)[1:]
    failed = {int(answer[1]) for answer in answers if answer[0] == "failed"}
    kept = {int(answer[1]) for answer in answers if answer[0] == "kept"}
    assert failed
    assert kept
    assert failed | kept == set(range(60))
    assert all(answer[3] == "absent" for answer in answers if answer[0] == "failed")
    store = ChunkStore.open(tmp_path, capacity_bytes=1 << 40)
    for seed in range(60):
        chunk = make_chunk(seed, SIZES[seed % len(SIZES)])
        assert store.has(chunk.id) == (seed in kept)
        if seed in kept:
            store.check(chunk.id)
    await store.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 4 MiB."""
    if os.geteuid() != 0:
        unavailable("only root can mount a small disk")
    place = tmp_path / "mounted"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], check=True, timeout=20)
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=False, timeout=20)


async def test_a_disk_that_fills_up_refuses_early_and_works_again_when_there_is_room(
    small_disk: Path, make_chunk: MakeChunk
) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1 << 20))
    store = ChunkStore.open(small_disk, capacity_bytes=1 << 40, reserve_bytes=512 << 10)
    chunks = [make_chunk(seed, 200_000) for seed in range(25)]
    kept = []
    refused = []
    for chunk in chunks:
        try:
            await store.put(chunk.id, chunk.sealed)
            kept.append(chunk)
        except Full:
            refused.append(chunk)
    assert 8 < len(kept) < 14
    assert os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize >= 300 << 10
    assert store.status().free_bytes < 200_000 + 64
    ballast.unlink()
    assert await store.put(refused[0].id, refused[0].sealed) is False
    for chunk in kept:
        store.check(chunk.id)
    await store.close()


async def test_a_disk_that_is_fuller_than_it_said_fails_the_write_and_keeps_the_rest_whole(
    small_disk: Path, make_chunk: MakeChunk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else took the room between the look and the write: the kernel's own ENOSPC."""
    monkeypatch.setattr(Disk, "free_bytes", lambda _self: 1 << 40)
    store = ChunkStore.open(small_disk, capacity_bytes=1 << 40)
    chunks = [make_chunk(seed, 300_000) for seed in range(20)]
    answers = await asyncio.gather(*(store.put(chunk.id, chunk.sealed) for chunk in chunks), return_exceptions=True)
    assert {type(answer) for answer in answers} == {bool, Full}
    assert names_in(small_disk / "tmp") == []
    for chunk, answer in zip(chunks, answers, strict=True):
        assert store.has(chunk.id) == (answer is False)
        if answer is False:
            store.check(chunk.id)
    await store.close()


async def test_a_disk_that_is_not_mounted_is_not_written_under(small_disk: Path, make_chunk: MakeChunk) -> None:
    store = ChunkStore.open(small_disk, capacity_bytes=1 << 40)
    chunk = make_chunk(1, 100)
    await store.put(chunk.id, chunk.sealed)
    marker = store.marker
    await store.close()
    unmount(small_disk)
    with pytest.raises(Misconfigured, match="no marker"):
        ChunkStore.open(small_disk, capacity_bytes=1 << 40, expected_marker=marker)
    assert names_in(small_disk) == []


async def test_a_disk_taken_away_while_it_is_in_use_fails_and_forgets_nothing(
    small_disk: Path, make_chunk: MakeChunk
) -> None:
    store = ChunkStore.open(small_disk, capacity_bytes=1 << 40)
    chunk, other = make_chunk(1, 100), make_chunk(2, 100)
    await store.put(chunk.id, chunk.sealed)
    unmount(small_disk, "--lazy")
    with pytest.raises(Misconfigured):
        store.read_hashes(chunk.id)
    with pytest.raises(Misconfigured):
        await store.put(other.id, other.sealed)
    assert store.has(chunk.id)
    assert not store.has(other.id)
    assert names_in(small_disk) == []
    await store.close()
