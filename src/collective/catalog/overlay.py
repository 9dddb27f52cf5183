"""A tree with changes on top that its database does not show yet: what a mount journalled, what lies staged.

`Overlay` answers as the base does (the catalogue's `Reader`; inos are those of the joined tree) with the changes laid
over it. Changes follow the very rules by which signed entries change the tables (catalog/tree), so what is shown now
is what the entry will make of it (law, tested: the same operations through both give the same tree).

An override (of a node, a name, an xattr) holds while an operation that touched it is not settled; when the base shows
them all, it goes, and the base speaks again. So an overlay is as large as what is under way, never as the library.
Each operation costs O(1); in a directory that the overlay made itself the base is not asked at all. Not thread-safe.
"""

from __future__ import annotations

import builtins
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from collective.catalog.models import DataStore, Node
from collective.catalog.namespace import NUMBER_BITS
from collective.catalog.overrides import (
    Contents,
    FreshOverride,
    NameOverride,
    Names,
    NodeOverride,
    Override,
    StoreState,
    XattrOverride,
)
from collective.catalog.tree import apply_operation
from collective.core.errors import NotFound
from collective.wire import feed_pb2

__all__ = ["Base", "Overlay", "located"]


class Base(Protocol):
    """What lies below an overlay. Raises NotFound (and Refused) as the catalogue's reader does."""

    def get(self, ino: int) -> Node: ...
    def lookup(self, parent_ino: int, name: bytes) -> Node: ...
    def list(self, ino: int, after: bytes = b"", limit: int = 1000) -> Sequence[tuple[bytes, Node]]: ...
    def content(self, node: Node) -> Contents: ...
    def xattrs(self, ino: int) -> Mapping[bytes, bytes]: ...
    def place_of(self, ino: int) -> tuple[int, bytes] | None:
        """(ino of the directory, name) of an inode, one of them; None of a DataStore's root and of what is gone."""
        ...


@dataclass(slots=True)
class _Kept:
    """An open file: what it was last seen as, for when its last name goes."""

    node: Node
    content: Contents | None
    xattrs: dict[bytes, bytes]


class Overlay:
    """`base` with changes on top. Its `get`, `lookup`, `list`, `content`, `xattrs` raise as the base's do."""

    def __init__(self, base: Base) -> None:
        self._base = base
        self._nodes: dict[int, NodeOverride] = {}
        self._names: dict[int, Names] = {}
        self._xattrs: dict[int, dict[bytes, XattrOverride]] = {}
        self._fresh: dict[int, FreshOverride] = {}
        self._places: dict[int, tuple[int, bytes]] = {}  # ino -> (directory, name), of names that were given here
        self._touched: dict[int, list[Override]] = {}  # seq -> what it touched, until it is settled
        self._kept: dict[int, _Kept] = {}

    def __len__(self) -> int:
        """Operations that are not settled."""
        return len(self._touched)

    def overrides(self, ino: int) -> bool:
        """Whether an inode is shown as changes that are not settled left it."""
        return ino in self._nodes

    # ------------------------------------------------------------ changing

    def apply(self, seq: int, store: DataStore, operation: feed_pb2.TreeOperation, time_ns: int) -> str:
        """Lay one operation on top, named `seq` for `settle`; "" or why it makes no sense: then nothing changed.

        `time_ns` counts when the operation carries no time of its own.
        """
        state = StoreState(self, store, operation.id.writer)
        reason = apply_operation(state, operation, time_ns)
        if not reason:
            self._touched.setdefault(seq, []).extend(state.touched)
        return reason

    def settle(self, seqs: Iterable[int]) -> None:
        """The base shows these operations now. Unknown ones are passed over."""
        for seq in seqs:
            for override in self._touched.pop(seq, ()):
                override.pending -= 1
                if not override.pending:
                    self._forget(override)

    def _forget(self, override: Override) -> None:
        match override:
            case NodeOverride():
                del self._nodes[override.ino]
            case NameOverride():
                names = self._names[override.parent]
                names.drop(override.name)
                if not names.by_name:
                    del self._names[override.parent]
                if self._places.get(override.child) == (override.parent, override.name):
                    del self._places[override.child]
            case XattrOverride():
                xattrs = self._xattrs[override.ino]
                del xattrs[override.name]
                if not xattrs:
                    del self._xattrs[override.ino]
            case FreshOverride():
                del self._fresh[override.ino]

    # ------------------------------------------------------------ open files

    def keep(self, ino: int) -> None:
        """Keep an inode gettable (with link count 0) when its last name goes: somebody has it open.

        Keeping twice is keeping once; who counts handles is the caller. Raises: NotFound.
        """
        if ino not in self._kept:
            node = self.get(ino)
            self._kept[ino] = _Kept(node, self.content(node) if stat.S_ISREG(node.mode) else None, {})

    def drop(self, ino: int) -> None:
        """Nobody has it open any more."""
        self._kept.pop(ino, None)

    def amend(self, ino: int, **fields: int) -> None:
        """Change fields of a kept node without a name: nobody else will ever see it. Raises: NotFound."""
        node = self.get(ino)
        if node.link_count:
            raise NotFound("that file still has a name")
        self._kept[ino].node = node._replace(**fields)  # type: ignore[arg-type]  # names of Node's integer fields

    def _orphan(self, ino: int) -> Node:
        kept = self._kept.get(ino)
        if kept is None:
            raise NotFound("there is no such file any more")
        if kept.node.link_count:
            kept.node = kept.node.without_name()
        return kept.node

    # ------------------------------------------------------------ reading

    def get(self, ino: int) -> Node:
        override = self._nodes.get(ino)
        if override is not None:
            return override.node or self.standing_again(ino) or self._orphan(ino)
        try:
            node = self._base.get(ino)
        except NotFound:
            return self._orphan(ino)
        if ino in self._kept:
            self._kept[ino].node = node
        return node

    def standing_again(self, ino: int) -> Node | None:
        """An inode that was removed here, when the base came to give it a name that nobody removed here."""
        place = self._base.place_of(ino)
        if place is None:
            return None
        names = self._names.get(place[0])
        if names is not None and place[1] in names.by_name:
            return None
        try:
            return self._base.get(ino)
        except NotFound:
            return None

    def _is_gone(self, ino: int) -> bool:
        override = self._nodes.get(ino)
        return override is not None and override.node is None and self.standing_again(ino) is None

    def lookup(self, parent_ino: int, name: bytes) -> Node:
        names = self._names.get(parent_ino)
        override = names.by_name.get(name) if names is not None else None
        if override is None and parent_ino not in self._fresh:
            node = self._base.lookup(parent_ino, name)
            return self.get(node.ino) if node.ino in self._nodes else node
        if override is None or not override.child:
            raise NotFound(f"there is no {name.decode(errors='replace')}")
        return self.get(override.child)

    def list(self, ino: int, after: bytes = b"", limit: int = 1000) -> list[tuple[bytes, Node]]:
        """A page of a directory: names above `after` in byte order; fewer than `limit` means the end."""
        names = self._names.get(ino)
        found: list[tuple[bytes, Node]] = []
        while len(found) < limit:
            page = [] if ino in self._fresh else self._base.list(ino, after, limit)
            last = page[-1][0] if len(page) >= limit else None
            found += self._merged(page, names, after, last, limit)
            if last is None:
                break
            after = last
        return found[:limit]

    def _merged(
        self, page: Sequence[tuple[bytes, Node]], names: Names | None, after: bytes, last: bytes | None, limit: int
    ) -> builtins.list[tuple[bytes, Node]]:
        """What a page of the base shows with the names above `after` and up to `last` that were changed here.

        Of those that were given here the first `limit`: no more can come into the page.
        """
        overridden = names.by_name if names is not None else {}
        merged = [(name, self._shown(node)) for name, node in page if name not in overridden]
        added = 0
        for name in names.between(after, last) if names is not None else ():
            if added == limit:
                break
            child = overridden[name].child
            if not child:
                continue
            try:
                merged.append((name, self.get(child)))
                added += 1
            except NotFound:
                continue  # somebody else removed meanwhile what was renamed or linked here
        if added:
            merged.sort(key=lambda pair: pair[0])
        return merged

    def _shown(self, node: Node) -> Node:
        override = self._nodes.get(node.ino)
        return override.node if override is not None and override.node is not None else node

    def content(self, node: Node) -> Contents:
        override = self._nodes.get(node.ino)
        if override is not None and override.content is not None:
            return override.content
        kept = self._kept.get(node.ino)
        try:
            if self._is_gone(node.ino):
                raise NotFound("there is no such file any more")
            content = self._base.content(node)
        except NotFound:
            if kept is None or kept.content is None:
                raise
            return kept.content
        if kept is not None:
            kept.content = content
        return content

    def xattrs(self, ino: int) -> Mapping[bytes, bytes]:
        try:
            if self._is_gone(ino):
                raise NotFound("there is no such file any more")
            shown = {} if ino in self._fresh else dict(self._base.xattrs(ino))
        except NotFound:
            self._orphan(ino)  # raises when it is not open either
            return self._kept[ino].xattrs
        for name, change in self._xattrs.get(ino, {}).items():
            if change.value is None:
                shown.pop(name, None)
            else:
                shown[name] = change.value
        return shown

    def place_of(self, ino: int) -> tuple[int, bytes] | None:
        """(ino of the directory, name) of an inode, one of them; None of a DataStore's root and of what is gone."""
        return self._places.get(ino) or self._base.place_of(ino)

    def place_before(self, ino: int) -> tuple[int, bytes] | None:
        """Where an inode stood that lost its last name here; None of all others."""
        override = self._nodes.get(ino)
        return override.place if override is not None else None


def located(store: DataStore, number: int) -> int:
    """The ino in the joined tree of an inode of a DataStore."""
    return store.inode_prefix << NUMBER_BITS | number
