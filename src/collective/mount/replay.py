"""From the journal into the library: whatever a mount changes goes through here, and here alone is it sent.

Theory: a change is in the journal when its call returns, and in a queue per DataStore (replay_queue) that sends batches
in an order that keeps what depends on each other together (scheduling). A file's content is collected while it is
written and sent when the last writer closed it, when it was left alone for five seconds, when much of it has gathered,
or when somebody waits for it (replay_contents). What the coordinator answered is settled in the journal. After a crash
`recover` puts everything back into the queues: operations as they were, contents that had been written down for sending
as the very same operation, other contents from their extents.

    write, truncate -> extents -> flush -> flush record -> batch -> answered -> settled
    change ---------------------------------------------> batch -> answered -> settled
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType

from collective.core.clock import Clock
from collective.core.errors import CollectiveError
from collective.core.observe import Observer
from collective.core.sizes import MIB
from collective.mount.committing import Author, Committer
from collective.mount.dirty import IN_FIRST_WRITE, NUMBER_MASK, DirtyFile, DirtyTable
from collective.mount.journal import THREAD_BYTES, Journal
from collective.mount.journal_records import OperationRecord
from collective.mount.names import OpenSource
from collective.mount.pace import Pace
from collective.mount.plain import PlainReader
from collective.mount.replay_contents import Contents
from collective.mount.replay_queue import Queued, StoreQueue
from collective.mount.replay_recovery import take_up
from collective.mount.scheduling import Keys, keys_of
from collective.wire import feed_pb2, submit_pb2

__all__ = ["Replay"]

IDLE_SECONDS = 5.0
SYNC_SECONDS = 5.0
TICK_SECONDS = 1.0
GATHERED_BYTES = 64 * MIB  # of one file, before what is complete of it is sent; a share of a large file's size …
GATHERED_MOST_BYTES = 512 * MIB  # … since each time the list of all its chunks is sent, but never more than this


class Replay:
    """The way of all changes. An async context manager: inside it the background work runs.

    `on_settled` gets the seqs of records that the home's own database shows from now on.
    """

    def __init__(
        self, journal: Journal, dirty: DirtyTable, committer: Committer, open_source: OpenSource, author: Author,
        clock: Clock, observer: Observer, on_settled: Callable[[Iterable[int]], None],
    ) -> None:  # fmt: skip
        self._journal = journal
        self._dirty = dirty
        self._committer = committer
        self._clock = clock
        self._observer = observer
        self._on_settled = on_settled
        self._queues: dict[bytes, StoreQueue] = {}
        self._group: asyncio.TaskGroup | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._writers: dict[int, int] = {}
        self._next_sync = 0.0
        self._pace = Pace(lambda: journal.half_full)
        plain = PlainReader(journal, open_source, self._pace)
        self._contents = Contents(journal, dirty, committer, plain, author, observer, self._queue)
        journal.on_pressure = self._relieve

    @property
    def surprises(self) -> int:
        """How many operations did not end as they were asked (conflicts, refusals)."""
        return sum(queue.surprises for queue in self._queues.values())

    @property
    def trouble(self) -> str:
        """Why something stays in the journal: nobody takes it, or it cannot be sent now; "" when nothing does."""
        queues = self._queues.values()
        left = [reason for queue in queues for reason in queue.left]
        failing = [queue.failure.message for queue in queues if queue.failure is not None]
        return next(iter([*left, *self._contents.waiting.values(), *failing]), "")

    def on_content(self, arrived: Callable[[DirtyFile, feed_pb2.Content, int], None]) -> None:
        """Who is told of each content that the home's database shows: the file, the content, when it was written."""
        self._contents.on_content = arrived

    async def __aenter__(self) -> Replay:
        self._group = asyncio.TaskGroup()
        await self._group.__aenter__()
        self._tasks = [self._group.create_task(self._contents.run()), self._group.create_task(self._tick_on())]
        for queue in self._queues.values():
            self._tasks.append(self._group.create_task(queue.run()))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What is not sent stays in the journal."""
        assert self._group is not None
        for task in self._tasks:
            task.cancel()
        await self._group.__aexit__(kind, error, trace)

    def recover(self) -> Sequence[OperationRecord]:
        """Take up what earlier mounts left; once, before anything is changed. Returns the operations that the library
        does not show yet, in order, for the view; the dirty table is filled. Raises: Full, Unreachable (the disk)."""
        return take_up(self._journal, self._dirty, self._contents, self._queue, self._queue_operation)

    # ------------------------------------------------------------ changes

    def change(self, store_id: bytes, operation: feed_pb2.TreeOperation, *, of_directory: bool = False) -> int:
        """A change of the tree: in the journal when this returns, with its seq. `of_directory`: what it makes, moves or
        removes is a directory. Setting a dirty file's mtime counts over what was written before.

        Raises: Full, Unreachable (the disk); nothing happened then.
        """
        seq = self._journal.append_operation(store_id, operation, of_directory=of_directory)
        item = self._queue_operation(store_id, operation, seq, of_directory)
        if operation.HasField("create") and not of_directory:
            self._contents.create_queued(store_id, operation.create.inode, item)
        self._also_changes_content(store_id, operation)
        return seq

    def _also_changes_content(self, store_id: bytes, operation: feed_pb2.TreeOperation) -> None:
        """What a queued change of attributes means to a content that is not frozen yet."""
        attributes = operation.set_attributes
        number = attributes.inode or operation.set_xattr.inode
        if not number:
            return
        if attributes.HasField("mtime_nanoseconds"):
            self._contents.mtime_queued(store_id, number, attributes.mtime_nanoseconds)
        file = self._dirty.find(store_id, number)
        if file is None:
            return
        file.time_ns = max(file.time_ns, operation.time_nanoseconds)  # its content must not set the ctime back
        self._contents.attributes_queued(file)
        if attributes.HasField("mtime_nanoseconds"):
            file.mtime_ns = attributes.mtime_nanoseconds
            self._contents.renew_base(file)

    async def write(self, file: DirtyFile, offset: int, data: bytes | memoryview, time_ns: int) -> None:
        """Data of a file that the dirty table gave out: in the journal and in the file when this returns. Waits for
        room in the journal. Raises: Full, Unreachable (the disk); the file is as it was then."""
        if not data:
            return
        self._pace.wrote(len(data))
        file.busy += 1
        seq = 0
        try:
            await self._journal.room(len(data))  # now, so that what the file lies on is still true when that is written
            first = len(data) < THREAD_BYTES and file.is_blank
            if not first:
                self._contents.need_base(file)
            seq = await self._journal.append_write(
                file.ino, offset, data, time_ns, unowned=lambda: file.unowned, store_id=file.store_id if first else b""
            )
            file.wrote(seq, offset, len(data), time_ns)
            if first:
                file.base_seq = IN_FIRST_WRITE
        finally:
            file.busy -= 1
            self._contents.changed(file, seq)
        self._touched(file)
        if file.unsent_bytes >= min(max(GATHERED_BYTES, file.size_bytes // 8), GATHERED_MOST_BYTES):
            self._contents.ask(file, growing=True)

    def truncate(self, file: DirtyFile, size_bytes: int, time_ns: int) -> None:
        """A new size, in the journal when this returns. Raises: Full, Unreachable (the disk)."""
        seq = 0
        try:
            self._contents.need_base(file)
            seq = self._journal.append_truncate(file.ino, size_bytes, time_ns, unowned=file.unowned)
            file.truncated(seq, size_bytes, time_ns)
        finally:
            self._contents.changed(file, seq)
        self._touched(file)

    def _touched(self, file: DirtyFile) -> None:
        file.writers = self._writers.get(file.ino, 0)
        self._dirty.touch(file, self._clock.monotonic())

    # ------------------------------------------------------------ the life of files

    def opened(self, ino: int) -> None:
        """One more handle that may write to the file."""
        self._count_writers(ino, 1)

    def closed(self, ino: int) -> None:
        """One less. With the last the content is sent; a create that is still queued takes a small one along."""
        if self._count_writers(ino, -1) == 0 and (file := self._dirty.get(ino)) is not None:
            self._contents.ask(file, last=True)

    def _count_writers(self, ino: int, step: int) -> int:
        count = max(0, self._writers.get(ino, 0) + step)
        if count:
            self._writers[ino] = count
        else:
            self._writers.pop(ino, None)
        if (file := self._dirty.get(ino)) is not None:
            file.writers = count
        return count

    def orphan(self, ino: int) -> None:
        """The last name went while the file is open: nothing more of it is sent or recovered, all of it stays readable
        until `forget`."""
        if (file := self._dirty.get(ino)) is not None and not file.unowned:
            file.unowned = True
            self._journal.disown(self._contents.drop(file))

    def forget(self, ino: int) -> None:
        """The file is gone, and nobody has it open: what is not sent is dropped."""
        self._writers.pop(ino, None)
        if (file := self._dirty.get(ino)) is not None:
            file.unowned = True
            self._dirty.drop(file)
            self._settled([*self._contents.drop(file), *self._contents.take_overdue(ino)])

    def problem(self, ino: int) -> CollectiveError | None:
        """What the last attempt to send the file's content met (Full, Refused, …), told once: for fsync and close. It
        is tried again all the same."""
        return self._contents.problems.pop(ino, None)

    # ------------------------------------------------------------ waiting

    async def flush(self, ino: int) -> None:
        """Send the file's content as it is now; returns when it, and what was changed of the file before, is in the
        home's database. Raises: what keeps it from getting there (Full, Refused, …); waits while nobody answers."""
        if (file := self._dirty.get(ino)) is not None:
            self._contents.ask(file)
        for queue in list(self._queues.values()):
            await queue.finished(queue.concerning(Keys((ino & NUMBER_MASK,))), lambda: self._raise_problem(ino))
        self._raise_problem(ino)

    def _raise_problem(self, ino: int) -> None:
        if (problem := self.problem(ino)) is not None:
            raise problem

    async def before(self, store_id: bytes, operation: feed_pb2.TreeOperation, *, of_directory: bool = False) -> None:
        """Return when nothing queued concerns what `operation` names, so that it can be submitted by itself.

        Raises: Unreachable when what is queued could not be sent the last time.
        """
        if (queue := self._queues.get(store_id)) is not None:
            concerned = queue.concerning(keys_of(operation, of_directory=of_directory))
            await queue.finished(concerned, queue.check_sending)

    async def settle_directory(self, store_id: bytes, inode: int) -> None:
        """Return when nothing queued puts or takes names in a directory (its number); what may go goes at once."""
        if (queue := self._queues.get(store_id)) is not None:
            await queue.finished(queue.changing_names_in(inode))

    def directories(self) -> Iterator[tuple[bytes, int]]:
        """(store id, inode number) of each directory in which something queued puts or takes names."""
        return ((store_id, inode) for store_id, queue in self._queues.items() for inode in queue.directories())

    async def submitted(self, store_id: bytes) -> None:
        """Return when everything queued for a DataStore now, but contents and what waits for them, is answered."""
        if (queue := self._queues.get(store_id)) is not None:
            await queue.finished(queue.free_tickets())

    async def wait(self) -> None:
        """Send everything, open files as they stand, and return when all of it is settled."""
        while len(self._dirty) or any(len(queue) for queue in self._queues.values()):
            for file in self._dirty:
                if not self._contents.is_under_way(file.ino):
                    self._contents.ask(file, last=not file.writers)
            if not any(len(queue) for queue in self._queues.values()):
                return  # what is left is open, and sent as far as it goes
            for queue in list(self._queues.values()):
                await queue.finished(queue.all_tickets())

    # ------------------------------------------------------------ the work

    async def _tick_on(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            await self.tick(self._clock.monotonic())

    async def tick(self, now: float) -> None:
        """Send files that were left alone; now and then sync the journal, and have go of it what can."""
        for file in self._dirty.idle_since(now - IDLE_SECONDS):
            if file.records and not self._contents.is_under_way(file.ino):
                self._contents.ask(file)
        if now >= self._next_sync or self._journal.gains_by_sync:
            self._next_sync = now + SYNC_SECONDS
            try:
                await self._journal.sync()
                while await self._journal.compact():
                    continue
            except CollectiveError as error:
                self._observer.event("replay.journal_failed", reason=error.message)

    def _relieve(self) -> None:
        """Somebody waits for room in the journal: send whatever there is."""
        for file in self._dirty:
            if not self._contents.is_under_way(file.ino):
                self._contents.ask(file)

    def _queue(self, store_id: bytes) -> StoreQueue:
        queue = self._queues.get(store_id)
        if queue is None:
            queue = self._queues[store_id] = StoreQueue(
                store_id, self._committer, self._observer, self._journal.write_held, self._settled
            )
            if self._group is not None:
                self._tasks.append(self._group.create_task(queue.run()))
        return queue

    def _queue_operation(
        self, store_id: bytes, operation: feed_pb2.TreeOperation, seq: int, of_directory: bool
    ) -> Queued:
        item = Queued([seq], submit_pb2.StagedOperation(operation=operation))
        self._queue(store_id).add(item, keys_of(operation, of_directory=of_directory))
        return item

    def _settled(self, seqs: list[int]) -> None:
        self._journal.settle(seqs)
        self._on_settled(seqs)
