"""From requests to fetches: everything once, nothing twice, no reader left waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from memory_library import MemoryNames, MemoryReference, MemorySources, pattern_bytes, until

from collective.core.errors import Corrupt, Unreachable
from collective.core.sizes import KIB, MIB
from collective.mount.reading import ContentReader
from collective.mount.settings import MountSettings

SIZE = 40 * MIB + 12_345


@pytest.fixture
def film(names: MemoryNames) -> MemoryReference:
    reference = names.content(names.get(names.make_file(b"film", pattern_bytes(1, SIZE))))
    assert isinstance(reference, MemoryReference)
    return reference


@pytest.fixture
def data(names: MemoryNames, film: MemoryReference) -> bytes:
    return names.bytes_of[film.version_id]


@pytest.fixture
async def reader(sources: MemorySources, observer: object, tmp_path: object) -> AsyncIterator[ContentReader]:
    settings = MountSettings(tmp_path, cache_size_bytes=24 * MIB, deadline_seconds=20)  # type: ignore[arg-type]
    async with ContentReader(sources.open, settings, observer) as reader:  # type: ignore[arg-type]
        yield reader


async def test_a_sequential_read_is_whole_and_fetches_nothing_twice(
    reader: ContentReader, film: MemoryReference, data: bytes, sources: MemorySources
) -> None:
    content = reader.open(film)
    got = b"".join([bytes(await reader.read(content, offset, 100_000)) for offset in range(0, SIZE, 100_000)])
    assert got == data
    assert sources.filled_bytes == SIZE
    assert sources.opened == 1


async def test_a_random_read_fetches_its_segments_only(
    reader: ContentReader, film: MemoryReference, data: bytes, sources: MemorySources
) -> None:
    content = reader.open(film)
    offset = 17 * MIB + 70_000
    assert bytes(await reader.read(content, offset, 4096)) == data[offset : offset + 4096]
    assert sources.filled_bytes == 64 * KIB


async def test_a_read_across_chunks_is_whole(reader: ContentReader, film: MemoryReference, data: bytes) -> None:
    content = reader.open(film)
    offset = 8 * MIB - 300_000
    assert bytes(await reader.read(content, offset, MIB)) == data[offset : offset + MIB]


async def test_reads_at_and_beyond_the_end(reader: ContentReader, film: MemoryReference, data: bytes) -> None:
    content = reader.open(film)
    assert bytes(await reader.read(content, SIZE - 10, 4096)) == data[-10:]
    assert await reader.read(content, SIZE, 4096) == b""
    assert await reader.read(content, SIZE + MIB, 4096) == b""


async def test_many_waiters_share_one_fetch(
    reader: ContentReader, film: MemoryReference, sources: MemorySources, data: bytes
) -> None:
    content = reader.open(film)
    sources.gate.clear()
    reads = [asyncio.create_task(reader.read(content, 20 * MIB, 64 * KIB)) for _ in range(20)]
    await until(lambda: sources.fills)
    sources.gate.set()
    answers = await asyncio.gather(*reads)
    assert all(bytes(answer) == data[20 * MIB : 20 * MIB + 64 * KIB] for answer in answers)
    assert len(sources.fills) == 1
    assert sources.opened == 1


async def test_a_read_waits_for_its_segments_and_not_for_its_chunk(
    reader: ContentReader, film: MemoryReference, sources: MemorySources, data: bytes
) -> None:
    """While one reader's fetch hangs, another part of the same chunk is read."""
    content = reader.open(film)
    await reader.read(content, 100, 10)
    sources.gate.clear()
    held = asyncio.create_task(reader.read(content, 5 * MIB, 64 * KIB))
    await until(lambda: (0, 80, 1) in sources.fills)
    assert bytes(await reader.read(content, 200, 10)) == data[200:210]
    assert not held.done()
    sources.gate.set()
    assert bytes(await held) == data[5 * MIB : 5 * MIB + 64 * KIB]


async def test_an_error_reaches_its_readers_and_is_not_remembered(
    reader: ContentReader, film: MemoryReference, sources: MemorySources, data: bytes
) -> None:
    content = reader.open(film)
    sources.failure = Corrupt("a segment is not what its hash says")
    with pytest.raises(Corrupt):
        await reader.read(content, 0, 4096)
    sources.failure = None
    assert bytes(await reader.read(content, 0, 4096)) == data[:4096]


async def test_a_failed_fetch_ahead_is_tried_again_by_its_reader(
    reader: ContentReader, film: MemoryReference, sources: MemorySources, data: bytes
) -> None:
    content = reader.open(film)
    await reader.read(content, 0, MIB)
    sources.failure = Unreachable("nobody is there")
    await reader.read(content, 0, MIB)  # there already; only fetching ahead fails now
    await reader.read(content, 64 * KIB, 64 * KIB)
    sources.failure = None
    assert bytes(await reader.read(content, MIB, MIB)) == data[MIB : 2 * MIB]


async def test_a_surprise_in_the_source_becomes_an_error_of_ours(
    reader: ContentReader, film: MemoryReference, sources: MemorySources
) -> None:
    content = reader.open(film)
    sources.failure = ZeroDivisionError("surprise")
    with pytest.raises(Corrupt, match="surprise"):
        await reader.read(content, 0, 4096)


async def test_a_cache_smaller_than_its_readers_serves_them_all(
    reader: ContentReader, names: MemoryNames, sources: MemorySources
) -> None:
    """Twelve readers over three slots: everybody gets right bytes, nobody waits for ever."""
    files = {}
    for seed in range(12):
        reference = names.content(names.get(names.make_file(b"%d" % seed, pattern_bytes(seed, 9 * MIB))))
        assert isinstance(reference, MemoryReference)
        files[seed] = reference

    async def play(reference: MemoryReference) -> bytes:
        content = reader.open(reference)
        parts = [bytes(await reader.read(content, offset, MIB)) for offset in range(0, 9 * MIB, MIB)]
        reader.close(content)
        return b"".join(parts)

    async with asyncio.timeout(60):
        played = await asyncio.gather(*(play(reference) for reference in files.values()))
    for reference, got in zip(files.values(), played, strict=True):
        assert got == names.bytes_of[reference.version_id]


async def test_reading_ahead_ends_with_the_reader(
    reader: ContentReader, film: MemoryReference, sources: MemorySources
) -> None:
    """Two MiB read in order: what is fetched beyond is no more than was read."""
    content = reader.open(film)
    for offset in range(0, 2 * MIB, 128 * KIB):
        await reader.read(content, offset, 128 * KIB)
    reader.close(content)
    await until(lambda: not content.busy)
    assert sources.filled_bytes <= 5 * MIB


async def test_what_is_known_of_a_content_outlives_its_last_close(
    reader: ContentReader, film: MemoryReference, sources: MemorySources
) -> None:
    for offset in range(0, 4 * MIB, 256 * KIB):
        content = reader.open(film)
        await reader.read(content, offset, 256 * KIB)
        reader.close(content)
    assert sources.opened == 1
    assert reader.statistics.waited <= 8
    assert content.readahead.streams[0].window == 4 * MIB


async def test_idle_contents_are_forgotten_and_their_sources_closed(
    names: MemoryNames, sources: MemorySources, observer: object, tmp_path: object
) -> None:
    settings = MountSettings(tmp_path, cache_size_bytes=16 * MIB, idle_contents=2)  # type: ignore[arg-type]
    async with ContentReader(sources.open, settings, observer) as reader:  # type: ignore[arg-type]
        for seed in range(5):
            reference = names.content(names.get(names.make_file(b"%d" % seed, pattern_bytes(seed, 10_000))))
            content = reader.open(reference)  # type: ignore[arg-type]
            await reader.read(content, 0, 10)
            await until(lambda content=content: not content.busy)
            reader.close(content)
        await until(lambda: sources.closed == 3)
    assert sources.closed == 5


async def test_the_deadline_ends_a_read_that_nobody_answers(
    film: MemoryReference, sources: MemorySources, observer: object, tmp_path: object
) -> None:
    settings = MountSettings(tmp_path, cache_size_bytes=16 * MIB, deadline_seconds=0.05)  # type: ignore[arg-type]
    sources.gate.clear()
    async with ContentReader(sources.open, settings, observer) as reader:  # type: ignore[arg-type]
        content = reader.open(film)
        with pytest.raises((TimeoutError, Unreachable)):
            await reader.read(content, 0, 4096)
        await until(lambda: not content.busy)
        sources.gate.set()
        assert len(await reader.read(content, 0, 4096)) == 4096


async def test_leaving_breaks_off_what_is_under_way(
    film: MemoryReference, sources: MemorySources, observer: object, tmp_path: object
) -> None:
    settings = MountSettings(tmp_path, cache_size_bytes=16 * MIB)  # type: ignore[arg-type]
    sources.gate.clear()
    async with ContentReader(sources.open, settings, observer) as reader:  # type: ignore[arg-type]
        reads = [asyncio.create_task(reader.read(reader.open(film), place, 4096)) for place in (0, 20 * MIB)]
        await until(lambda: len(sources.fills) >= 2)
    outcomes = await asyncio.gather(*reads, return_exceptions=True)
    assert all(isinstance(outcome, Unreachable) for outcome in outcomes)
    assert sources.opened == sources.closed


async def test_a_holder_that_is_back_in_a_moment_costs_a_pause(
    reader: ContentReader, film: MemoryReference, sources: MemorySources, data: bytes
) -> None:
    """The read meets nobody, waits, and gets its bytes; nothing of that is told."""
    sources.failure = Unreachable("the node is starting")
    read = asyncio.create_task(reader.read(reader.open(film), 5, 4096))
    await until(lambda: len(sources.fills) >= 2)  # it asked again by itself
    assert not read.done()
    sources.failure = None
    assert bytes(await read) == data[5 : 5 + 4096]


async def test_what_is_gone_for_long_is_told_once_and_then_answers_at_once(
    film: MemoryReference, sources: MemorySources, observer: object, tmp_path: Path
) -> None:
    """A read ends before its deadline, with a line that says what and why; the next does not wait again; when the
    holder is there all is well."""
    sources.failure = Unreachable("alice is away")
    settings = MountSettings(tmp_path, cache_size_bytes=16 * MIB, deadline_seconds=0.5)
    async with ContentReader(sources.open, settings, observer) as reader:  # type: ignore[arg-type]
        content = reader.open(film)
        with pytest.raises(Unreachable, match="alice is away"):
            await reader.read(content, 0, 4096)
        (told,) = observer.named("mount.read_failed")  # type: ignore[attr-defined]
        assert (told["content"], told["reason"]) == (film.version_id.hex(), "alice is away")
        tried = sources.fills.count((0, 0, 1))
        assert tried > 2
        with pytest.raises(Unreachable):
            await reader.read(content, 0, 4096)
        assert sources.fills.count((0, 0, 1)) == tried + 1, "one look, no more"
        sources.failure = None
        assert len(await reader.read(content, 0, 4096)) == 4096


async def test_few_reads_wait_and_those_of_other_files_go_on(
    reader: ContentReader, names: MemoryNames, film: MemoryReference, sources: MemorySources
) -> None:
    """Of many reads of one content two wait, the others are told now; another file is read meanwhile; leaving ends
    those that wait."""
    small = names.content(names.get(names.make_file(b"other", pattern_bytes(9, MIB))))
    assert isinstance(small, MemoryReference)
    sources.failure = Unreachable("the node is starting")
    content = reader.open(film)
    reads = [asyncio.create_task(reader.read(content, MIB * place, 4096)) for place in range(10)]
    await until(lambda: sum(read.done() for read in reads) == 8)
    sources.failure = None
    other = reader.open(small)
    assert bytes(await reader.read(other, 0, 4096)) == names.bytes_of[small.version_id][:4096]
    outcomes = await asyncio.gather(*reads, return_exceptions=True)
    assert sum(isinstance(outcome, Unreachable) for outcome in outcomes) == 8
    sources.failure = Unreachable("again")
    waiting = asyncio.create_task(reader.read(content, 30 * MIB, 4096))
    await until(lambda: content.outage.waiting == 1)
    await reader.shut()
    with pytest.raises(Unreachable):
        await waiting
