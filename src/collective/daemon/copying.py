"""put and get: a file between this machine and the library, in the process that holds the plain bytes.

put: begin upload -> split, seal, send to the node -> commit -> wait for the level.
get: names from the database -> tickets from the holders -> bytes into `NAME.part-VERSION` -> rename when whole.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from collective.catalog import Inline, Node, VersionReference
from collective.core.clock import Clock
from collective.core.errors import Misconfigured, NotFound, Refused
from collective.core.layout import INLINE_LIMIT_BYTES, SEGMENT_BYTES, VersionLayout, segment_count
from collective.daemon.client import ReadSide, open_read_side
from collective.daemon.control import Control, open_control
from collective.daemon.home import Home
from collective.daemon.names import new_commit
from collective.transfer.fetch import VersionSource
from collective.transfer.push import UploadPlan, upload
from collective.wire import control_pb2

__all__ = ["GetResult", "PutResult", "get_path", "put_path"]

Advance = Callable[[int, int], None]
FILES_AT_ONCE = 8  # small files wait for syncs, not for bytes: several at once share them
RUN_SEGMENTS = 16  # 1 MiB a fetch …
RUNS_AT_ONCE = 8  # … and 8 MiB on the way


@dataclass
class PutResult:
    """What a put did; `seconds` until acknowledged locally, `level_seconds` until the level asked for."""

    files: int = 0
    bytes: int = 0
    sent_bytes: int = 0
    seconds: float = 0.0
    level_seconds: float = 0.0
    level: str = "local"
    holders: list[str] = field(default_factory=list)
    reason: str = ""


@dataclass
class GetResult:
    """What a get did; `served_by` counts plain bytes by member."""

    files: int = 0
    bytes: int = 0
    resumed_bytes: int = 0
    seconds: float = 0.0
    served_by: dict[str, int] = field(default_factory=dict)


# ------------------------------------------------------------------ put


async def put_path(
    home: Home,
    source: Path,
    path: bytes,
    owner: str,
    level: str | None,
    level_timeout_seconds: float,
    advance: Advance,
    clock: Clock,
) -> PutResult:
    """Store a file, or a folder with everything below. Raises: NotFound, Refused, Conflict, Full, Unreachable."""
    files = _files_below(source, path)
    total = sum(size for _, _, size in files)
    result = PutResult()
    began = clock.monotonic()
    commits: list[control_pb2.CommitReply] = []
    gate = asyncio.Semaphore(FILES_AT_ONCE if len(files) > 1 else 1)
    needs_node = any(size > INLINE_LIMIT_BYTES for _, _, size in files)
    async with AsyncExitStack() as stack:
        control = await stack.enter_async_context(open_control(home, clock, need_running=needs_node))
        dialer = await stack.enter_async_context(open_read_side(home, clock))

        async def one(file: Path, target: bytes) -> None:
            async with gate:
                done_before = result.bytes

                def progressed(done: int) -> None:
                    advance(done_before + done, total)

                reply, size, sent = await _put_file(control, dialer, file, target, owner, progressed)
                commits.append(reply)
                result.files += 1
                result.bytes += size
                result.sent_bytes += sent
                advance(result.bytes, total)

        async with asyncio.TaskGroup() as group:
            for file, target, _ in files:
                group.create_task(one(file, target))
        result.seconds = clock.monotonic() - began
        await _await_level(control, commits, level, level_timeout_seconds, result)
        result.level_seconds = clock.monotonic() - began
    return result


def _files_below(source: Path, path: bytes) -> list[tuple[Path, bytes, int]]:
    """(file, its path in the library, its size now). Raises: NotFound, Refused."""
    try:
        status = source.stat()
    except FileNotFoundError:
        raise NotFound(f"there is no {source}") from None
    except OSError as error:
        raise Misconfigured(f"cannot read {source}: {error.strerror}") from error
    if stat.S_ISREG(status.st_mode):
        return [(source, path, status.st_size)]
    if not stat.S_ISDIR(status.st_mode):
        raise Refused(f"{source} is neither a file nor a folder")
    files = []
    for folder, _, names in os.walk(source):
        inside = os.fsencode(os.path.relpath(folder, source))
        base = path if inside == b"." else path + b"/" + inside
        for name in sorted(names):
            file = Path(folder, name)
            if file.is_file() and not file.is_symlink():
                files.append((file, base + b"/" + os.fsencode(name), file.stat().st_size))
    return files


async def _put_file(
    control: Control, dialer: ReadSide, file: Path, path: bytes, owner: str, advance: Callable[[int], None]
) -> tuple[control_pb2.CommitReply, int, int]:
    """Store one file; the commit's reply, its size and the bytes that had to be sent."""
    status = file.stat()
    begin = await control.call(
        "BeginUpload",
        control_pb2.BeginUploadRequest(path=path, owner=owner, size_bytes=status.st_size),
        control_pb2.BeginUploadReply,
    )
    request = new_commit()
    put = request.put_file
    put.path, put.owner, put.make_parents = path, owner, True
    put.mode = stat.S_IMODE(status.st_mode)
    put.mtime_nanoseconds = status.st_mtime_ns
    put.expected_inode, put.expected_version_id = begin.current_inode, begin.current_version_id
    sent = 0
    if status.st_size <= INLINE_LIMIT_BYTES:
        content = await asyncio.to_thread(file.read_bytes)
        put.content.size_bytes, put.content.inline = len(content), content
    else:
        plan = UploadPlan(
            store_id=begin.store_id,
            store_secret=begin.store_secret,
            store_key=begin.store_key,
            chunk_size_bytes=begin.chunk_size_bytes,
            signed_ticket=begin.signed_ticket,
            nodes=list(begin.nodes),
        )
        uploaded = await upload(file, plan, dialer.dial, advance)
        sent = uploaded.sent_bytes
        put.layout.CopyFrom(uploaded.layout)
        put.pages.extend(uploaded.pages)
        put.key_pages.extend(uploaded.key_pages)
        put.content.size_bytes = uploaded.layout.size_bytes
        put.content.version_id = uploaded.layout.version_id
        put.content.key_pages.extend(uploaded.layout.key_pages)
        put.content.key_name = begin.key_name
    reply = await control.call("Commit", request, control_pb2.CommitReply)
    return reply, put.content.size_bytes, sent


async def _await_level(
    control: Control,
    commits: list[control_pb2.CommitReply],
    level: str | None,
    timeout_seconds: float,
    result: PutResult,
) -> None:
    """Wait for each file in turn; the result carries the lowest level reached."""
    if level != "two":
        return
    result.level = "two"
    for commit in commits:
        request = control_pb2.AwaitLevelRequest(
            store_id=commit.store_id,
            version_id=commit.version_id,
            position=commit.position,
            level="two",
            timeout_milliseconds=int(timeout_seconds * 1000),
        )
        reply = await control.call("AwaitLevel", request, control_pb2.AwaitLevelReply, timeout_seconds + 10)
        result.holders = sorted(reply.holders)
        if reply.level != "two":
            result.level, result.reason = reply.level, reply.reason
            return


# ------------------------------------------------------------------ get


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
