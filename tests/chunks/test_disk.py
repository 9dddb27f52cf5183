"""The disk's folder: the right disk, one process, no leftovers, foreign files left alone, heads kept."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from collective.chunks import ChunkStore, disk
from collective.chunks.descriptors import Descriptors
from collective.core.errors import Misconfigured


async def test_another_or_no_disk_is_refused_and_nothing_is_written_under_it(tmp_path: Path) -> None:
    store = ChunkStore.open(tmp_path / "disk", capacity_bytes=1)
    marker = store.marker
    await store.close()
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "gone"):
        with pytest.raises(Misconfigured, match="no marker"):
            ChunkStore.open(place, capacity_bytes=1, expected_marker=marker)
    assert list((tmp_path / "empty").iterdir()) == []
    assert not (tmp_path / "gone").exists()
    with pytest.raises(Misconfigured, match="another marker"):
        ChunkStore.open(tmp_path / "disk", capacity_bytes=1, expected_marker="0" * 32)
    again = ChunkStore.open(tmp_path / "disk", capacity_bytes=1, expected_marker=marker)
    assert again.marker == marker
    await again.close()


async def test_a_marker_left_empty_by_a_crash_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "collective-disk").touch()
    store = ChunkStore.open(tmp_path, capacity_bytes=1)
    assert len(store.marker) == 32
    assert (tmp_path / "collective-disk").read_text() == store.marker + "\n"
    await store.close()


async def test_a_disk_is_open_once(tmp_path: Path) -> None:
    store = ChunkStore.open(tmp_path, capacity_bytes=1)
    with pytest.raises(Misconfigured, match="in use"):
        ChunkStore.open(tmp_path, capacity_bytes=1)
    await store.close()
    await ChunkStore.open(tmp_path, capacity_bytes=1).close()


async def test_unfinished_writes_are_cleared_and_foreign_files_are_left_and_not_counted(tmp_path: Path) -> None:
    await ChunkStore.open(tmp_path, capacity_bytes=1).close()
    (tmp_path / "tmp" / "left-by-a-kill").write_bytes(b"x" * 1000)
    id_ = "ab" + "00" * 31
    names = ["notes.txt", f"{id_}-0", f"{id_}-99999999", f"{id_.upper()}-5", f"{id_}-05", f"{id_}-²", f"cd{id_[2:]}-5"]
    for name in [*names, f"{id_}-5"]:
        (tmp_path / "chunks" / "ab" / name).touch()
    store = ChunkStore.open(tmp_path, capacity_bytes=1)
    assert list((tmp_path / "tmp").iterdir()) == []
    assert store.status().chunk_count == 1
    assert store.size_of(bytes.fromhex(id_)) == 5
    assert all((tmp_path / "chunks" / "ab" / name).exists() for name in names)
    await store.close()


async def test_names_found_at_opening_are_synced_before_they_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process killed between rename and folder sync leaves names that a power loss could still take."""

    def fail(_descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(disk, "sync_file_system", fail)
        with pytest.raises(Misconfigured, match="Input/output error"):
            ChunkStore.open(tmp_path, capacity_bytes=1)
    await ChunkStore.open(tmp_path, capacity_bytes=1).close()  # the failed opening let go of the lock


async def test_a_folder_that_cannot_be_used_is_misconfigured(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(Misconfigured):
            ChunkStore.open(place, capacity_bytes=1)


async def test_heads_are_kept_replaced_and_found_again(tmp_path: Path) -> None:
    store = ChunkStore.open(tmp_path, capacity_bytes=1)
    one, two = b"1" * 32, b"2" * 32
    store.keep_head(one, b"old")
    store.keep_head(two, b"other")
    store.keep_head(one, b"new")
    assert store.heads() == {one: b"new", two: b"other"}
    await store.close()
    (tmp_path / "heads" / f"{one.hex()}.new").write_bytes(b"half")  # killed while it wrote the next
    again = ChunkStore.open(tmp_path, capacity_bytes=1)
    assert again.heads() == {one: b"new", two: b"other"}
    (tmp_path / "heads" / "no feed id").touch()
    with pytest.raises(Misconfigured):
        again.heads()
    await again.close()


async def test_heads_kept_at_once_from_threads_are_whole(tmp_path: Path) -> None:
    store = ChunkStore.open(tmp_path, capacity_bytes=1)
    heads = [bytes([number]) * 500 for number in range(12)]
    threads = [threading.Thread(target=store.keep_head, args=(b"f" * 32, head)) for head in heads]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.heads()[b"f" * 32] in heads
    await store.close()


def test_open_descriptors_are_bounded_and_one_in_use_stays_open(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(10)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]))
    files = Descriptors(3)
    before = len(os.listdir("/proc/self/fd"))
    with files.reading(b"0", paths[0]) as held:
        for number, path in enumerate(paths):
            with files.reading(str(number).encode(), path) as file:
                assert os.pread(file.descriptor, 1, 0) == bytes([number])
        assert len(files) == 3
        assert held.dropped
        assert os.pread(held.descriptor, 1, 0) == b"\0"
        assert len(os.listdir("/proc/self/fd")) == before + 4
    files.forget(b"9")
    files.forget(b"9")
    assert len(os.listdir("/proc/self/fd")) == before + 2
    files.close()
    assert len(os.listdir("/proc/self/fd")) == before
