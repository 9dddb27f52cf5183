"""Changed files against a bytearray: what stands in extents, bases and flushes is what was written."""

from __future__ import annotations

import os
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collective.catalog import Inline, VersionReference
from collective.core.layout import MAX_CHUNK_SIZE_BYTES as CHUNK
from collective.mount.dirty import Base, DirtyFile, DirtyTable, Frozen, base_of, content_of
from collective.mount.extents import BASE, ZEROS, Extents, Piece, merge_ranges
from collective.mount.journal_records import BaseRecord, TruncateRecord, WriteRecord

STORE = b"s" * 32
INO = 7 << 40 | 100


class Library:
    """Contents by version, and write records by seq: everything that a plan may name."""

    def __init__(self) -> None:
        self.versions: dict[bytes, bytes] = {}
        self.writes: dict[int, bytes] = {}
        self.changes: dict[int, WriteRecord | TruncateRecord] = {}
        self.seq = 0

    def base(self, data: bytes) -> Base:
        if len(data) <= 4096:
            return Inline(data)
        version = os.urandom(16)
        self.versions[version] = data
        return VersionReference(STORE, version, len(data), (), b"k" * 32)

    def data_of(self, base: Base) -> bytes:
        return base.data if isinstance(base, Inline) else self.versions[base.version_id]

    def assemble(self, plan: list[Piece], base: Base) -> bytes:
        parts = []
        for piece in plan:
            size = piece.end - piece.start
            if piece.seq == ZEROS:
                parts.append(bytes(size))
            elif piece.seq == BASE:
                parts.append(self.data_of(base)[piece.start : piece.end])
            else:
                parts.append(self.writes[piece.seq][piece.skip : piece.skip + size])
            assert len(parts[-1]) == size
        return b"".join(parts)

    def write(self, file: DirtyFile, offset: int, data: bytes) -> None:
        self.seq += 1
        self.writes[self.seq] = data
        self.changes[self.seq] = WriteRecord(self.seq, INO, offset, len(data), self.seq * 10)
        file.wrote(self.seq, offset, len(data), self.seq * 10)

    def truncate(self, file: DirtyFile, size: int) -> None:
        self.seq += 1
        self.changes[self.seq] = TruncateRecord(self.seq, INO, size, self.seq * 10)
        file.truncated(self.seq, size, self.seq * 10)


def whole(library: Library, file: DirtyFile) -> bytes:
    return library.assemble(file.plan(0, file.size_bytes), file.base)


def content(library: Library, frozen: Frozen) -> bytes:
    return library.assemble(frozen.plan(0, frozen.size_bytes), frozen.base)


def check_changed(library: Library, frozen: Frozen) -> None:
    """Outside of the changed ranges the content is the previous one, or zeros."""
    data = content(library, frozen)
    before = library.data_of(frozen.base) if frozen.previous is not None else b""
    expected = bytearray((before + bytes(max(0, len(data) - len(before))))[: len(data)])
    for start, end in frozen.changed():
        expected[start:end] = data[start:end]
    assert expected == data


def apply_truncate(model: bytearray, size: int) -> None:
    del model[size:]
    model.extend(bytes(size - len(model)))


@given(st.integers(0, 1 << 32), st.sampled_from([0, 100, 6000]))
@settings(max_examples=300, deadline=None)
def test_a_changed_file_is_a_bytearray(seed: int, base_bytes: int) -> None:
    """Writes, truncations, freezes, settlements and crashes in any order: always the bytes of the model."""
    random = Random(seed)
    library = Library()
    start = random.randbytes(base_bytes)
    base = library.base(start)
    file = DirtyFile(INO, STORE, base, base_bytes, 5, base_bytes)
    record = BaseRecord(0, INO, STORE, content_of(base), base_bytes, 5, 0)
    model = bytearray(start)
    frozen_model = b""
    for _ in range(random.randint(1, 25)):
        match random.choice(["write", "write", "write", "truncate", "freeze", "settle", "thaw", "crash", "read"]):
            case "write":
                offset, data = random.randint(0, 7000), random.randbytes(random.randint(1, 3000))
                library.write(file, offset, data)
                if offset > len(model):
                    apply_truncate(model, offset)
                model[offset : offset + len(data)] = data
            case "truncate":
                size = random.choice([0, random.randint(0, 9000)])
                library.truncate(file, size)
                apply_truncate(model, size)
            case "freeze" if file.frozen is None:
                frozen = file.freeze(growing=False, provisional=False)
                assert frozen is not None
                frozen_model = bytes(model)
                check_changed(library, frozen)
            case "settle" if file.frozen is not None:
                assert content(library, file.frozen) == frozen_model, "what is frozen does not change"
                file.settle(library.base(frozen_model))
                library.seq += 1
                record = _numbered(file, library.seq)
                file.base_seq = library.seq
            case "thaw" if file.frozen is not None:
                file.thaw()
            case "crash" if file.frozen is None:
                changes = [library.changes[seq] for seq in file.records]
                file = DirtyFile.restore(record, changes)
            case "read":
                offset, size = random.randint(0, 9000), random.randint(0, 3000)
                assert library.assemble(file.plan(offset, size), file.base) == model[offset : offset + size]
        assert file.size_bytes == len(model)
        assert whole(library, file) == model


def _numbered(file: DirtyFile, seq: int) -> BaseRecord:
    made = file.to_record()
    return BaseRecord(
        seq, made.ino, made.store_id, made.content, made.size_bytes, made.mtime_ns, made.time_ns, made.upto,
        made.keep_start, made.keep_end, made.provisional,
    )  # fmt: skip


class Sparse:
    """A model of a file of several chunks: bytes that are not zero, by offset; and its size."""

    def __init__(self) -> None:
        self.bytes: dict[int, int] = {}
        self.size = 0

    def write(self, offset: int, data: bytes) -> None:
        self.bytes.update({offset + index: value for index, value in enumerate(data)})
        self.size = max(self.size, offset + len(data))

    def truncate(self, size: int) -> None:
        self.bytes = {offset: value for offset, value in self.bytes.items() if offset < size}
        self.size = size


SPOTS = [0, CHUNK - 3, CHUNK - 1, CHUNK, CHUNK + 2, CHUNK + 9, 2 * CHUNK - 1]
SIZES = [0, CHUNK - 2, CHUNK + 1, CHUNK + 5, 2 * CHUNK - 1, 2 * CHUNK + 4]


@given(st.integers(0, 1 << 32))
@settings(max_examples=600, deadline=None)
def test_a_growing_file_leaves_its_chunk_and_forgets_nothing(seed: int) -> None:
    """Provisional flushes of whole chunks, with truncations and crashes between: the bytes of the model, always."""
    random = Random(seed)
    library = SparseLibrary()
    file = DirtyFile(INO, STORE, Inline(b""), 0, 5, 0)
    record = BaseRecord(0, INO, STORE, content_of(file.base), 0, 5, 0)
    model = Sparse()

    def change() -> None:
        if random.random() < 0.7:
            offset, data = random.choice(SPOTS), random.randbytes(random.choice([1, 3, 12]))
            library.write(file, offset, data)
            model.write(offset, data)
        else:
            size = random.choice(SIZES)
            library.truncate(file, size)
            model.truncate(size)

    def crash(upto: int = 0) -> DirtyFile:
        return DirtyFile.restore(record, [library.changes[seq] for seq in file.records], upto)

    for _ in range(random.randint(1, 40)):
        match random.choice(["change", "change", "change", "flush", "crash", "utimens"]):
            case "change":
                change()
            case "flush":
                frozen = file.freeze(growing=random.random() < 0.8, provisional=True)
                if frozen is None:
                    continue
                made = library.keep(frozen)
                for _ in range(random.choice([0, 1, 2])):
                    change()  # something goes on while it is on its way
                if random.random() < 0.3:  # and the mount dies after it was written down
                    file = crash(frozen.upto)
                    file.refreeze(content_of(made), frozen.upto, (frozen.keep_start, frozen.keep_end), last=False)
                for seq in file.settle(made):
                    del library.changes[seq]  # a crash does not bring it back
                library.seq += 1
                record = _numbered(file, library.seq)
                assert file.provisional
            case "crash":
                mtime_ns = file.mtime_ns
                file = crash()
                assert file.mtime_ns == mtime_ns
            case "utimens":
                file.mtime_ns = random.randint(1, 9)
                library.seq += 1
                record = _numbered(file, library.seq)
        assert file.size_bytes == model.size
        library.compare(file, model)


class SparseLibrary(Library):
    """As Library, but contents are the bytes at the places that a plan names, by offset."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[bytes, dict[int, int]] = {}

    def keep(self, frozen: Frozen) -> Base:
        version = os.urandom(16)
        self.kept[version] = self.bytes_of(frozen.plan(0, frozen.size_bytes), frozen.base)
        return VersionReference(STORE, version, frozen.size_bytes, (), b"k" * 32)

    def bytes_of(self, plan: list[Piece], base: Base) -> dict[int, int]:
        found: dict[int, int] = {}
        at = plan[0].start if plan else 0
        for piece in plan:
            assert piece.start == at, "no gap, no overlap"
            at = piece.end
            if piece.seq == BASE and not isinstance(base, Inline):
                below = self.kept[base.version_id]
                found.update({place: value for place, value in below.items() if piece.start <= place < piece.end})
            elif piece.seq > 0:
                data = self.writes[piece.seq][piece.skip : piece.skip + piece.end - piece.start]
                found.update({piece.start + index: value for index, value in enumerate(data)})
        return found

    def compare(self, file: DirtyFile, model: Sparse) -> None:
        found = self.bytes_of(file.plan(0, file.size_bytes), file.base)
        assert {k: v for k, v in found.items() if v} == {k: v for k, v in model.bytes.items() if v}


def test_a_growing_flush_takes_whole_chunks() -> None:
    """Written from front to back: what is complete goes, the chunk that is being written stays, none goes twice."""
    library = Library()
    file = DirtyFile(INO, STORE, Inline(b""), 0, 5, 0)
    for index in range(9):
        library.write(file, index * CHUNK // 4, b"x" * (CHUNK // 4))
    frozen = file.freeze(growing=True, provisional=True)
    assert frozen is not None
    assert frozen.size_bytes == 2 * CHUNK, "others see no zeros where bytes are still to come"
    assert frozen.changed() == [(0, 2 * CHUNK)]
    file.settle(VersionReference(STORE, b"v" * 16, 2 * CHUNK, (), b""))
    assert file.size_bytes == 9 * CHUNK // 4
    assert file.records == [9]
    assert file.freeze(growing=True, provisional=True) is None
    final = file.freeze(growing=False, provisional=False)
    assert final is not None
    assert final.changed() == [(2 * CHUNK, 9 * CHUNK // 4)]


def test_what_a_truncation_uncovers_is_changed() -> None:
    """Shorter and longer again: the base's old bytes must not come back through a reused chunk."""
    library = Library()
    base = library.base(b"x" * 10_000)
    file = DirtyFile(INO, STORE, base, 10_000, 5, 10_000)
    library.truncate(file, 2_000)
    library.truncate(file, 8_000)
    frozen = file.freeze(growing=False, provisional=False)
    assert frozen is not None
    assert frozen.changed() == [(2_000, 8_000)]
    assert content(library, frozen) == b"x" * 2_000 + bytes(6_000)


def test_contents_go_to_records_and_back() -> None:
    """Inline, empty, and in chunks."""
    for base in (Inline(b""), Inline(b"small"), VersionReference(STORE, b"v" * 16, 9, (b"p" * 32,), b"k" * 32)):
        assert base_of(STORE, content_of(base)) == base


def test_the_table_knows_a_file_by_both_numbers() -> None:
    """By ino and by DataStore and number; a dropped file is gone from both."""
    table = DirtyTable()
    file = table.begin(INO, STORE, Inline(b""), 0, 5)
    assert table.begin(INO, STORE, Inline(b"other"), 5, 6) is file
    assert table.find(STORE, 100) is file
    table.touch(file, 10.0)
    assert list(table.idle_since(9.0)) == []
    assert list(table.idle_since(10.0)) == [file]
    table.drop(DirtyFile(INO, STORE, Inline(b""), 0, 5, 0))
    assert table.get(INO) is file, "another file of that number changes nothing"
    table.drop(file)
    assert table.get(INO) is None
    assert table.find(STORE, 100) is None


@pytest.mark.parametrize(
    ("ranges", "merged"),
    [([], []), ([(3, 3)], []), ([(5, 9), (0, 2), (2, 3), (8, 12)], [(0, 3), (5, 12)])],
)
def test_ranges_merge(ranges: list[tuple[int, int]], merged: list[tuple[int, int]]) -> None:
    """Sorted, disjoint, without empty ones."""
    assert merge_ranges(ranges) == merged


def test_many_small_appends_are_cheap() -> None:
    """A file written in pieces of 4 KiB: each costs the same, however many there are."""
    extents = Extents()
    for index in range(50_000):
        extents.put(index * 4096, index * 4096 + 4096, index + 1)
    assert len(extents) == 50_000
    assert extents.overlapping(4096 * 40_000, 4096 * 40_001) == [Piece(4096 * 40_000, 4096 * 40_001, 40_001, 0)]


def test_only_a_file_of_which_nothing_is_known_is_blank() -> None:
    """Its first write can say all there is to say of what it lies on."""
    nothing, empty = Inline(b""), VersionReference(b"s" * 32, b"v" * 16, 0, (), b"")
    assert DirtyFile(1, b"s" * 32, nothing, 0, 0, 0).is_blank
    assert not DirtyFile(1, b"s" * 32, empty, 0, 0, 0).is_blank, "whoever replaces it says which version"
    assert not DirtyFile(1, b"s" * 32, Inline(b"data"), 0, 0, 0).is_blank
    for known in ({"size_bytes": 1}, {"records": [5]}, {"base_seq": 4}, {"upto": 3}, {"provisional": True}):
        file = DirtyFile(1, b"s" * 32, nothing, 0, 0, 0)
        for name, value in known.items():
            setattr(file, name, value)
        assert not file.is_blank
