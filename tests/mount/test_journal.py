"""The journal: what was acknowledged is there after any end, in order, and nothing that was not whole."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collective.core.errors import Full, NotFound, Unreachable
from collective.core.observe import SILENT
from collective.core.sizes import GIB, KIB, MIB
from collective.mount import journal as journal_module
from collective.mount.journal import Journal
from collective.mount.journal_compaction import read_standing
from collective.mount.journal_folder import JournalFolder
from collective.mount.journal_records import (
    BaseRecord,
    FillRecord,
    FlushRecord,
    OperationRecord,
    Record,
    TruncateRecord,
    WriteRecord,
)
from collective.mount.journal_room import JournalSettings
from collective.mount.journal_segments import Segment
from collective.wire import feed_pb2, submit_pb2

STORE = b"s" * 32
BOOT, OTHER_BOOT = b"boot one", b"boot two"
INO = 7 << 40 | 100
SETTINGS = JournalSettings(reserve_bytes=0, reserve_share=0.0)


def operation(name: bytes) -> feed_pb2.TreeOperation:
    return feed_pb2.TreeOperation(
        id=feed_pb2.OperationId(writer="alice", random=os.urandom(16)),
        create=feed_pb2.Create(parent=1, name=name, inode=100, mode=0o100644),
    )


class Place:
    """A folder of journals; journals opened here are closed at the end of the test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: list[tuple[Journal, JournalFolder]] = []

    async def open(self, boot: bytes = BOOT, settings: JournalSettings = SETTINGS, path: Path | None = None) -> Journal:
        folder = JournalFolder(path or self.path, settings, boot, SILENT)
        journal = await folder.open()
        self._open.append((journal, folder))
        return journal

    def copy(self, name: str) -> Path:
        """What a kill at this very moment would leave."""
        return Path(shutil.copytree(self.path, self.path.with_name(name)))

    async def close(self, journal: Journal) -> None:
        for pair in list(self._open):
            if pair[0] is journal:
                self._open.remove(pair)
                await journal.close()
                pair[1].release()

    async def close_all(self) -> None:
        for journal, folder in self._open:
            await journal.close()
            folder.release()


@pytest.fixture
async def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path / "mounts")
    yield made
    await made.close_all()


def data_of(journal: Journal, record: Record) -> bytes:
    assert isinstance(record, WriteRecord)
    return journal.read(record.seq, 0, record.size_bytes)


async def fill(journal: Journal) -> list[int]:
    """One of each kind; the seqs."""
    base = BaseRecord(0, INO, STORE, feed_pb2.Content(size_bytes=3, inline=b"abc"), 9, 5, 6, 2, 8, 16, provisional=True)
    staged = submit_pb2.StagedOperation(operation=operation(b"flush"), pages=[b"page"])
    flush = FlushRecord(0, INO, STORE, staged, upto=3, place=2, create_seq=1, keep_start=8, keep_end=16, last=False)
    return [
        journal.append_operation(STORE, operation(b"one"), of_directory=True),
        journal.append_base(base),
        await journal.append_write(INO, 10, b"small", 77),
        await journal.append_write(INO, 1 << 40, b"L" * (300 * KIB), 78),
        journal.append_truncate(INO, 12, 79),
        journal.hold_flush(flush),
        journal.hold_flush(FillRecord(0, INO, 3, 1, 81)),
        await journal.append_write(INO + 1, 20, b"first", 82, store_id=STORE),
    ]


async def test_every_kind_of_record_comes_back(place: Place) -> None:
    """After a kill: the same records, in order, with their data."""
    journal = await place.open()
    seqs = await fill(journal)
    journal.write_held()
    again = await place.open(path=place.copy("killed"))
    assert [record.seq for record in again.recovered] == seqs
    made, base, small, large, cut, flush, filled, first = again.recovered
    assert isinstance(made, OperationRecord)
    assert (made.store_id, made.operation.create.name, made.of_directory) == (STORE, b"one", True)
    assert isinstance(base, BaseRecord)
    assert base.content.inline == b"abc"
    assert (base.size_bytes, base.mtime_ns, base.time_ns, base.upto) == (9, 5, 6, 2)
    assert (base.keep_start, base.keep_end, base.provisional) == (8, 16, True)
    assert isinstance(small, WriteRecord)
    assert (small.ino, small.offset, small.time_ns, data_of(again, small)) == (INO, 10, 77, b"small")
    assert isinstance(large, WriteRecord)
    assert (large.offset, data_of(again, large)) == (1 << 40, b"L" * (300 * KIB))
    assert cut == TruncateRecord(seqs[4], INO, 12, 79)
    assert isinstance(flush, FlushRecord)
    assert (flush.upto, flush.place, flush.create_seq) == (3, 2, 1)
    assert (flush.keep_start, flush.keep_end, flush.last) == (8, 16, False)
    assert flush.staged.pages == [b"page"]
    assert filled == FillRecord(seqs[6], INO, 3, 1, 81)
    assert isinstance(first, WriteRecord)
    assert (first.ino, first.offset, first.time_ns, first.store_id) == (INO + 1, 20, 82, STORE)
    assert data_of(again, first) == b"first"
    assert small.store_id == large.store_id == b""
    assert again.last_seq > seqs[-1], "numbers go on"


async def test_settled_and_disowned_records_do_not_come_back(place: Place) -> None:
    """What the library shows is over; what has no name any more goes with its mount, and is readable until then."""
    journal = await place.open()
    seqs = await fill(journal)
    journal.settle([seqs[0], 4711])
    journal.disown([seqs[2]])
    unowned = await journal.append_write(INO, 0, b"unowned", 80, unowned=lambda: True)
    unowned_cut = journal.append_truncate(INO, 0, 80, unowned=True)
    assert journal.read(seqs[2], 1, 3) == b"mal"
    assert journal.read(unowned, 0, 7) == b"unowned"
    journal.write_held()
    again = await place.open(path=place.copy("killed"))
    kept = [record.seq for record in again.recovered]
    assert kept == [seq for seq in seqs if seq not in (seqs[0], seqs[2])]
    assert unowned_cut not in kept
    journal.settle([seqs[2]])
    with pytest.raises(NotFound):
        journal.read(seqs[2], 0, 1)


@pytest.mark.parametrize("boot", [BOOT, OTHER_BOOT])
async def test_every_torn_end_leaves_a_prefix(place: Place, boot: bytes) -> None:
    """Cut at every byte: the records that lie wholly before it, and none other."""
    journal = await place.open()
    ends: list[tuple[int, int]] = []
    segment = next(iter(place.path.glob("*/*.segment")))
    for index in range(6):
        seq = journal.append_operation(STORE, operation(b"%d" % index))
        ends.append((seq, segment.stat().st_size))
    whole = segment.read_bytes()
    copies = place.copy("torn")
    torn = next(iter(copies.glob("*/*.segment")))
    for size in range(len(whole)):
        for other in copies.glob("*/*.segment"):
            other.unlink()
        torn.write_bytes(whole[:size])
        again = await place.open(boot, path=copies)
        assert [record.seq for record in again.recovered] == [seq for seq, end in ends if end <= size]
        more = again.append_operation(STORE, operation(b"more"))
        assert more > max((seq for seq, end in ends if end <= size), default=0)
        await place.close(again)
        for damaged in copies.glob("*/*.damaged"):
            damaged.unlink()


@given(st.integers(0, 1 << 32), st.integers(1, 255))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_byte_ends_the_prefix(tmp_path_factory: pytest.TempPathFactory, place_in: int, flip: int) -> None:
    """Wherever a byte is wrong after a power failure: what came before it is all there, what it is in is not."""

    async def run() -> None:
        place = Place(tmp_path_factory.mktemp("flip") / "mounts")
        journal = await place.open()
        segment = next(iter(place.path.glob("*/*.segment")))
        ends: list[tuple[int, int]] = []
        for index in range(5):
            if index == 2:
                seq = await journal.append_write(INO, 0, os.urandom(256 * KIB), 1)
            else:
                seq = await journal.append_write(INO, 0, os.urandom(100), 1)
            ends.append((seq, segment.stat().st_size))
        copies = place.copy("flipped")
        torn = next(iter(copies.glob("*/*.segment")))
        data = bytearray(torn.read_bytes())
        at = place_in % len(data)
        data[at] ^= flip
        torn.write_bytes(data)
        again = await place.open(OTHER_BOOT, path=copies)
        found = [record.seq for record in again.recovered]
        # the blob of the third record lies before it: a byte of it takes that record, not the second
        assert found == [seq for seq, end in ends if end <= at]
        await place.close_all()

    asyncio.run(run())


async def test_small_records_go_on_while_a_large_one_is_written(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop is not held up, and a kill in between loses only what nobody was told of."""
    import threading

    gate = threading.Event()
    real = Segment.write_at

    def write_at(self: Segment, position: int, parts: list[bytes]) -> None:
        if sum(map(len, parts)) > 256 * KIB:
            assert gate.wait(10)
        real(self, position, parts)

    monkeypatch.setattr(Segment, "write_at", write_at)
    journal = await place.open()
    large = asyncio.create_task(journal.append_write(INO, 0, b"L" * MIB, 1))
    await asyncio.sleep(0)
    small = [await journal.append_write(INO, index, b"s", 2) for index in range(3)]
    assert not large.done()
    killed = await place.open(path=place.copy("killed"))
    assert [record.seq for record in killed.recovered] == small
    gate.set()
    seq = await large
    assert seq > small[-1], "it counts from when it was acknowledged"
    assert journal.read(seq, MIB - 3, 3) == b"LLL"
    again = await place.open(OTHER_BOOT, path=place.copy("after"))
    assert [record.seq for record in again.recovered] == [*small, seq]


async def test_a_torn_blob_counts_only_after_a_power_failure(place: Place) -> None:
    """With the machine up the page cache tears nothing; after a reboot the data is checked too."""
    journal = await place.open()
    first = await journal.append_write(INO, 0, b"A" * MIB, 1)
    await journal.append_write(INO, 0, b"B" * MIB, 1)
    journal.append_operation(STORE, operation(b"later"))
    copies = place.copy("torn")
    segment = next(iter(copies.glob("*/*.segment")))
    data = bytearray(segment.read_bytes())
    data[data.index(b"B" * 100) + 5000] = 0
    segment.write_bytes(data)
    again = await place.open(OTHER_BOOT, path=copies)
    assert [record.seq for record in again.recovered] == [first]


async def test_segments_go_when_all_in_them_is_settled(place: Place) -> None:
    """Oldest first; a record that stays keeps the later ones too, since they say what of it is settled."""
    journal = await place.open(settings=JournalSettings(segment_bytes=MIB, reserve_bytes=0, reserve_share=0.0))

    def segments() -> list[str]:
        return sorted(path.name for path in place.path.glob("*/*.segment"))

    first = journal.append_operation(STORE, operation(b"first"))
    seqs = [await journal.append_write(INO, 0, b"x" * (200 * KIB), 1) for _ in range(20)]
    assert len(segments()) >= 4
    before = journal.size_bytes
    journal.settle(seqs)
    assert len(segments()) >= 4
    journal.settle([first])
    assert len(segments()) >= 4, "that they are settled may be lost with the machine still"
    assert journal.gains_by_sync
    await journal.sync()
    assert len(segments()) == 1
    assert journal.size_bytes < before / 2
    journal.write_held()
    again = await place.open(path=place.copy("killed"))
    assert again.recovered == ()


@pytest.mark.parametrize("boot", [BOOT, OTHER_BOOT])
async def test_data_that_went_with_its_segment_was_settled(place: Place, boot: bytes) -> None:
    """Killed after a segment went and before it was said why, on a full disk: the record in the next segment is no
    change any more."""
    settings = JournalSettings(segment_bytes=MIB, reserve_bytes=0, reserve_share=0.0)
    journal = await place.open(settings=settings)
    filled = journal.append_operation(STORE, operation(b"first"))
    written = [await journal.append_write(INO, at * MIB, bytes([at]) * MIB, 1) for at in range(3)]
    kept = journal.append_operation(STORE, operation(b"kept"))
    before = {path.name for path in place.path.rglob("*.segment")}
    journal.settle([filled, *written[:2]])
    journal._sync.give_up_oldest()
    copy = place.copy("killed")
    assert {path.name for path in copy.rglob("*.segment")} < before, "a segment went"
    again = await place.open(boot, settings=settings, path=copy)
    found = {record.seq for record in again.recovered}
    assert found >= {written[2], kept}, "what was not settled is there"
    assert again.read(written[2], 0, MIB) == bytes([2]) * MIB


async def test_on_a_full_disk_settled_segments_make_room_for_saying_so(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be written until the first of them is gone."""
    journal = await place.open(settings=JournalSettings(segment_bytes=MIB, reserve_bytes=0, reserve_share=0.0))
    seqs = [await journal.append_write(INO, 0, b"x" * (200 * KIB), 1) for _ in range(12)]
    kept = journal.append_operation(STORE, operation(b"kept"))
    journal.settle(seqs)
    before = journal_numbers(place.path)
    write = Segment.write_at

    def full(segment: Segment, position: int, parts: object) -> None:
        if journal_numbers(place.path) == before:
            raise Full("the disk is full")
        write(segment, position, parts)

    monkeypatch.setattr(Segment, "write_at", full)
    await journal.sync()
    assert journal_numbers(place.path) == before[-1:]
    again = await place.open(path=place.copy("killed"))
    assert [record.seq for record in again.recovered] == [kept]


async def test_a_full_journal_makes_writers_wait_and_then_says_so(place: Place) -> None:
    """A writer waits for the uploader; with nobody to make room it gets Full after the deadline, and changes of names
    still fit."""
    limit = JournalSettings(2 * MIB, MIB, 0, 0.0, deadline_seconds=0.05)
    journal = await place.open(settings=limit)
    pressed: list[int] = []
    journal.on_pressure = lambda: pressed.append(1)
    first = await journal.append_write(INO, 0, b"x" * MIB, 1)
    with pytest.raises(Full):
        await journal.append_write(INO, 0, b"x" * (MIB + MIB // 2), 1)
    assert pressed
    assert journal.append_operation(STORE, operation(b"name")) > first
    journal.on_pressure = lambda: journal.settle([first])
    second = await journal.append_write(INO, 0, b"y" * (MIB + MIB // 2 - 8 * KIB), 1)
    assert journal.read(second, 0, 2) == b"yy"


async def test_the_journal_leaves_the_disk_its_reserve(place: Place) -> None:
    """A disk with less than the reserve free takes no data."""
    journal = await place.open(settings=JournalSettings(reserve_bytes=1 << 60, deadline_seconds=0.01))
    with pytest.raises(Full):
        await journal.append_write(INO, 0, b"x", 1)


async def test_a_full_disk_is_an_error_of_that_append_alone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC in the middle of a record: it is not there, the next one is, and a settlement waits its turn."""
    journal = await place.open()
    first = journal.append_operation(STORE, operation(b"first"))
    real = os.pwritev

    def full(descriptor: int, parts: list[bytes], position: int) -> int:
        os.pwrite(descriptor, b"".join(parts)[:10], position)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwritev", full)
    with pytest.raises(Full):
        journal.append_operation(STORE, operation(b"lost"))
    journal.settle([first])
    with pytest.raises(Full):
        journal.write_held()
    monkeypatch.setattr(os, "pwritev", real)
    again = await place.open(path=place.copy("killed"))
    assert [record.seq for record in again.recovered] == [first], "sent again, and absorbed"
    second = journal.append_operation(STORE, operation(b"second"))
    again = await place.open(path=place.copy("later"))
    assert [record.seq for record in again.recovered] == [second]


async def test_syncs_are_shared_and_a_failed_one_ends_the_journal(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many who wait need few syncs; after a failed one nothing is promised any more."""
    journal = await place.open()
    calls: list[int] = []
    real = os.fdatasync

    def counted(descriptor: int) -> None:
        calls.append(descriptor)
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", counted)
    for index in range(20):
        journal.append_operation(STORE, operation(b"%d" % index))
    await asyncio.gather(*(journal.sync() for _ in range(20)))
    assert len(calls) == 1
    await journal.sync()
    assert len(calls) == 1, "nothing new, nothing to do"

    def broken(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", broken)
    seq = journal.append_operation(STORE, operation(b"last"))
    with pytest.raises(Unreachable):
        await journal.sync()
    monkeypatch.setattr(os, "fdatasync", real)
    for attempt in (journal.sync, lambda: journal.append_write(INO, 0, b"x", 1)):
        with pytest.raises(Unreachable):
            await attempt()
    journal.settle([seq])


async def test_one_journal_per_mount_and_the_next_takes_over(place: Place) -> None:
    """A running mount's journal is left alone; those of dead ones come into the new one, with their data."""
    running = await place.open()
    kept = running.append_operation(STORE, operation(b"running"))
    for index in range(2):
        path = place.path / f"journal-{index + 7}"
        shutil.copytree(next(iter(place.path.glob("journal-*"))), path)
        dead = await place.open()
        number = INO + index
        base = BaseRecord(0, number, STORE, feed_pb2.Content(), 0, 1, 1, upto=dead.last_seq)
        dead.append_base(base)
        seq = await dead.append_write(number, 0, b"data %d" % index, 1)
        staged = submit_pb2.StagedOperation(operation=operation(b"flush"))
        dead.hold_flush(FlushRecord(0, number, STORE, staged, upto=seq, place=seq))
        await place.close(dead)
    taker = await place.open()
    writes = [record for record in taker.recovered if isinstance(record, WriteRecord)]
    assert sorted(data_of(taker, record) for record in writes) == [b"data 0", b"data 1"]
    for record in taker.recovered:
        if isinstance(record, FlushRecord):
            (write,) = [one for one in writes if one.ino == record.ino]
            assert record.upto == record.place == write.seq
    assert set(running._live) == {kept}
    again = await place.open(path=place.copy("killed"))
    assert {record.ino for record in again.recovered if isinstance(record, WriteRecord)} == {INO, INO + 1}


async def test_what_goes_with_a_create_is_moved_with_it(place: Place) -> None:
    """Into another journal, where all has other numbers; what belongs to a create that was answered stays behind."""
    for content in (b"first", b"second"):
        number = INO + len(content)
        journal = await place.open(path=place.path.with_name(content.decode()))
        answered = journal.append_operation(STORE, operation(b"answered"))
        made = journal.append_operation(STORE, operation(content))
        seq = await journal.append_write(number, 0, content, 1, store_id=STORE)
        journal.hold_flush(FillRecord(0, number, seq, answered, 0))
        journal.hold_flush(FillRecord(0, number, seq, made, len(content)))
        journal.settle([answered])
        await place.close(journal)
    shutil.copytree(place.path.with_name("first") / "journal-1", place.path / "journal-1")
    shutil.copytree(place.path.with_name("second") / "journal-1", place.path / "journal-2")
    journal = await place.open()
    found = {record.seq: record for record in journal.recovered}
    fills = [record for record in found.values() if isinstance(record, FillRecord) and record.create_seq in found]
    assert [record.mtime_ns for record in fills] == [5, 6]
    for record, content in zip(fills, (b"first", b"second"), strict=True):
        made = found[record.create_seq]
        assert isinstance(made, OperationRecord)
        write = found[record.upto]
        assert made.operation.create.name == data_of(journal, write) == content
        assert isinstance(write, WriteRecord)
        assert write.store_id == STORE
    assert len([record for record in found.values() if isinstance(record, FillRecord)]) == 3, "one that was here before"


async def test_changes_of_one_file_in_two_journals_are_not_mixed(place: Place) -> None:
    """The second journal stays as it is until the first is sent."""
    for content in (b"first", b"second"):
        other = place.path.with_name(content.decode())
        journal = await place.open(path=other)
        journal.append_base(BaseRecord(0, INO, STORE, feed_pb2.Content(), 0, 1, 1))
        await journal.append_write(INO, 0, content, 1)
        await place.close(journal)
    shutil.copytree(place.path.with_name("first") / "journal-1", place.path / "journal-1")
    shutil.copytree(place.path.with_name("second") / "journal-1", place.path / "journal-2")
    journal = await place.open()
    assert [data_of(journal, record) for record in journal.recovered if isinstance(record, WriteRecord)] == [b"first"]
    journal.settle([record.seq for record in journal.recovered])
    await place.close(journal)
    journal = await place.open()
    assert [data_of(journal, record) for record in journal.recovered if isinstance(record, WriteRecord)] == [b"second"]


async def test_a_segment_of_a_later_version_is_set_aside(place: Place) -> None:
    """Not read, not deleted."""
    journal = await place.open()
    journal.append_operation(STORE, operation(b"x"))
    copies = place.copy("later")
    segment = next(iter(copies.glob("*/*.segment")))
    data = bytearray(segment.read_bytes())
    data[11] = 9
    segment.write_bytes(data)
    again = await place.open(path=copies)
    assert again.recovered == ()
    assert [path.read_bytes() for path in copies.glob("*/*.damaged")] == [bytes(data)]


def test_the_bound_of_data_that_is_written_at_once() -> None:
    """Where the event loop does the writing itself, it is over in a fraction of a millisecond."""
    assert journal_module.THREAD_BYTES <= 256 * KIB
    assert JournalSettings().bound_bytes == 4 * GIB


# ---------------------------------------------------------------- what keeps a segment from going

SMALL = JournalSettings(bound_bytes=256 * KIB, segment_bytes=16 * KIB, reserve_bytes=0, reserve_share=0.0)


async def test_what_cannot_be_sent_does_not_keep_what_could(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of each kind stays unsettled in the oldest segment while much goes through: the journal stays small, and what
    stays is readable, and recovered, as it was."""
    monkeypatch.setattr(journal_module, "THREAD_BYTES", 8 * KIB)
    journal = await place.open(settings=SMALL)
    kept = [*await fill_small(journal), await journal.append_write(INO, 5000, b"B" * (10 * KIB), 80)]
    for round_ in range(200):
        seq = await journal.append_write(INO + 1, 0, bytes([round_]) * (4 * KIB), 81)
        journal.settle([seq])
        while await journal.compact():
            continue
        await journal.sync()
        assert journal.size_bytes <= SMALL.bound_bytes // 2 + 2 * SMALL.segment_bytes
    assert journal.read(kept[-1], 0, 10 * KIB) == b"B" * (10 * KIB)
    assert [number for number in journal_numbers(place.path) if number < 5] == [], "the oldest went"
    journal.write_held()
    again = await place.open(path=place.copy("killed"), settings=SMALL)
    assert [record.seq for record in again.recovered] == kept
    assert data_of(again, again.recovered[-1]) == b"B" * (10 * KIB)
    assert [type(record) for record in again.recovered] == [
        OperationRecord, BaseRecord, WriteRecord, TruncateRecord, FlushRecord, FillRecord, WriteRecord, WriteRecord
    ]  # fmt: skip
    first = again.recovered[-2]
    assert isinstance(first, WriteRecord)
    assert (first.store_id, data_of(again, first)) == (STORE, b"first")


async def test_a_record_that_was_written_again_is_read_where_it_stands_last(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large write's record names data in the segment before; its copy stands behind it, and needs that no more."""
    monkeypatch.setattr(journal_module, "THREAD_BYTES", 3 * KIB)
    journal = await place.open(settings=JournalSettings(32 * KIB, 4 * KIB, 0, 0.0))
    await journal.append_write(INO + 1, 0, b"x" * (2 * KIB), 1)
    seq = await journal.append_write(INO, 0, b"L" * (3 * KIB), 2)
    first, second = journal._segments.values()
    (copy,) = read_standing({first: first.end, second: second.end}, {seq})
    journal._write_again(copy)
    assert read_standing({second: second.end}, {seq}) == [copy]
    assert journal.read(seq, 0, 3 * KIB) == b"L" * (3 * KIB)


def journal_numbers(path: Path) -> list[int]:
    return sorted(int(segment.stem) for segment in path.rglob("*.segment"))


async def fill_small(journal: Journal) -> list[int]:
    staged = submit_pb2.StagedOperation(operation=operation(b"flush"), pages=[b"page"])
    return [
        journal.append_operation(STORE, operation(b"one")),
        journal.append_base(BaseRecord(0, INO, STORE, feed_pb2.Content(size_bytes=3, inline=b"abc"), 9, 5, 6)),
        await journal.append_write(INO, 10, b"small", 77),
        journal.append_truncate(INO, 12, 79),
        journal.hold_flush(FlushRecord(0, INO, STORE, staged, upto=3, place=2)),
        journal.hold_flush(FillRecord(0, INO, 3, 1, 81)),
        await journal.append_write(INO + 2, 20, b"first", 82, store_id=STORE),
    ]


async def test_a_removed_file_stays_removed_when_its_segment_is_written_again(place: Place) -> None:
    """What was disowned is not copied behind its settlement: its segment stays until it is settled."""
    journal = await place.open(settings=SMALL)
    seq = await journal.append_write(INO, 0, b"removed, and open", 77)
    stays = journal.append_operation(STORE, operation(b"stays"))
    journal.disown([seq])
    for _ in range(60):
        journal.settle([await journal.append_write(INO + 1, 0, b"x" * (4 * KIB), 78)])
    assert not await journal.compact()
    assert journal.read(seq, 0, 7) == b"removed"
    journal.write_held()
    again = await place.open(path=place.copy("killed"), settings=SMALL)
    assert [record.seq for record in again.recovered] == [stays]
    journal.settle([seq])
    assert await journal.compact()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["write", "large", "name", "settle", "compact", "sync"]), st.integers(0, 1 << 16)),
        min_size=20,
        max_size=60,
    )
)
def test_whatever_is_written_again_a_kill_loses_nothing(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, steps: list[tuple[str, int]]
) -> None:
    """After any steps, with a kill at every write of a compaction: exactly what is live comes back, in order, as it
    was."""
    monkeypatch.setattr(journal_module, "THREAD_BYTES", 3 * KIB)
    top = tmp_path_factory.mktemp("compaction")
    tiny = JournalSettings(bound_bytes=32 * KIB, segment_bytes=4 * KIB, reserve_bytes=0, reserve_share=0.0)

    async def run() -> None:
        place = Place(top / "mounts")
        journal = await place.open(settings=tiny)
        live = {await journal.append_write(INO, 7, b"first of all", 1): b"first of all"}
        for _ in range(12):  # beyond half the bound, nearly nothing of it live
            journal.settle([await journal.append_write(INO, 0, b"went" * 400, 1)])
        copies: list[tuple[Path, dict[int, bytes]]] = []
        real = Segment.append

        def append(segment: Segment, parts: list[bytes]) -> int:
            begin = real(segment, parts)
            copies.append((place.copy(f"killed-{len(copies)}"), dict(live)))
            return begin

        for kind, value in [*steps, ("compact", 0)]:
            if kind in ("write", "large") and sum(map(len, live.values())) < 3 * KIB:
                data = bytes([value % 256]) * (value % 2000 + 1 if kind == "write" else 3 * KIB + value % 1000)
                live[await journal.append_write(INO, value, data, value)] = data
            elif kind == "name":
                live[journal.append_operation(STORE, operation(b"%d" % value))] = b""
            elif kind == "settle" and live:
                gone = sorted(live)[value % len(live)]
                del live[gone]
                journal.settle([gone])
                journal.settle([await journal.append_write(INO, 0, b"later" * 300, 1)])
            elif kind == "sync":
                await journal.sync()
            elif kind == "compact":
                journal.write_held()
                with monkeypatch.context() as patch:
                    patch.setattr(Segment, "append", append)
                    while await journal.compact():
                        continue
        journal.write_held()
        copies.append((place.copy("killed-last"), live))
        for seq, data in live.items():
            if data:
                assert journal.read(seq, 0, len(data)) == data
        assert journal.unsettled_count == len(live)
        for copied, expected in copies:
            found = await place.open(path=copied, settings=tiny)
            assert [record.seq for record in found.recovered] == sorted(expected)
            for record in found.recovered:
                assert (data_of(found, record) if isinstance(record, WriteRecord) else b"") == expected[record.seq]
            await place.close(found)
        await place.close_all()

    asyncio.run(run())
    shutil.rmtree(top)
