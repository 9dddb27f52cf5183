"""One open chunk file, and the way its bytes are had.

    from the page cache     when all of a run lies there
    through the page cache  short runs, and where the file system knows no other way
    past the page cache     long runs: films are read once, and the copy through the cache is a tenth of serving them

A direct read begins and ends at edges of blocks, so it needs `room_for` its bytes, from the edge of a page on.
"""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

from collective.chunks.chunkfile import BrokenFileError, read_exactly
from collective.core.sizes import KIB, MIB

__all__ = ["OpenFile", "room_for"]

DIRECT_BYTES = MIB  # runs so long are read past the page cache
BLOCK_BYTES = 4 * KIB  # what direct reads are aligned to: the largest block of a disk


def room_for(size_bytes: int) -> int:
    """The memory that a read of so many bytes wants, wherever in the file it begins."""
    return size_bytes if size_bytes < DIRECT_BYTES else -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES + BLOCK_BYTES


class OpenFile:
    """A file with its users; closed when `dropped` by the cache of descriptors and unused. Reading is thread-safe."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._direct: int | None = None
        self._is_direct = True  # until the file system says no
        self._is_cached = True  # until a long read shows otherwise
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.users = 0
        self.dropped = False

    def close_if_unused(self) -> None:
        if self.dropped and self.users == 0:
            os.close(self.descriptor)
            if self._direct is not None:
                os.close(self._direct)

    def read_cached(self, memory: memoryview, offset: int, size_bytes: int) -> memoryview | None:
        """The bytes in `memory`, if all of them lie in the page cache; never waits for the disk."""
        is_long = size_bytes >= DIRECT_BYTES
        if is_long and not self._is_cached:
            return None
        out = memory[:size_bytes]
        # a block first: what is asked for in vain, the kernel begins to fetch into its cache
        if (not is_long or self._is_there(out[:BLOCK_BYTES], offset)) and self._is_there(out, offset):
            return out
        self._is_cached = not is_long
        return None

    def _is_there(self, out: memoryview, offset: int) -> bool:
        try:
            return os.preadv(self.descriptor, [out], offset, os.RWF_NOWAIT) == len(out)
        except OSError:
            return False  # not cached, or a file system that cannot tell: the disk is asked

    def read(self, memory: memoryview, offset: int, size_bytes: int) -> memoryview:
        """The bytes in `memory`, from the disk. Raises: BrokenFileError, OSError."""
        if size_bytes >= DIRECT_BYTES and self._is_direct and len(memory) >= room_for(size_bytes):
            found = self._read_direct(memory, offset, size_bytes)
            if found is not None:
                return found
        read_exactly(self.descriptor, memory[:size_bytes], offset)
        return memory[:size_bytes]

    def _read_direct(self, memory: memoryview, offset: int, size_bytes: int) -> memoryview | None:
        """None where the file system cannot, or gave too little. Raises: BrokenFileError, OSError."""
        before = offset % BLOCK_BYTES
        wanted = -(-(before + size_bytes) // BLOCK_BYTES) * BLOCK_BYTES
        try:
            got = os.preadv(self._direct_descriptor(), [memory[:wanted]], offset - before)
        except OSError as error:
            if error.errno == errno.EIO:
                raise BrokenFileError(f"the disk cannot read it at byte {offset}") from error
            if error.errno != errno.EINVAL:
                raise
            self._is_direct = False
            return None
        return memory[before : before + size_bytes] if got >= before + size_bytes else None

    def _direct_descriptor(self) -> int:
        with self._lock:
            if self._direct is None:
                self._direct = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
            return self._direct
