"""A file's plain bytes into sealed chunks on a node: split, seal, send; what is there already is not sent again.

One reader thread at a time reads and seals (the work is done outside the interpreter's lock), a few chunks are on
the way meanwhile; at most `CHUNKS_AT_ONCE` are in memory. Chunk keys come from the content, so a put that is repeated
after a break finds its chunks by their ids. A broken connection is dialled again, with growing pauses, for a while.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from collective.chunks import compute_layout_hash, derive_chunk_key, page_name, seal_chunk, seal_key_page
from collective.core.address import FederatedAddress, parse_address
from collective.core.errors import CollectiveError, Conflict, Misconfigured, Unreachable
from collective.core.layout import (
    CHUNKS_PER_PAGE,
    MAX_SEALED_CHUNK_BYTES,
    ChunkReference,
    VersionLayout,
    encode_page,
)
from collective.net.lane import LaneConnection
from collective.wire import control_pb2, feed_pb2, lane_pb2

__all__ = ["UploadPlan", "Uploaded", "upload"]

CHUNKS_AT_ONCE = 4  # 8 MiB plain and as much sealed each: 64 MiB
WRITE_TIMEOUT_SECONDS = 120.0  # 8 MiB at half a megabit per second
DIAL_TRIES = 8
FIRST_PAUSE_SECONDS = 0.2
LAST_PAUSE_SECONDS = 3.0
Dial = Callable[[FederatedAddress, str], Awaitable[LaneConnection]]


@dataclass(frozen=True)
class UploadPlan:
    """What the coordinator gave: where to, with which ticket, under which secrets (32 bytes each)."""

    store_id: bytes
    store_secret: bytes
    store_key: bytes
    chunk_size_bytes: int
    signed_ticket: bytes
    nodes: Sequence[control_pb2.NodeLocation]


@dataclass(frozen=True)
class Uploaded:
    """What the commit needs, and how many plain bytes had to be sent."""

    layout: feed_pb2.Layout
    pages: list[bytes]
    key_pages: list[bytes]
    sent_bytes: int


class _NodeLane:
    """The lane to the node, dialled when needed; the ticket is shown on each new connection."""

    def __init__(self, plan: UploadPlan, dial: Dial) -> None:
        self._plan = plan
        self._dial = dial
        self._lane: LaneConnection | None = None
        self._handle = 0
        self._gate = asyncio.Lock()

    async def call(self, method: int, build: Callable[[int], bytes], body: memoryview | bytes = b"") -> bytes:
        """A call with the handle of this connection; dialled again when it breaks. Raises: Unreachable and others."""
        pause = FIRST_PAUSE_SECONDS
        for attempt in range(DIAL_TRIES):
            try:
                lane, handle = await self._open()
                return (await lane.call(method, build(handle), body, timeout_seconds=WRITE_TIMEOUT_SECONDS)).head
            except Unreachable:
                if attempt == DIAL_TRIES - 1:
                    raise
                await asyncio.sleep(pause)
                pause = min(pause * 2, LAST_PAUSE_SECONDS)
        raise AssertionError("the loop ends by return or raise")

    async def _open(self) -> tuple[LaneConnection, int]:
        async with self._gate:
            if self._lane is None or self._lane.is_closed:
                self._lane = await self._dial_first()
                shown = lane_pb2.PresentRequest(signed_ticket=self._plan.signed_ticket).SerializeToString()
                reply = await self._lane.call(lane_pb2.LANE_PRESENT, shown, timeout_seconds=10)
                self._handle = lane_pb2.PresentReply.FromString(reply.head).handle
            return self._lane, self._handle

    async def _dial_first(self) -> LaneConnection:
        last: CollectiveError = Unreachable("no storage node was named")
        for node in self._plan.nodes:
            for lane_address in node.lane_addresses:
                try:
                    return await self._dial(parse_address(node.address), lane_address)
                except CollectiveError as error:
                    last = error
        raise last

    async def close(self) -> None:
        if self._lane is not None:
            await self._lane.close()


async def upload(
    source: Path, plan: UploadPlan, dial: Dial, advance: Callable[[int], None] = lambda done: None
) -> Uploaded:
    """Send a file. `advance` gets the plain bytes done. Raises: Conflict (it changed meanwhile), Full, Unreachable."""
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Misconfigured(f"cannot read {source}: {error.strerror}") from error
    lane = _NodeLane(plan, dial)
    try:
        return await _upload(descriptor, str(source), plan, lane, advance)
    finally:
        os.close(descriptor)
        await lane.close()


async def _upload(
    descriptor: int, name: str, plan: UploadPlan, lane: _NodeLane, advance: Callable[[int], None]
) -> Uploaded:
    before = os.fstat(descriptor)
    shape = VersionLayout(before.st_size, plan.chunk_size_bytes)
    chunks: list[ChunkReference | None] = [None] * shape.chunk_count
    keys: list[bytes | None] = [None] * shape.chunk_count
    spare = [
        (bytearray(plan.chunk_size_bytes), bytearray(MAX_SEALED_CHUNK_BYTES))
        for _ in range(min(CHUNKS_AT_ONCE, shape.chunk_count))
    ]
    free = asyncio.Semaphore(len(spare))
    sealing = asyncio.Lock()  # one at a time: the disk is read in order, and two cores are kept for the wire
    done_bytes = sent_bytes = 0

    async def one(index: int) -> None:
        nonlocal done_bytes, sent_bytes
        async with free:
            plain, sealed = spare.pop()
            try:
                size = shape.chunk_size(index)
                async with sealing:
                    made = await asyncio.to_thread(_read_and_seal, descriptor, index, shape, plan, plain, sealed)
                if made is None:
                    chunks[index] = ChunkReference(None, size)
                else:
                    key, id_, view = made
                    if await _send(lane, id_, view):
                        sent_bytes += size
                    chunks[index], keys[index] = ChunkReference(id_, size), key
                done_bytes += size
                advance(done_bytes)
            finally:
                spare.append((plain, sealed))

    async with asyncio.TaskGroup() as group:
        for index in range(shape.chunk_count):
            group.create_task(one(index))
    after = os.fstat(descriptor)
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise Conflict(f"{name} changed while it was read; nothing was stored", "put it again when it is at rest")
    listed = [chunk for chunk in chunks if chunk is not None]
    pages = [encode_page(listed[at : at + CHUNKS_PER_PAGE]) for at in range(0, len(listed), CHUNKS_PER_PAGE)]
    key_pages = [
        seal_key_page(plan.store_key, keys[at : at + CHUNKS_PER_PAGE]) for at in range(0, len(keys), CHUNKS_PER_PAGE)
    ]
    layout = feed_pb2.Layout(
        version_id=os.urandom(16),
        size_bytes=before.st_size,
        chunk_size_bytes=plan.chunk_size_bytes,
        coding=feed_pb2.Coding(k=1, m=0),
        pages=[page_name(page) for page in pages],
        key_pages=[page_name(page) for page in key_pages],
    )
    layout.layout_hash = compute_layout_hash(layout)
    return Uploaded(layout, pages, key_pages, sent_bytes)


def _read_and_seal(
    descriptor: int, index: int, shape: VersionLayout, plan: UploadPlan, plain: bytearray, sealed: bytearray
) -> tuple[bytes, bytes, memoryview] | None:
    """(key, id, sealed bytes) of one chunk, None for a hole. Raises: Conflict when the file has become shorter."""
    size = shape.chunk_size(index)
    view = memoryview(plain)[:size]
    got = 0
    while got < size:
        count = os.preadv(descriptor, [view[got:]], index * shape.chunk_size_bytes + got)
        if count == 0:
            raise Conflict("the file became shorter while it was read", "put it again when it is at rest")
        got += count
    if not plain[0] and not any(view[::4096]) and plain.count(0, 0, size) == size:
        return None
    key = derive_chunk_key(plan.store_secret, view)
    made = seal_chunk(key, view, sealed)
    return key, made.id, made.sealed


async def _send(lane: _NodeLane, id_: bytes, sealed: memoryview) -> bool:
    """Send a chunk unless the node has it; whether it was sent. Returns when it is durable."""

    def ask(handle: int) -> bytes:
        return lane_pb2.HasRequest(handle=handle, chunk_ids=[id_], sealed_sizes=[len(sealed)]).SerializeToString()

    if all(lane_pb2.HasReply.FromString(await lane.call(lane_pb2.LANE_HAS, ask)).present):
        return False

    def write(handle: int) -> bytes:
        return lane_pb2.WriteRequest(handle=handle, chunk_id=id_).SerializeToString()

    reply = lane_pb2.WriteReply.FromString(await lane.call(lane_pb2.LANE_WRITE, write, sealed))
    return not reply.already_there
