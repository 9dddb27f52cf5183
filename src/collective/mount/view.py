"""What this mount shows: the home's names, with what was changed here and is still under way laid on top.

    kernel's question -> TreeView -> sizes and times of files being written (dirty)
                                  -> Overlay: journalled changes the database does not show yet
                                  -> LeasedNames: what a lease makes certain without asking
                                  -> Names: the home's database

The layers answer in this order, and each forgets what the one below it shows by itself.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import inf
from typing import Protocol

from collective.catalog.models import DataStore, Inline, Node, VersionReference
from collective.catalog.namespace import NUMBER_BITS
from collective.catalog.overlay import Overlay
from collective.core.errors import NotFound, Refused
from collective.mount.dirty import NUMBER_MASK
from collective.mount.lease import DirectoryKey, Leases
from collective.mount.operations import AttributeChange

__all__ = ["DirtySize", "LeasedNames", "TreeView", "WritableNames"]

MAXIMUM_DEPTH = 1024  # no path is deeper (catalog/tree)
TOP_DIRECTORY = 1  # the number of every DataStore's own


class WritableNames(Protocol):
    """What a mount that writes asks of the catalogue's reader beyond `Names`."""

    def root(self) -> Node: ...
    def get(self, ino: int) -> Node: ...
    def lookup(self, parent_ino: int, name: bytes) -> Node: ...
    def list(self, ino: int, after: bytes = b"", limit: int = 1000) -> Sequence[tuple[bytes, Node]]: ...
    def content(self, node: Node) -> Inline | VersionReference: ...
    def xattrs(self, ino: int) -> Mapping[bytes, bytes]: ...
    def place_of(self, ino: int) -> tuple[int, bytes] | None: ...
    def change_counter(self) -> int: ...
    def datastores(self) -> Sequence[DataStore]: ...
    def folders_with_datastores(self) -> Sequence[int]:
        """Real folders in which a DataStore, or a folder that only leads to one, stands."""
        ...


class DirtySize(Protocol):
    """A file whose content is being changed here."""

    @property
    def size_bytes(self) -> int: ...
    @property
    def mtime_ns(self) -> int: ...


class DirtySizes(Protocol):
    """All of them."""

    def __len__(self) -> int: ...
    def get(self, ino: int) -> DirtySize | None: ...


class LeasedNames:
    """The names, and nobody asked where a lease makes it certain that a name is not there."""

    def __init__(self, names: WritableNames, leases: Leases) -> None:
        self._names = names
        self._leases = leases
        self._store_ids: dict[int, bytes] = {}  # by inode prefix
        self.unborn: set[int] = set()  # inos of numbers that were never used: nothing can have them
        self.list = names.list
        self.content = names.content
        self.xattrs = names.xattrs
        self.place_of = names.place_of

    def get(self, ino: int) -> Node:
        """Raises: NotFound."""
        if ino in self.unborn:
            raise NotFound("there is no such file yet")
        return self._names.get(ino)

    def refresh(self, stores: Sequence[DataStore]) -> None:
        """The DataStores there are now."""
        found = {store.inode_prefix: store.feed_id for store in stores}
        if found != self._store_ids:
            self._store_ids = found
            self._leases.doubt_names()  # a new DataStore may stand in a folder whose names were known

    def certain_since(self, parent_ino: int) -> float:
        """Since when (monotonic seconds) nobody else can have changed a directory; infinite when they may have."""
        key = self._key(parent_ino)
        return self._leases.certain_since(key) if key is not None else inf

    def _key(self, ino: int) -> DirectoryKey | None:
        store_id = self._store_ids.get(ino >> NUMBER_BITS)
        return (store_id, ino & NUMBER_MASK) if store_id is not None else None

    def lookup(self, parent_ino: int, name: bytes) -> Node:
        """Raises: NotFound, Refused."""
        key = self._key(parent_ino)
        if key is None:
            return self._names.lookup(parent_ino, name)
        if self._leases.knows_absent(key, name):
            raise NotFound("there is no such name")
        held = self._leases.holds((key,))  # before the database is asked: a lease that came later proves nothing
        try:
            return self._names.lookup(parent_ino, name)
        except NotFound:
            if held:
                self._leases.book.found_absent(key, name)
            raise


class TreeView:
    """The merged tree. Raises, each: NotFound, Refused, as the names do."""

    def __init__(
        self,
        names: WritableNames,
        leased: LeasedNames,
        overlay: Overlay,
        dirty: DirtySizes,
        may_write: Callable[[DataStore, bytes | None], bool],
    ) -> None:
        self._names = names
        self._leased = leased
        self._overlay = overlay
        self._dirty = dirty
        self._may_write = may_write
        self._stores: dict[bytes, DataStore] = {}
        self._writable: dict[bytes | DirectoryKey, bool] = {}  # since the database changed; the owner judges anyway
        self.content = overlay.content
        self.xattrs = overlay.xattrs
        self.refresh()

    def refresh(self) -> None:
        """After the database changed: the DataStores may be others, and so may the rights."""
        self._writable.clear()
        stores = self._names.datastores()
        self._stores = {store.feed_id: store for store in stores}
        self._leased.refresh(stores)

    # ------------------------------------------------------------------ names

    def root(self) -> Node:
        return self._names.root()

    def get(self, ino: int) -> Node:
        return self._live(self._overlay.get(ino))

    def lookup(self, parent_ino: int, name: bytes) -> Node:
        return self._live(self._overlay.lookup(parent_ino, name))

    def list(self, ino: int, after: bytes = b"", limit: int = 1000) -> Sequence[tuple[bytes, Node]]:
        entries = self._overlay.list(ino, after, limit)
        if not self._dirty:
            return entries
        return [(name, self._live(node)) for name, node in entries]

    def change_counter(self) -> int:
        return self._names.change_counter()

    def _live(self, node: Node) -> Node:
        """With the size and time of a content that is being changed here."""
        dirty = self._dirty.get(node.ino)
        if dirty is None:
            return node
        time_ns = dirty.mtime_ns
        return node._replace(size_bytes=dirty.size_bytes, mtime_ns=time_ns, ctime_ns=max(node.ctime_ns, time_ns))

    # ------------------------------------------------------------------ what may be changed

    def store(self, store_id: bytes) -> DataStore:
        """Raises: NotFound."""
        store = self._stores.get(store_id)
        if store is None:
            self.refresh()
            store = self._stores.get(store_id)
        if store is None:
            raise NotFound("there is no such DataStore any more")
        return store

    def writable_store(self, node: Node) -> DataStore:
        """The DataStore a node lies in, which may be changed. Raises: PermissionError (EPERM: a folder that only leads
        to DataStores), Refused (no WRITE where the node lies, or its key is not here)."""
        return self._checked(node, of_names=False)

    def writable_directory(self, node: Node) -> DataStore:
        """As `writable_store`, of a directory in which names shall come or go."""
        return self._checked(node, of_names=True)

    def _checked(self, node: Node, *, of_names: bool) -> DataStore:
        if node.store_id is None:
            raise PermissionError(errno.EPERM, "this folder only leads to DataStores")
        store = self.store(node.store_id)
        writable = self._writable.get(store.feed_id)
        if writable is None:
            writable = self._writable[store.feed_id] = store.readable and self._may_write(store, b"")
        if not writable and not (store.readable and self._may_write_at(store, node, of_names=of_names)):
            raise Refused(f"{store.owner} has not given WRITE here")
        return store

    def _may_write_at(self, store: DataStore, node: Node, *, of_names: bool) -> bool:
        """Whether WRITE is given on the folder, or one above it, that a node is or lies in."""
        place = None if of_names else self._overlay.place_of(node.ino)
        folder = node.ino if place is None else place[0]
        key = (store.feed_id, folder)
        writable = self._writable.get(key)
        if writable is None:
            nameless = not of_names and place is None  # its last name is gone: nobody judges what becomes of it
            writable = self._writable[key] = self._may_write(store, None if nameless else self._path_in_store(folder))
        return writable

    def _path_in_store(self, ino: int) -> bytes:
        names: list[bytes] = []
        while ino & NUMBER_MASK != TOP_DIRECTORY and (place := self._overlay.place_of(ino)) is not None:
            ino, name = place
            names.append(name)
        return b"/".join(reversed(names))

    def keep(self, ino: int) -> None:
        """A file about to lose its last name stays for those who have it open."""
        self._overlay.keep(ino)

    def amend(self, node: Node, asked: AttributeChange, time_ns: int) -> None:
        """Attributes of an open file without a name: nobody else will ever see them."""
        given = {"mtime_ns": asked.mtime_ns, "atime_ns": asked.atime_ns, "uid": asked.uid, "gid": asked.gid}
        fields = {name: value for name, value in given.items() if value is not None}
        if asked.mode is not None:
            fields["mode"] = stat.S_IFMT(node.mode) | stat.S_IMODE(asked.mode)
        self._overlay.amend(node.ino, ctime_ns=time_ns, **fields)

    def forget(self, ino: int) -> None:
        """Nobody has it open any more."""
        self._overlay.drop(ino)

    @contextmanager
    def unborn(self, ino: int) -> Iterator[None]:
        """While this holds nothing in the library has that number, and nobody is asked."""
        self._leased.unborn.add(ino)
        try:
            yield
        finally:
            self._leased.unborn.discard(ino)

    def is_below(self, ino: int, ancestor: int) -> bool:
        """Whether a directory is `ancestor` or lies below it."""
        current: int | None = ino
        for _ in range(MAXIMUM_DEPTH):
            if current == ancestor:
                return True
            if current is None:
                return False
            place = self._overlay.place_of(current)
            current = place[0] if place is not None else None
        return True  # too deep to say: refused

    def encloses_datastore(self, ino: int) -> bool:
        """Whether a DataStore stands somewhere below a directory."""
        return any(self.is_below(folder, ino) for folder in self._names.folders_with_datastores())
