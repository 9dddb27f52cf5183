"""A disk of sealed chunks: the folder is the index.

    DIR/collective-disk          marker: this disk's random id
    DIR/chunks/ab/<id>-<size>    sealed bytes, then a trailer {version byte, hash list}; <size> without the trailer
    DIR/tmp/                     files being written; emptied at open
    DIR/quarantine/              chunks that turned out broken, with reasons.jsonl
    DIR/heads/<feed id>          signed feed heads kept for the coordinator

Start-up reads names, not files. Nothing here deletes a chunk.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import Buffer

from collective.chunks.durability import GroupCommitter, disk_error
from collective.chunks.index import ChunkIndex
from collective.chunks.seal import HASH_BYTES, chunk_id, hash_segments, verify_hashes
from collective.core.errors import Conflict, Corrupt, Full, Misconfigured, NotFound
from collective.core.layout import MAX_SEALED_CHUNK_BYTES, SEALED_SEGMENT_BYTES

__all__ = ["ChunkStore", "StoreStatus"]

MARKER = "collective-disk"
TRAILER_VERSION = b"\x01"
OPEN_FILES = 128  # descriptors kept open for reading; a film being played needs one or two


@dataclass(frozen=True)
class StoreStatus:
    """Bytes and counts; `free_bytes` is what may still be written here, reserve and pledge considered."""

    capacity_bytes: int
    used_bytes: int
    free_bytes: int
    chunk_count: int
    quarantined_count: int


class ChunkStore:
    """Sealed chunks by id. Reading is plain and thread-safe; `put` is awaited and durable when it returns."""

    def __init__(self, directory: Path, capacity_bytes: int, reserve_bytes: int, marker: str) -> None:
        self.directory = directory
        self.marker = marker
        self._capacity_bytes = capacity_bytes
        self._reserve_bytes = reserve_bytes
        self._chunks = directory / "chunks"
        self._quarantine = directory / "quarantine"
        self._index = ChunkIndex()
        self._lock = threading.Lock()
        self._arriving: dict[bytes, asyncio.Future[None]] = {}
        self._arriving_bytes = 0
        self._open: OrderedDict[bytes, _OpenFile] = OrderedDict()
        self._committer = GroupCommitter(directory)
        self._quarantined_count = 0

    # ------------------------------------------------------------ opening

    @classmethod
    def open(
        cls, directory: Path, *, capacity_bytes: int, reserve_bytes: int = 0, expected_marker: str | None = None
    ) -> ChunkStore:
        """Open a disk, making its folders the first time. Raises: Misconfigured (another or no disk is mounted)."""
        try:
            directory.mkdir(parents=True, exist_ok=True)
            marker = _read_or_make_marker(directory, expected_marker)
            for name in ("chunks", "tmp", "quarantine", "heads"):
                (directory / name).mkdir(mode=0o700, exist_ok=True)
            for number in range(256):
                (directory / "chunks" / f"{number:02x}").mkdir(mode=0o700, exist_ok=True)
            for left in (directory / "tmp").iterdir():
                left.unlink()
            store = cls(directory, capacity_bytes, reserve_bytes, marker)
            store._load()
        except OSError as error:
            raise disk_error(error, f"the chunk folder {directory} cannot be opened") from error
        return store

    def _load(self) -> None:
        for number in range(256):
            with os.scandir(self._chunks / f"{number:02x}") as entries:
                self._index.load(number, _parsed(entry.name for entry in entries))
        self._quarantined_count = sum(1 for path in self._quarantine.iterdir() if "-" in path.name)

    async def close(self) -> None:
        """Finish pending writes and let go of all files."""
        await asyncio.to_thread(self._committer.close)
        with self._lock:
            for file in self._open.values():
                file.drop()
            self._open.clear()

    # ------------------------------------------------------------ writing

    async def put(self, id_: bytes, sealed: Buffer) -> bool:
        """Keep a sealed chunk; True when it was there already. Returns when it is durable.

        Raises: Corrupt (the bytes are not the id's), Full, Misconfigured (the disk refuses).
        """
        view = memoryview(sealed).cast("B")
        if (arriving := self._arriving.get(id_)) is not None:
            await asyncio.shield(arriving)
            return True
        if self.has(id_):
            return True
        done = asyncio.get_running_loop().create_future()
        done.add_done_callback(lambda future: future.exception())  # a failure nobody else waits for is still told below
        self._arriving[id_] = done
        self._arriving_bytes += len(view)
        try:
            self._check_room(self._arriving_bytes)
            future = await asyncio.to_thread(self._write, id_, view)
            await asyncio.wrap_future(future)
        except BaseException as error:
            done.set_exception(error if isinstance(error, Exception) else Conflict("the write was given up"))
            raise
        else:
            with self._lock:
                self._index.add(id_, len(view))
            done.set_result(None)
            return False
        finally:
            self._arriving_bytes -= len(view)
            del self._arriving[id_]

    def _check_room(self, wanted_bytes: int) -> None:
        status = self.status()
        if wanted_bytes > status.free_bytes:
            raise Full(
                f"the storage is full: {status.used_bytes} of {status.capacity_bytes} bytes used, {status.free_bytes}"
                f" free beside the reserve, {wanted_bytes} wanted",
                "make room, raise --storage, or add a node",
            )

    def _write(self, id_: bytes, view: memoryview) -> Future[None]:
        if not 0 < len(view) <= MAX_SEALED_CHUNK_BYTES:
            raise Corrupt(f"a sealed chunk of {len(view)} bytes cannot be")
        hashes = hash_segments(view)
        if chunk_id(hashes) != id_:
            raise Corrupt("the bytes of a chunk are not the ones its id names")
        temporary = self.directory / "tmp" / f"{id_.hex()}-{secrets.token_hex(4)}"
        descriptor = -1
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            _write_all(descriptor, [view, memoryview(TRAILER_VERSION + hashes)])
        except OSError as error:
            with contextlib.suppress(OSError):
                if descriptor >= 0:
                    os.close(descriptor)
                temporary.unlink()
            raise disk_error(error, f"a chunk cannot be written to {self.directory}") from error
        return self._committer.submit(temporary, self._path(id_, len(view)), len(view), descriptor)

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

    def read_segments(self, id_: bytes, first: int, count: int, out: memoryview) -> int:
        """Read sealed segments into `out`; the number of bytes. They are as stored: the reader verifies them.

        Raises: NotFound, Corrupt (the file is short; it is set aside), Misconfigured.
        """
        size = self.size_of(id_)
        start = first * SEALED_SEGMENT_BYTES
        wanted = min(count * SEALED_SEGMENT_BYTES, size - start)
        if wanted <= 0:
            raise NotFound("no such segment in the chunk")
        with self._reading(id_, size) as descriptor:
            got = _pread_into(descriptor, out[:wanted], start)
        if got < wanted:
            self.quarantine(id_, f"the file ends at {start + got} of {size} bytes")
            raise Corrupt("a stored chunk is shorter than its name says; it was set aside")
        return wanted

    def read_hashes(self, id_: bytes) -> bytes:
        """The chunk's hash list, verified against its id. Raises: NotFound, Corrupt (the chunk is set aside)."""
        size = self.size_of(id_)
        length = HASH_BYTES * -(-size // SEALED_SEGMENT_BYTES)
        trailer = bytearray(1 + length)
        with self._reading(id_, size) as descriptor:
            got = _pread_into(descriptor, memoryview(trailer), size)
        try:
            if got < len(trailer) or trailer[:1] != TRAILER_VERSION:
                raise Corrupt("the trailer is missing or of an unknown version")
            hashes = bytes(trailer[1:])
            verify_hashes(id_, hashes, size)
        except Corrupt as error:
            self.quarantine(id_, error.message)
            raise Corrupt("a stored chunk's trailer is broken; the chunk was set aside") from error
        return hashes

    def check(self, id_: bytes) -> None:
        """Read the whole chunk and check every segment. Raises: NotFound, Corrupt (it is set aside)."""
        hashes = self.read_hashes(id_)
        size = self.size_of(id_)
        buffer = memoryview(bytearray(size))
        self.read_segments(id_, 0, len(hashes) // HASH_BYTES, buffer)
        if hash_segments(buffer) != hashes:
            self.quarantine(id_, "a segment does not match its hash")
            raise Corrupt("a stored chunk is broken; it was set aside")

    def chunk_after(self, id_: bytes) -> tuple[bytes, int] | None:
        """(id, sealed size) of the chunk after an id, b"" for the first; None at the end."""
        with self._lock:
            return self._index.after(id_)

    @contextlib.contextmanager
    def _reading(self, id_: bytes, size: int) -> Iterator[int]:
        """A descriptor of the chunk's file, from a bounded cache; it stays open while in use."""
        with self._lock:
            file = self._open.pop(id_, None)
            if file is None:
                try:
                    file = _OpenFile(os.open(self._path(id_, size), os.O_RDONLY | os.O_CLOEXEC))
                except FileNotFoundError:
                    self._index.remove(id_)
                    raise NotFound("the chunk's file is gone") from None
                except OSError as error:
                    raise disk_error(error, "a stored chunk cannot be opened") from error
            self._open[id_] = file
            file.users += 1
            while len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)[1].drop()
        try:
            yield file.descriptor
        except OSError as error:
            raise disk_error(error, "a stored chunk cannot be read") from error
        finally:
            with self._lock:
                file.release()

    # ------------------------------------------------------------ care

    def quarantine(self, id_: bytes, reason: str) -> None:
        """Set a chunk aside with its reason; it is no longer here for anybody."""
        with self._lock:
            size = self._index.size_of(id_)
            if size is None:
                return
            self._index.remove(id_)
            if (file := self._open.pop(id_, None)) is not None:
                file.drop()
            name = f"{id_.hex()}-{size}"
            with contextlib.suppress(FileNotFoundError):
                self._path(id_, size).rename(self._quarantine / name)
            with (self._quarantine / "reasons.jsonl").open("a") as log:
                log.write(json.dumps({"chunk": name, "reason": reason}) + "\n")
            self._quarantined_count += 1

    def status(self) -> StoreStatus:
        """Figures now."""
        disk = os.statvfs(self.directory)
        on_disk_free = disk.f_bavail * disk.f_frsize
        used = self._index.total_bytes
        capacity = min(self._capacity_bytes, used + max(0, on_disk_free - self._reserve_bytes))
        return StoreStatus(
            capacity_bytes=capacity,
            used_bytes=used,
            free_bytes=max(0, capacity - used),
            chunk_count=len(self._index),
            quarantined_count=self._quarantined_count,
        )

    def keep_head(self, feed_id: bytes, head: bytes) -> None:
        """Keep a signed feed head, synced, replacing the one before."""
        path = self.directory / "heads" / feed_id.hex()
        temporary = path.with_suffix(".new")
        try:
            with temporary.open("wb") as file:
                file.write(head)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise disk_error(error, "a feed head cannot be kept") from error

    def heads(self) -> dict[bytes, bytes]:
        """Feed id -> the head kept."""
        folder = self.directory / "heads"
        return {bytes.fromhex(path.name): path.read_bytes() for path in folder.iterdir() if not path.suffix}

    def _path(self, id_: bytes, size: int) -> Path:
        return self._chunks / f"{id_[0]:02x}" / f"{id_.hex()}-{size}"


class _OpenFile:
    """A descriptor with its users; closed when dropped by the cache and unused."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.users = 0
        self._dropped = False

    def release(self) -> None:
        self.users -= 1
        if self._dropped and self.users == 0:
            os.close(self.descriptor)

    def drop(self) -> None:
        self._dropped = True
        if self.users == 0:
            os.close(self.descriptor)


def _read_or_make_marker(directory: Path, expected: str | None) -> str:
    path = directory / MARKER
    found = path.read_text().strip() if path.exists() else None
    if expected is not None and found != expected:
        raise Misconfigured(
            f"{directory} is not the disk that was here before ({'another marker' if found else 'no marker'})",
            "mount the disk, or name another --storage-path",
        )
    if found is None:
        found = secrets.token_hex(16)
        path.write_text(found + "\n")
    return found


def _parsed(names: Iterator[str]) -> Iterator[tuple[bytes, int]]:
    """Chunks by their file names; whatever else lies there is not ours."""
    for name in names:
        id_hex, separator, size = name.partition("-")
        if separator and len(id_hex) == 64 and size.isdigit():
            with contextlib.suppress(ValueError):
                yield bytes.fromhex(id_hex), int(size)


def _write_all(descriptor: int, buffers: list[memoryview]) -> None:
    while buffers:
        written = os.writev(descriptor, buffers)
        while buffers and written >= len(buffers[0]):
            written -= len(buffers.pop(0))
        if written:
            buffers[0] = buffers[0][written:]


def _pread_into(descriptor: int, out: memoryview, offset: int) -> int:
    done = 0
    while done < len(out):
        got = os.preadv(descriptor, [out[done:]], offset + done)
        if got == 0:
            break
        done += got
    return done
