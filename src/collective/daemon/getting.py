"""get: files of the library onto this machine.

names from the database -> tickets from the holders -> bytes into `.NAME.part-VERSION` -> renamed when whole
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from collective.catalog import Inline, Node, VersionReference
from collective.core.clock import Clock
from collective.core.errors import Misconfigured, Refused
from collective.core.layout import SEGMENT_BYTES, VersionLayout, segment_count
from collective.daemon.client import ReadSide, open_read_side
from collective.daemon.home import Home
from collective.transfer.fetch import VersionSource

__all__ = ["GetResult", "get_path"]

Advance = Callable[[int, int], None]
RUN_SEGMENTS = 16  # 1 MiB a fetch …
RUNS_AT_ONCE = 8  # … and 8 MiB on the way


@dataclass
class GetResult:
    """What a get did; `served_by` counts plain bytes by member."""

    files: int = 0
    bytes: int = 0
    resumed_bytes: int = 0
    seconds: float = 0.0
    served_by: dict[str, int] = field(default_factory=dict)


async def get_path(
    home: Home, path: bytes, owner: str, destination: Path | None, advance: Advance, clock: Clock
) -> GetResult:
    """Fetch a file or a folder; `destination` None writes one file to stdout. Raises: NotFound, Unreachable, …"""
    result = GetResult()
    began = clock.monotonic()
    async with open_read_side(home, clock) as side:
        node = side.reader.resolve(path, owner or None)
        if destination is None and node.is_directory:
            raise Refused("a folder cannot be written to stdout")
        if destination is not None and not node.is_directory and destination.is_dir():
            destination = destination / os.fsdecode(path.rsplit(b"/", 1)[-1])
        files = _nodes_below(side, node, destination)
        total = sum(child.size_bytes for child, _ in files)
        for child, target in files:

            def progressed(done: int, before: int = result.bytes) -> None:
                advance(before + done, total)

            result.resumed_bytes += await _get_file(side, child, target, progressed)
            result.files += 1
            result.bytes += child.size_bytes
        result.served_by = side.fetcher.bytes_by_member()
    result.seconds = clock.monotonic() - began
    return result


def _nodes_below(side: ReadSide, node: Node, destination: Path | None) -> list[tuple[Node, Path | None]]:
    """Every file below a node with where it goes; folders are made on the way."""
    if not node.is_directory or destination is None:
        return [(node, destination)]
    files: list[tuple[Node, Path | None]] = []
    waiting = [(node, destination)]
    while waiting:
        folder, target = waiting.pop()
        target.mkdir(parents=True, exist_ok=True)
        after = b""
        while page := side.reader.list(folder.ino, after, 1000):
            after = page[-1][0]
            for name, child in page:
                inside = target / os.fsdecode(name)
                if child.is_directory:
                    if child.readable:
                        waiting.append((child, inside))
                elif stat.S_ISREG(child.mode):
                    files.append((child, inside))
    return files


async def _get_file(side: ReadSide, node: Node, target: Path | None, advance: Callable[[int], None]) -> int:
    """Fetch one file; the bytes that an earlier try had left."""
    content = side.reader.content(node)
    if isinstance(content, Inline):
        if target is None:
            await asyncio.to_thread(_write_all, 1, content.data)
        else:
            await asyncio.to_thread(_write_inline, target, content.data, node)
        return 0
    source = await side.open(content)
    try:
        if target is None:
            await _stream(source, 1, 0, advance, seekable=False)
            return 0
        return await _fetch_into(source, content, node, target, advance)
    finally:
        await source.close()


async def _fetch_into(
    source: VersionSource, content: VersionReference, node: Node, target: Path, advance: Callable[[int], None]
) -> int:
    """Into a partial file named after the version; what it holds already is not fetched again."""
    partial = target.with_name(f".{target.name[:200]}.part-{content.version_id.hex()[:12]}")
    try:
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Misconfigured(f"cannot write {target}: {error.strerror}") from error
    try:
        have = min(os.fstat(descriptor).st_size, node.size_bytes)
        start = have - have % source.layout.chunk_size_bytes
        os.ftruncate(descriptor, start)
        await _stream(source, descriptor, start, advance, seekable=True)
        os.ftruncate(descriptor, node.size_bytes)
        os.fchmod(descriptor, stat.S_IMODE(node.mode))
        await asyncio.to_thread(os.fsync, descriptor)
    finally:
        os.close(descriptor)
    partial.replace(target)
    os.utime(target, ns=(node.mtime_ns, node.mtime_ns))
    return start


async def _stream(
    source: VersionSource, descriptor: int, start: int, advance: Callable[[int], None], *, seekable: bool
) -> None:
    """Runs of 1 MiB, several on the way, written in order. A failed write is the reader's own disk or pipe."""
    runs = _runs(source.layout, start)
    pending: list[tuple[asyncio.Task[memoryview], int]] = []
    spare: list[bytearray] = []
    try:
        for chunk_index, first_segment, count, size in runs:
            buffer = spare.pop() if spare else bytearray(RUN_SEGMENTS * SEGMENT_BYTES)
            pending.append((asyncio.create_task(_fill(source, chunk_index, first_segment, count, buffer, size)), size))
            if len(pending) >= RUNS_AT_ONCE:
                start = await _write_first(pending, spare, descriptor, start, advance, seekable)
        while pending:
            start = await _write_first(pending, spare, descriptor, start, advance, seekable)
    finally:
        for task, _ in pending:
            task.cancel()
        await asyncio.gather(*(task for task, _ in pending), return_exceptions=True)


async def _write_first(
    pending: list[tuple[asyncio.Task[memoryview], int]],
    spare: list[bytearray],
    descriptor: int,
    offset: int,
    advance: Callable[[int], None],
    seekable: bool,
) -> int:
    task, size = pending[0]
    view = await task
    pending.pop(0)
    if seekable:
        await asyncio.to_thread(_pwrite_all, descriptor, view, offset)
    else:
        await asyncio.to_thread(_write_all, descriptor, view)
    spare.append(view.obj)  # type: ignore[arg-type]  # the bytearray it was made from
    advance(offset + size)
    return offset + size


async def _fill(
    source: VersionSource, chunk_index: int, first_segment: int, count: int, buffer: bytearray, size: int
) -> memoryview:
    view = memoryview(buffer)[:size]
    await source.fill(chunk_index, first_segment, count, view)
    return view


def _runs(layout: VersionLayout, start: int) -> list[tuple[int, int, int, int]]:
    """(chunk, first segment, segments, plain bytes) from the chunk boundary `start` to the end."""
    runs = []
    for chunk_index in range(start // layout.chunk_size_bytes, layout.chunk_count):
        size = layout.chunk_size(chunk_index)
        for first in range(0, segment_count(size), RUN_SEGMENTS):
            count = min(RUN_SEGMENTS, segment_count(size) - first)
            runs.append((chunk_index, first, count, min(count * SEGMENT_BYTES, size - first * SEGMENT_BYTES)))
    return runs


def _write_inline(target: Path, content: bytes, node: Node) -> None:
    partial = target.with_name(f".{target.name[:200]}.part")
    try:
        partial.write_bytes(content)
    except OSError as error:
        raise Misconfigured(f"cannot write {target}: {error.strerror}") from error
    partial.chmod(stat.S_IMODE(node.mode))
    partial.replace(target)
    os.utime(target, ns=(node.mtime_ns, node.mtime_ns))


def _write_all(descriptor: int, content: bytes | memoryview) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def _pwrite_all(descriptor: int, content: memoryview, offset: int) -> None:
    while content:
        written = os.pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written
