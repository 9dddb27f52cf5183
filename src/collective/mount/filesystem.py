"""What the mounted tree means: names and attributes from `Names`, bytes through the `ContentReader`.

Knows nothing of FUSE's library: takes and gives plain values, raises the kinds of core.errors and OSError. The
kernel calls the root inode 1; the names call it what they like. Read-only: whatever changes something is EROFS.

    the content of an inode changes while it is open
        the handle keeps reading the content it was opened with …
        … until somebody opens the newer one; then ESTALE: the kernel caches pages per inode, and pages of two
        contents must never be mixed
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from collective.mount.changes import ToldNames
from collective.mount.contents import content_key
from collective.mount.handles import DirectoryHandle, FileHandle, HandleTable, LastOpened
from collective.mount.names import InlineContent, Names, Node, Space, is_directory
from collective.mount.reading import ContentReader

__all__ = ["KERNEL_ROOT_INO", "FileSystem", "OpenedFile", "Space"]

KERNEL_ROOT_INO = 1
LISTING_BATCH = 1000
MAXIMUM_NAME_BYTES = 255


@dataclass(frozen=True)
class OpenedFile:
    """A file handle, and whether the kernel's cached pages of the inode may stay."""

    handle: int
    keep_cache: bool


class FileSystem:
    """One mounted tree. `now` is monotonic seconds."""

    def __init__(
        self, names: Names, reader: ContentReader, told: ToldNames, now: Callable[[], float], space: Callable[[], Space]
    ) -> None:
        self._names = names
        self._reader = reader
        self._told = told
        self._now = now
        self._space = space
        self._root_ino = names.root().ino
        self._files: HandleTable[FileHandle] = HandleTable()
        self._directories: HandleTable[DirectoryHandle] = HandleTable()
        self._last_opened = LastOpened()

    # ------------------------------------------------------------------ names

    def kernel_ino(self, ino: int) -> int:
        """The number the kernel knows this inode by."""
        return KERNEL_ROOT_INO if ino == self._root_ino else ino

    def _ino(self, kernel_ino: int) -> int:
        return self._root_ino if kernel_ino == KERNEL_ROOT_INO else kernel_ino

    def getattr(self, kernel_ino: int) -> Node:
        node = self._names.get(self._ino(kernel_ino))
        self._told.tell(node, self._now())
        return node

    def lookup(self, kernel_parent: int, name: bytes) -> Node:
        """Raises: OSError (ENAMETOOLONG), CollectiveError."""
        if len(name) > MAXIMUM_NAME_BYTES:
            raise OSError(errno.ENAMETOOLONG, "a name has 255 bytes at most")
        parent = self._ino(kernel_parent)
        node = self._names.lookup(parent, name)
        self._told.tell(node, self._now(), parent, name)
        return node

    def readlink(self, kernel_ino: int) -> bytes:
        node = self._names.get(self._ino(kernel_ino))
        if not stat.S_ISLNK(node.mode):
            raise OSError(errno.EINVAL, "not a symbolic link")
        return node.symlink_target or b""

    def space(self) -> Space:
        return self._space()

    # ------------------------------------------------------------------ directories

    def opendir(self, kernel_ino: int) -> int:
        """Reads the first entries, so that an unreadable folder refuses here and is never an empty one."""
        handle = DirectoryHandle(self._ino(kernel_ino))
        if not is_directory(self._names.get(handle.ino)):
            raise OSError(errno.ENOTDIR, "not a directory")
        self._list_more(handle)
        return self._directories.add(handle)

    def readdir(self, number: int, position: int) -> Sequence[tuple[bytes, Node]]:
        """Entries from `position` on, a batch at most; empty at the end."""
        handle = self._directories.get(number)
        while len(handle.entries) <= position and not handle.complete:
            self._list_more(handle)
        return handle.entries[position : position + LISTING_BATCH]

    def told_entry(self, number: int, name: bytes, node: Node) -> None:
        """An entry of this listing went to the kernel."""
        self._told.tell(node, self._now(), self._directories.get(number).ino, name)

    def releasedir(self, number: int) -> None:
        self._directories.remove(number)

    def _list_more(self, handle: DirectoryHandle) -> None:
        after = handle.entries[-1][0] if handle.entries else b""
        batch = self._names.list(handle.ino, after, LISTING_BATCH)
        handle.entries.extend(batch)
        handle.complete = len(batch) < LISTING_BATCH

    # ------------------------------------------------------------------ files

    def open(self, kernel_ino: int, flags: int) -> OpenedFile:
        """Open for reading; calls nobody. Raises: OSError (EROFS, EISDIR, …), CollectiveError."""
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise OSError(errno.EROFS, "the mount is read-only")
        node = self._names.get(self._ino(kernel_ino))
        if is_directory(node):
            raise OSError(errno.EISDIR, "a directory")
        found = self._names.content(node)
        if isinstance(found, InlineContent):
            key: Hashable = hash(found.data)
            handle = FileHandle(node.ino, key, inline=found.data)
        else:
            key = content_key(found)
            handle = FileHandle(node.ino, key, content=self._reader.open(found))
        try:
            number = self._files.add(handle)
        except OSError:
            self._forget(handle)
            raise
        return OpenedFile(number, self._last_opened.opened(node.ino, key))

    async def read(self, number: int, offset: int, length: int) -> bytes | memoryview:
        """Good until the caller's next `await`. Raises: OSError (ESTALE), CollectiveError, TimeoutError."""
        handle = self._files.get(number)
        if self._last_opened.overtaken(handle.ino, handle.key):
            raise OSError(errno.ESTALE, "the file has a newer content; open it again")
        if handle.content is None:
            return (handle.inline or b"")[offset : offset + length]
        return await self._reader.read(handle.content, offset, length)

    def release(self, number: int) -> None:
        self._forget(self._files.remove(number))

    def _forget(self, handle: FileHandle) -> None:
        if handle.content is not None:
            self._reader.close(handle.content)
