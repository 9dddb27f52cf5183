"""Scrubbing: every stored chunk is read from the disk and checked in turn, at a bounded rate, for ever."""

from __future__ import annotations

from dataclasses import dataclass

from collective.chunks.store import ChunkStore
from collective.core.errors import CollectiveError, Corrupt, NotFound

__all__ = ["Finding", "Scrubber"]

SAVED_SECONDS = 10.0  # after a pause, at most so much reading is caught up with


@dataclass(frozen=True)
class Finding:
    """A chunk that did not pass. `set_aside`: it is no longer in the store, and wanted from another copy."""

    chunk_id: bytes
    reason: str
    set_aside: bool


@dataclass
class Scrubber:
    """Walks a store in id order. `tick` does as much as the rate allows since the one before.

    `bytes_per_second` bounds the reading. `position` is the id checked last (b"" at the start of a round): kept over
    a restart, the walk goes on there. `checked` and `broken` count chunks, `rounds` whole walks, since the start.
    """

    store: ChunkStore
    bytes_per_second: float
    position: bytes = b""
    checked: int = 0
    broken: int = 0
    rounds: int = 0
    _last: float | None = None
    _allowance: float = 0.0

    def tick(self, now: float, limit: int = 64) -> list[Finding]:
        """Check chunks while the allowance lasts, at most `limit` and not past the walk's end. `now` monotonic.

        Blocks on the disk: call it from a thread.
        """
        if self._last is not None:
            earned = (now - self._last) * self.bytes_per_second
            self._allowance = min(self._allowance + earned, self.bytes_per_second * SAVED_SECONDS)
        self._last = now
        findings = []
        for _ in range(limit):
            if self._allowance <= 0:
                break
            following = self.store.chunk_after(self.position)
            if following is None:
                self.rounds += self.position != b""
                self.position = b""
                break
            self.position, size = following
            self._allowance -= size
            if (finding := self._check(self.position)) is not None:
                findings.append(finding)
        return findings

    def _check(self, id_: bytes) -> Finding | None:
        try:
            self.store.check(id_)
        except NotFound:
            return None  # set aside by a reader meanwhile
        except CollectiveError as error:
            self.checked += 1
            self.broken += 1
            return Finding(id_, error.message, isinstance(error, Corrupt))
        self.checked += 1
        return None
