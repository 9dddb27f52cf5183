"""A content's plain bytes into sealed chunks on a node: split, seal, send; what is there already is not sent again.

One chunk at a time is sealed (in a thread, outside the interpreter's lock) while the next is read and a few are on the
way; at most `CHUNKS_AT_ONCE` are in memory. Chunk keys come from the content, so an upload that is repeated after a
break finds its chunks by their ids.

An edit of a large content takes over the chunks it leaves alone, by id and key, from the version before. The writer
must hold every chunk of what it writes (the version's entry counts as its word for that), so chunks that its node
lacks are read and sealed again: under the key they had, which gives the very same chunk.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from collective.chunks import compute_layout_hash, derive_chunk_key, page_name, seal_chunk, seal_key_page
from collective.core.errors import Conflict, Corrupt, Misconfigured
from collective.core.layout import (
    CHUNKS_PER_PAGE,
    MAX_SEALED_CHUNK_BYTES,
    ChunkReference,
    VersionLayout,
    encode_page,
    sealed_size,
)
from collective.transfer.node_lane import Dial, NodeLane, UploadPlan
from collective.wire import feed_pb2

__all__ = ["PlainBytes", "Previous", "UploadPlan", "Uploaded", "upload", "upload_content"]

CHUNKS_AT_ONCE = 4  # 8 MiB plain and as much sealed each: 64 MiB
Page = tuple[Sequence[ChunkReference], Sequence[bytes | None]]
Advance = Callable[[int], None]


class PlainBytes(Protocol):
    """Where plain bytes come from."""

    @property
    def size_bytes(self) -> int: ...

    async def read(self, offset: int, into: memoryview) -> None:
        """Fill `into` from `offset` on. Several may run at once. Raises: CollectiveError."""
        ...


@dataclass(frozen=True)
class Uploaded:
    """What the commit needs, and how many plain bytes had to be sent."""

    layout: feed_pb2.Layout
    pages: list[bytes]
    key_pages: list[bytes]
    sent_bytes: int


@dataclass(frozen=True)
class Previous:
    """The version that an edit begins from: its shape, and (chunks, keys) of a page by number. Raises: CollectiveError
    (`page`)."""

    shape: VersionLayout
    page: Callable[[int], Awaitable[Page]]


async def upload(source: Path, plan: UploadPlan, dial: Dial, advance: Advance = lambda done: None) -> Uploaded:
    """Send a file. `advance` gets the plain bytes done. Raises: Conflict (it changed meanwhile), Full, Unreachable."""
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Misconfigured(f"cannot read {source}: {error.strerror}") from error
    lane = NodeLane(plan, dial)
    try:
        file = _FileBytes(descriptor, str(source))
        uploaded = await upload_content(file, plan, lane, advance=advance)
        file.verify_unchanged()
        return uploaded
    finally:
        os.close(descriptor)
        await lane.close()


class _FileBytes:
    """A file of this machine that must not change while it is read."""

    def __init__(self, descriptor: int, name: str) -> None:
        self._descriptor = descriptor
        self._name = name
        self._before = os.fstat(descriptor)

    @property
    def size_bytes(self) -> int:
        return self._before.st_size

    async def read(self, offset: int, into: memoryview) -> None:
        await asyncio.to_thread(self._read, offset, into)

    def _read(self, offset: int, into: memoryview) -> None:
        got = 0
        while got < len(into):
            count = os.preadv(self._descriptor, [into[got:]], offset + got)
            if count == 0:
                raise Conflict("the file became shorter while it was read", "put it again when it is at rest")
            got += count

    def verify_unchanged(self) -> None:
        """Raises: Conflict."""
        after, before = os.fstat(self._descriptor), self._before
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise Conflict(
                f"{self._name} changed while it was read; nothing was stored", "put it again when it is at rest"
            )


async def upload_content(
    source: PlainBytes,
    plan: UploadPlan,
    lane: NodeLane,
    *,
    changed: Sequence[tuple[int, int]] | None = None,
    previous: Previous | None = None,
    advance: Advance = lambda done: None,
) -> Uploaded:
    """Send a content under a fresh version id; returns when all of its chunks are durable.

    `changed`: byte ranges [start, end), sorted, outside of which the bytes are those of `previous`, or zeros where
    there is none or it has ended; None: any byte may be anything. Raises: Full, Unreachable, Corrupt (`previous` is
    not what was read), and what `source` and `previous` raise.
    """
    work = _Upload(source, plan, lane, advance)
    if changed is None:
        work.waiting.extend(range(work.shape.chunk_count))
    else:
        await work.take_over(changed, previous)
    await work.run()
    return work.result()


class _Upload:
    """One content on its way: what each chunk became."""

    def __init__(self, source: PlainBytes, plan: UploadPlan, lane: NodeLane, advance: Advance) -> None:
        self._source = source
        self._plan = plan
        self._lane = lane
        self._advance = advance
        self.shape = VersionLayout(source.size_bytes, plan.chunk_size_bytes)
        self.waiting: deque[int] = deque()  # chunks that must be read
        self._chunks: list[ChunkReference | None] = [None] * self.shape.chunk_count
        self._keys: list[bytes | None] = [None] * self.shape.chunk_count
        self._reading = asyncio.Lock()  # one at a time: the disk is read in order …
        self._sealing = asyncio.Lock()  # … and two cores are kept for the wire
        self._done_bytes = self._sent_bytes = 0

    async def take_over(self, changed: Sequence[tuple[int, int]], previous: Previous | None) -> None:
        """Chunks that nothing changed: holes, and those of `previous`; the others wait to be read."""
        touched = self._touched(changed)
        before = previous.shape if previous is not None else VersionLayout(0, self.shape.chunk_size_bytes)
        same_shape = before.chunk_size_bytes == self.shape.chunk_size_bytes
        pages: dict[int, Page] = {}
        for index in range(self.shape.chunk_count):
            size = self.shape.chunk_size(index)
            begin = index * self.shape.chunk_size_bytes
            if index in touched or (begin < before.size_bytes and not same_shape):
                self.waiting.append(index)
            elif begin >= before.size_bytes:
                self._chunks[index] = ChunkReference(None, size)
            elif before.chunk_size(index) != size:
                self.waiting.append(index)
            else:
                assert previous is not None
                number, inside = divmod(index, CHUNKS_PER_PAGE)
                if number not in pages:
                    pages = {number: await previous.page(number)}
                self._chunks[index], self._keys[index] = pages[number][0][inside], pages[number][1][inside]
        await self._want_missing()
        self._progress(sum(chunk.size_bytes for chunk in self._chunks if chunk is not None))

    def _touched(self, changed: Sequence[tuple[int, int]]) -> set[int]:
        size = self.shape.chunk_size_bytes
        end = self.shape.size_bytes
        return {index for start, stop in changed for index in range(start // size, -(-min(stop, end) // size))}

    async def _want_missing(self) -> None:
        """What is taken over and not at the node must be read after all; its key stays."""
        taken = [(index, chunk) for index, chunk in enumerate(self._chunks) if chunk is not None and chunk.id]
        there = await self._lane.present(
            [chunk.id or b"" for _, chunk in taken], [sealed_size(chunk.size_bytes) for _, chunk in taken]
        )
        self.waiting.extend(index for (index, _), present in zip(taken, there, strict=True) if not present)

    async def run(self) -> None:
        """Read, seal and send what waits. Raises: the first failure."""
        count = min(CHUNKS_AT_ONCE, len(self.waiting))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(count):
                    group.create_task(self._work())
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _work(self) -> None:
        size = min(self.shape.size_bytes, self.shape.chunk_size_bytes)
        plain, sealed = bytearray(size), bytearray(min(sealed_size(size), MAX_SEALED_CHUNK_BYTES))
        while self.waiting:
            index = self.waiting.popleft()
            view = memoryview(plain)[: self.shape.chunk_size(index)]
            async with self._reading:
                await self._source.read(index * self.shape.chunk_size_bytes, view)
            taken = self._chunks[index]
            async with self._sealing:
                made = await asyncio.to_thread(_seal, self._plan.store_secret, self._keys[index], view, sealed)
            if taken is not None and (made is None or made[1] != taken.id):
                raise Corrupt("a chunk of the version before is not what it was")
            self._chunks[index] = ChunkReference(made[1] if made else None, len(view))
            if made is not None:
                self._keys[index] = made[0]
                if await self._lane.send(made[1], made[2]):
                    self._sent_bytes += len(view)
            self._progress(len(view) if taken is None else 0)

    def _progress(self, size_bytes: int) -> None:
        self._done_bytes += size_bytes
        self._advance(self._done_bytes)

    def result(self) -> Uploaded:
        """What the commit needs."""
        listed = [chunk for chunk in self._chunks if chunk is not None]
        assert len(listed) == self.shape.chunk_count
        starts = range(0, len(listed), CHUNKS_PER_PAGE)
        pages = [encode_page(listed[at : at + CHUNKS_PER_PAGE]) for at in starts]
        key_pages = [seal_key_page(self._plan.store_key, self._keys[at : at + CHUNKS_PER_PAGE]) for at in starts]
        layout = feed_pb2.Layout(
            version_id=os.urandom(16),
            size_bytes=self.shape.size_bytes,
            chunk_size_bytes=self.shape.chunk_size_bytes,
            coding=feed_pb2.Coding(k=1, m=0),
            pages=[page_name(page) for page in pages],
            key_pages=[page_name(page) for page in key_pages],
        )
        layout.layout_hash = compute_layout_hash(layout)
        return Uploaded(layout, pages, key_pages, self._sent_bytes)


def _seal(
    secret: bytes, key: bytes | None, view: memoryview, sealed: bytearray
) -> tuple[bytes, bytes, memoryview] | None:
    """(key, id, sealed bytes) of one chunk, None for a hole. A key that is given must be the one of this very content;
    the caller sends nothing unless the id comes out as it was."""
    if not view[0] and not any(view[::4096]) and bytes(view).count(0) == len(view):
        return None
    key = key or derive_chunk_key(secret, view)
    made = seal_chunk(key, view, sealed)
    return key, made.id, made.sealed
