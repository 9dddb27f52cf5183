"""Scrubbing: every stored chunk is read and checked in turn, at a bounded rate, for ever."""

from __future__ import annotations

from dataclasses import dataclass

from collective.chunks.store import ChunkStore
from collective.core.errors import Corrupt, NotFound

__all__ = ["Scrubber"]


@dataclass
class Scrubber:
    """Walks a store in id order. `tick` does as much as the rate allows since the last one.

    `bytes_per_second` bounds the reading; `checked` and `broken` count chunks since the start.
    """

    store: ChunkStore
    bytes_per_second: float
    checked: int = 0
    broken: int = 0
    _position: bytes = b""
    _last: float | None = None
    _allowance: float = 0.0

    def tick(self, now: float, limit: int = 64) -> list[str]:
        """Check chunks while the allowance lasts, at most `limit`; ids (hex) that turned out broken. `now` monotonic.

        Blocks on the disk: call it from a thread.
        """
        if self._last is not None:
            self._allowance = min(
                self._allowance + (now - self._last) * self.bytes_per_second, self.bytes_per_second * 10
            )
        self._last = now
        found = []
        for _ in range(limit):
            if self._allowance <= 0:
                break
            following = self.store.chunk_after(self._position)
            if following is None:
                self._position = b""
                break
            self._position, size = following
            self._allowance -= size
            self.checked += 1
            try:
                self.store.check(self._position)
            except Corrupt:
                self.broken += 1
                found.append(self._position.hex())
            except NotFound:
                continue  # set aside by a reader meanwhile
        return found
