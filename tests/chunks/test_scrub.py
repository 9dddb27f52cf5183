"""Scrubbing: every chunk is read in turn, no faster than allowed, and what is broken is told and set aside."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from collective.chunks import ChunkStore, Scrubber, SealedChunk
from collective.chunks.disk import Disk

MakeChunk = Callable[[int, int], SealedChunk]


async def filled(store: ChunkStore, make_chunk: MakeChunk, count: int) -> list[SealedChunk]:
    chunks = sorted((make_chunk(seed, 984) for seed in range(count)), key=lambda chunk: chunk.id)
    await asyncio.gather(*(store.put(chunk.id, chunk.sealed) for chunk in chunks))
    return chunks


def path_of(store: ChunkStore, chunk: SealedChunk) -> Path:
    name = f"{chunk.id.hex()}-{len(chunk.sealed)}"
    return store.directory / "chunks" / name[:2] / name


async def test_a_walk_reads_every_chunk_once_at_the_rate_and_begins_again(
    store: ChunkStore, make_chunk: MakeChunk
) -> None:
    await filled(store, make_chunk, 10)  # of 1,000 sealed bytes
    scrubber = Scrubber(store, bytes_per_second=2000)
    checked = []
    for second in range(8):
        assert scrubber.tick(float(second)) == []
        checked.append(scrubber.checked)
    assert checked == [0, 2, 4, 6, 8, 10, 10, 14]  # the tick that met the end saved its allowance
    assert scrubber.rounds == 1


async def test_a_long_pause_is_not_caught_up_with_and_a_tick_is_bounded(
    store: ChunkStore, make_chunk: MakeChunk
) -> None:
    await filled(store, make_chunk, 30)
    scrubber = Scrubber(store, bytes_per_second=1500)
    scrubber.tick(0.0)
    scrubber.tick(86400.0, limit=4)
    assert scrubber.checked == 4
    scrubber.tick(86400.0)
    assert scrubber.checked == 15


async def test_the_walk_goes_on_where_it_stood_before_a_restart(store: ChunkStore, make_chunk: MakeChunk) -> None:
    chunks = await filled(store, make_chunk, 10)
    scrubber = Scrubber(store, bytes_per_second=1000, position=chunks[6].id)
    for second in range(4):
        scrubber.tick(float(second))
    assert (scrubber.checked, scrubber.position) == (3, chunks[9].id)


async def test_broken_short_and_missing_chunks_are_told_and_set_aside(store: ChunkStore, make_chunk: MakeChunk) -> None:
    chunks = await filled(store, make_chunk, 10)
    flipped, short, missing = chunks[1], chunks[4], chunks[9]
    content = bytearray(path_of(store, flipped).read_bytes())
    content[500] ^= 4
    path_of(store, flipped).write_bytes(content)
    path_of(store, short).write_bytes(content[:100])
    path_of(store, missing).unlink()
    scrubber = Scrubber(store, bytes_per_second=1e9)
    scrubber.tick(0.0)
    findings = scrubber.tick(1.0)
    assert [finding.chunk_id for finding in findings] == [flipped.id, short.id, missing.id]
    assert all(finding.set_aside for finding in findings)
    assert (scrubber.checked, scrubber.broken) == (10, 3)
    assert store.status().chunk_count == 7
    for chunk in (flipped, short, missing):
        assert await store.put(chunk.id, chunk.sealed) is False
    assert scrubber.tick(2.0) == []


async def test_a_broken_chunk_that_the_disk_does_not_let_go_is_a_finding_and_the_walk_goes_on(
    store: ChunkStore, make_chunk: MakeChunk, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = await filled(store, make_chunk, 3)
    path_of(store, chunks[0]).write_bytes(b"short")

    def refuse(self: Disk, id_: bytes, size_bytes: int, reason: str) -> bool:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Disk, "set_aside", refuse)
    scrubber = Scrubber(store, bytes_per_second=1e9)
    scrubber.tick(0.0)
    findings = scrubber.tick(1.0)
    assert [(finding.chunk_id, finding.set_aside) for finding in findings] == [(chunks[0].id, False)]
    assert scrubber.checked == 3
    assert store.has(chunks[0].id)
