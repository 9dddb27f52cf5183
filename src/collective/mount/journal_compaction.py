"""What still counts in a journal's oldest segment, read so that it can be written again behind the newest.

Theory: segments go oldest first, because a settlement counts for records before it. So one content that cannot be sent
for long would keep everything behind it. Once the journal is beyond half its bound while little of it counts, the
oldest segment's live records are appended again under their own seqs, the copies made safe, and the segment goes.
Whoever reads the journal back finds a record once or twice, the same each time: the last place counts, and order is
that of seqs. Data in a blob becomes data of its record. At most a quarter of the bound is moved for each quarter that
comes free, so the journal writes each byte twice at most, on average.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from collective.core.errors import Corrupt
from collective.mount.journal_records import Header, Kind, WriteRecord, decode, pack_write
from collective.mount.journal_segments import Segment

__all__ = ["Standing", "read_standing"]


@dataclass(frozen=True, slots=True)
class Standing:
    """A record to be written again; `data_bytes` of its payload's end are a write's data."""

    kind: Kind
    flags: int
    seq: int
    payload: bytes
    data_bytes: int = 0


def read_standing(places: Mapping[Segment, int], seqs: Collection[int]) -> Sequence[Standing]:
    """The records of these seqs, in order; `places` are the segments that they and their data stand in, and where each
    ended. Raises: Corrupt, Unreachable."""
    segments = {segment.number: segment for segment in places}
    last = {  # the last place counts: what an earlier one names may be gone
        header.seq: (segment, header, begin)
        for segment, end in sorted(places.items(), key=lambda place: place[0].number)
        for header, begin in segment.walk(end)
        if header.seq in seqs
    }
    return [_standing(*last[seq], segments) for seq in sorted(last)]


def _standing(segment: Segment, header: Header, begin: int, segments: Mapping[int, Segment]) -> Standing:
    payload = segment.read(begin, header.size_bytes)
    record = decode(header, payload, segment.number, begin)
    if not isinstance(record, WriteRecord):
        return Standing(Kind(header.kind), header.flags, header.seq, payload)
    source = segments.get(record.segment)
    if source is None:
        raise Corrupt(f"the data of record {header.seq} is not where it should be")
    data = source.read(record.position, record.size_bytes)
    kind, head = pack_write(record.ino, record.offset, record.time_ns, record.store_id)
    return Standing(kind, header.flags, header.seq, head + data, record.size_bytes)
