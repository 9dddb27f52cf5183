"""What an overlay holds: for each thing that changed, what it is now and how many operations are behind it.

`StoreState` is one DataStore of an overlay as the rules of catalog/tree see and change it.
"""

from __future__ import annotations

import bisect
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from collective.catalog.models import DataStore, Inline, Node, VersionReference
from collective.catalog.namespace import NUMBER_BITS
from collective.catalog.tree import MAX_NUMBER, Attributes, Inode, StoredContent
from collective.core.errors import NotFound

if TYPE_CHECKING:
    from collective.catalog.overlay import Overlay

__all__ = [
    "Contents",
    "FreshOverride",
    "NameOverride",
    "Names",
    "NodeOverride",
    "Override",
    "StoreState",
    "XattrOverride",
]

Contents = Inline | VersionReference


@dataclass(slots=True, eq=False)
class Override:
    """`pending`: operations that touched it and that the base does not show yet."""

    pending: int = 0


@dataclass(slots=True, eq=False)
class NodeOverride(Override):
    """`node` None: the inode is gone, from `place`. `content` None: the base's."""

    ino: int = 0
    place: tuple[int, bytes] | None = None
    node: Node | None = None
    content: Contents | None = None


@dataclass(slots=True, eq=False)
class NameOverride(Override):
    """`child` 0: nothing stands under the name any more."""

    parent: int = 0
    name: bytes = b""
    child: int = 0


@dataclass(slots=True, eq=False)
class XattrOverride(Override):
    """`value` None: removed."""

    ino: int = 0
    name: bytes = b""
    value: bytes | None = None


@dataclass(slots=True, eq=False)
class FreshOverride(Override):
    """An inode that the base does not have."""

    ino: int = 0


@dataclass(slots=True)
class Names:
    """The overridden names of one directory; `order` is their sorted list, from the first listing on."""

    by_name: dict[bytes, NameOverride] = field(default_factory=dict)
    order: list[bytes] | None = None

    def add(self, override: NameOverride) -> None:
        self.by_name[override.name] = override
        if self.order is not None:
            bisect.insort(self.order, override.name)

    def drop(self, name: bytes) -> None:
        del self.by_name[name]
        if self.order is not None:
            del self.order[bisect.bisect_left(self.order, name)]

    def between(self, after: bytes, last: bytes | None) -> Iterator[bytes]:
        """Names above `after`, up to `last`, in order."""
        if self.order is None:
            self.order = sorted(self.by_name)
        start = bisect.bisect_right(self.order, after)
        end = len(self.order) if last is None else bisect.bisect_right(self.order, last)
        order = self.order
        return (order[index] for index in range(start, end))


class StoreState:
    """One DataStore of an overlay, as the rules of the tree see it; notes what an operation touched."""

    def __init__(self, overlay: Overlay, store: DataStore, writer: str) -> None:
        self._overlay = overlay
        self._store = store
        self._writer = writer
        self.touched: list[Override] = []

    def _ino(self, number: int) -> int:
        return self._store.inode_prefix << NUMBER_BITS | number

    def _touch(self, override: Override) -> None:
        if override not in self.touched:  # a handful at most
            self.touched.append(override)
            override.pending += 1

    # ------------------------------------------------------------ what the rules ask

    def _node(self, number: int) -> Node | None:
        if not 0 < number < MAX_NUMBER:
            return None
        ino = self._ino(number)
        override = self._overlay._nodes.get(ino)
        if override is not None:
            return override.node or self._overlay.standing_again(ino)
        try:
            return self._overlay._base.get(ino)
        except NotFound:
            return None

    def find(self, number: int) -> Inode | None:
        node = self._node(number)
        return Inode(number, node.mode, node.link_count) if node is not None else None

    def target(self, parent: int, name: bytes) -> int | None:
        if not 0 < parent < MAX_NUMBER:
            return None
        ino = self._ino(parent)
        names = self._overlay._names.get(ino)
        override = names.by_name.get(name) if names is not None else None
        if override is not None:
            return override.child & (MAX_NUMBER - 1) or None
        if ino in self._overlay._fresh:
            return None
        try:
            node = self._overlay._base.lookup(ino, name)
        except NotFound:
            return None
        # a DataStore inside another is no name of the outer one's tree
        return node.number if node.store_id == self._store.feed_id else None

    def parent_of(self, directory: int) -> int | None:
        place = self._overlay.place_of(self._ino(directory))
        return place[0] & (MAX_NUMBER - 1) if place is not None else None

    def has_names(self, directory: int) -> bool:
        ino, after = self._ino(directory), b""
        while page := self._overlay.list(ino, after, 64):
            if any(node.store_id == self._store.feed_id for _, node in page):
                return True
            after = page[-1][0]
        return False

    # ------------------------------------------------------------ what the rules change

    def _override(self, number: int) -> NodeOverride:
        """Of an inode that is there."""
        ino = self._ino(number)
        override = self._overlay._nodes.get(ino)
        if override is None:
            override = self._overlay._nodes[ino] = NodeOverride(ino=ino, node=self._node(number))
        elif override.node is None:
            override.node = self._overlay.standing_again(ino)
        self._touch(override)
        return override

    def insert(self, number: int, attributes: Attributes) -> None:
        ino = self._ino(number)
        override = self._overlay._nodes.get(ino)
        if override is None:
            override = self._overlay._nodes[ino] = NodeOverride(ino=ino)
        self._touch(override)
        override.content = self._contents(attributes.content)
        override.node = Node(
            ino=ino, mode=attributes.mode, uid=attributes.uid, gid=attributes.gid,
            size_bytes=attributes.content.size_bytes, mtime_ns=attributes.mtime_ns, ctime_ns=attributes.ctime_ns,
            atime_ns=attributes.mtime_ns, link_count=attributes.link_count,
            symlink_target=attributes.symlink_target, store_id=self._store.feed_id, number=number,
            owner=self._store.owner, version_id=_version(attributes.content), rdev=attributes.rdev,
            creator=self._writer,
        )  # fmt: skip
        fresh = self._overlay._fresh.setdefault(ino, FreshOverride(ino=ino))
        self._touch(fresh)

    def _contents(self, stored: StoredContent) -> Contents:
        content = stored.content
        if content is None or not content.version_id:
            return Inline(content.inline if content is not None else b"")
        return VersionReference(
            self._store.feed_id, content.version_id, content.size_bytes, tuple(content.key_pages), content.key_name
        )

    def update(self, number: int, changes: dict[str, int]) -> None:
        override = self._override(number)
        if override.node is not None:
            override.node = override.node._replace(**changes)  # type: ignore[arg-type]  # columns are fields of Node

    def replace_content(self, number: int, content: StoredContent, mtime_ns: int, ctime_ns: int) -> None:
        override = self._override(number)
        override.content = self._contents(content)
        assert override.node is not None
        override.node = override.node._replace(
            size_bytes=content.size_bytes, version_id=_version(content), mtime_ns=mtime_ns,
            ctime_ns=ctime_ns,
        )  # fmt: skip

    def remove(self, number: int, parent: int, name: bytes) -> None:
        ino = self._ino(number)
        kept = self._overlay._kept.get(ino)
        if kept is not None:
            kept.node = self._overlay.get(ino)
            kept.content = self._overlay.content(kept.node) if stat.S_ISREG(kept.node.mode) else None
            kept.xattrs = dict(self._overlay.xattrs(ino))
        override = self._override(number)
        override.node = override.content = None
        override.place = (self._ino(parent), name)
        self._overlay._places.pop(ino, None)
        for change in self._overlay._xattrs.get(ino, {}).values():
            change.value = None
            self._touch(change)

    def add_name(self, parent: int, name: bytes, number: int) -> None:
        self._name(parent, name).child = self._ino(number)
        self._overlay._places[self._ino(number)] = (self._ino(parent), name)

    def drop_name(self, parent: int, name: bytes) -> None:
        override = self._name(parent, name)
        if self._overlay._places.get(override.child) == (override.parent, name):
            del self._overlay._places[override.child]
        override.child = 0

    def _name(self, parent: int, name: bytes) -> NameOverride:
        ino = self._ino(parent)
        names = self._overlay._names.get(ino)
        if names is None:
            names = self._overlay._names[ino] = Names()
        override = names.by_name.get(name)
        if override is None:
            override = NameOverride(parent=ino, name=name)
            names.add(override)
        self._touch(override)
        return override

    def set_xattr(self, number: int, name: bytes, value: bytes | None) -> None:
        ino = self._ino(number)
        xattrs = self._overlay._xattrs.setdefault(ino, {})
        override = xattrs.setdefault(name, XattrOverride(ino=ino, name=name))
        override.value = value
        self._touch(override)


def _version(stored: StoredContent) -> bytes | None:
    return stored.content.version_id or None if stored.content is not None else None
