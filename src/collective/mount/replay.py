"""From the journal into the library (in work: the signatures stand, the inside follows)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from collective.core.clock import Clock
from collective.core.errors import CollectiveError
from collective.core.observe import Observer
from collective.mount.committing import Author, Committer
from collective.mount.dirty import DirtyFile, DirtyTable
from collective.mount.journal import Journal
from collective.mount.journal_records import OperationRecord
from collective.mount.names import OpenSource
from collective.wire import feed_pb2


class Replay:
    """Every change of a mount goes through here, and nothing else sends anything to the coordinator but exact calls.

    An async context manager: inside it the background work runs (batches every 20 ms, uploads, idle flushes, syncs).
    `on_settled(seqs)`: the home's database shows these operations now (Overlay.settle). Called in the event loop.
    """

    def __init__(
        self, journal: Journal, dirty: DirtyTable, committer: Committer, open_source: OpenSource, author: Author,
        clock: Clock, observer: Observer, on_settled: Callable[[Iterable[int]], None],
    ) -> None:  # fmt: skip
        raise NotImplementedError

    def recover(self) -> Sequence[OperationRecord]:
        """Once, before anything else: takes up what an earlier mount left. The operations not yet in the library, in
        order of seq, for the view's Overlay; the dirty table is filled."""
        raise NotImplementedError

    # changes; each is in the journal when it returns (async: when awaited)
    def change(self, store_id: bytes, operation: feed_pb2.TreeOperation, *, of_directory: bool = False) -> int:
        """Journal an operation and queue it; its seq (for Overlay.apply). No await inside. `of_directory`: the thing made,
        moved, removed is a directory. A SetAttributes with mtime also sets a dirty file's. Raises: Full, Unreachable."""
        raise NotImplementedError

    async def write(self, file: DirtyFile, offset: int, data: bytes | memoryview, time_ns: int) -> None:
        """Journal data and put it into the file's extents (size, mtime move along). Waits for room.
        `file` comes from DirtyTable.begin(ino, store_id, base, size, mtime). Raises: Full, Unreachable."""
        raise NotImplementedError

    def truncate(self, file: DirtyFile, size_bytes: int, time_ns: int) -> None:
        """Journal a new size. Raises: Full, Unreachable."""
        raise NotImplementedError

    async def read(self, file: DirtyFile, offset: int, size_bytes: int) -> bytes | memoryview:
        """The bytes as they stand now, across journal and base."""
        raise NotImplementedError

    # the life of open files
    def opened(self, ino: int) -> None:
        """One more handle that may write to the file."""

    def closed(self, ino: int) -> None:
        """One less; with the last the content is sent (a Create still queued takes a small one along)."""

    def orphan(self, ino: int) -> None:
        """The last name went while the file is open: nothing of it is sent or recovered any more, all stays readable."""

    def forget(self, ino: int) -> None:
        """The last name went (or the last handle of an orphan): what is not sent is dropped."""

    # waiting
    async def flush(self, ino: int) -> None:
        """Send the file's content as it is now, and all earlier changes of it; returns when they are in the home's
        database. Raises: Full, Refused, Unreachable: what keeps it from getting there (it is tried on all the same)."""

    def problem(self, ino: int) -> CollectiveError | None:
        """What the last attempt to send the content met (Full, Refused), told once: for fsync and close."""

    async def before(self, store_id: bytes, operation: feed_pb2.TreeOperation, *, of_directory: bool = False) -> None:
        """Wait until nothing queued concerns what `operation` names; then it can be submitted exactly."""

    async def settle_directory(self, store_id: bytes, inode: int) -> None:
        """Submit at once, and wait until nothing queued changes names in the directory (number). For recalls."""

    async def wait(self) -> None:
        """Send everything there is (open files as they stand) and wait until all is settled. For unmounting."""
