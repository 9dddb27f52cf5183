"""A disk of chunks: what was put is there, whole, after any opening; what is broken is never given out as good."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from collective.chunks import ChunkStore, SealedChunk, derive_chunk_key, hash_segments, seal_chunk
from collective.chunks.chunkfile import read_trailer
from collective.core.errors import Corrupt, Full, NotFound, Unreachable
from collective.core.layout import MAX_SEALED_CHUNK_BYTES, SEALED_SEGMENT_BYTES, SEGMENT_BYTES

MakeChunk = Callable[[int, int], SealedChunk]


def path_of(store: ChunkStore, chunk: SealedChunk) -> Path:
    name = f"{chunk.id.hex()}-{len(chunk.sealed)}"
    return store.directory / "chunks" / name[:2] / name


def read_all(store: ChunkStore, id_: bytes) -> bytes:
    """All the sealed bytes, checked against the list and the id as a reader does."""
    hashes = store.read_hashes(id_)
    out = memoryview(bytearray(store.size_of(id_)))
    got = store.read_segments(id_, 0, len(hashes) // 32, out)
    if hash_segments(got) != hashes:
        raise Corrupt("a reader would see it")
    return bytes(got)


async def test_what_is_put_is_there_also_after_the_next_opening(tmp_path: Path, make_chunk: MakeChunk) -> None:
    chunks = [make_chunk(seed, size) for seed, size in enumerate((1, 300, SEGMENT_BYTES, 3 * SEGMENT_BYTES + 7))]
    store = ChunkStore.open(tmp_path / "disk", capacity_bytes=1 << 30)
    assert await asyncio.gather(*(store.put(chunk.id, chunk.sealed) for chunk in chunks)) == [False] * 4
    assert await store.put(chunks[0].id, chunks[0].sealed) is True
    marker = store.marker
    await store.close()
    again = ChunkStore.open(tmp_path / "disk", capacity_bytes=1 << 30, expected_marker=marker)
    for chunk in chunks:
        assert again.has(chunk.id)
        assert read_all(again, chunk.id) == chunk.sealed
    assert again.status().chunk_count == 4
    assert again.status().used_bytes == sum(len(chunk.sealed) for chunk in chunks)
    await again.close()


async def test_any_run_of_segments_is_read_into_the_callers_buffer(store: ChunkStore, make_chunk: MakeChunk) -> None:
    chunk = make_chunk(1, 5 * SEGMENT_BYTES + 100)
    await store.put(chunk.id, chunk.sealed)
    out = memoryview(bytearray(6 * SEALED_SEGMENT_BYTES))
    for first, count in ((0, 1), (2, 3), (5, 1), (4, 100)):
        got = store.read_segments(chunk.id, first, count, out)
        start = first * SEALED_SEGMENT_BYTES
        assert got == chunk.sealed[start : start + count * SEALED_SEGMENT_BYTES]
    for first, count in ((6, 1), (0, 0), (-1, 2), (2**32, 1)):
        with pytest.raises(NotFound):
            store.read_segments(chunk.id, first, count, out)
    with pytest.raises(ValueError, match="room"):
        store.read_segments(chunk.id, 0, 2, out[:SEALED_SEGMENT_BYTES])
    assert store.has(chunk.id)  # a caller's mistake sets nothing aside


async def test_bytes_that_are_not_the_ids_are_refused_and_nothing_stays(
    store: ChunkStore, make_chunk: MakeChunk
) -> None:
    chunk, other = make_chunk(1, 1000), make_chunk(2, 1000)
    for id_, sealed in (
        (chunk.id, other.sealed),
        (chunk.id, chunk.sealed[:-1]),
        (chunk.id, b""),
        (chunk.id[:31], chunk.sealed),
        (chunk.id, bytes(MAX_SEALED_CHUNK_BYTES + 1)),
    ):
        with pytest.raises(Corrupt):
            await store.put(id_, sealed)
    assert not store.has(chunk.id)
    assert list((store.directory / "tmp").iterdir()) == []
    assert await store.put(chunk.id, chunk.sealed) is False


async def test_what_is_not_here_is_not_found(store: ChunkStore) -> None:
    for id_ in (bytes(32), b"", b"short"):
        assert not store.has(id_)
        with pytest.raises(NotFound):
            store.size_of(id_)
        with pytest.raises(NotFound):
            store.read_hashes(id_)


async def test_every_flipped_byte_of_a_stored_file_is_found_and_the_chunk_can_be_fetched_again(
    store: ChunkStore, make_chunk: MakeChunk
) -> None:
    chunk = make_chunk(3, 60)
    path = path_of(store, chunk)
    file_bytes = len(chunk.sealed) + 1 + len(chunk.hashes)
    for at in range(file_bytes):
        assert await store.put(chunk.id, chunk.sealed) is False
        content = bytearray(path.read_bytes())
        assert len(content) == file_bytes
        content[at] ^= 0x10
        path.write_bytes(content)
        with pytest.raises(Corrupt):
            read_all(store, chunk.id)
        if store.has(chunk.id):  # a broken segment is for the reader or the scrub to see, a broken trailer is seen
            with pytest.raises(Corrupt):
                store.check(chunk.id)
        assert not store.has(chunk.id)
        assert not path.exists()
    assert store.status().quarantined_count == file_bytes
    assert len(list((store.directory / "quarantine").iterdir())) == file_bytes + 1  # every one is kept, and the log
    assert await store.put(chunk.id, chunk.sealed) is False
    store.check(chunk.id)


async def test_a_file_cut_short_or_gone_is_told_as_corrupt_with_its_reason(
    store: ChunkStore, make_chunk: MakeChunk
) -> None:
    chunk = make_chunk(4, 2 * SEGMENT_BYTES)
    out = memoryview(bytearray(2 * SEALED_SEGMENT_BYTES))
    for length in (0, 100, SEALED_SEGMENT_BYTES + 5):
        await store.put(chunk.id, chunk.sealed)
        with path_of(store, chunk).open("r+b") as file:
            file.truncate(length)
        with pytest.raises(Corrupt):
            store.read_segments(chunk.id, 0, 2, out)
        assert not store.has(chunk.id)
    await store.put(chunk.id, chunk.sealed)
    path_of(store, chunk).unlink()
    with pytest.raises(Corrupt):
        store.read_hashes(chunk.id)
    assert not store.has(chunk.id)
    lines = (store.directory / "quarantine" / "reasons.jsonl").read_text().splitlines()
    reasons = [json.loads(line)["reason"] for line in lines]
    assert [reason.split(" at ")[0] for reason in reasons[:3]] == ["the file ends"] * 3
    assert reasons[3] == "the file is gone"
    assert store.status().quarantined_count == 3


async def test_a_quarantined_chunk_is_not_back_after_the_next_opening(tmp_path: Path, make_chunk: MakeChunk) -> None:
    chunk = make_chunk(5, 100)
    store = ChunkStore.open(tmp_path, capacity_bytes=1 << 30)
    await store.put(chunk.id, chunk.sealed)
    store.quarantine(chunk.id, "a peer says so")
    store.quarantine(chunk.id, "and says it again")
    await store.close()
    again = ChunkStore.open(tmp_path, capacity_bytes=1 << 30)
    assert not again.has(chunk.id)
    assert again.status().quarantined_count == 1
    await again.close()


async def test_a_pledge_used_up_is_told_early_with_figures(tmp_path: Path, make_chunk: MakeChunk) -> None:
    chunks = [make_chunk(seed, 1000) for seed in range(3)]
    store = ChunkStore.open(tmp_path, capacity_bytes=2 * len(chunks[0].sealed))
    await asyncio.gather(*(store.put(chunk.id, chunk.sealed) for chunk in chunks[:2]))
    with pytest.raises(Full, match=r"2032 of 2032 bytes used, 0 free"):
        await store.put(chunks[2].id, chunks[2].sealed)
    assert await store.put(chunks[0].id, chunks[0].sealed) is True  # what is here already needs no room
    await store.close()


async def test_puts_at_once_do_not_overrun_the_pledge_together(tmp_path: Path, make_chunk: MakeChunk) -> None:
    chunks = [make_chunk(seed, 1000) for seed in range(40)]
    store = ChunkStore.open(tmp_path, capacity_bytes=10 * len(chunks[0].sealed))
    answers = await asyncio.gather(*(store.put(chunk.id, chunk.sealed) for chunk in chunks), return_exceptions=True)
    assert sum(answer is False for answer in answers) == 10
    assert all(isinstance(answer, Full) for answer in answers if answer is not False)
    assert store.status().free_bytes == 0
    await store.close()


async def test_the_reserve_of_the_file_system_is_kept(tmp_path: Path, make_chunk: MakeChunk) -> None:
    store = ChunkStore.open(tmp_path, capacity_bytes=1 << 60, reserve_bytes=1 << 60)
    chunk = make_chunk(1, 10)
    with pytest.raises(Full):
        await store.put(chunk.id, chunk.sealed)
    await store.close()


async def test_many_writers_of_one_chunk_make_one_file(store: ChunkStore, make_chunk: MakeChunk) -> None:
    chunk = make_chunk(6, 200_000)
    answers = await asyncio.gather(*(store.put(chunk.id, chunk.sealed) for _ in range(20)))
    assert sorted(answers) == [False] + [True] * 19
    assert store.status().chunk_count == 1


class Gate:
    """Holds the hashing of a put until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()
        monkeypatch.setattr("collective.chunks.store.hash_segments", self._hash)

    def _hash(self, sealed: memoryview) -> bytes:
        self.reached.set()
        assert self.open.wait(20)
        return hash_segments(sealed)


async def test_a_writer_of_wrong_bytes_does_not_fail_the_one_who_waits_with_the_right_ones(
    store: ChunkStore, make_chunk: MakeChunk, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    chunk = make_chunk(7, 500)
    wrong = asyncio.create_task(store.put(chunk.id, bytes(len(chunk.sealed))))
    await asyncio.to_thread(gate.reached.wait, 20)
    right = asyncio.create_task(store.put(chunk.id, chunk.sealed))
    await asyncio.sleep(0)
    gate.open.set()
    with pytest.raises(Corrupt):
        await wrong
    assert await right is False
    assert read_all(store, chunk.id) == chunk.sealed


async def test_a_cancelled_put_keeps_the_buffer_until_it_is_read_and_hurts_nobody(
    store: ChunkStore, make_chunk: MakeChunk, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    chunk = make_chunk(8, 500)
    buffer = bytearray(chunk.sealed)
    task = asyncio.create_task(store.put(chunk.id, buffer))
    await asyncio.to_thread(gate.reached.wait, 20)
    task.cancel()
    other = asyncio.create_task(store.put(chunk.id, chunk.sealed))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not task.done()
    gate.open.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    buffer[:] = bytes(len(buffer))  # its owner may have it back now
    await other
    assert read_all(store, chunk.id) == chunk.sealed
    following = make_chunk(9, 500)
    assert await store.put(following.id, following.sealed) is False


async def test_a_put_cancelled_while_it_is_synced_is_still_kept_and_the_next_are_answered(
    store: ChunkStore, make_chunk: MakeChunk, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go_on, real = threading.Event(), threading.Event(), os.fsync

    def slow(descriptor: int) -> None:
        reached.set()
        assert go_on.wait(20)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    chunk, following = make_chunk(10, 500), make_chunk(11, 500)
    task = asyncio.create_task(store.put(chunk.id, chunk.sealed))
    await asyncio.to_thread(reached.wait, 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not store.has(chunk.id)  # not durable yet
    go_on.set()
    async with asyncio.timeout(20):
        assert await store.put(following.id, following.sealed) is False
        assert await store.put(chunk.id, chunk.sealed) is True
    store.check(chunk.id)


async def test_a_reader_of_a_file_set_aside_meanwhile_does_not_set_aside_the_one_fetched_again(
    store: ChunkStore, make_chunk: MakeChunk, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk = make_chunk(12, 500)
    await store.put(chunk.id, chunk.sealed)
    path = path_of(store, chunk)
    path.write_bytes(b"broken")
    reached, go_on = threading.Event(), threading.Event()

    def slow(descriptor: int, id_: bytes, size: int) -> bytes:
        reached.set()
        assert go_on.wait(20)
        return read_trailer(descriptor, id_, size)

    with monkeypatch.context() as patched:
        patched.setattr("collective.chunks.store.read_trailer", slow)
        reading = asyncio.create_task(asyncio.to_thread(store.read_hashes, chunk.id))
        await asyncio.to_thread(reached.wait, 20)
        store.quarantine(chunk.id, "somebody else saw it")
        assert await store.put(chunk.id, chunk.sealed) is False
        go_on.set()
        with pytest.raises(Corrupt):
            await reading
    assert store.has(chunk.id)
    store.check(chunk.id)


async def test_closing_finishes_what_was_begun_and_takes_nothing_more(tmp_path: Path, make_chunk: MakeChunk) -> None:
    store = ChunkStore.open(tmp_path, capacity_bytes=1 << 30)
    chunks = [make_chunk(seed, 50_000) for seed in range(30)]
    tasks = [asyncio.create_task(store.put(chunk.id, chunk.sealed)) for chunk in chunks]
    await asyncio.sleep(0)
    await store.close()
    await store.close()
    assert await asyncio.gather(*tasks) == [False] * 30
    with pytest.raises(Unreachable):
        await store.put(make_chunk(99, 10).id, make_chunk(99, 10).sealed)
    again = ChunkStore.open(tmp_path, capacity_bytes=1 << 30)
    for chunk in chunks:
        again.check(chunk.id)
    await again.close()


async def test_reading_works_from_threads_without_an_event_loop_while_chunks_come_and_go(
    store: ChunkStore, make_chunk: MakeChunk
) -> None:
    chunks = [make_chunk(seed, 70_000) for seed in range(40)]
    await asyncio.gather(*(store.put(chunk.id, chunk.sealed) for chunk in chunks))
    wrong: list[object] = []

    def read() -> None:
        for _ in range(5):
            for chunk in chunks[:20]:
                try:
                    if read_all(store, chunk.id) != chunk.sealed:
                        wrong.append(chunk)
                except Exception as error:  # a thread's error must reach the test
                    wrong.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for chunk in chunks[20:]:
        store.quarantine(chunk.id, "test")
        await store.put(chunk.id, chunk.sealed)
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert wrong == []


async def test_a_cached_read_is_the_same_or_says_no(tmp_path: Path) -> None:
    """What is in the page cache comes at once and right; otherwise the answer is no."""
    store = ChunkStore.open(tmp_path / "disk", capacity_bytes=1 << 30)
    plain = os.urandom(300_000)
    sealed = seal_chunk(derive_chunk_key(bytes(32), plain), plain)
    await store.put(sealed.id, sealed.sealed)
    out = memoryview(bytearray(len(sealed.sealed)))
    assert store.read_cached(sealed.id, 0, 5, out) in (None, sealed.sealed)
    assert store.read_segments(sealed.id, 0, 5, out) == sealed.sealed
    assert store.read_cached(sealed.id, 0, 5, out) == sealed.sealed, "it was read a moment ago"
    await store.close()


async def test_what_is_missing_is_known_also_after_a_restart(tmp_path: Path, make_chunk: MakeChunk) -> None:
    """Set aside or gone, until it is put again; a torn line in the reasons costs nothing else."""
    store = ChunkStore.open(tmp_path, capacity_bytes=1 << 30)
    chunks = sorted((make_chunk(seed, 100 + seed) for seed in range(4)), key=lambda chunk: chunk.id)
    for chunk in chunks:
        await store.put(chunk.id, chunk.sealed)
    assert store.missing(b"", 10) == []
    (tmp_path / "chunks" / f"{chunks[0].id[0]:02x}" / f"{chunks[0].id.hex()}-{len(chunks[0].sealed)}").unlink()
    with pytest.raises(Corrupt):
        store.check(chunks[0].id)
    store.quarantine(chunks[2].id, "a test")
    store.quarantine(chunks[3].id, "a test")
    wanted = [chunks[index].id for index in (0, 2, 3)]
    assert store.missing(b"", 10) == wanted
    assert store.missing(b"", 2) == wanted[:2]
    assert store.missing(wanted[1], 10) == wanted[2:]
    await store.close()
    with (tmp_path / "quarantine" / "reasons.jsonl").open("a") as log:
        log.write('{"chunk": "ab')
    again = ChunkStore.open(tmp_path, capacity_bytes=1 << 30)
    assert again.missing(b"", 10) == wanted
    await again.put(chunks[2].id, chunks[2].sealed)
    assert again.missing(b"", 10) == [chunks[0].id, chunks[3].id]
    again.quarantine(chunks[1].id, "after a torn line")
    await again.close()
    last = ChunkStore.open(tmp_path, capacity_bytes=1 << 30)
    assert chunks[1].id in last.missing(b"", 10)
    await last.close()
