"""The joined tree as this home shows it: what is applied here, with what is staged here on top.

The mount and the commands read it while the coordinator writes; whoever is away, every answer is local. What this home
wants changed in another member's DataStore is seen here at once, from the table `staged`, until its entry came back.
"""

from __future__ import annotations

import builtins
import threading
from pathlib import Path

from collective.catalog.applied import AppliedTree
from collective.catalog.facts import Counters, as_bytes, as_int
from collective.catalog.models import DataStore, Inline, Node, VersionReference
from collective.catalog.namespace import NUMBER_BITS, Joined
from collective.catalog.naming import conflict_name
from collective.catalog.overlay import Base, Overlay
from collective.core.errors import NotFound
from collective.wire import feed_pb2, submit_pb2

__all__ = ["Reader"]

ROWS_PER_LOOK = 1024
NOT_SHOWN = -1  # a row of a DataStore that cannot be read here: no prefix


class Reader(AppliedTree):
    """The catalogue as one home has it. Thread-safe."""

    def __init__(self, path: Path, own_domain: str) -> None:
        super().__init__(path, own_domain)
        self._staged_lock = threading.RLock()
        self._staged_seen = self._staged_joined = 0  # of the counters
        self._staged_hidden = False  # whether there are rows of a DataStore that cannot be read here
        self._staged_rows: dict[int, int] = {}  # number of a row that was looked at -> prefix of its DataStore
        self._staged_prefixes: frozenset[int] = frozenset()
        self._overlay = Overlay(_Applied(self))

    # ------------------------------------------------------------ the tree

    def get(self, ino: int) -> Node:
        """Raises: NotFound."""
        joined = self._unless_staged(ino)
        if joined is not None:
            return self._get(joined, ino)
        with self._staged_lock:
            return self._overlay.get(ino)

    def lookup(self, parent_ino: int, name: bytes) -> Node:
        """Raises: NotFound; Refused below a DataStore that is not readable here."""
        joined = self._unless_staged(parent_ino)
        if joined is not None:
            return self._lookup(joined, parent_ino, name)
        with self._staged_lock:
            return self._overlay.lookup(parent_ino, name)

    def list(self, ino: int, after: bytes = b"", limit: int = 1000) -> builtins.list[tuple[bytes, Node]]:
        """A page of a directory: names above `after` in byte order. Raises: NotFound, Refused."""
        joined = self._unless_staged(ino)
        if joined is not None:
            return self._list(joined, ino, after, limit)
        with self._staged_lock:
            return self._overlay.list(ino, after, limit)

    def content(self, node: Node) -> Inline | VersionReference:
        """Where a file's content is. Raises: NotFound."""
        if self._unless_staged(node.ino) is not None:
            return super().content(node)
        with self._staged_lock:
            return self._overlay.content(node)

    def xattrs(self, ino: int) -> dict[bytes, bytes]:
        """The extended attributes of an inode. Raises: NotFound."""
        if self._unless_staged(ino) is not None:
            return super().xattrs(ino)
        with self._staged_lock:
            return dict(self._overlay.xattrs(ino))

    def place_of(self, ino: int) -> tuple[int, bytes] | None:
        """(ino of the directory, name) of an inode, one of them; None of a DataStore's root and of what is gone."""
        if self._unless_staged(ino) is not None:
            return super().place_of(ino)
        with self._staged_lock:
            return self._overlay.place_of(ino)

    def applied(self) -> Base:
        """The tree without what is staged, as it stands while a change lasts; for an overlay to stand on."""
        return _Still(self)

    # ------------------------------------------------------------ what is staged

    def _unless_staged(self, ino: int) -> Joined | None:
        """The joined tree; None where the ino's DataStore has staged changes (the overlay is up to date then)."""
        counters = self.counters()
        if counters.staged != self._staged_seen or (self._staged_hidden and counters.joined != self._staged_joined):
            with self._staged_lock:
                self._look_at_staged(counters)
        if ino >> NUMBER_BITS in self._staged_prefixes:
            return None
        return self._namespace_at(counters.joined)

    def _look_at_staged(self, counters: Counters) -> None:
        """Settle the rows that went, lay on the ones that came. A look that a change overtakes is looked at again."""
        if self._staged_hidden and counters.joined != self._staged_joined:
            self._forget_staged()  # the key may have come of what could not be shown
        last = max(self._staged_rows, default=0)
        left = self._one("SELECT count(*) FROM staged WHERE number <= ? AND shown", last)
        if left != (len(self._staged_rows),):
            there = {
                as_int(number) for (number,) in self._all("SELECT number FROM staged WHERE number <= ? AND shown", last)
            }
            went = [number for number in self._staged_rows if number not in there]
            self._overlay.settle(went)
            for row in went:
                del self._staged_rows[row]
        if not self._staged_rows:
            self._overlay = Overlay(_Applied(self))
        known = self._known_stores(counters.joined)
        last = max(self._staged_rows, default=0)
        while rows := self._all(
            "SELECT number, feed_id, since_ms, operation FROM staged WHERE number > ? AND shown ORDER BY number"
            " LIMIT ?",
            last, ROWS_PER_LOOK,
        ):  # fmt: skip
            for number, feed_id, since, raw in rows:
                last = as_int(number)
                store = known.get(as_bytes(feed_id))
                self._staged_rows[last] = NOT_SHOWN
                if store is not None and store.readable:
                    operation = submit_pb2.StagedOperation.FromString(as_bytes(raw)).operation
                    self._lay_on(last, store, operation, as_int(since) * 1_000_000)
                    self._staged_rows[last] = store.inode_prefix
        prefixes = frozenset(self._staged_rows.values())
        self._staged_hidden, self._staged_prefixes = NOT_SHOWN in prefixes, prefixes - {NOT_SHOWN}
        self._staged_seen, self._staged_joined = counters.staged, counters.joined

    def _lay_on(self, number: int, store: DataStore, operation: feed_pb2.TreeOperation, time_ns: int) -> None:
        """What cannot stand under its name shows under the one the owner will give it; what makes no sense, not."""
        if self._overlay.apply(number, store, operation, time_ns) and operation.HasField("create"):
            id_ = operation.id
            operation.create.name = conflict_name(
                operation.create.name, id_.writer, operation.time_nanoseconds or time_ns, id_.random
            )
            self._overlay.apply(number, store, operation, time_ns)

    def _forget_staged(self) -> None:
        """Build the overlay anew at the next look."""
        with self._staged_lock:
            self._staged_rows.clear()
            self._staged_prefixes, self._staged_hidden = frozenset(), False
            self._staged_seen = -1
            self._overlay = Overlay(_Applied(self))

    # ------------------------------------------------------------ versions

    def _staged_version(self, store_id: bytes, version_id: bytes) -> feed_pb2.Layout | None:
        row = self._one(
            "SELECT operation FROM staged WHERE version_id = ? AND feed_id = ? LIMIT 1", version_id, store_id
        )
        return submit_pb2.StagedOperation.FromString(as_bytes(row[0])).layout if row else None

    def layout(self, store_id: bytes, version_id: bytes) -> feed_pb2.Layout:
        """Also of a version that is only staged here. Raises: NotFound."""
        try:
            return super().layout(store_id, version_id)
        except NotFound:
            staged = self._staged_version(store_id, version_id)
            if staged is None:
                raise
            return staged

    def holders(self, store_id: bytes, version_id: bytes) -> builtins.list[str]:
        """Who holds a version: placed there, and stated; its writer by the entry, or by having it staged here."""
        found = super().holders(store_id, version_id)
        if not found and self._staged_version(store_id, version_id) is not None:
            return [self.own_domain]
        return found


class _Applied:
    """The applied tree below a reader, for its overlay to stand on."""

    def __init__(self, reader: Reader) -> None:
        self._tree = reader

    def get(self, ino: int) -> Node:
        return AppliedTree.get(self._tree, ino)

    def lookup(self, parent_ino: int, name: bytes) -> Node:
        return AppliedTree.lookup(self._tree, parent_ino, name)

    def list(self, ino: int, after: bytes = b"", limit: int = 1000) -> builtins.list[tuple[bytes, Node]]:
        return AppliedTree.list(self._tree, ino, after, limit)

    def content(self, node: Node) -> Inline | VersionReference:
        return AppliedTree.content(self._tree, node)

    def xattrs(self, ino: int) -> dict[bytes, bytes]:
        return AppliedTree.xattrs(self._tree, ino)

    def place_of(self, ino: int) -> tuple[int, bytes] | None:
        return AppliedTree.place_of(self._tree, ino)


class _Still(_Applied):
    """The applied tree while nobody changes it: every name and inode is looked up once."""

    def __init__(self, reader: Reader) -> None:
        super().__init__(reader)
        self._joined = reader._namespace()
        self._nodes: dict[int, Node | None] = {}
        self._names: dict[tuple[int, bytes], Node | None] = {}

    def get(self, ino: int) -> Node:
        if ino not in self._nodes:
            try:
                self._nodes[ino] = self._tree._get(self._joined, ino)
            except NotFound:
                self._nodes[ino] = None
        return _present(self._nodes[ino])

    def lookup(self, parent_ino: int, name: bytes) -> Node:
        key = parent_ino, name
        if key not in self._names:
            try:
                self._names[key] = self._tree._lookup(self._joined, parent_ino, name)
            except NotFound:
                self._names[key] = None
        return _present(self._names[key])


def _present(node: Node | None) -> Node:
    if node is None:
        raise NotFound("there is no such file any more")
    return node
