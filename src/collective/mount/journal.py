"""The mount's journal: every change is one record here before anything sees it.

Theory: a record is in the page cache when its append returned, so it survives the death of every process here; after
`sync` it survives the machine's. Small records are appended at once, by the event loop; data of 256 KiB and more gets
its room at once, is filled in by a thread, and counts when the small record that names it follows. So the order of
records is the order in which changes were acknowledged, and what a crash leaves is a prefix of it.

    appended -> settled (the coordinator's database shows the change) -> its segment goes, once all in it is settled
                                                                         and a sync has made that survive everything

After a crash `recovered` has what was appended and not settled, in order. Settlements, and records that only a later
one needs, are *held* and written with the next record, so that one write serves many; what a lost settlement would have
settled comes back, all of it, and whoever replays it finds it absorbed. Segments go oldest first; the little that keeps
one from going is written again behind the newest (`journal_compaction`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from typing_extensions import Buffer

from collective.core.errors import Full
from collective.core.observe import Observer
from collective.core.sizes import KIB
from collective.mount import journal_records as records
from collective.mount.journal_compaction import Standing, read_standing
from collective.mount.journal_live import LiveRecords
from collective.mount.journal_records import (
    BaseRecord,
    FillRecord,
    FlushRecord,
    Kind,
    Record,
    WriteRecord,
)
from collective.mount.journal_recovery import Recovery
from collective.mount.journal_room import JournalRoom, JournalSettings
from collective.mount.journal_segments import Segment
from collective.mount.journal_sync import SegmentSync
from collective.wire import feed_pb2

__all__ = ["THREAD_BYTES", "Journal"]

THREAD_BYTES = 256 * KIB  # writing less holds the event loop under 0.1 ms
ROOM_LOOK_SECONDS = 1.0
THREADS = 4
HELD_RECORDS = 512
HELD_PAYLOAD_BYTES = 64 * KIB
T = TypeVar("T")


class Journal:
    """One journal, of one process at a time. Everything but the filling of blobs and syncs runs in the event loop."""

    def __init__(
        self, folder: Path, settings: JournalSettings, found: Recovery, boot_id: bytes, observer: Observer
    ) -> None:
        """Use `JournalFolder.open`. Raises: Full, Unreachable."""
        self._folder = folder
        self._settings = settings
        self._observer = observer
        self._segments: dict[int, Segment] = {segment.number: segment for segment in found.segments}
        self._live = LiveRecords(self._segments)
        self._next_seq = found.next_seq
        self._room = JournalRoom(folder, settings, sum(segment.end for segment in found.segments))
        self._compacting = False
        self._unsaid: list[int] = []  # settled in memory, said with the next record
        self._held: list[Buffer] = []
        self._executor = ThreadPoolExecutor(THREADS, "journal")
        self._sync = SegmentSync(folder, self._in_thread, observer)
        self._freed = asyncio.Event()
        self.on_pressure: Callable[[], None] = lambda: None
        """Called when somebody waits for room."""
        for record in found.records:
            data = (record.segment, record.position, record.size_bytes) if isinstance(record, WriteRecord) else ()
            self._live.put(record.seq, found.segment_of[record.seq], *data)
        self.recovered: tuple[Record, ...] = tuple(found.records)
        """What an earlier process left, in order of seq."""
        self._active = self._new_segment(found.next_segment)
        self._append(Kind.BOOT, 0, boot_id)
        self._drop_settled()

    # ------------------------------------------------------------ what happened

    @property
    def size_bytes(self) -> int:
        """Bytes of all segments."""
        return self._room.total_bytes

    @property
    def unsettled_count(self) -> int:
        """Records that still count: what was changed and is not the coordinator's yet."""
        return len(self._live)

    @property
    def half_full(self) -> bool:
        """Whether what is in it should be sent soon."""
        return self._room.half_full

    @property
    def last_seq(self) -> int:
        """Of the newest record."""
        return self._next_seq - 1

    def append_operation(
        self, store_id: bytes, operation: feed_pb2.TreeOperation, *, of_directory: bool = False
    ) -> int:
        """A change of the tree; its seq. It is journalled when this returns. `of_directory`: what it makes, moves or
        removes is a directory. Raises: Full, Unreachable (the disk fails); nothing was appended then."""
        if self._room.far_over:
            raise Full("the mount's journal is full", "see `collective status`: what keeps it from being sent?")
        flags = records.OF_DIRECTORY if of_directory else 0
        return self._live_record(Kind.OPERATION, flags, store_id, operation.SerializeToString())

    async def append_write(
        self, ino: int, offset: int, data: Buffer, time_ns: int, *,
        unowned: Callable[[], bool] = lambda: False, store_id: bytes = b"",
    ) -> int:  # fmt: skip
        """Data of a file; its seq. `unowned`, asked when the record is made: the file has no name any more and goes
        with this process. `store_id`: in place of a base record, of a file that lies there and has nothing so far; for
        less than THREAD_BYTES alone. Waits for room first. Raises: Full, Unreachable."""
        view = memoryview(data)
        assert not store_id or len(view) < THREAD_BYTES
        await self.room(len(view))
        if len(view) < THREAD_BYTES:
            return self.append_inline(ino, offset, view, time_ns, records.UNOWNED if unowned() else 0, store_id)
        record = await self._append_blob(WriteRecord(0, ino, offset, len(view), time_ns), unowned, view)
        self._live.put(record.seq, self._active.number, record.segment, record.position, record.size_bytes)
        return record.seq

    def append_truncate(self, ino: int, size_bytes: int, time_ns: int, *, unowned: bool = False) -> int:
        """A file's new size; its seq. Raises: Full, Unreachable."""
        flags = records.UNOWNED if unowned else 0
        return self._live_record(Kind.TRUNCATE, flags, records.pack_truncate(ino, size_bytes, time_ns))

    def append_base(self, record: BaseRecord) -> int:
        """What a file's extents lie on; its seq (the record's own is ignored). Raises: Full, Unreachable."""
        return self._live_record(Kind.BASE, records.PROVISIONAL if record.provisional else 0, record.encode())

    def hold_base(self, record: BaseRecord) -> int:
        """As `append_base`, but it is written with the next record, which needs it. Raises: Full, Unreachable."""
        return self._hold(Kind.BASE, records.PROVISIONAL if record.provisional else 0, record.encode())

    def hold_flush(self, record: FlushRecord | FillRecord) -> int:
        """The exact operation that will be sent after `write_held`; its seq. Raises: Full, Unreachable."""
        return self._hold(Kind.FILL if isinstance(record, FillRecord) else Kind.FLUSH, 0, record.encode())

    def write_held(self) -> None:
        """What was held or settled is in the journal when this returns. Raises: Full, Unreachable."""
        self._sync.check()
        if self._held or self._unsaid:
            self._write(self._held_parts())

    def settle(self, seqs: Iterable[int]) -> None:
        """These count no more, and are not recovered once the next record is written. Unknown ones are passed over."""
        gone = [seq for seq in seqs if seq in self._live]
        self._unsaid.extend(gone)
        for seq in gone:
            self._live.drop(seq)
        self._drop_settled()

    def disown(self, seqs: Iterable[int]) -> None:
        """These go with this process: readable until they are settled, never recovered once the next is written."""
        gone = [seq for seq in seqs if seq in self._live]
        self._live.disown(gone)
        self._unsaid.extend(gone)

    # ------------------------------------------------------------ reading back

    def read_into(self, seq: int, skip: int, view: memoryview) -> None:
        """Fill the view with a live write's data from `skip` on. Raises: NotFound (settled), Corrupt, Unreachable."""
        segment, position = self._live.data(seq, skip, len(view))
        segment.read_into(position, view)

    def read(self, seq: int, skip: int, size_bytes: int) -> bytes:
        """As `read_into`, into fresh bytes."""
        segment, position = self._live.data(seq, skip, size_bytes)
        return segment.read(position, size_bytes)

    async def read_many(self, parts: Sequence[tuple[int, int, memoryview]]) -> None:
        """`read_into` of several (seq, skip, view), in a thread; they may be settled meanwhile."""
        places = [(*self._live.data(seq, skip, len(view)), view) for seq, skip, view in parts]

        def read_all() -> None:
            for segment, position, view in places:
                segment.read_into(position, view)

        await self._in_thread({segment for segment, _, _ in places}, read_all)

    # ------------------------------------------------------------ safe, and room

    async def sync(self) -> None:
        """Returns when everything appended before is on the disk; those who wait together share one sync.

        Raises: Unreachable when the disk failed; the journal takes nothing more then, since what the kernel dropped
        cannot be told (Rebello et al., "Can applications recover from fsync failures?", 2020).
        """
        try:
            self.write_held()
        except Full:
            if not self.gains_by_sync:
                raise
            self._room.shrunk(self._sync.give_up_oldest().end)
            self.write_held()
        for segment in await self._sync.run(self._segments):
            self._room.shrunk(segment.end)

    @property
    def gains_by_sync(self) -> bool:
        """Whether a sync would give room back to the disk."""
        return bool(self._sync.settled)

    async def room(self, size_bytes: int) -> None:
        """Wait until `size_bytes` more are within the bound. Raises: Full after the deadline."""
        if self._room.fits(size_bytes) or self._room.look(size_bytes):
            return
        self._observer.event("journal.full", size_bytes=self._room.total_bytes)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.deadline_seconds
        while not self._room.look(size_bytes):
            left = deadline - loop.time()
            if left <= 0:
                raise Full("the mount's journal is full", "its changes are sent too slowly; see `collective status`")
            if self.gains_by_sync:
                await self.sync()
                continue
            self._freed.clear()
            self.on_pressure()
            if await self.compact():
                continue
            try:
                await asyncio.wait_for(self._freed.wait(), min(left, ROOM_LOOK_SECONDS))
            except TimeoutError:
                continue  # others may have made room on the disk

    async def compact(self) -> bool:
        """Have the oldest segment go by writing what counts of it again, where that is worth it; whether it went.

        To be repeated. Raises: Full, Unreachable, Corrupt (the disk); nothing is lost then.
        """
        number, oldest = min(self._segments.items())
        if self._compacting or oldest is self._active or not self._room.mostly_over(self._live.size_bytes):
            return False
        if not (seqs := self._live.keeping(number)):
            return False
        places = {segment: segment.end for segment in self._live.segments_of(seqs)}
        self._compacting = True
        oldest.pins += 1  # until the copies are safe
        try:
            for one in await self._in_thread(set(places), lambda: read_standing(places, seqs)):
                if self._live.may_move(one.seq):
                    self._write_again(one)
                    await asyncio.sleep(0)  # others have their turn
            await self.sync()
        finally:
            self._compacting = False
            oldest.pins -= 1
        self._drop_settled()
        return number not in self._segments

    def _write_again(self, one: Standing) -> None:
        self._prepare()
        self._write([*self._held_parts(), *records.pack_record(one.kind, one.flags, one.seq, one.payload)])
        number = self._active.number
        self._live.put(one.seq, number, number, self._active.end - one.data_bytes, one.data_bytes)

    async def close(self) -> None:
        """Sync and let go; whatever is not settled is recovered by the next one. Its folder goes when nothing is."""
        try:
            if self._sync.failure is None:
                await self.sync()
        finally:
            await asyncio.to_thread(self._executor.shutdown)
            for segment in [*self._sync.settled, *self._segments.values()]:
                if self._live:
                    segment.close()
                else:
                    segment.remove()
            self._segments.clear()
            self._sync.settled.clear()

    # ------------------------------------------------------------ parts

    def _append(self, kind: Kind, flags: int, *parts: Buffer) -> int:
        self._prepare()
        seq = self._next_seq
        self._write([*self._held_parts(), *records.pack_record(kind, flags, seq, *parts)])
        self._next_seq = seq + 1
        return seq

    def _prepare(self) -> None:
        """There is a segment to append to. Raises: Full, Unreachable."""
        self._sync.check()
        if self._active.end >= self._settings.segment_bytes:
            self.write_held()  # held records are counted in the segment they were held for
            self._active = self._new_segment(self._active.number + 1)

    def _write(self, parts: list[Buffer]) -> None:
        before = self._active.end
        self._active.append(parts)
        self._room.grown(self._active.end - before)
        self._held.clear()
        self._unsaid.clear()

    def _held_parts(self) -> list[Buffer]:
        """What goes before the next record. Losing it costs a replay that changes nothing."""
        if self._unsaid:
            return [*self._held, *records.pack_record(Kind.SETTLED, 0, 0, records.pack_seqs(self._unsaid))]
        return self._held[:]

    def _hold(self, kind: Kind, flags: int, payload: bytes) -> int:
        self._prepare()
        if len(self._held) >= HELD_RECORDS or len(payload) > HELD_PAYLOAD_BYTES:
            self.write_held()
        seq = self._next_seq
        self._held += records.pack_record(kind, flags, seq, payload)
        self._next_seq = seq + 1
        self._live.put(seq, self._active.number)
        return seq

    def _live_record(self, kind: Kind, flags: int, *parts: Buffer) -> int:
        seq = self._append(kind, flags, *parts)
        self._live.put(seq, self._active.number)
        return seq

    def append_inline(self, ino: int, offset: int, view: memoryview, time_ns: int, flags: int, store_id: bytes) -> int:
        """As `append_write`, at once, whether there is room or not."""
        kind, head = records.pack_write(ino, offset, time_ns, store_id)
        seq = self._append(kind, flags, head, view)
        number = self._active.number
        self._live.put(seq, number, number, self._active.end - len(view), len(view))
        return seq

    async def _append_blob(self, record: WriteRecord, unowned: Callable[[], bool], view: memoryview) -> WriteRecord:
        self._append_blob_header(len(view))
        segment, position = self._active, self._active.end - len(view)

        def fill() -> bytes:
            segment.write_at(position, (view,))
            return records.checksum(view)

        segment.live += 1  # until the record below counts it
        try:
            blob_checksum = await self._in_thread({segment}, fill)
            record = record._replace(segment=segment.number, position=position, blob_checksum=blob_checksum)
            flags = records.UNOWNED if unowned() else 0  # its last name may have gone meanwhile
            seq = self._append(Kind.WRITE_AT, flags, records.pack_write_at(record))
            return record._replace(seq=seq)
        finally:
            segment.live -= 1

    def _append_blob_header(self, size_bytes: int) -> None:
        self._prepare()
        self._write([*self._held_parts(), records.pack_blob_header(size_bytes)])
        self._active.end += size_bytes
        self._room.grown(size_bytes)

    def _drop_settled(self) -> None:
        for number, segment in sorted(self._segments.items()):
            if segment.live or segment.pins or segment is self._active:
                break
            self._sync.settled.append(self._segments.pop(number))
            self._room.set_down(segment.end)
            self._freed.set()

    def _new_segment(self, number: int) -> Segment:
        segment = Segment.create(self._folder, number)
        self._segments[number] = segment
        self._sync.new_files = True
        self._room.grown(segment.end)
        return segment

    async def _in_thread(self, segments: set[Segment], function: Callable[[], T]) -> T:
        """Run it; the segments stay open until it is over, even when the caller gave up."""
        loop = asyncio.get_running_loop()
        for segment in segments:
            segment.pins += 1

        def unpin() -> None:
            for segment in segments:
                segment.pins -= 1
            self._drop_settled()

        running: Future[T] = self._executor.submit(function)
        running.add_done_callback(lambda _: loop.call_soon_threadsafe(unpin))
        return await asyncio.wrap_future(running)
