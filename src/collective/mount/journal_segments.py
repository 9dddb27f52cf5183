"""The files of a journal: records one behind the other, read back up to the first that is not whole.

    segment = 8 bytes "CJOURNAL", u32 form (2), u32 number of the segment, records

A segment is appended to by one process and never again once it is full or its process is gone. Its bytes are in the
page cache when an append returns, so they survive the death of the process; a sync makes them survive the machine's.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import Buffer

from collective.core.errors import CollectiveError, Corrupt, Full, Unreachable
from collective.mount.journal_records import CHECKSUM_BYTES, HEADER_BYTES, Header, Kind, checksum, unpack_header, verify

__all__ = ["SEGMENT_HEAD_BYTES", "SUFFIX", "Segment", "disk_failure", "list_segments"]

MAGIC = b"CJOURNAL"
FORM = 2
READ_FORMS = (1, 2)  # the first had no fills and no first writes
_SEGMENT_HEAD = struct.Struct(">8sII")
SEGMENT_HEAD_BYTES = _SEGMENT_HEAD.size
SUFFIX = ".segment"
_FULL_ERRORS = (28, 122)  # ENOSPC, EDQUOT


def disk_failure(error: OSError, what: str) -> CollectiveError:
    """The kind of what the disk said."""
    if error.errno in _FULL_ERRORS:
        return Full(f"{what}: {error.strerror}", "make room on the disk of the home")
    return Unreachable(f"{what}: {error.strerror}", "the disk of the home fails; see the kernel's log")


def list_segments(folder: Path) -> list[tuple[int, Path]]:
    """(number, path), in order."""
    return sorted((int(path.stem), path) for path in folder.glob("*" + SUFFIX) if path.stem.isdigit())


@dataclass(eq=False)
class Segment:
    """`end` is where the next record goes, `live` counts records that still need it, `pins` users that read or fill it
    just now, `synced_end` how far it is known to be on the disk."""

    number: int
    path: Path
    descriptor: int
    end: int = SEGMENT_HEAD_BYTES
    synced_end: int = 0
    live: int = 0
    pins: int = 0

    @classmethod
    def create(cls, folder: Path, number: int) -> Segment:
        """Raises: Full, Unreachable."""
        path = folder / f"{number:08}{SUFFIX}"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise disk_failure(error, "the mount's journal cannot grow") from error
        segment = cls(number, path, descriptor, 0)
        try:
            segment.append([_SEGMENT_HEAD.pack(MAGIC, FORM, number)])
        except CollectiveError:
            segment.remove()
            raise
        return segment

    @classmethod
    def open(cls, number: int, path: Path) -> Segment:
        """One that another process left. Raises: Corrupt, Unreachable."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            head = os.pread(descriptor, SEGMENT_HEAD_BYTES, 0)
        except OSError as error:
            raise disk_failure(error, f"{path} cannot be read") from error
        if head not in (_SEGMENT_HEAD.pack(MAGIC, form, number) for form in READ_FORMS):
            os.close(descriptor)
            raise Corrupt(f"{path} is no segment of a journal that this version reads")
        return cls(number, path, descriptor)

    def append(self, parts: Sequence[Buffer]) -> int:
        """Write the parts at the end, whole or not at all; where they begin. Raises: Full, Unreachable."""
        begin = self.end
        self.write_at(begin, parts)
        self.end = begin + sum(map(len, parts))  # type: ignore[arg-type]
        return begin

    def write_at(self, position: int, parts: Sequence[Buffer]) -> None:
        """Raises: Full, Unreachable."""
        total = sum(map(len, parts))  # type: ignore[arg-type]
        try:
            done = os.pwritev(self.descriptor, parts, position)
            if done != total:  # a short write is how a full disk begins; the rest says it, or succeeds
                rest = memoryview(b"".join(parts))
                while done < total:
                    done += os.pwrite(self.descriptor, rest[done:], position + done)
        except OSError as error:
            raise disk_failure(error, "the mount's journal cannot be written") from error

    def read_into(self, position: int, view: memoryview) -> None:
        """Fill the view. Raises: Corrupt when the segment ends before, Unreachable."""
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self.descriptor, [view[done:]], position + done)
            except OSError as error:
                raise disk_failure(error, "the mount's journal cannot be read") from error
            if not count:
                raise Corrupt(f"{self.path} ends where data should be")
            done += count

    def read(self, position: int, size_bytes: int) -> bytes:
        """As `read_into`, into fresh bytes."""
        try:
            data = os.pread(self.descriptor, size_bytes, position)
        except OSError as error:
            raise disk_failure(error, "the mount's journal cannot be read") from error
        if len(data) == size_bytes:
            return data
        buffer = bytearray(size_bytes)
        self.read_into(position, memoryview(buffer))
        return bytes(buffer)

    def scan(self) -> Iterator[tuple[Header, bytes, int]]:
        """(header, payload, where the payload begins) of each whole record, in order; of a blob without its data.

        `end` moves along. Raises: Corrupt at the first that is not whole; what came before it counts.
        """
        size = os.fstat(self.descriptor).st_size
        while self.end < size:
            raw = os.pread(self.descriptor, HEADER_BYTES, self.end)
            header = unpack_header(raw)
            begin = self.end + HEADER_BYTES
            if header.kind == Kind.BLOB:
                verify(header, raw, b"")
                payload = b""
            else:
                if begin + header.size_bytes > size:
                    raise Corrupt("a record is cut off")
                payload = self.read(begin, header.size_bytes)
                verify(header, raw, payload)
            self.end = begin + header.size_bytes
            yield header, payload, begin

    def walk(self, end: int) -> Iterator[tuple[Header, int]]:
        """(header, where the payload begins) of each record up to `end`, unverified: this process has seen them all.
        Raises: Corrupt, Unreachable."""
        position = SEGMENT_HEAD_BYTES
        while position < end:
            header = unpack_header(self.read(position, HEADER_BYTES))
            yield header, position + HEADER_BYTES
            position += HEADER_BYTES + header.size_bytes

    def blob_is_whole(self, position: int, size_bytes: int, expected: bytes) -> bool:
        """Whether a blob's data is what its write record says."""
        try:
            return checksum(self.read(position, size_bytes)) == expected[:CHECKSUM_BYTES]
        except Corrupt:
            return False

    def cut(self) -> None:
        """Forget what lies behind `end`, for good. Raises: Unreachable."""
        try:
            os.ftruncate(self.descriptor, self.end)
            os.fsync(self.descriptor)
        except OSError as error:
            raise disk_failure(error, f"{self.path} cannot be cut") from error

    def remove(self) -> None:
        """Close and delete. Raises: nothing; a file that stays is found settled by the next start."""
        self.close()
        with suppress(OSError):
            self.path.unlink()

    def close(self) -> None:
        os.close(self.descriptor)
