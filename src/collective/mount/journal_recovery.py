"""What a journal holds when its process is gone: the longest prefix of whole records, less what is settled.

Read in order of segments. The first record that is not whole ends the prefix: what follows it was never acknowledged as
safe (after a crash of the machine) or is the torn end (after the death of the process). The rest is cut off; segments
behind a cut are set aside, not deleted. Blobs are checked only when the machine was started anew since: the page cache
tears nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from collective.core.errors import Corrupt
from collective.core.observe import Observer
from collective.mount.journal_records import (
    HEADER_BYTES,
    Kind,
    Record,
    TruncateRecord,
    WriteRecord,
    decode,
    unpack_seqs,
)
from collective.mount.journal_segments import Segment, list_segments

__all__ = ["Recovery", "recover"]


@dataclass
class Recovery:
    """`records` live, by seq; `segment_of` where each stands; `segments` open, cut to what counts."""

    records: list[Record] = field(default_factory=list)
    segment_of: dict[int, int] = field(default_factory=dict)
    segments: list[Segment] = field(default_factory=list)
    next_seq: int = 1
    next_segment: int = 1


@dataclass(frozen=True)
class _Step:
    """One record in the order it was appended; `begin` is where it starts in its segment."""

    segment: Segment
    begin: int
    seq: int
    record: Record | None
    settled: Sequence[int]


def recover(folder: Path, boot_id: bytes, observer: Observer) -> Recovery:
    """Read a folder's segments and cut what does not count. Raises: Unreachable."""
    found = Recovery()
    paths = list_segments(folder)
    steps: list[_Step] = []
    boots: set[bytes] = set()
    for index, (number, path) in enumerate(paths):
        found.next_segment = number + 1
        try:
            segment = Segment.open(number, path)
        except Corrupt as error:
            _set_aside(paths[index:], error.message, observer)
            break
        found.segments.append(segment)
        try:
            _read_segment(segment, steps, boots)
        except Corrupt as error:
            observer.event("journal.cut", segment=str(path), position=segment.end, reason=error.message)
            segment.cut()
            _set_aside(paths[index + 1 :], "it follows a record that is not whole", observer)
            break
    steps = _without_dropped_data(found, steps)
    if boots - {boot_id}:
        steps = _without_torn_blobs(found, steps, observer)
    _keep_live(found, steps)
    return found


def _read_segment(segment: Segment, steps: list[_Step], boots: set[bytes]) -> None:
    for header, payload, begin in segment.scan():
        settled: Sequence[int] = ()
        record = None
        try:
            if header.kind == Kind.BOOT:
                boots.add(payload)
            elif header.kind == Kind.SETTLED:
                settled = unpack_seqs(payload)
            else:
                record = decode(header, payload, segment.number, begin)
        except Corrupt as error:
            segment.end = begin - HEADER_BYTES
            raise Corrupt(str(error)) from error
        steps.append(_Step(segment, begin - HEADER_BYTES, header.seq, record, settled))


def _without_dropped_data(found: Recovery, steps: list[_Step]) -> list[_Step]:
    """The steps, with the writes whose data lies in a segment that is gone as settled ones (their seqs stay used).

    Segments go oldest first, each when all in it is settled; that such a write is settled may not have been written
    when the process died.
    """
    first = min((segment.number for segment in found.segments), default=0)

    def dropped(record: Record | None) -> bool:
        return isinstance(record, WriteRecord) and record.segment < first

    return [replace(step, record=None) if dropped(step.record) else step for step in steps]


def _without_torn_blobs(found: Recovery, steps: list[_Step], observer: Observer) -> list[_Step]:
    """The steps before the first whose blob is not what its record says; the segments are cut there."""
    segments = {segment.number: segment for segment in found.segments}
    for index, step in enumerate(steps):
        record = step.record
        if not isinstance(record, WriteRecord) or not record.blob_checksum:
            continue
        source = segments.get(record.segment)
        if source is not None and source.blob_is_whole(record.position, record.size_bytes, record.blob_checksum):
            continue
        observer.event("journal.cut", segment=str(step.segment.path), position=step.begin, reason="data is torn")
        step.segment.end = step.begin
        step.segment.cut()
        later = [segment for segment in found.segments if segment.number > step.segment.number]
        for segment in later:
            segment.close()
            found.segments.remove(segment)
        _set_aside([(segment.number, segment.path) for segment in later], "it follows torn data", observer)
        return steps[:index]
    return steps


def _keep_live(found: Recovery, steps: Sequence[_Step]) -> None:
    live: dict[int, Record] = {}
    for step in steps:
        found.next_seq = max(found.next_seq, step.seq + 1)
        for seq in step.settled:
            live.pop(seq, None)
        record = step.record
        if record is None or (isinstance(record, WriteRecord | TruncateRecord) and record.unowned):
            continue
        live[step.seq] = record
        found.segment_of[step.seq] = step.segment.number
    found.records = [live[seq] for seq in sorted(live)]


def _set_aside(paths: Sequence[tuple[int, Path]], reason: str, observer: Observer) -> None:
    for _, path in paths:
        path.rename(path.with_suffix(".damaged"))
        observer.event("journal.set_aside", segment=str(path), reason=reason)
