"""put: files of this machine into the library, in the process that holds the plain bytes.

begin upload -> split, seal, send to the node -> commit -> wait for the level
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from collective.core.clock import Clock
from collective.core.errors import Conflict, Misconfigured, NotFound, Refused
from collective.core.layout import INLINE_LIMIT_BYTES
from collective.daemon.client import ReadSide, open_read_side
from collective.daemon.control import Control, open_control
from collective.daemon.home import Home
from collective.daemon.names import new_commit
from collective.daemon.runtime import first_error
from collective.transfer.push import UploadPlan, upload
from collective.wire import control_pb2

__all__ = ["PutResult", "put_path"]

Advance = Callable[[int, int], None]
FILES_AT_ONCE = 8  # small files wait for syncs, not for bytes: several at once share them


@dataclass
class PutResult:
    """What a put did; `seconds` until acknowledged locally, `level_seconds` until the level asked for.

    `asked` is the level waited for: the one given, else the DataStore's own. `skipped` counts links and devices,
    `staged` files that wait here, `notes` says why they do and what was kept under another name.
    """

    files: int = 0
    bytes: int = 0
    sent_bytes: int = 0
    skipped: int = 0
    seconds: float = 0.0
    level_seconds: float = 0.0
    asked: str = "local"
    level: str = "local"
    holders: list[str] = field(default_factory=list)
    reason: str = ""
    staged: int = 0
    notes: list[str] = field(default_factory=list)


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
    result = PutResult()
    files = _files_below(source, path, result)
    total = sum(size for _, _, size in files)
    began = clock.monotonic()
    commits: list[control_pb2.CommitReply] = []
    levels: set[str] = set()
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

                reply, size, sent, usual_level = await _put_file(control, dialer, file, target, owner, progressed)
                commits.append(reply)
                levels.add(level or usual_level)
                result.staged += reply.staged
                result.notes += reply.notes
                result.files += 1
                result.bytes += size
                result.sent_bytes += sent
                advance(result.bytes, total)

        async with asyncio.TaskGroup() as group:
            for file, target, _ in files:
                group.create_task(one(file, target))
        result.seconds = clock.monotonic() - began
        result.asked = "two" if "two" in levels else "local"
        if result.staged and level is None:
            level_timeout_seconds = 0.0  # in no entry yet, it cannot be held twice; and nobody asked to wait
        await _await_level(control, commits, level_timeout_seconds, result)
        result.level_seconds = clock.monotonic() - began
    return result


def _files_below(source: Path, path: bytes, result: PutResult) -> list[tuple[Path, bytes, int]]:
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
            if file.is_symlink() or not file.is_file():
                result.skipped += 1
            else:
                files.append((file, base + b"/" + os.fsencode(name), file.stat().st_size))
    return files


async def _put_file(
    control: Control, dialer: ReadSide, file: Path, path: bytes, owner: str, advance: Callable[[int], None]
) -> tuple[control_pb2.CommitReply, int, int, str]:
    """Store one file; the commit's reply, its size, the bytes that had to be sent, the DataStore's usual level."""
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
        content = await asyncio.to_thread(_read_small, file)
        put.content.size_bytes, put.content.inline = len(content), content
        sent = len(content)
    else:
        plan = UploadPlan(
            store_id=begin.store_id,
            store_secret=begin.store_secret,
            store_key=begin.store_key,
            chunk_size_bytes=begin.chunk_size_bytes,
            signed_ticket=begin.signed_ticket,
            nodes=list(begin.nodes),
        )
        try:
            uploaded = await upload(file, plan, dialer.dial, advance)
        except* OSError as errors:
            raise Misconfigured(f"cannot read {file}: {first_error(errors)}") from errors
        sent = uploaded.sent_bytes
        put.layout.CopyFrom(uploaded.layout)
        put.pages.extend(uploaded.pages)
        put.key_pages.extend(uploaded.key_pages)
        put.content.size_bytes = uploaded.layout.size_bytes
        put.content.version_id = uploaded.layout.version_id
        put.content.key_pages.extend(uploaded.layout.key_pages)
        put.content.key_name = begin.key_name
    reply = await control.call("Commit", request, control_pb2.CommitReply)
    return reply, put.content.size_bytes, sent, begin.default_level


def _read_small(file: Path) -> bytes:
    """The content of a file that is small by its size. Raises: Misconfigured, Conflict (it is larger than it said)."""
    try:
        with file.open("rb") as opened:
            content = opened.read(INLINE_LIMIT_BYTES + 1)
    except OSError as error:
        raise Misconfigured(f"cannot read {file}: {error.strerror}") from error
    if len(content) > INLINE_LIMIT_BYTES:
        raise Conflict(f"{file} grew while it was read; it was not stored", "put it again when it is at rest")
    return content


async def _await_level(
    control: Control,
    commits: list[control_pb2.CommitReply],
    timeout_seconds: float,
    result: PutResult,
) -> None:
    """Wait for each file in turn; the result carries the lowest level reached."""
    if result.asked != "two":
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
