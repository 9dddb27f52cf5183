"""Contents of changed files on their way: frozen, uploaded, and their operation written down before it is sent.

    asked for (a place in the queue) -> frozen -> uploaded, or inline -> flush or fill record -> sent -> settled

One flush of a file is under way at a time; what is asked for meanwhile waits for it, in its place in the queue. Small
contents go at once, into the create that is still queued where there is one. The others are uploaded by a few workers;
what cannot be uploaded stays in the journal and is tried again, for ever.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from collective.core.errors import CollectiveError, Unreachable
from collective.core.layout import INLINE_LIMIT_BYTES
from collective.core.observe import Observer
from collective.core.sizes import MIB
from collective.mount.committing import Author, Committer, PlainContent
from collective.mount.dirty import NUMBER_MASK, DirtyFile, DirtyTable, Frozen, base_of, base_size, content_of
from collective.mount.journal import Journal
from collective.mount.journal_records import FillRecord, FlushRecord
from collective.mount.operations import OperationMaker, fill_create
from collective.mount.plain import PlainReader
from collective.mount.replay_queue import Queued, StoreQueue
from collective.mount.scheduling import Keys
from collective.wire import feed_pb2, submit_pb2

__all__ = ["Contents", "Flush"]

LARGE_BYTES = MIB
SMALL_WORKERS = 8  # small contents wait for syncs, which they share
LARGE_WORKERS = 2  # each has 64 MiB of chunks in memory
FIRST_PAUSE_SECONDS = 0.1
LAST_PAUSE_SECONDS = 5.0


@dataclass(eq=False, slots=True)
class Flush:
    """One content of one file. `growing`: leave the chunk that is being written; `last`: the file was closed. When a
    create takes it along, `item` is the create's, and has its record."""

    file: DirtyFile
    queue: StoreQueue
    item: Queued
    place: int
    growing: bool
    last: bool
    frozen: Frozen | None = None
    flush_seq: int = 0
    dropped: bool = False
    pause_seconds: float = 0.0
    content: feed_pb2.Content | None = None


class Contents:
    """All flushes of a mount."""

    def __init__(
        self, journal: Journal, dirty: DirtyTable, committer: Committer, plain: PlainReader, author: Author,
        observer: Observer, queue_of: Callable[[bytes], StoreQueue],
    ) -> None:  # fmt: skip
        self._journal = journal
        self._dirty = dirty
        self._committer = committer
        self._plain = plain
        self._maker = OperationMaker(author)
        self._observer = observer
        self._queue_of = queue_of
        self._creates: dict[tuple[bytes, int], Queued] = {}  # of files, not answered, by DataStore and number
        self._set_times: dict[tuple[bytes, int], int] = {}  # of such files, by changes that are queued
        self._under_way: dict[int, Flush] = {}  # by ino
        self._asked: dict[int, Flush] = {}
        self._small: deque[Flush] = deque()
        self._large: deque[Flush] = deque()
        self._some = asyncio.Event()
        self._overdue: dict[int, list[int]] = {}
        self.on_content: Callable[[DirtyFile, feed_pb2.Content, int], None] = lambda file, content, time_ns: None
        """The home's database shows this content of the file, which was last changed at the wall time `time_ns`."""
        self.problems: dict[int, CollectiveError] = {}
        """What the last attempt to upload a file's content met, when trying again may not help; told once."""
        self.waiting: dict[int, str] = {}
        """Why contents are not sent, by ino, for as long as that is so."""
        self._left: dict[int, CollectiveError] = {}  # why nobody takes a file's content, by ino

    # ------------------------------------------------------------ asking

    def ask(self, file: DirtyFile, *, growing: bool = False, last: bool = False, place: int | None = None) -> None:
        """Send what the file has now. Returns at once; nothing happens when nothing is to be sent. `place`: the seq of
        the change it comes after, when that is not the newest one."""
        if file.unowned or not (file.records or (file.provisional and (last or not file.writers))):
            return
        if file.ino in self._left:
            self.problems[file.ino] = self._left[file.ino]
            return
        asked = self._asked.get(file.ino)
        if asked is not None:
            asked.growing = asked.growing and growing
            asked.last = asked.last or last
            return
        if growing and file.ino in self._under_way:
            return  # one at a time is what the writer can be slowed down to
        if last and file.ino not in self._under_way and self._into_create(file):
            return
        queue = self._queue_of(file.store_id)
        item = Queued([], None)
        flush = Flush(file, queue, item, self._journal.last_seq if place is None else place, growing, last)
        queue.add(item, Keys((file.ino & NUMBER_MASK,)), ready=False)
        self._asked[file.ino] = flush
        if file.ino not in self._under_way:
            self._begin(file.ino)

    def attributes_queued(self, file: DirtyFile) -> None:
        """A change of a file's attributes was queued just now: what of its content is not frozen goes behind it, since
        it carries the times of the last write."""
        asked = self._asked.get(file.ino)
        if asked is not None:
            asked.queue.make_ready(asked.item)  # it passes through, with nothing to send
            asked.item, asked.place = Queued([], None), self._journal.last_seq
            asked.queue.add(asked.item, Keys((file.ino & NUMBER_MASK,)), ready=False)

    def mtime_queued(self, store_id: bytes, number: int, mtime_ns: int) -> None:
        """A file's mtime will be this: a create that goes before takes along only a content of that very time."""
        if (store_id, number) in self._creates:
            self._set_times[store_id, number] = mtime_ns

    def create_queued(self, store_id: bytes, number: int, item: Queued) -> None:
        """A file's create was queued just now and never sent: it may take a content along. (One that an earlier mount
        left may have been sent; what is added to it would be absorbed with it.)"""
        self._creates[store_id, number] = item
        item.answered = lambda outcome: self._forget_create(store_id, number)

    def _forget_create(self, store_id: bytes, number: int) -> None:
        del self._creates[store_id, number]
        self._set_times.pop((store_id, number), None)

    def is_under_way(self, ino: int) -> bool:
        """Whether a content of the file is on its way, or about to be."""
        return ino in self._under_way or ino in self._asked

    def drop(self, file: DirtyFile) -> list[int]:
        """Nobody wants the content any more: what is not with the coordinator yet is not sent. Returns the records that
        nobody needs now: all of the file's, but for those that its create would be sent again from."""
        asked = self._asked.pop(file.ino, None)
        if asked is not None:
            asked.queue.make_ready(asked.item)
        flush = self._under_way.get(file.ino)
        if flush is not None and flush.item.staged is None:
            flush.dropped = True  # whoever uploads it just now finds out
            flush.item.answered = lambda outcome: self._over(flush)
            flush.queue.make_ready(flush.item)
        if flush is not None and flush.frozen is not None and flush.item.seqs:
            return [seq for seq in file.records if seq > flush.frozen.upto]
        return [*file.records, file.base_seq]

    def take_overdue(self, ino: int) -> list[int]:
        """The records that the file's next base would have settled, when there will be none."""
        return self._overdue.pop(ino, [])

    # ------------------------------------------------------------ beginning

    def _begin(self, ino: int) -> None:
        """Freeze what was asked for."""
        flush = self._asked.pop(ino, None)
        if flush is None:
            return
        file = flush.file
        frozen = None
        if not file.unowned and (file.records or (file.provisional and (flush.last or not file.writers))):
            frozen = file.freeze(growing=flush.growing, provisional=not flush.last and bool(file.writers))
        if frozen is None:
            flush.queue.make_ready(flush.item)  # it passes through, with nothing to send
            return
        flush.frozen = frozen
        self._under_way[ino] = flush
        if not file.records:
            flush.content = content_of(file.base)  # what was sent provisionally is final now
        self._enqueue(flush)

    def _into_create(self, file: DirtyFile) -> bool:
        """Let a create that is still queued take a small content along; whether it did."""
        key = (file.store_id, file.ino & NUMBER_MASK)
        create = self._creates.get(key)
        if create is None or create.staged is None or not file.records or file.size_bytes > INLINE_LIMIT_BYTES:
            return False
        if self._set_times.get(key, file.mtime_ns) != file.mtime_ns:
            return False
        queue = self._queue_of(file.store_id)
        if not queue.is_waiting(create) or base_size(file.base):
            return False
        frozen = file.freeze(growing=False, provisional=False)
        assert frozen is not None, "a file with records has something to freeze"
        flush = Flush(file, queue, create, create.seqs[0], growing=False, last=True, frozen=frozen)
        try:
            data = self.written(frozen)
            record = FillRecord(0, file.ino, frozen.upto, create.seqs[0], frozen.mtime_ns)
            flush.flush_seq = self._journal.hold_flush(record)
        except CollectiveError as error:  # the disk: it is tried by the usual way
            self._observer.event("replay.upload_waits", reason=error.message, size_bytes=frozen.size_bytes)
            file.thaw()
            return False
        self._forget_create(*key)
        fill_create(create.staged.operation.create, data, frozen.mtime_ns)
        flush.content = create.staged.operation.create.content
        self._under_way[file.ino] = flush
        self._send(flush)
        return True

    def written(self, file: DirtyFile | Frozen) -> bytes:
        """All of a small file that lies on nothing. Raises: NotFound, Corrupt, Unreachable."""
        return self._plain.read_journal(file.plan(0, file.size_bytes))

    # ------------------------------------------------------------ uploading

    async def run(self) -> None:
        """Upload for ever."""
        async with asyncio.TaskGroup() as group:
            for _ in range(SMALL_WORKERS):
                group.create_task(self._work(self._small))
            for _ in range(LARGE_WORKERS):
                group.create_task(self._work(self._large))

    async def _work(self, waiting: deque[Flush]) -> None:
        while True:
            while not waiting:
                self._some.clear()
                await self._some.wait()
            flush = waiting.popleft()
            if not flush.dropped:
                await self._try(flush)

    async def _try(self, flush: Flush) -> None:
        """One attempt to bring a content to where its operation can be sent; another follows when it fails."""
        frozen = flush.frozen
        assert frozen is not None
        try:
            staged = await self._upload(flush, frozen)
            if not flush.dropped:
                self._ready(flush, staged)
                self.problems.pop(frozen.ino, None)
                self.waiting.pop(frozen.ino, None)
        except CollectiveError as error:
            if flush.dropped:
                return  # what it read is gone, and nobody wants it
            if not flush.pause_seconds:  # said once, not at every attempt
                self._observer.event("replay.upload_waits", reason=error.message, size_bytes=frozen.size_bytes)
            self.waiting[frozen.ino] = error.message
            if not isinstance(error, Unreachable):
                self.problems[frozen.ino] = error
            flush.queue.wake()
            flush.pause_seconds = min(max(FIRST_PAUSE_SECONDS, flush.pause_seconds * 2), LAST_PAUSE_SECONDS)
            asyncio.get_running_loop().call_later(flush.pause_seconds, self._enqueue, flush)

    def _enqueue(self, flush: Flush) -> None:
        assert flush.frozen is not None
        (self._large if flush.frozen.size_bytes > LARGE_BYTES else self._small).append(flush)
        self._some.set()

    async def _upload(self, flush: Flush, frozen: Frozen) -> submit_pb2.StagedOperation:
        if flush.content is not None:
            return self._staged(frozen, flush.content)
        plain = self._plain.open(frozen)
        try:
            if frozen.size_bytes <= INLINE_LIMIT_BYTES:
                data = bytearray(frozen.size_bytes)
                await plain.read(0, memoryview(data))
                return self._staged(frozen, feed_pb2.Content(size_bytes=len(data), inline=bytes(data)))
            sealed = await self._committer.upload(
                PlainContent(frozen.store_id, frozen.size_bytes, plain.read, frozen.changed(), frozen.previous)
            )
        finally:
            await plain.close()
        staged = self._staged(frozen, sealed.content)
        staged.layout.CopyFrom(sealed.layout)
        staged.pages.extend(sealed.pages)
        staged.key_pages.extend(sealed.key_pages)
        return staged

    def _staged(self, frozen: Frozen, content: feed_pb2.Content) -> submit_pb2.StagedOperation:
        operation = self._maker.set_content(
            frozen.ino & NUMBER_MASK, content, content_of(frozen.base), frozen.mtime_ns, frozen.time_ns,
            provisional=frozen.provisional,
        )  # fmt: skip
        return submit_pb2.StagedOperation(operation=operation)

    # ------------------------------------------------------------ sending

    def _ready(self, flush: Flush, staged: submit_pb2.StagedOperation) -> None:
        """Its operation is complete: written down, then in the queue's hands. Raises: Full, Unreachable (disk)."""
        frozen = flush.frozen
        assert frozen is not None
        flush.flush_seq = self._journal.hold_flush(
            FlushRecord(
                0, frozen.ino, frozen.store_id, staged, frozen.upto, flush.place, 0, frozen.keep_start,
                frozen.keep_end, not frozen.provisional,
            )
        )  # fmt: skip
        flush.content = staged.operation.set_content.content
        self._send(flush)
        flush.item.staged = staged
        flush.queue.make_ready(flush.item)

    def take_up(self, flush: Flush) -> None:
        """A flush that an earlier process wrote down; `frozen`, `content`, `flush_seq` and its item are set."""
        self._under_way[flush.file.ino] = flush
        self._send(flush)

    def _send(self, flush: Flush) -> None:
        """It is in the queue's hands. When nobody takes it, it stays under way: told at fsync, sent next time."""
        flush.item.answered = lambda outcome: self._answered(flush)
        flush.item.left = partial(self._leave, flush.file.ino)

    def _leave(self, ino: int, error: CollectiveError) -> None:
        self._left[ino] = self.problems[ino] = error
        asked = self._asked.pop(ino, None)
        if asked is not None:
            asked.queue.make_ready(asked.item)

    def _answered(self, flush: Flush) -> None:
        """The home's database shows the content. Raises: nothing."""
        file, frozen = flush.file, flush.frozen
        assert frozen is not None
        assert flush.content is not None
        gone = [*file.settle(base_of(file.store_id, flush.content)), flush.flush_seq, *flush.item.seqs]
        self.on_content(file, flush.content, frozen.time_ns)
        self._base_after(file, gone)
        flush.item.seqs = [seq for seq in gone if seq > 0]
        self._over(flush)

    # ------------------------------------------------------------ bases

    def need_base(self, file: DirtyFile) -> None:
        """Write down what the file's changes lie on, unless that is done. Raises: Full, Unreachable (the disk)."""
        if not file.base_seq and not file.unowned:
            file.base_seq = self._journal.hold_base(file.to_record())

    def renew_base(self, file: DirtyFile) -> None:
        """The file's times are not what its base record says: write another one."""
        if file.base_seq and not file.unowned:
            try:
                before, file.base_seq = file.base_seq, self._journal.append_base(file.to_record())
            except CollectiveError as error:  # after a crash now the file would have the time of its last write
                self._observer.event("replay.base_waits", reason=error.message)
            else:
                self._journal.settle([before])

    def changed(self, file: DirtyFile, seq: int) -> None:
        """A write is journalled as `seq` (0: it is not). Raises: Full, Unreachable (the disk)."""
        if file.unowned:
            if seq and self._dirty.get(file.ino) is not file:  # it was forgotten meanwhile
                self._journal.settle([seq])
            elif seq:
                self._journal.disown([seq])  # orphaned while it was being written
        elif file.records:
            if not file.base_seq:  # a flush that was settled meanwhile took the old one along
                file.base_seq = self._journal.append_base(file.to_record())
        elif not file.provisional and not file.busy and not self.is_under_way(file.ino):
            self._journal.settle([file.base_seq])
            self._dirty.drop(file)

    def _base_after(self, file: DirtyFile, gone: list[int]) -> None:
        """The base record that fits the file after a flush; `gone` becomes what may be settled with it."""
        gone += self._overdue.pop(file.ino, [])
        if not file.dirty or file.unowned:
            gone.append(file.base_seq)
            file.base_seq = 0
            return
        before = file.base_seq
        try:
            file.base_seq = self._journal.hold_base(file.to_record())
            gone.append(before)
        except CollectiveError as error:
            # what is known of the old base stays whole until the new one is written down
            self._observer.event("replay.base_waits", reason=error.message)
            self._overdue[file.ino] = gone[:]
            gone.clear()

    def _over(self, flush: Flush) -> None:
        file = flush.file
        self.waiting.pop(file.ino, None)
        if self._under_way.get(file.ino) is flush:
            del self._under_way[file.ino]
        if file.frozen is not None:
            file.thaw()
        self._begin(file.ino)
        if not (file.dirty or file.busy or file.unowned or file.ino in self._under_way):
            self._dirty.drop(file)
