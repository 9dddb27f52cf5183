"""Open files and directories: numbers the kernel holds, and what stands behind them."""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from collective.mount.contents import Content
from collective.mount.names import Node

__all__ = ["DirectoryHandle", "FileHandle", "HandleTable", "LastOpened", "OpenInode"]

MAXIMUM_HANDLES = 65_536  # far above any open-files limit of the programs that read; a leak must show, not grow
REMEMBERED_INODES = 16_384

Handle = TypeVar("Handle")


@dataclass(eq=False, slots=True)
class OpenInode:
    """A file somebody has open: its bytes as they stand in the library (`inline` or `content`; `key` tells them apart),
    and the `node` it last was. `changed_here`: a program of this machine wrote to it since, so the library's content is
    looked up again; handles of a content that somebody else replaced keep theirs."""

    node: Node
    key: Hashable = None
    inline: bytes = b""
    content: Content | None = None
    changed_here: bool = False
    handles: set[FileHandle] = field(default_factory=set)

    @property
    def ino(self) -> int:
        return self.node.ino


@dataclass(eq=False, slots=True)
class FileHandle:
    """One `open` of a file. `flushed`: closed, as far as the kernel told; `counted`: among those that may write."""

    opened: OpenInode
    writes: bool = False
    flushed: bool = False
    counted: bool = False


@dataclass(slots=True)
class DirectoryHandle:
    """A listing as far as it was read; position n is after `entries[n - 1]`, so a listing neither repeats nor skips
    what was there all the while."""

    ino: int
    entries: list[tuple[bytes, Node]] = field(default_factory=list)
    complete: bool = False
    begun: bool = False  # somebody has read from it

    def rewind(self) -> None:
        """Begin anew: rewinddir(3) shows what is there then."""
        self.entries = []
        self.complete = False


class HandleTable(Generic[Handle]):
    """Numbers for handles, never 0, not reused."""

    def __init__(self) -> None:
        self._handles: dict[int, Handle] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._handles)

    def add(self, handle: Handle) -> int:
        """Raises: OSError (EMFILE)."""
        if len(self._handles) >= MAXIMUM_HANDLES:
            raise OSError(errno.EMFILE, "too many open files in the mount")
        self._last += 1
        self._handles[self._last] = handle
        return self._last

    def get(self, number: int) -> Handle:
        """Raises: OSError (EBADF)."""
        try:
            return self._handles[number]
        except KeyError:
            raise OSError(errno.EBADF, "no such handle") from None

    def remove(self, number: int) -> Handle:
        """Raises: OSError (EBADF)."""
        handle = self.get(number)
        del self._handles[number]
        return handle


class LastOpened:
    """Which content each inode was opened with last: the kernel's cached pages of the inode are pages of that one."""

    def __init__(self) -> None:
        self._keys: OrderedDict[int, Hashable] = OrderedDict()

    def opened(self, ino: int, key: Hashable) -> bool:
        """Note the opening. Whether the kernel's pages are still right."""
        same = self._keys.get(ino) == key
        self._keys[ino] = key
        self._keys.move_to_end(ino)
        if len(self._keys) > REMEMBERED_INODES:
            self._keys.popitem(last=False)
        return same

    def became(self, ino: int, key: Hashable) -> None:
        """A program of this machine changed the content: the kernel's pages are right for the new one."""
        if ino in self._keys:
            self._keys[ino] = key

    def overtaken(self, ino: int, key: Hashable) -> bool:
        """Whether somebody opened another content of this inode since."""
        return self._keys.get(ino, key) != key
