"""Large buffers that go round: fresh pages, zeroed by the kernel one by one, are the dearest part of moving bytes."""

from __future__ import annotations

import contextlib
import mmap

__all__ = ["BufferPool", "fresh_buffer"]

_LARGE_PAGE_BYTES = 2 << 20


def fresh_buffer(size_bytes: int) -> mmap.mmap:
    """Memory of this process alone, from the edge of a page on, all zeros; in large pages where the system has them."""
    buffer = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size_bytes >= _LARGE_PAGE_BYTES:
        with contextlib.suppress(OSError):  # a kernel without them gives small ones
            buffer.madvise(mmap.MADV_HUGEPAGE)
    return buffer


class BufferPool:
    """Buffers given back wait here for the next who takes one, `keep_bytes` of them at most. Not thread-safe."""

    def __init__(self, keep_bytes: int) -> None:
        self._keep_bytes = keep_bytes
        self._spare: list[mmap.mmap] = []
        self._spare_bytes = 0
        self._taken = False  # since the last `rest`

    @property
    def spare_bytes(self) -> int:
        """Bytes that wait."""
        return self._spare_bytes

    def take(self, size_bytes: int) -> mmap.mmap:
        """At least so many bytes; they hold what they last held."""
        self._taken = True
        for index in range(len(self._spare) - 1, -1, -1):  # the last one given back is the warmest
            if len(self._spare[index]) >= size_bytes:
                buffer = self._spare.pop(index)
                self._spare_bytes -= len(buffer)
                return buffer
        if self._spare:  # all too small for what is asked today
            self._spare_bytes -= len(self._spare.pop(0))
        return fresh_buffer(size_bytes)

    def give_back(self, buffer: mmap.mmap) -> None:
        """Whoever took it will not touch it again."""
        if self._spare_bytes + len(buffer) <= self._keep_bytes:
            self._spare.append(buffer)
            self._spare_bytes += len(buffer)

    def rest(self) -> None:
        """Called now and then, when there is little to do: what nobody took anything of since then goes back to the
        system."""
        if not self._taken:
            self.clear()
        self._taken = False

    def clear(self) -> None:
        """What waits goes back to the system."""
        self._spare.clear()
        self._spare_bytes = 0
