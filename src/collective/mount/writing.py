"""A mount that writes, put together: what it shows, how it changes, where changes go.

    TreeChanges ---- record ----> Writing -> Replay (journal, queue, uploads) -> Committer
    OpenFiles ------ write -----> Writing -> Replay
    TreeView <------ overlay, dirty files
    Leases <-------- recalls: Replay sends what was changed in the directory, then the lease is given up

Everything here runs in the mount's event loop.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from collective.catalog.models import DataStore, Node, VersionReference
from collective.catalog.overlay import Overlay
from collective.core.clock import Clock
from collective.core.errors import CollectiveError, NotFound, Unreachable
from collective.core.observe import Observer
from collective.mount.changing import TreeChanges
from collective.mount.committing import Author, Committer
from collective.mount.dirty import NUMBER_MASK, DirtyFile, DirtyTable
from collective.mount.extents import Piece
from collective.mount.files import OpenFiles
from collective.mount.journal import Journal
from collective.mount.lease import Leases
from collective.mount.names import OpenSource
from collective.mount.numbers import InodeNumbers
from collective.mount.operations import OperationMaker
from collective.mount.reading import ContentReader
from collective.mount.replay import Replay
from collective.mount.view import LeasedNames, TreeView, WritableNames
from collective.wire import feed_pb2

__all__ = ["Writer", "Writing"]

LEVEL_SECONDS = 10.0
"""How long an fsync in a DataStore whose usual level is `two` waits for the second home before it says so, loudly, and
counts what survives a power failure as enough."""

DRAIN_SECONDS = 8.0
"""How long an unmount waits for what is not sent yet; the rest stays in the journal for the next mount."""

ROOM_BYTES = 64 << 10
CONTENT_SEQ = 0  # no record of the journal has it


@dataclass
class Writer:
    """What a mount needs to write; made by whoever starts it. `journal` was opened, and is closed, by its maker;
    `writing` is there once it began."""

    committer: Committer
    journal: Journal
    author: Author
    clock: Clock
    writing: Writing | None = None

    def begin(self, names: Any, reader: ContentReader, open_source: OpenSource, observer: Observer) -> Writing:
        """`names` is a `WritableNames`."""
        self.writing = Writing(
            names, reader, open_source, self.committer, self.journal, self.author, self.clock, observer
        )
        return self.writing


class Writing:
    """The writing half of one mount. An async context manager: inside it changes are sent in the background.

    `names` is the catalogue's reader, `open_source` opens library contents for whoever uploads over them.
    """

    def __init__(
        self,
        names: WritableNames,
        reader: ContentReader,
        open_source: OpenSource,
        committer: Committer,
        journal: Journal,
        author: Author,
        clock: Clock,
        observer: Observer,
    ) -> None:
        self._committer = committer
        self._journal = journal
        self._clock = clock
        self._observer = observer
        self._dirty = DirtyTable()
        self._arrived: list[tuple[DirtyFile, feed_pb2.Content, int]] = []  # told of within a batch
        self._surprises = 0
        self._alone: dict[str, int] = {}  # path of a DataStore -> fsyncs since one reached the second home
        self._leases = Leases(committer, self._settle_directory, clock.monotonic)
        self._leased = LeasedNames(names, self._leases)
        self._overlay = Overlay(self._leased)
        self._replay = Replay(journal, self._dirty, committer, open_source, author, clock, observer, self._settled)
        self._replay.on_content(self._content_arrived)
        self.view = TreeView(names, self._leased, self._overlay, self._dirty, committer.may_write)
        self.files = OpenFiles(self.view, reader, self, self._wall_ns)
        self.changes = TreeChanges(
            self.view, self, self._leases, committer, InodeNumbers(committer.lease_numbers), OperationMaker(author),
            self, self._wall_ns,
        )  # fmt: skip
        for record in self._replay.recover():
            self._overlay.apply(record.seq, self.view.store(record.store_id), record.operation, self._wall_ns())
        committer.on_connect(self._replay.directories)

    async def __aenter__(self) -> Writing:
        await self._replay.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                await self.drained()
        except (TimeoutError, CollectiveError) as failure:
            self._observer.event("mount.unsent", reason=str(failure), journal_bytes=self._journal.size_bytes)
        finally:
            await self._replay.__aexit__(kind, error, trace)

    @property
    def trouble(self) -> str:
        """Why something stays in the journal, or is held by this home alone after an fsync; "" when nothing is."""
        alone = [f"the last {count} fsyncs in {path} found no second home" for path, count in self._alone.items()]
        return next(iter([*filter(None, [self._replay.trouble]), *alone]), "")

    async def drained(self) -> None:
        """Send everything there is, open files as they stand; returns when the coordinator has it."""
        await self._replay.wait()

    def _wall_ns(self) -> int:
        return int(self._clock.wall() * 1e9)

    def certain_since(self, parent_ino: int) -> float:
        """Since when (monotonic seconds) nobody but this mount can have changed a directory; else infinite."""
        return self._leased.certain_since(parent_ino)

    # ------------------------------------------------------------------ changes of names (Recorder)

    def record(self, store: DataStore, operation: feed_pb2.TreeOperation, *, of_directory: bool) -> None:
        """Raises: Full, Unreachable: nothing happened."""
        seq = self._replay.change(store.feed_id, operation, of_directory=of_directory)
        reason = self._overlay.apply(seq, store, operation, operation.time_nanoseconds)
        if reason:  # checked before, under the same rules: whoever sees this has found a bug
            self._observer.event("mount.change_refused", reason=reason)
            raise OSError(errno.EIO, reason)

    async def room(self) -> None:
        await self._journal.room(ROOM_BYTES)

    async def before(self, store_id: bytes, operation: feed_pb2.TreeOperation, *, of_directory: bool) -> None:
        await self._replay.before(store_id, operation, of_directory=of_directory)

    async def _settle_directory(self, store_id: bytes, inode: int) -> None:
        await self._replay.settle_directory(store_id, inode)

    def _settled(self, seqs: Iterable[int]) -> None:
        """The database shows these, and with them the contents that arrived."""
        self._overlay.settle(seqs)
        for file, content, time_ns in self._arrived:
            if self._overlay.overrides(file.ino):
                self._show_content(file, content, time_ns)
        self._arrived.clear()
        if self._replay.surprises != self._surprises:
            self._surprises = self._replay.surprises
            self._leases.doubt_names()  # names are not what this mount made them

    def _content_arrived(self, file: DirtyFile, content: feed_pb2.Content, time_ns: int) -> None:
        self._arrived.append((file, content, time_ns))

    def _show_content(self, file: DirtyFile, content: feed_pb2.Content, time_ns: int) -> None:
        """Other changes of the file are still under way: what the overlay shows of it for their sake has this content
        from now on, and the time that the file has now."""
        try:
            time_ns = max(time_ns, self._overlay.get(file.ino).ctime_ns)
        except NotFound:
            return  # removed, and the removal is under way
        operation = feed_pb2.TreeOperation(time_nanoseconds=time_ns)
        operation.set_content.inode = file.ino & NUMBER_MASK
        operation.set_content.content.CopyFrom(content)
        operation.set_content.mtime_nanoseconds = file.mtime_ns
        self._overlay.apply(CONTENT_SEQ, self.view.store(file.store_id), operation, time_ns)
        self._overlay.settle((CONTENT_SEQ,))

    def losing_last_name(self, ino: int) -> None:
        if self.files.is_open(ino):
            self.view.keep(ino)

    def lost_last_name(self, ino: int) -> None:
        if self.files.is_open(ino):
            self._replay.orphan(ino)
        else:
            self._replay.forget(ino)

    def close_flushed(self, ino: int) -> None:
        self.files.close_flushed(ino)

    def forget(self, ino: int) -> None:
        """Nobody has the file open any more."""
        dirty = self._dirty.get(ino)
        if dirty is not None and dirty.unowned:
            self._replay.forget(ino)
        self.view.forget(ino)

    # ------------------------------------------------------------------ contents (WrittenContents)

    def dirty(self, ino: int) -> DirtyFile | None:
        return self._dirty.get(ino)

    def written(self, piece: Piece) -> bytes:
        return self._journal.read(piece.seq, piece.skip, piece.end - piece.start)

    async def write(self, node: Node, offset: int, data: bytes, time_ns: int) -> None:
        if data:
            await self._replay.write(self._begin(node), offset, data, time_ns)

    async def truncate(self, node: Node, size_bytes: int, time_ns: int) -> None:
        await self._journal.room(0)
        self._replay.truncate(self._begin(node), size_bytes, time_ns)

    def _begin(self, node: Node) -> DirtyFile:
        """The file, about to be changed."""
        file = self._dirty.get(node.ino)
        if file is None:
            assert node.store_id is not None, "a file lies in a DataStore"
            try:
                base = self.view.content(node)
            except NotFound:
                raise OSError(errno.ESTALE, "somebody else removed the file") from None
            file = self._dirty.begin(node.ino, node.store_id, base, node.size_bytes, node.mtime_ns)
            if not node.link_count:
                self._replay.orphan(node.ino)
        return file

    def opened(self, ino: int) -> None:
        self._replay.opened(ino)

    def closed(self, ino: int) -> None:
        self._replay.closed(ino)

    def problem(self, ino: int) -> CollectiveError | None:
        return self._replay.problem(ino)

    async def sync(self, ino: int | None) -> None:
        await self._journal.sync()
        if ino is None:
            return
        problem = self._replay.problem(ino)
        if problem is not None:
            raise problem
        node = self.view.get(ino)
        if node.store_id is not None and node.link_count:
            await self._reach_level(node, self.view.store(node.store_id))

    async def _reach_level(self, node: Node, store: DataStore) -> None:
        """Where two homes shall hold what is safe, wait for the second; without it what survives a power failure is
        enough, and that is said loudly. Raises: what keeps the content from this home's own nodes."""
        if store.strategy != feed_pb2.BACKUP:
            return
        level = reason = ""
        try:
            async with asyncio.timeout(LEVEL_SECONDS):
                await self._replay.flush(node.ino)
                content = self.view.content(self.view.get(node.ino))
                version_id = content.version_id if isinstance(content, VersionReference) else b""
                level = await self._committer.await_level(store.feed_id, version_id, "two", LEVEL_SECONDS)
        except (Unreachable, TimeoutError) as error:
            reason = str(error)
        path = store.path.decode(errors="replace")
        if level == "two":
            self._alone.pop(path, None)
        else:
            self._alone[path] = self._alone.get(path, 0) + 1
            self._observer.event("mount.level_not_reached", path=path, level="local", reason=reason)
