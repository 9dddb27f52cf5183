"""Changed files: what is in the journal and not yet in the library. Pure; the journal's records come in by their seq.

    clean --(write, truncate)--> dirty --freeze--> dirty and on its way --settle--> clean, or dirty on a newer base

A *base* is the content that a file's extents lie on: what stood when the first of them was written, later what the
last flush made of it. It is also what the next flush expects to find. A freeze takes everything written so far; with
`growing` (the file is still being written) it leaves out the chunk the writer is in, so that no chunk is sealed twice.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from collective.catalog import Inline, VersionReference
from collective.catalog.namespace import NUMBER_BITS
from collective.core.layout import MAX_CHUNK_SIZE_BYTES
from collective.mount.extents import Extents, Piece, merge_ranges
from collective.mount.journal_records import BaseRecord, TruncateRecord, WriteRecord
from collective.wire import feed_pb2

__all__ = [
    "IN_FIRST_WRITE",
    "NUMBER_MASK",
    "Base",
    "DirtyFile",
    "DirtyTable",
    "Frozen",
    "base_of",
    "base_size",
    "content_of",
]

Base = Inline | VersionReference
NUMBER_MASK = (1 << NUMBER_BITS) - 1
IN_FIRST_WRITE = -1
"""For a base record's seq: there is none, a file that had nothing says so in its first write."""
_NEVER = 1 << 62


def base_size(base: Base) -> int:
    return len(base.data) if isinstance(base, Inline) else base.size_bytes


def content_of(base: Base) -> feed_pb2.Content:
    """As feeds and records carry it."""
    if isinstance(base, Inline):
        return feed_pb2.Content(size_bytes=len(base.data), inline=base.data)
    return feed_pb2.Content(
        size_bytes=base.size_bytes, version_id=base.version_id, key_pages=base.key_pages, key_name=base.key_name
    )


def base_of(store_id: bytes, content: feed_pb2.Content) -> Base:
    """As the names give it."""
    if not content.version_id:
        return Inline(content.inline)
    return VersionReference(
        store_id, content.version_id, content.size_bytes, tuple(content.key_pages), content.key_name
    )


class Frozen(NamedTuple):
    """A content on its way: everything up to seq `upto` but what lies in [keep_start, keep_end). Immutable."""

    ino: int
    store_id: bytes
    base: Base
    base_limit: int
    extents: Extents
    size_bytes: int
    mtime_ns: int
    time_ns: int
    upto: int
    keep_start: int = 0
    keep_end: int = 0
    provisional: bool = False

    def plan(self, offset: int, size_bytes: int) -> list[Piece]:
        """Where the bytes from `offset` on lie, without gaps."""
        return self.extents.plan(offset, offset + size_bytes, self.base_limit)

    @property
    def previous(self) -> VersionReference | None:
        """The version that unchanged chunks can be taken from."""
        return self.base if isinstance(self.base, VersionReference) else None

    def changed(self) -> list[tuple[int, int]]:
        """Outside of these ranges the bytes are those of `previous`, or zeros when there is none or it ends before."""
        ranges = [(piece.start, piece.end) for piece in self.extents]
        if self.previous is None:
            ranges.append((0, min(self.base_limit, self.size_bytes)))
        else:
            ranges.append((self.base_limit, min(self.previous.size_bytes, self.size_bytes)))
        return merge_ranges(ranges)


@dataclass(eq=False, slots=True)
class DirtyFile:
    """One changed file. `size_bytes` and `mtime_ns` are what stat tells; `time_ns` the wall time of the last change.

    `records` are the seqs of its live writes and truncations, `base_seq` of its base record (0: none yet; or
    IN_FIRST_WRITE), `touched` the monotonic second of the last change, `unowned`: its last name is gone, nothing is
    sent any more. `busy` counts writes that are being journalled. Records up to seq `upto` are in the base, but for
    [keep_start, keep_end).
    """

    ino: int
    store_id: bytes
    base: Base
    size_bytes: int
    mtime_ns: int
    base_limit: int
    time_ns: int = 0
    extents: Extents = field(default_factory=Extents)
    records: list[int] = field(default_factory=list)
    base_seq: int = 0
    upto: int = 0
    keep_start: int = 0
    keep_end: int = 0
    provisional: bool = False
    unowned: bool = False
    writers: int = 0
    busy: int = 0
    touched: float = 0.0
    frozen: Frozen | None = None
    unsent_bytes: int = 0
    _cuts: set[int] = field(default_factory=set)  # the truncations among the records
    _last_end: int = 0
    _cut_since_freeze: int = _NEVER

    @property
    def dirty(self) -> bool:
        """Whether there is anything that no flush has brought home, or a flush that was not the last."""
        return bool(self.records) or self.provisional

    @property
    def is_blank(self) -> bool:
        """Whether it lies on nothing, and the journal has nothing of it."""
        touched = self.base_seq or self.records or self.size_bytes or self.upto or self.provisional
        return not touched and self.base == Inline(b"")  # an empty version is not nothing: it is expected by its id

    # ------------------------------------------------------------ changes

    def wrote(self, seq: int, offset: int, size_bytes: int, time_ns: int) -> None:
        """A write record of at least one byte."""
        end = offset + size_bytes
        self.extents.put(offset, end, seq)
        self.records.append(seq)
        self.size_bytes = max(self.size_bytes, end)
        self.mtime_ns = self.time_ns = time_ns
        self.unsent_bytes += size_bytes
        self._last_end = end

    def truncated(self, seq: int, size_bytes: int, time_ns: int) -> None:
        """A truncation record: shorter, or longer by zeros."""
        self.records.append(seq)
        self._cuts.add(seq)
        self._cut(size_bytes)
        self.size_bytes = size_bytes
        self.mtime_ns = self.time_ns = time_ns

    def change(self, change: WriteRecord | TruncateRecord) -> None:
        """What a record says was done, after all that came before it."""
        if isinstance(change, WriteRecord):
            self.wrote(change.seq, change.offset, change.size_bytes, change.time_ns)
        else:
            self.truncated(change.seq, change.size_bytes, change.time_ns)

    def _cut(self, size_bytes: int) -> None:
        self.extents.cut(size_bytes)
        self.base_limit = min(self.base_limit, size_bytes)
        self._cut_since_freeze = min(self._cut_since_freeze, size_bytes)

    def plan(self, offset: int, size_bytes: int) -> list[Piece]:
        """Where the bytes from `offset` on lie, without gaps, up to the end of the file."""
        return self.extents.plan(offset, max(offset, min(offset + size_bytes, self.size_bytes)), self.base_limit)

    # ------------------------------------------------------------ flushes

    def freeze(self, *, growing: bool, provisional: bool) -> Frozen | None:
        """What a flush takes now; None when there is nothing (yet). One at a time: `settle` or `thaw` ends it."""
        assert self.frozen is None, "one flush of a file at a time"
        keep_start = keep_end = 0
        size = self.size_bytes
        taken = self.extents.copy()
        if growing and self._last_end % MAX_CHUNK_SIZE_BYTES:
            keep_start = self._last_end - self._last_end % MAX_CHUNK_SIZE_BYTES
            keep_end = keep_start + MAX_CHUNK_SIZE_BYTES
            if keep_end >= size:
                size = max(min(keep_start, size), min(self.base_limit, size))
            taken = Extents([*taken.overlapping(0, keep_start), *taken.overlapping(keep_end, _NEVER)])
        if growing and not len(taken):
            return None
        upto = self.records[-1] if self.records else self.upto
        self._cut_since_freeze = _NEVER
        self.unsent_bytes = 0
        self.frozen = Frozen(
            self.ino, self.store_id, self.base, min(self.base_limit, size), taken, size, self.mtime_ns, self.time_ns,
            upto, keep_start, keep_end, provisional,
        )  # fmt: skip
        return self.frozen

    def thaw(self) -> None:
        """The flush is given up; everything stays as it is."""
        self.frozen = None
        self.unsent_bytes = self.extents.size_bytes

    def settle(self, base: Base) -> list[int]:
        """The frozen content is in the library as `base`; the seqs of records that count no more.

        When `dirty` still, a base record must be appended before those are settled.
        """
        frozen = self.frozen
        assert frozen is not None, "nothing was frozen"
        self.frozen = None
        self.extents.settle(frozen.upto, frozen.keep_start, frozen.keep_end)
        self.base = base
        self.base_limit = min(base_size(base), self._cut_since_freeze)
        self.upto, self.keep_start, self.keep_end = frozen.upto, frozen.keep_start, frozen.keep_end
        self.provisional = frozen.provisional
        if not len(self.extents) and self._last_seq() <= frozen.upto:
            gone, self.records = self.records, []
            self._cuts.clear()
            return gone
        needed = {piece.seq for piece in self.extents}
        oldest = min(needed, default=_NEVER)
        # a truncation is needed for as long as an older write is: it says what of that write is gone
        stays = needed | {seq for seq in self._cuts if seq > oldest}
        gone = [seq for seq in self.records if seq <= frozen.upto and seq not in stays]
        self.records = [seq for seq in self.records if seq > frozen.upto or seq in stays]
        self._cuts.difference_update(gone)
        return gone

    # ------------------------------------------------------------ after a crash

    def refreeze(self, content: feed_pb2.Content, upto: int, keep: tuple[int, int], *, last: bool) -> Frozen:
        """Put a restored file where it was when a flush of its content up to `upto` was written down."""
        self.frozen = Frozen(
            self.ino, self.store_id, self.base, self.base_limit, Extents(), content.size_bytes, self.mtime_ns,
            self.time_ns, upto, *keep, provisional=not last,
        )  # fmt: skip
        return self.frozen

    def to_record(self) -> BaseRecord:
        """The base record that, with the live records, gives this file back (its seq is the journal's matter)."""
        return BaseRecord(
            0, self.ino, self.store_id, content_of(self.base), self.size_bytes, self.mtime_ns, self.time_ns,
            self.upto, self.keep_start, self.keep_end, self.provisional,
        )  # fmt: skip

    @classmethod
    def restore(
        cls, record: BaseRecord, changes: Sequence[WriteRecord | TruncateRecord], frozen_upto: int = 0
    ) -> DirtyFile:
        """The file as it was, from its last base record and its live changes in order of seq. `frozen_upto`: how far a
        flush had taken it that was written down, for `refreeze`."""
        base = base_of(record.store_id, record.content)
        file = cls(
            record.ino, record.store_id, base, record.size_bytes, record.mtime_ns, base_size(base), record.time_ns,
            base_seq=record.seq, upto=record.upto, keep_start=record.keep_start, keep_end=record.keep_end,
            provisional=record.provisional,
        )  # fmt: skip
        for change in changes:
            if change.seq > frozen_upto >= file._last_seq():
                file._cut_since_freeze = _NEVER
            size, mtime_ns, time_ns = file.size_bytes, file.mtime_ns, file.time_ns
            if change.seq <= record.upto:
                file._restore_kept(change)
            else:
                file.change(change)
            if change.seq < record.seq:  # the record knew already
                file.size_bytes, file.mtime_ns, file.time_ns = size, mtime_ns, time_ns
        if frozen_upto >= file._last_seq():
            file._cut_since_freeze = _NEVER
        return file

    def _last_seq(self) -> int:
        return self.records[-1] if self.records else 0

    def _restore_kept(self, change: WriteRecord | TruncateRecord) -> None:
        """A change that the base contains, but for what of it lies in the kept range."""
        self.records.append(change.seq)
        if isinstance(change, TruncateRecord):
            self._cuts.add(change.seq)
            self.extents.cut(change.size_bytes)
            return
        start = max(change.offset, self.keep_start)
        end = min(change.offset + change.size_bytes, self.keep_end)
        if start < end:
            self.extents.put(start, end, change.seq, start - change.offset)


class DirtyTable:
    """The changed files of a mount, the longest untouched first."""

    def __init__(self) -> None:
        self._files: OrderedDict[int, DirtyFile] = OrderedDict()
        self._by_number: dict[tuple[bytes, int], DirtyFile] = {}

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[DirtyFile]:
        return iter(list(self._files.values()))

    def get(self, ino: int) -> DirtyFile | None:
        """None: the names tell everything there is to know about this file."""
        return self._files.get(ino)

    def find(self, store_id: bytes, number: int) -> DirtyFile | None:
        """As `get`, by the number within the DataStore."""
        return self._by_number.get((store_id, number))

    def begin(self, ino: int, store_id: bytes, base: Base, size_bytes: int, mtime_ns: int) -> DirtyFile:
        """The file, now about to be changed; the one there is, when there is one."""
        file = self._files.get(ino)
        if file is None:
            file = DirtyFile(ino, store_id, base, size_bytes, mtime_ns, base_size(base))
            self.add(file)
        return file

    def add(self, file: DirtyFile) -> None:
        self._files[file.ino] = file
        self._by_number[file.store_id, file.ino & NUMBER_MASK] = file

    def touch(self, file: DirtyFile, now: float) -> None:
        """It was changed just now."""
        file.touched = now
        self._files.move_to_end(file.ino)

    def drop(self, file: DirtyFile) -> None:
        """Forget a file; nothing happens when another one of that number is here."""
        if self._files.get(file.ino) is file:
            del self._files[file.ino]
            del self._by_number[file.store_id, file.ino & NUMBER_MASK]

    def idle_since(self, before: float) -> Iterator[DirtyFile]:
        """Files not touched since `before`."""
        for file in list(self._files.values()):
            if file.touched > before:
                return
            yield file
