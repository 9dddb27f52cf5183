"""What the mount asks of the rooms below: names and attributes (local, no call to anybody) and bytes (verified).

`Names` has the shape of the catalog's reader, `Source` that of the transfer room's fetcher; the mount knows nothing
else of either, so a library made in memory is as good as a real one.
"""

from __future__ import annotations

import stat
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from typing_extensions import TypeIs

from collective.core.layout import VersionLayout

__all__ = [
    "ContentReference",
    "InlineContent",
    "Names",
    "Node",
    "OpenSource",
    "Source",
    "Space",
    "is_directory",
    "is_inline",
]


@dataclass(frozen=True)
class Space:
    """What `df` shows: bytes."""

    total_bytes: int = 0
    free_bytes: int = 0


class Node(Protocol):
    """One inode. `mode` carries the type bits; times are nanoseconds since 1970; `symlink_target` is empty or
    None unless it is a symbolic link. Two nodes are equal when nothing about the inode changed."""

    @property
    def ino(self) -> int: ...
    @property
    def mode(self) -> int: ...
    @property
    def link_count(self) -> int: ...
    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def rdev(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def mtime_ns(self) -> int: ...
    @property
    def ctime_ns(self) -> int: ...
    @property
    def atime_ns(self) -> int: ...
    @property
    def symlink_target(self) -> bytes | None: ...
    def without_name(self) -> Node:
        """As it is when its last name is gone."""
        ...


class InlineContent(Protocol):
    """A content so small (4 KiB at most) that it lives beside the name."""

    @property
    def data(self) -> bytes: ...


class ContentReference(Protocol):
    """A content that lives in chunks: immutable, named by store and version."""

    @property
    def store_id(self) -> bytes: ...
    @property
    def version_id(self) -> bytes: ...
    @property
    def size_bytes(self) -> int: ...


class Names(Protocol):
    """The joined tree of one federation as one home knows it. Every call is local and quick (well under 10 ms).

    Raises (each call): NotFound only when the names are known and this one is not among them; Refused for a folder
    whose key has not reached this home (never an empty listing); Corrupt.
    """

    def root(self) -> Node: ...

    def get(self, ino: int) -> Node: ...

    def lookup(self, parent_ino: int, name: bytes) -> Node: ...

    def list(self, ino: int, after: bytes = b"", limit: int = 1000) -> Sequence[tuple[bytes, Node]]:
        """The next `limit` children by name, after the name `after`; fewer than `limit` means the end."""
        ...

    def content(self, node: Any) -> InlineContent | ContentReference:
        """The content of a file; `node` is one that these names gave out."""
        ...

    def xattrs(self, ino: int) -> Mapping[bytes, bytes]:
        """The extended attributes of an inode."""
        ...

    def change_counter(self) -> int:
        """Grows with every change to any name or attribute."""
        ...


class Source(Protocol):
    """The bytes of one version, from wherever they are."""

    @property
    def layout(self) -> VersionLayout: ...

    async def fill(self, chunk_index: int, first_segment: int, segment_count: int, out: memoryview) -> None:
        """Write the plain, verified bytes of these segments into `out` (exactly their size). Once it returned or
        raised, `out` is not touched again. Several may run at once. Raises: CollectiveError."""
        ...

    async def close(self) -> None: ...


OpenSource = Callable[[Any], Awaitable[Source]]  # takes a reference that the names gave out


def is_directory(node: Node) -> bool:
    return stat.S_ISDIR(node.mode)


def is_inline(content: InlineContent | ContentReference) -> TypeIs[InlineContent]:
    """Whether a content lives beside the name, and not in chunks."""
    return hasattr(content, "data")  # an isinstance of a protocol costs 8 us, and this is asked per open
