"""Which bytes of a changed file lie where: in the journal, in the content it lies on, or nowhere (zeros). Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple

__all__ = ["BASE", "ZEROS", "Extents", "Piece", "merge_ranges"]

ZEROS = 0
BASE = -1


class Piece(NamedTuple):
    """Bytes [start, end) of a file. `seq`: the write record whose data they are, from its byte `skip` on; or BASE
    (`skip` is the offset in the base, which is `start`), or ZEROS."""

    start: int
    end: int
    seq: int
    skip: int


class Extents:
    """What was written and not taken back, as disjoint pieces in order. A later write hides what it covers."""

    __slots__ = ("_pieces", "_starts")

    def __init__(self, pieces: Iterable[Piece] = ()) -> None:
        self._pieces = list(pieces)
        self._starts = [piece.start for piece in self._pieces]

    def __iter__(self) -> Iterator[Piece]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)

    @property
    def size_bytes(self) -> int:
        return sum(piece.end - piece.start for piece in self._pieces)

    def copy(self) -> Extents:
        made = Extents()
        made._pieces, made._starts = self._pieces[:], self._starts[:]
        return made

    def put(self, start: int, end: int, seq: int, skip: int = 0) -> None:
        """The data of a write. `end` > `start`."""
        if not self._starts or start >= self._pieces[-1].end:  # a file written from front to back
            self._starts.append(start)
            self._pieces.append(Piece(start, end, seq, skip))
            return
        self._replace(start, end, [Piece(start, end, seq, skip)])

    def cut(self, size_bytes: int) -> None:
        """Nothing lies at or behind `size_bytes` any more."""
        if self._pieces and self._pieces[-1].end > size_bytes:
            self._replace(size_bytes, self._pieces[-1].end, [])

    def overlapping(self, start: int, end: int) -> list[Piece]:
        """The pieces in [start, end), clipped to it."""
        first, last = self._range(start, end)
        return [
            Piece(max(piece.start, start), min(piece.end, end), piece.seq, piece.skip + max(0, start - piece.start))
            for piece in self._pieces[first:last]
        ]

    def plan(self, start: int, end: int, base_limit: int) -> list[Piece]:
        """[start, end) without gaps: written pieces, the base below `base_limit`, zeros."""
        if len(self._pieces) == 1 and self._pieces[0].start == start and self._pieces[0].end == end:
            return self._pieces[:]  # a small file, written at once
        found: list[Piece] = []
        at = start
        for piece in (*self.overlapping(start, end), Piece(end, end, ZEROS, 0)):
            if at < min(piece.start, base_limit):
                found.append(Piece(at, min(piece.start, base_limit), BASE, at))
                at = found[-1].end
            if at < piece.start:
                found.append(Piece(at, piece.start, ZEROS, 0))
            if piece.start < piece.end:
                found.append(piece)
            at = piece.end
        return found

    def settle(self, upto: int, keep_start: int, keep_end: int) -> None:
        """What was written up to seq `upto` goes, but for what lies in [keep_start, keep_end)."""
        if len(self._pieces) == 1 and self._pieces[0].seq <= upto and not keep_end:
            self._pieces, self._starts = [], []
            return
        left: list[Piece] = []
        for piece in self._pieces:
            if piece.seq > upto:
                left.append(piece)
                continue
            start, end = max(piece.start, keep_start), min(piece.end, keep_end)
            if start < end:
                left.append(Piece(start, end, piece.seq, piece.skip + start - piece.start))
        self._pieces = left
        self._starts = [piece.start for piece in left]

    def _range(self, start: int, end: int) -> tuple[int, int]:
        """Indexes [first, last) of the pieces that have bytes in [start, end)."""
        first = bisect_right(self._starts, start)
        if first and self._pieces[first - 1].end > start:
            first -= 1
        last = bisect_right(self._starts, end - 1, first)
        return first, last

    def _replace(self, start: int, end: int, new: list[Piece]) -> None:
        first, last = self._range(start, end)
        if first < last:
            head, tail = self._pieces[first], self._pieces[last - 1]
            if head.start < start:
                new = [Piece(head.start, start, head.seq, head.skip), *new]
            if tail.end > end:
                new = [*new, Piece(end, tail.end, tail.seq, tail.skip + end - tail.start)]
        self._pieces[first:last] = new
        self._starts[first:last] = [piece.start for piece in new]


def merge_ranges(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted, disjoint, without empty ones; ranges that touch are one."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if start >= end:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
