"""What the mounted tree means: names, attributes, open files, changes, all in plain values.

Knows nothing of FUSE's library: raises the kinds of core.errors and OSError. A read-only mount has no `changes`;
whatever changes something is EROFS then. What the kernel was told is noted in `told`, so that it can be taken back.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence

from collective.core.errors import NotFound
from collective.mount.changes import ToldNames
from collective.mount.changing import TreeChanges
from collective.mount.files import OpenedFile, OpenFiles
from collective.mount.handles import DirectoryHandle, HandleTable
from collective.mount.names import Names, Node, Space, is_directory
from collective.mount.operations import AttributeChange, NewInode

__all__ = ["FileSystem", "Space"]

LISTING_BATCH = 1000
REPLY_BATCH = 128  # the kernel takes some 25 at a time
MAXIMUM_NAME_BYTES = 255
XATTR_FAMILIES = (b"user.", b"trusted.")
"""Attributes that programs keep; `security.` and `system.` (ACLs) mean something to one machine's kernel only."""


class FileSystem:
    """One mounted tree, by inos of the names. `now` is monotonic seconds. `view` is the names as this mount shows
    them; `forget(ino)` tells it that nobody has a file open any more."""

    def __init__(
        self,
        view: Names,
        files: OpenFiles,
        told: ToldNames,
        now: Callable[[], float],
        space: Callable[[], Space],
        changes: TreeChanges | None = None,
        forget: Callable[[int], None] = lambda ino: None,
    ) -> None:
        self._view = view
        self._files = files
        self._told = told
        self._now = now
        self._space = space
        self._changes = changes
        self._forget = forget
        self.root_ino = view.root().ino
        self._directories: HandleTable[DirectoryHandle] = HandleTable()

    # ------------------------------------------------------------------ names

    def getattr(self, ino: int) -> Node:
        try:
            node = self._view.get(ino)
        except NotFound:
            return self._files.node_of_removed(ino)
        self._told.tell(node, self._now())
        return node

    def lookup(self, parent_ino: int, name: bytes) -> Node:
        """Raises: OSError (ENAMETOOLONG), CollectiveError."""
        if len(name) > MAXIMUM_NAME_BYTES:
            raise OSError(errno.ENAMETOOLONG, "a name has 255 bytes at most")
        node = self._view.lookup(parent_ino, name)
        self._told.tell(node, self._now(), parent_ino, name)
        return node

    def readlink(self, ino: int) -> bytes:
        node = self._view.get(ino)
        if not stat.S_ISLNK(node.mode):
            raise OSError(errno.EINVAL, "not a symbolic link")
        return node.symlink_target or b""

    def space(self) -> Space:
        return self._space()

    def _changing(self) -> TreeChanges:
        if self._changes is None:
            raise OSError(errno.EROFS, "the mount is read-only")
        return self._changes

    async def make(self, parent_ino: int, name: bytes, new: NewInode) -> Node:
        """mkdir, mknod, symlink."""
        node = await self._changing().make(parent_ino, name, new)
        self._told.changed_here(parent_ino)
        self._told.tell(node, self._now(), parent_ino, name)
        return node

    async def link(self, ino: int, parent_ino: int, name: bytes) -> Node:
        node = await self._changing().link(ino, parent_ino, name)
        self._told.changed_here(parent_ino)
        self._told.tell(node, self._now(), parent_ino, name)
        return node

    async def unlink(self, parent_ino: int, name: bytes) -> None:
        removed = await self._changing().unlink(parent_ino, name)
        self._changed_names((parent_ino, name), removed)

    async def rmdir(self, parent_ino: int, name: bytes) -> None:
        removed = await self._changing().rmdir(parent_ino, name)
        self._changed_names((parent_ino, name), removed)

    async def rename(self, old: tuple[int, bytes], new: tuple[int, bytes], flags: int) -> None:
        replaced = await self._changing().rename(old, new, flags)
        self._changed_names(old, None)
        self._changed_names(new, replaced)

    def _changed_names(self, entry: tuple[int, bytes], removed: int | None) -> None:
        """The kernel asked for it, and knows of the name; it asks again for the attributes it needs."""
        self._told.forget_entry(*entry)
        self._told.changed_here(entry[0])
        if removed is not None:
            self._told.changed_here(removed)

    # ------------------------------------------------------------------ attributes

    async def set_attributes(self, ino: int, asked: AttributeChange) -> Node:
        changes = self._changing()
        if asked.size_bytes is not None:
            await self._files.truncate(changes.writable(ino), asked.size_bytes)
        if not asked.is_size_only:
            await changes.set_attributes(ino, asked)
        self._told.changed_here(ino)
        return self.getattr(ino)

    def getxattr(self, ino: int, name: bytes) -> bytes:
        """Raises: OSError (ENODATA, ENOTSUP)."""
        try:
            return self._view.xattrs(ino)[name]
        except KeyError:
            _check_xattr(name)
            raise OSError(errno.ENODATA, "no such attribute") from None

    def listxattr(self, ino: int) -> Sequence[bytes]:
        return sorted(self._view.xattrs(ino))

    async def setxattr(self, ino: int, name: bytes, value: bytes | None) -> None:
        """`value` None removes it."""
        _check_xattr(name)
        await self._changing().set_xattr(ino, name, value)
        self._told.changed_here(ino)

    # ------------------------------------------------------------------ directories

    def opendir(self, ino: int) -> int:
        """Reads the first entries, so that an unreadable folder refuses here and is never an empty one."""
        handle = DirectoryHandle(ino)
        if not is_directory(self._view.get(ino)):
            raise OSError(errno.ENOTDIR, "not a directory")
        self._list_more(handle)
        return self._directories.add(handle)

    def readdir(self, number: int, position: int) -> Sequence[tuple[bytes, Node]]:
        """Entries from `position` on, a batch at most; empty at the end. Position 0 begins anew."""
        handle = self._directories.get(number)
        if position == 0 and handle.begun:
            handle.rewind()
        handle.begun = True
        while len(handle.entries) <= position and not handle.complete:
            self._list_more(handle)
        return handle.entries[position : position + REPLY_BATCH]

    def told_entries(self, number: int, entries: Sequence[tuple[bytes, Node]]) -> None:
        """These entries of this listing went to the kernel."""
        self._told.tell_entries(entries, self._now(), self._directories.get(number).ino)

    def releasedir(self, number: int) -> None:
        self._directories.remove(number)

    async def fsyncdir(self, number: int) -> None:
        """The names made so far survive power loss. Raises: CollectiveError."""
        self._directories.get(number)
        await self._files.sync_names()

    def _list_more(self, handle: DirectoryHandle) -> None:
        after = handle.entries[-1][0] if handle.entries else b""
        batch = self._view.list(handle.ino, after, LISTING_BATCH)
        handle.entries.extend(batch)
        handle.complete = len(batch) < LISTING_BATCH

    # ------------------------------------------------------------------ files

    async def open(self, ino: int, flags: int) -> OpenedFile:
        """Calls nobody, but for O_TRUNC. Raises: OSError (EROFS, EISDIR, …), CollectiveError."""
        if flags & os.O_ACCMODE == os.O_RDONLY and not flags & os.O_TRUNC:
            return self._files.open(self._view.get(ino), flags)
        node: Node = self._changing().writable(ino)
        if flags & os.O_TRUNC and not is_directory(node):
            await self._files.truncate(node, 0)
            self._told.changed_here(ino)
            node = self._view.get(ino)
        return self._files.open(node, flags)

    async def create(self, parent_ino: int, name: bytes, new: NewInode, flags: int) -> tuple[OpenedFile, Node]:
        """open(2) with O_CREAT, of a name the kernel did not find."""
        exclusive = bool(flags & os.O_EXCL)
        try:
            node: Node = await self._changing().make(parent_ino, name, new, exclusive=exclusive)
        except FileExistsError:
            if exclusive:
                raise
            node = self.lookup(parent_ino, name)  # somebody made it since the kernel looked
            return await self.open(node.ino, flags), node
        self._told.changed_here(parent_ino)
        self._told.tell(node, self._now(), parent_ino, name)
        return self._files.open(node, flags), node

    async def read(self, number: int, offset: int, length: int) -> bytes | memoryview:
        """Good until the caller's next `await`. Raises: OSError (ESTALE), CollectiveError, TimeoutError."""
        return await self._files.read(number, offset, length)

    async def write(self, number: int, offset: int, data: bytes) -> None:
        """In the journal when this returns. Raises: OSError, CollectiveError."""
        self._told.changed_here(await self._files.write(number, offset, data))

    async def flush(self, number: int) -> None:
        self._files.flush(number)

    async def fsync(self, number: int) -> None:
        await self._files.fsync(number)

    def release(self, number: int) -> None:
        closed = self._files.release(number)
        if closed is not None:
            self._forget(closed)


def _check_xattr(name: bytes) -> None:
    if not name.startswith(XATTR_FAMILIES):
        raise OSError(errno.ENOTSUP, "the mount keeps user. and trusted. attributes")
