"""Open files: where their bytes come from, and where what is written goes.

    a read finds                       and gets
    changes not uploaded yet (dirty)   journal pieces, zeros, and the library's content below them
    a content written here before      what the library has now
    a content nobody changed here      that very content, until somebody opens a newer one; then ESTALE: the kernel
                                       caches pages per inode, and pages of two contents must never be mixed

A write is one journal record before the program that wrote goes on; uploading is `WrittenContents`' business.

The kernel tells of a close(2) twice: `flush` before the program goes on, `release` some time later, when no copy of
the descriptor is left. A file is closed for good at its release, or, when a program that closed it renames or links it
at once (write aside, then rename over), just before that: its content must not come after its new name.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, Protocol

from collective.core.errors import CollectiveError, NotFound
from collective.mount.contents import content_key
from collective.mount.dirty import DirtyFile
from collective.mount.extents import BASE, Piece
from collective.mount.handles import FileHandle, HandleTable, LastOpened, OpenInode
from collective.mount.names import ContentReference, InlineContent, Node, is_directory, is_inline
from collective.mount.reading import ContentReader

__all__ = ["ContentView", "OpenFiles", "OpenedFile", "WrittenContents"]

WRITING_FLAGS = (os.O_WRONLY, os.O_RDWR)


class OpenedFile(NamedTuple):
    """A file handle, and whether the kernel's cached pages of the inode may stay."""

    handle: int
    keep_cache: bool


class WrittenContents(Protocol):
    """Contents on their way from the journal into the library."""

    def dirty(self, ino: int) -> DirtyFile | None:
        """A file with changes that are not in the library; None: the names tell all there is to know about it."""
        ...

    def written(self, piece: Piece) -> bytes:
        """The bytes of a piece that lies in the journal. Raises: Corrupt, Unreachable (the disk fails)."""
        ...

    async def write(self, node: Any, offset: int, data: bytes, time_ns: int) -> None:
        """In the journal when this returns. Raises: Full."""
        ...

    async def truncate(self, node: Any, size_bytes: int, time_ns: int) -> None:
        """As `write`."""
        ...

    def opened(self, ino: int) -> None:
        """One more who may write."""
        ...

    def closed(self, ino: int) -> None:
        """One less; with the last the content is sent."""
        ...

    def problem(self, ino: int) -> CollectiveError | None:
        """What the last attempt to send the content met, told once."""
        ...

    async def sync(self, ino: int | None) -> None:
        """fsync: survives power loss, and holds the level its DataStore asks for. None: names only. Raises: Full, …"""
        ...


class ContentView(Protocol):
    """The names, as far as open files need them."""

    def get(self, ino: int) -> Node: ...
    def content(self, node: Any) -> InlineContent | ContentReference: ...


class OpenFiles:
    """All open files of a mount. `written` is None where nothing can be written, and `wall_ns`,
    the time of day, is not asked then."""

    def __init__(
        self,
        view: ContentView,
        reader: ContentReader,
        written: WrittenContents | None = None,
        wall_ns: Callable[[], int] = lambda: 0,
    ) -> None:
        self._view = view
        self._reader = reader
        self._written = written
        self._wall_ns = wall_ns
        self._handles: HandleTable[FileHandle] = HandleTable()
        self._open: dict[int, OpenInode] = {}  # the one that reads the newest content, per inode
        self._users: dict[int, int] = {}  # handles per inode, whatever content they read
        self._last_opened = LastOpened()

    def is_open(self, ino: int) -> bool:
        return ino in self._users

    def node_of_removed(self, ino: int) -> Node:
        """What is known of a file that others removed while it is open here. Raises: NotFound when it is not."""
        opened = self._open.get(ino)
        if opened is None:
            raise NotFound("there is no such file any more")
        return opened.node.without_name()

    # ------------------------------------------------------------------ open and close

    def open(self, node: Node, flags: int) -> OpenedFile:
        """One more handle; calls nobody. Raises: OSError (EISDIR, EMFILE), CollectiveError."""
        if is_directory(node):
            raise OSError(errno.EISDIR, "a directory")
        opened = self._open.get(node.ino)
        if opened is None or not self._is_current(opened, node):
            opened = self._open_anew(node)
        opened.node = node
        handle = FileHandle(opened, flags & os.O_ACCMODE in WRITING_FLAGS)
        opened.handles.add(handle)
        self._users[node.ino] = self._users.get(node.ino, 0) + 1
        try:
            number = self._handles.add(handle)
        except OSError:
            self._leave(handle)
            raise
        if handle.writes:
            self._counted(handle, writing=True)
        return OpenedFile(number, self._last_opened.opened(node.ino, opened.key))

    def release(self, number: int) -> int | None:
        """The handle is gone. Returns the ino if nobody has the file open any more."""
        return self._leave(self._handles.remove(number))

    def _leave(self, handle: FileHandle) -> int | None:
        opened = handle.opened
        self._counted(handle, writing=False)
        opened.handles.discard(handle)
        if not opened.handles:
            if opened.content is not None:
                self._reader.close(opened.content)
            if self._open.get(opened.ino) is opened:
                del self._open[opened.ino]
        self._users[opened.ino] -= 1
        if self._users[opened.ino]:
            return None
        del self._users[opened.ino]
        return opened.ino

    def _counted(self, handle: FileHandle, *, writing: bool) -> None:
        """Whether the handle counts among those that may still write."""
        if handle.counted == writing or self._written is None:
            return
        handle.counted = writing
        if writing:
            self._written.opened(handle.opened.ino)
        else:
            self._written.closed(handle.opened.ino)

    def close_flushed(self, ino: int) -> None:
        """The file gets another name: handles that were closed, and whose release is on its way, write no more."""
        opened = self._open.get(ino)
        for handle in opened.handles if opened is not None else ():
            if handle.flushed:
                self._counted(handle, writing=False)

    def _is_current(self, opened: OpenInode, node: Node) -> bool:
        """Whether an open file may be shared: its bytes are those a new reader must see."""
        if opened.changed_here or (self._written is not None and self._written.dirty(node.ino) is not None):
            return True
        return self._key(self._view.content(node)) == opened.key

    def _open_anew(self, node: Node) -> OpenInode:
        dirty = self._written.dirty(node.ino) if self._written is not None else None
        opened = OpenInode(node, changed_here=dirty is not None)
        self._use(opened, dirty.base if dirty is not None else self._view.content(node))
        self._open[node.ino] = opened
        return opened

    @staticmethod
    def _key(contents: InlineContent | ContentReference) -> Hashable:
        return hash(contents.data) if is_inline(contents) else content_key(contents)

    def _use(self, opened: OpenInode, contents: InlineContent | ContentReference) -> None:
        """From now on the library's bytes of an open file are these."""
        key = self._key(contents)
        if key == opened.key:
            return
        before, opened.content, opened.inline = opened.content, None, b""
        if is_inline(contents):
            opened.inline = contents.data
        else:
            opened.content = self._reader.open(contents)
        if opened.key is not None:
            self._last_opened.became(opened.ino, key)
        opened.key = key
        if before is not None:
            self._reader.close(before)

    # ------------------------------------------------------------------ reading

    async def read(self, number: int, offset: int, length: int) -> bytes | memoryview:
        """Good until the caller's next `await`. Raises: OSError (ESTALE), CollectiveError, TimeoutError."""
        opened = self._handles.get(number).opened
        dirty = self._written.dirty(opened.ino) if self._written is not None else None
        if dirty is not None:
            opened.changed_here = True
            self._use(opened, dirty.base)
            return await self._read_dirty(opened, dirty, offset, length)
        if opened.changed_here and self._open.get(opened.ino) is opened:
            self._catch_up(opened)
        elif self._last_opened.overtaken(opened.ino, opened.key):
            raise OSError(errno.ESTALE, "the file has a newer content; open it again")
        return await self._read_base(opened, offset, length)

    def _catch_up(self, opened: OpenInode) -> None:
        """What was written here is uploaded: read it from the library."""
        try:
            opened.node = self._view.get(opened.ino)
        except NotFound:
            return  # removed, and its content is the one it had
        self._use(opened, self._view.content(opened.node))

    async def _read_base(self, opened: OpenInode, offset: int, length: int) -> bytes | memoryview:
        if opened.content is None:
            return opened.inline[offset : offset + length]
        return await self._reader.read(opened.content, offset, length)

    async def _read_dirty(self, opened: OpenInode, dirty: DirtyFile, offset: int, length: int) -> bytes | memoryview:
        assert self._written is not None
        pieces = dirty.plan(offset, length)
        if not pieces:
            return b""
        if len(pieces) == 1 and pieces[0].seq > 0:
            return self._written.written(pieces[0])
        if len(pieces) == 1 and pieces[0].seq == BASE:
            return await self._read_base(opened, offset, pieces[0].end - offset)
        content, inline = opened.content, opened.inline
        whole = bytearray(pieces[-1].end - offset)
        below = []
        for piece in pieces:  # the journal's part first: what waits below must not see it go
            if piece.seq > 0:
                whole[piece.start - offset : piece.end - offset] = self._written.written(piece)
            elif piece.seq == BASE:
                below.append(piece)
        for piece in below:
            if content is None:
                data: bytes | memoryview = inline[piece.start : piece.end]
            else:
                data = await self._reader.read(content, piece.start, piece.end - piece.start)
            whole[piece.start - offset : piece.end - offset] = data
        return memoryview(whole)

    # ------------------------------------------------------------------ writing

    async def write(self, number: int, offset: int, data: bytes) -> int:
        """Returns the inode number. Raises: OSError (EBADF, ENOSPC), CollectiveError."""
        handle = self._handles.get(number)
        if not handle.writes or self._written is None:
            raise OSError(errno.EBADF, "not open for writing")
        opened = handle.opened
        handle.flushed = False
        self._counted(handle, writing=True)
        await self._written.write(self._current_node(opened), offset, data, self._wall_ns())
        opened.changed_here = True
        return opened.ino

    async def truncate(self, node: Node, size_bytes: int) -> None:
        """Raises: OSError (EISDIR, EROFS), CollectiveError."""
        if is_directory(node):
            raise OSError(errno.EISDIR, "a directory")
        if self._written is None:
            raise OSError(errno.EROFS, "the mount is read-only")
        self._written.opened(node.ino)
        try:
            await self._written.truncate(node, size_bytes, self._wall_ns())
        finally:
            opened = self._open.get(node.ino)
            if opened is not None:
                opened.changed_here = True
            self._written.closed(node.ino)

    def _current_node(self, opened: OpenInode) -> Node:
        """The node below a file that is written to; asked of the names only for the first write after an upload."""
        assert self._written is not None
        if self._written.dirty(opened.ino) is None:
            try:
                opened.node = self._view.get(opened.ino)
            except NotFound:
                opened.node = self.node_of_removed(opened.ino)
        return opened.node

    def flush(self, number: int) -> None:
        """close(2). Raises: the error that the content met on its way to the library."""
        handle = self._handles.get(number)
        if handle.writes and self._written is not None:
            handle.flushed = True
            problem = self._written.problem(handle.opened.ino)
            if problem is not None:
                raise problem

    async def fsync(self, number: int) -> None:
        """Raises: OSError, CollectiveError: what was written may not be safe."""
        handle = self._handles.get(number)
        if self._written is not None:
            await self._written.sync(handle.opened.ino)

    async def sync_names(self) -> None:
        """What was changed so far survives power loss. Raises: CollectiveError."""
        if self._written is not None:
            await self._written.sync(None)
