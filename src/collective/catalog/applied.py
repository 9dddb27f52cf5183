"""The joined tree as the entries that are applied here made it, always from this home's own database.

`Facts` below knows members, DataStores, versions; `Reader` above lays what is staged here on top.
"""

from __future__ import annotations

import builtins
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from collective.catalog.facts import Facts, as_bytes, as_int
from collective.catalog.models import DataStore, Inline, Node, VersionReference
from collective.catalog.namespace import NUMBER_BITS, ROOT_INO, Joined, join
from collective.catalog.permissions import path_covers
from collective.catalog.tree import MAX_DEPTH, ROOT_NUMBER
from collective.core.errors import NotFound, Refused
from collective.wire import feed_pb2

__all__ = ["AppliedTree"]

_NODE_COLUMNS = (
    "i.number, i.mode, i.uid, i.gid, i.size_bytes, i.mtime_ns, i.ctime_ns, i.atime_ns, i.link_count,"
    " i.symlink_target, i.version_id, i.rdev, i.creator"
)
_NodeRow = tuple[int, int, int, int, int, int, int, int, int, bytes | None, bytes | None, int, str]


class AppliedTree(Facts):
    """The tree without what is only staged. Thread-safe."""

    def __init__(self, path: Path, own_domain: str) -> None:
        super().__init__(path, own_domain)
        self._joined: tuple[int, Joined] | None = None

    def datastore_at(self, path: bytes, owner: str | None = None) -> tuple[DataStore, bytes]:
        """The DataStore a path lies in and the rest of the path (b"" for itself). Raises: NotFound."""
        joined = self._namespace()
        best: tuple[int, DataStore, bytes] | None = None
        for store in self.datastores():
            shown = store.path if owner is not None else joined.shown.get(store.feed_id, store.path)
            if owner not in (None, store.owner) or not path_covers(shown, path):
                continue
            if best is None or len(shown) > best[0]:
                best = (len(shown), store, path[len(shown) :].strip(b"/"))
        if best is None:
            shown_path = path.decode(errors="replace")
            raise NotFound(
                f"{shown_path} lies in no DataStore" + (f" of {owner}" if owner else ""),
                f"make one: collective datastore create {shown_path.rsplit('/', 1)[0] or shown_path}",
            )
        return best[1], best[2]

    def _namespace(self) -> Joined:
        return self._namespace_at(self.counters().joined)

    def _namespace_at(self, joined: int) -> Joined:
        cached = self._joined
        if cached is None or cached[0] != joined:
            cached = self._joined = (joined, join(list(self._known_stores(joined).values()), self._walk))
        return cached[1]

    def _walk(self, store: DataStore, names: Sequence[bytes]) -> tuple[int, int]:
        """How many of the names exist as directories in a store, and the ino of the last one."""
        number, depth = ROOT_NUMBER, 0
        for name in names:
            row = self._one(
                "SELECT l.inode, i.mode FROM links l JOIN inodes i ON i.store = l.store AND i.number = l.inode"
                " WHERE l.store = ? AND l.parent = ? AND l.name = ?",
                store.store_number, number, name,
            )  # fmt: skip
            if row is None or not stat.S_ISDIR(as_int(row[1])):
                break
            number, depth = as_int(row[0]), depth + 1
        return depth, store.inode_prefix << NUMBER_BITS | number

    def root(self) -> Node:
        """The top of the joined tree."""
        return self._synthetic(ROOT_INO)

    def _synthetic(self, ino: int) -> Node:
        return Node(
            ino=ino, mode=stat.S_IFDIR | 0o555, uid=0, gid=0, size_bytes=0, mtime_ns=0, ctime_ns=0, atime_ns=0,
            link_count=2, symlink_target=None, store_id=None, number=0, owner="",
        )  # fmt: skip

    def get(self, ino: int) -> Node:
        """Raises: NotFound."""
        return self._get(self._namespace(), ino)

    def _get(self, joined: Joined, ino: int) -> Node:
        if ino in joined.synthetic:
            return self._synthetic(ino)
        store = self._store_of(ino, joined)
        if not store.readable:
            return self._unreadable(store)
        row = self._one(
            f"SELECT {_NODE_COLUMNS} FROM inodes i WHERE i.store = ? AND i.number = ?",
            store.store_number, ino & ((1 << NUMBER_BITS) - 1),
        )  # fmt: skip
        if row is None:
            raise NotFound("there is no such file any more")
        return _node(store, row)

    def _store_of(self, ino: int, joined: Joined) -> DataStore:
        store = joined.roots.get((ino >> NUMBER_BITS) << NUMBER_BITS | ROOT_NUMBER)
        if store is None:
            raise NotFound("there is no such file any more")
        return store

    def _unreadable(self, store: DataStore) -> Node:
        return Node(
            ino=store.inode_prefix << NUMBER_BITS | ROOT_NUMBER, mode=stat.S_IFDIR, uid=0, gid=0, size_bytes=0,
            mtime_ns=0, ctime_ns=0, atime_ns=0, link_count=2, symlink_target=None, store_id=store.feed_id,
            number=ROOT_NUMBER, owner=store.owner, readable=False,
        )  # fmt: skip

    def lookup(self, parent_ino: int, name: bytes) -> Node:
        """Raises: NotFound; Refused below a DataStore that is not readable here."""
        return self._lookup(self._namespace(), parent_ino, name)

    def _lookup(self, joined: Joined, parent_ino: int, name: bytes) -> Node:
        standing = joined.children.get(parent_ino, {}).get(name)
        if standing is not None:
            return self.get(standing)
        if parent_ino in joined.synthetic:
            raise NotFound(f"there is no {name.decode(errors='replace')}")
        store = self._readable_store(parent_ino, joined)
        row = self._one(
            f"SELECT {_NODE_COLUMNS} FROM links l JOIN inodes i ON i.store = l.store AND i.number = l.inode"
            " WHERE l.store = ? AND l.parent = ? AND l.name = ?",
            store.store_number, parent_ino & ((1 << NUMBER_BITS) - 1), name,
        )  # fmt: skip
        if row is None:
            raise NotFound(f"there is no {name.decode(errors='replace')}")
        return _node(store, row)

    def list(self, ino: int, after: bytes = b"", limit: int = 1000) -> list[tuple[bytes, Node]]:
        """A page of a directory: names above `after` in byte order. Raises: NotFound, Refused."""
        return self._list(self._namespace(), ino, after, limit)

    def _list(self, joined: Joined, ino: int, after: bytes, limit: int) -> builtins.list[tuple[bytes, Node]]:
        inside = joined.children.get(ino, {})
        found = [(name, self.get(child)) for name, child in inside.items() if name > after]
        if ino not in joined.synthetic:
            store = self._readable_store(ino, joined)
            rows = self._all(
                f"SELECT {_NODE_COLUMNS}, l.name FROM links l JOIN inodes i ON i.store = l.store"
                " AND i.number = l.inode WHERE l.store = ? AND l.parent = ? AND l.name > ? ORDER BY l.name LIMIT ?",
                store.store_number, ino & ((1 << NUMBER_BITS) - 1), after, limit,
            )  # fmt: skip
            found += [(as_bytes(row[-1]), _node(store, row[:-1])) for row in rows if row[-1] not in inside]
            if not inside:
                return found  # as the database sorted them
        return sorted(found, key=lambda pair: pair[0])[:limit]

    def _readable_store(self, ino: int, joined: Joined) -> DataStore:
        store = self._store_of(ino, joined)
        if not store.readable:
            raise Refused(
                f"{store.path.decode(errors='replace')} of {store.owner} cannot be read from here",
                f"{store.owner} gives it: collective datastore grant {store.path.decode(errors='replace')} read …",
            )
        return store

    def find(self, path: bytes, owner: str | None = None) -> Node | None:
        """The node at a path, None when nothing is there. Raises: Refused."""
        try:
            return self.resolve(path, owner)
        except NotFound:
            return None

    def resolve(self, path: bytes, owner: str | None = None) -> Node:
        """The node at a path of the joined tree, or of one owner's DataStores. Raises: NotFound, Refused."""
        node = self.root()
        names = [name for name in path.split(b"/") if name]
        if owner is not None:
            store, rest = self.datastore_at(path, owner)
            node = self.get(store.inode_prefix << NUMBER_BITS | ROOT_NUMBER)
            names = [name for name in rest.split(b"/") if name]
        for name in names:
            if not node.is_directory:
                raise NotFound(f"there is no {path.decode(errors='replace')}")
            try:
                node = self.lookup(node.ino, name)
            except NotFound:
                raise NotFound(f"there is no {path.decode(errors='replace')}") from None
        return node

    def path_of(self, store: DataStore, number: int) -> bytes:
        """The path in the joined tree of an inode of a DataStore, by one of its names, as far as it can be told."""
        names: list[bytes] = []
        ino = store.inode_prefix << NUMBER_BITS | number
        while len(names) < MAX_DEPTH and (place := self.place_of(ino)) is not None:
            ino = place[0]
            names.append(place[1])
        if ino & ((1 << NUMBER_BITS) - 1) != ROOT_NUMBER:
            names.append(b"...")
        shown = self._namespace().shown.get(store.feed_id, store.path)
        return b"/".join([shown, *reversed(names)])

    def content(self, node: Node) -> Inline | VersionReference:
        """Where a file's content is. Raises: NotFound."""
        row = self._one(
            "SELECT i.content FROM inodes i JOIN feeds f ON f.tree = i.store WHERE f.feed_id = ? AND i.number = ?",
            node.store_id, node.number,
        )  # fmt: skip
        if row is None:
            raise NotFound("there is no such file any more")
        if row[0] is None:
            return Inline(b"")
        content = feed_pb2.Content.FromString(as_bytes(row[0]))
        if not content.version_id:
            return Inline(content.inline)
        assert node.store_id is not None
        return VersionReference(
            node.store_id, content.version_id, content.size_bytes, tuple(content.key_pages), content.key_name
        )

    def xattrs(self, ino: int) -> dict[bytes, bytes]:
        """The extended attributes of an inode. Raises: NotFound."""
        node = AppliedTree.get(self, ino)
        if node.store_id is None or not node.readable:
            return {}
        rows = self._all(
            "SELECT x.name, x.value FROM xattrs x JOIN feeds f ON f.tree = x.store WHERE f.feed_id = ? AND x.inode = ?",
            node.store_id, node.number,
        )  # fmt: skip
        return {as_bytes(name): as_bytes(value) for name, value in rows}

    def folders_with_datastores(self) -> Sequence[int]:
        """The real folders in which a DataStore, or a folder leading to one, stands."""
        joined = self._namespace()
        return [ino for ino in joined.children if ino not in joined.synthetic]

    def place_of(self, ino: int) -> tuple[int, bytes] | None:
        """(ino of the directory, name) of an inode, one of them; None of a DataStore's root and of what is gone."""
        prefix, number = ino >> NUMBER_BITS, ino & ((1 << NUMBER_BITS) - 1)
        store = self._namespace().roots.get(prefix << NUMBER_BITS | ROOT_NUMBER)
        if store is None:
            return None
        row = self._one(
            "SELECT parent, name FROM links WHERE store = ? AND inode = ? LIMIT 1", store.store_number, number
        )
        return (prefix << NUMBER_BITS | as_int(row[0]), as_bytes(row[1])) if row else None


def _node(store: DataStore, row: Sequence[object]) -> Node:
    number, mode, uid, gid, size, mtime, ctime, atime, links, target, version, rdev, creator = cast(_NodeRow, row)
    return Node(
        store.inode_prefix << NUMBER_BITS | number, mode, uid, gid, size, mtime, ctime, atime, links, target,
        store.feed_id, number, store.owner, version, rdev, True, creator,
    )  # fmt: skip
