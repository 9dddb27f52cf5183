"""A disk of sealed chunks: the folder is the index, start-up reads names, not files. Nothing here deletes a chunk.

`put` hashes in a pool thread, writes a temporary file and hands it to the group committer; when that says durable,
the chunk enters the index and `put` returns. Reading is plain, blocking and thread-safe. A chunk that turns out
broken is set aside with its reason and no longer here for anybody, so that it can be fetched again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import Buffer

from collective.chunks.chunkfile import BrokenFileError, read_exactly, read_trailer, write_chunk
from collective.chunks.descriptors import Descriptors
from collective.chunks.disk import FOLDERS, Disk, disk_error
from collective.chunks.durability import GroupCommitter, WrittenFile
from collective.chunks.index import ChunkIndex
from collective.chunks.openfile import OpenFile
from collective.chunks.seal import HASH_BYTES, chunk_id, hash_segments
from collective.core.errors import CollectiveError, Corrupt, Full, NotFound, Unreachable
from collective.core.layout import CHUNK_ID_BYTES, MAX_SEALED_CHUNK_BYTES, SEALED_SEGMENT_BYTES

__all__ = ["ChunkStore", "StoreStatus"]

OPEN_FILES = 128  # descriptors kept open for reading; a film being played needs one or two
WRITERS = 4  # threads that hash and write; more than the cores only wait
CHECK_SEGMENTS = 16  # read at once when a whole chunk is checked: 1 MiB


@dataclass(frozen=True)
class StoreStatus:
    """Bytes and counts; `free_bytes` is what may still be written here, reserve and pledge considered."""

    capacity_bytes: int
    used_bytes: int
    free_bytes: int
    chunk_count: int
    quarantined_count: int


class ChunkStore:
    """Sealed chunks by id. Laws: a put that returned is there after any crash; what is read opens or is Corrupt."""

    def __init__(self, disk: Disk, capacity_bytes: int, reserve_bytes: int) -> None:
        self.directory = disk.directory
        self.marker = disk.marker
        self._disk = disk
        self._capacity_bytes = capacity_bytes
        self._reserve_bytes = reserve_bytes
        self._lock = threading.Lock()  # of the index and of what is arriving
        self._index = ChunkIndex()
        self._arriving: dict[bytes, Future[None]] = {}
        self._arriving_bytes = 0
        self._quarantined_count = disk.set_aside_count()
        self._files = Descriptors(OPEN_FILES)
        self._writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="chunk-writer")
        self._committer = GroupCommitter(disk.directory)
        self._closed = False
        for folder in range(FOLDERS):
            self._index.load(folder, disk.chunks_in(folder))
        self._missing = {id_ for id_ in disk.set_aside_ids() if self._index.size_of(id_) is None}

    @classmethod
    def open(
        cls, directory: Path, *, capacity_bytes: int, reserve_bytes: int = 0, expected_marker: str | None = None
    ) -> ChunkStore:
        """Open a disk for this process alone; blocks while it reads the names.

        `capacity_bytes` is the pledge, `reserve_bytes` what the file system keeps free whatever the pledge;
        `expected_marker` is the `marker` of an earlier opening, so that an unmounted disk is not written under.
        Raises: Misconfigured (another or no disk is mounted; another process has it; it cannot be read).
        """
        disk = Disk.open(directory, expected_marker)
        try:
            return cls(disk, capacity_bytes, reserve_bytes)
        except OSError as error:
            disk.close()
            raise disk_error(error, f"the chunk folder {directory} cannot be read") from error

    async def close(self) -> None:
        """Finish pending writes and let go of the disk. May be repeated."""
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._writers.shutdown(wait=True)
        self._committer.close()
        self._files.close()
        self._disk.close()

    # ------------------------------------------------------------ writing

    async def put(self, id_: bytes, sealed: Buffer) -> bool:
        """Keep a sealed chunk; True when it was there already. Returns when it is durable.

        The buffer is read until this returns, also when it is cancelled; a cancelled write may still be kept.
        Raises: Corrupt (the bytes are not the id's), Full, Misconfigured (the disk refuses), Unreachable (closing).
        """
        view = memoryview(sealed).cast("B")
        while True:
            arriving, is_ours = self._begin(id_, len(view))
            if arriving is None:
                return True
            if is_ours:
                break
            with contextlib.suppress(CollectiveError):  # somebody else's bytes may have been wrong, not ours
                await asyncio.wrap_future(arriving)
        await self._write_uncancelled(id_, view)
        await asyncio.wrap_future(arriving)
        return False

    def _begin(self, id_: bytes, size_bytes: int) -> tuple[Future[None] | None, bool]:
        """What to wait for: nothing (it is here), somebody's write, or ours (True), for which room is set apart."""
        if len(id_) != CHUNK_ID_BYTES or not 0 < size_bytes <= MAX_SEALED_CHUNK_BYTES:
            raise Corrupt(f"a sealed chunk of {size_bytes} bytes with an id of {len(id_)} cannot be")
        free_on_disk = self._disk.free_bytes()
        with self._lock:
            if self._closed:
                raise Unreachable("the storage is closing")
            if self._index.size_of(id_) is not None:
                return None, False
            if (arriving := self._arriving.get(id_)) is not None:
                return arriving, False
            status = self._status(free_on_disk)
            if self._arriving_bytes + size_bytes > status.free_bytes:
                raise Full(
                    f"the storage is full: {status.used_bytes} of {status.capacity_bytes} bytes used,"
                    f" {status.free_bytes} free beside the reserve, {size_bytes} wanted"
                    f" ({self._arriving_bytes} arriving)",
                    "make room, raise --storage, or add a node",
                )
            ours: Future[None] = Future()
            ours.set_running_or_notify_cancel()  # nobody's cancelled wait may cancel it for all
            self._arriving[id_] = ours
            self._arriving_bytes += size_bytes
            return ours, True

    def _settle(self, id_: bytes, size_bytes: int, error: CollectiveError | None) -> None:
        """A write came to its end: the chunk is here, or is not; all who wait are told."""
        with self._lock:
            arriving = self._arriving.pop(id_)
            self._arriving_bytes -= size_bytes
            if error is None:
                self._index.add(id_, size_bytes)
                self._missing.discard(id_)
        if error is None:
            arriving.set_result(None)
        else:
            arriving.set_exception(error)

    async def _write_uncancelled(self, id_: bytes, view: memoryview) -> None:
        """Write in a thread, and wait for its end even when cancelled: until then it reads the caller's buffer."""
        try:
            writing = asyncio.get_running_loop().run_in_executor(self._writers, self._write, id_, view)
        except RuntimeError:
            self._settle(id_, len(view), Unreachable("the storage is closing"))
            return
        cancelled: asyncio.CancelledError | None = None
        while not writing.done():
            try:
                await asyncio.shield(writing)
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    def _write(self, id_: bytes, view: memoryview) -> None:
        """Check and write one chunk, and leave it to the committer. Every outcome goes to `_settle`."""
        temporary = self._disk.temporary / f"{id_.hex()}-{secrets.token_hex(4)}"
        size_bytes = len(view)
        descriptor = -1
        try:
            hashes = hash_segments(view)
            if chunk_id(hashes) != id_:
                raise Corrupt("the bytes of a chunk are not the ones its id names")
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            write_chunk(descriptor, view, hashes)
        except (OSError, Corrupt) as error:
            if descriptor >= 0:
                with contextlib.suppress(OSError):  # emptied at the next opening
                    os.close(descriptor)
                    temporary.unlink()
            what = f"a chunk cannot be written to {self._disk.directory}"
            self._settle(id_, size_bytes, error if isinstance(error, Corrupt) else disk_error(error, what))
            return
        self._committer.submit(
            WrittenFile(
                temporary,
                self._disk.chunk_path(id_, size_bytes),
                size_bytes,
                descriptor,
                lambda failure: self._settle(id_, size_bytes, failure),
            )
        )

    # ------------------------------------------------------------ reading

    def has(self, id_: bytes) -> bool:
        """Whether the chunk is here, durable."""
        with self._lock:
            return self._index.size_of(id_) is not None

    def size_of(self, id_: bytes) -> int:
        """Its sealed size. Raises: NotFound."""
        with self._lock:
            size = self._index.size_of(id_)
        if size is None:
            raise NotFound("no such chunk here")
        return size

    def read_segments(self, id_: bytes, first: int, count: int, memory: memoryview) -> memoryview:
        """Sealed segments as they are stored, somewhere in `memory`: the reader verifies them.

        `count` may reach beyond the chunk's end. `memory` has room for what there is; with `room_for` it, from the
        edge of a page on, much is read faster. Raises: NotFound (no such chunk or segment), Corrupt (the file is gone,
        short or unreadable; it is set aside), Misconfigured, ValueError.
        """
        size = self.size_of(id_)
        start, wanted = _range(size, first, count, memory)
        with self._reading(id_, size) as file:
            return file.read(memory, start, wanted)

    def read_cached(self, id_: bytes, first: int, count: int, memory: memoryview) -> memoryview | None:
        """As `read_segments`, if all of it lies in the page cache; None, with nothing promised of `memory`, if not.

        Never waits for the disk, so an event loop may call it. Raises: NotFound, Corrupt, ValueError.
        """
        size = self.size_of(id_)
        start, wanted = _range(size, first, count, memory)
        with self._reading(id_, size) as file:
            return file.read_cached(memory, start, wanted)

    def read_hashes(self, id_: bytes) -> bytes:
        """The chunk's hash list, verified against its id. Raises: NotFound, Corrupt (the chunk is set aside)."""
        size = self.size_of(id_)
        with self._reading(id_, size) as file:
            return read_trailer(file.descriptor, id_, size)

    def check(self, id_: bytes) -> None:
        """Read the whole chunk from the disk and check every segment. Raises: NotFound, Corrupt (it is set aside)."""
        size = self.size_of(id_)
        run = CHECK_SEGMENTS * SEALED_SEGMENT_BYTES
        buffer = memoryview(bytearray(min(size, run)))
        with self._reading(id_, size) as file:
            os.posix_fadvise(file.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # the disk is asked, not its cache
            hashes = read_trailer(file.descriptor, id_, size)
            for start in range(0, size, run):
                part = buffer[: min(run, size - start)]
                read_exactly(file.descriptor, part, start)
                first = start // SEALED_SEGMENT_BYTES * HASH_BYTES
                if hash_segments(part) != hashes[first : first + CHECK_SEGMENTS * HASH_BYTES]:
                    raise BrokenFileError(
                        f"a segment between bytes {start} and {start + len(part)} does not match its hash"
                    )
            os.posix_fadvise(file.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def chunk_after(self, id_: bytes) -> tuple[bytes, int] | None:
        """(id, sealed size) of the chunk after an id, b"" for the first; None at the end."""
        with self._lock:
            return self._index.after(id_)

    @contextlib.contextmanager
    def _reading(self, id_: bytes, size: int) -> Iterator[OpenFile]:
        """The chunk's open file. What turns out broken inside the block is set aside and told as Corrupt."""
        try:
            with self._files.reading(id_, self._disk.chunk_path(id_, size)) as file:
                try:
                    yield file
                except BrokenFileError as error:
                    if not file.dropped:  # else it was set aside, perhaps fetched again, while we read
                        self.quarantine(id_, str(error))
                    raise Corrupt(f"a stored chunk is broken and was set aside: {error}") from error
        except FileNotFoundError as error:
            self.quarantine(id_, "the file is gone")
            raise Corrupt("a stored chunk's file is gone") from error
        except OSError as error:
            raise disk_error(error, "a stored chunk cannot be read") from error

    # ------------------------------------------------------------ care

    def quarantine(self, id_: bytes, reason: str) -> None:
        """Set a chunk aside with its reason; it is no longer here for anybody. No chunk, nothing to do.

        Raises: Full, Misconfigured (the disk does not let it be moved: it stays where it is).
        """
        with self._lock:
            size = self._index.size_of(id_)
            if size is None:
                return
            try:
                moved = self._disk.set_aside(id_, size, reason)
            except OSError as error:
                raise disk_error(error, "a broken chunk cannot be set aside") from error
            self._index.remove(id_)
            self._missing.add(id_)
            self._files.forget(id_)
            self._quarantined_count += moved

    def missing(self, after: bytes, limit: int) -> list[bytes]:
        """Ids of chunks that were set aside, also before a restart, and have not come back; in order, past `after`."""
        with self._lock:
            return sorted(id_ for id_ in self._missing if id_ > after)[:limit]

    def status(self) -> StoreStatus:
        """Figures now. Raises: Misconfigured (the disk does not answer)."""
        free_on_disk = self._disk.free_bytes()
        with self._lock:
            return self._status(free_on_disk)

    def _status(self, free_on_disk: int) -> StoreStatus:
        used = self._index.total_bytes
        capacity = min(self._capacity_bytes, used + max(0, free_on_disk - self._reserve_bytes))
        return StoreStatus(
            capacity_bytes=capacity,
            used_bytes=used,
            free_bytes=max(0, capacity - used),
            chunk_count=len(self._index),
            quarantined_count=self._quarantined_count,
        )

    def keep_head(self, feed_id: bytes, head: bytes) -> None:
        """Keep a signed feed head, synced, in place of the one before. Raises: Full, Misconfigured."""
        self._disk.keep_head(feed_id, head)

    def heads(self) -> dict[bytes, bytes]:
        """Feed id -> the head kept. Raises: Misconfigured."""
        return self._disk.heads()


def _range(size_bytes: int, first: int, count: int, memory: memoryview) -> tuple[int, int]:
    """(offset, bytes) of segments in a chunk of this sealed size. Raises: NotFound, ValueError (too little memory)."""
    start = first * SEALED_SEGMENT_BYTES
    wanted = min(count * SEALED_SEGMENT_BYTES, size_bytes - start)
    if first < 0 or wanted <= 0:
        raise NotFound("no such segment in the chunk")
    if len(memory) < wanted:
        raise ValueError(f"{len(memory)} bytes of room for {wanted} of a chunk")
    return start, wanted
