"""Which records of a journal count, where they stand, and which segments that keeps. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from typing import NamedTuple

from collective.core.errors import NotFound
from collective.mount.journal_segments import Segment

__all__ = ["LiveRecords", "Place"]

RECORD_BYTES = 256  # what a record takes beside its data, about


class Place(NamedTuple):
    """The record's segment; the segment, position and size of a write's data."""

    number: int
    data_number: int
    position: int
    size_bytes: int


class LiveRecords:
    """By seq. `segments` are the journal's, by number: their counts of live records are kept here."""

    def __init__(self, segments: Mapping[int, Segment]) -> None:
        self._segments = segments
        self._places: dict[int, Place] = {}
        self._disowned: set[int] = set()
        self.size_bytes = 0
        """About what it would take to write all of them again."""

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, seq: int) -> bool:
        return seq in self._places

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def put(self, seq: int, number: int, data_number: int = 0, position: int = 0, size_bytes: int = 0) -> None:
        """The record stands in segment `number`, its data in `data_number` (0: the same); also of one that moved."""
        self.drop(seq)
        self._places[seq] = place = Place(number, data_number or number, position, size_bytes)
        self._count(place, 1)

    def drop(self, seq: int) -> None:
        """It counts no more. Unknown ones are passed over."""
        place = self._places.pop(seq, None)
        if place is not None:
            self._count(place, -1)

    def _count(self, place: Place, step: int) -> None:
        self.size_bytes += step * (place.size_bytes + RECORD_BYTES)
        self._segments[place.number].live += step
        if place.data_number != place.number:
            self._segments[place.data_number].live += step

    def disown(self, seqs: Iterable[int]) -> None:
        """These are never to be recovered, so never written again."""
        self._disowned = {seq for seq in (*self._disowned, *seqs) if seq in self._places}

    def data(self, seq: int, skip: int, size_bytes: int) -> tuple[Segment, int]:
        """The segment and position of a write's data from `skip` on. Raises: NotFound."""
        place = self._places.get(seq)
        if place is None or skip + size_bytes > place.size_bytes:
            raise NotFound("that data is not in the journal any more")
        return self._segments[place.data_number], place.position + skip

    def keeping(self, number: int) -> Set[int]:
        """The seqs that a segment is kept for; none when one of them is disowned."""
        seqs = {seq for seq, place in self._places.items() if number in (place.number, place.data_number)}
        return frozenset() if seqs & self._disowned else seqs

    def may_move(self, seq: int) -> bool:
        """Whether the record may be written again."""
        return seq in self._places and seq not in self._disowned

    def segments_of(self, seqs: Iterable[int]) -> set[Segment]:
        """Where these and their data stand."""
        return {
            self._segments[number]
            for seq in seqs
            for number in (self._places[seq].number, self._places[seq].data_number)
        }
