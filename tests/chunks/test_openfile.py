"""The ways a chunk file is read give the same bytes, whatever is cached and whatever the file system can."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from collective.chunks.chunkfile import BrokenFileError
from collective.chunks.openfile import BLOCK_BYTES, DIRECT_BYTES, OpenFile, room_for
from collective.core.memory import fresh_buffer

SIZE_BYTES = 3 * DIRECT_BYTES + 12_345


@pytest.fixture
def content() -> bytes:
    return random.Random(7).randbytes(SIZE_BYTES)


@pytest.fixture
def path(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "file"
    path.write_bytes(content)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path


def forget_cache(path: Path) -> None:
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def memory_for(size_bytes: int) -> memoryview:
    return memoryview(fresh_buffer(room_for(size_bytes)))


@pytest.mark.parametrize("offset", [0, 1, 65_552, BLOCK_BYTES - 1, BLOCK_BYTES, SIZE_BYTES - DIRECT_BYTES])
@pytest.mark.parametrize("size_bytes", [1, DIRECT_BYTES - 1, DIRECT_BYTES, DIRECT_BYTES + 1])
def test_every_run_comes_whole_from_wherever_it_lies(path: Path, content: bytes, offset: int, size_bytes: int) -> None:
    size_bytes = min(size_bytes, SIZE_BYTES - offset)
    expected = content[offset : offset + size_bytes]
    forget_cache(path)
    file = OpenFile(path)
    assert file.read_cached(memory_for(size_bytes), offset, size_bytes) in (None, expected)
    assert file.read(memory_for(size_bytes), offset, size_bytes) == expected
    assert file.read(memoryview(bytearray(size_bytes)), offset, size_bytes) == expected, "without room for more"
    assert OpenFile(path).read_cached(memory_for(size_bytes), offset, size_bytes) == expected, "it was read just now"


def test_a_long_read_leaves_the_page_cache_alone(path: Path, content: bytes) -> None:
    forget_cache(path)
    file = OpenFile(path)
    memory = memory_for(DIRECT_BYTES)
    if file.read_cached(memory, 0, DIRECT_BYTES) is not None:
        pytest.skip("the file system keeps its files in memory")
    assert file.read(memory, 0, DIRECT_BYTES) == content[:DIRECT_BYTES]
    assert OpenFile(path).read_cached(memory, 0, DIRECT_BYTES) is None


def test_what_was_just_written_is_read_from_the_page_cache(path: Path, content: bytes) -> None:
    assert OpenFile(path).read_cached(memory_for(SIZE_BYTES), 0, SIZE_BYTES) == content


def test_a_file_system_without_direct_reads_is_read_through_the_cache(
    path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def refuse(name: os.PathLike[str], flags: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no such thing here")
        return opened(name, flags)

    monkeypatch.setattr(os, "open", refuse)
    file = OpenFile(path)
    for offset in (0, 5):
        assert file.read(memory_for(DIRECT_BYTES), offset, DIRECT_BYTES) == content[offset : offset + DIRECT_BYTES]


def test_a_file_that_ends_too_soon_or_a_bad_sector_is_broken(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = OpenFile(path)
    os.truncate(path, DIRECT_BYTES)
    with pytest.raises(BrokenFileError, match="ends at byte"):
        file.read(memory_for(2 * DIRECT_BYTES), 0, 2 * DIRECT_BYTES)

    def bad_sector(*_: object) -> int:
        raise OSError(errno.EIO, "bad sector")

    monkeypatch.setattr(os, "preadv", bad_sector)
    with pytest.raises(BrokenFileError, match="the disk cannot read it"):
        file.read(memory_for(DIRECT_BYTES), 0, DIRECT_BYTES)


def test_other_errors_of_the_disk_stay_what_they_are(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> int:
        raise OSError(errno.ENODEV, "unplugged")

    file = OpenFile(path)
    monkeypatch.setattr(os, "preadv", gone)
    with pytest.raises(OSError, match="unplugged"):
        file.read(memory_for(DIRECT_BYTES), 0, DIRECT_BYTES)


def test_both_descriptors_are_closed(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    file = OpenFile(path)
    file.read(memory_for(DIRECT_BYTES), 0, DIRECT_BYTES)
    file.dropped = True
    file.close_if_unused()
    assert len(os.listdir("/proc/self/fd")) == before
