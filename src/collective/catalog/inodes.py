"""The tree's tables: the only code that writes inodes, links and attributes, and what files were before.

By the rules of catalog/tree. Beside the tree stands what makes it forget nothing: `history`, every content that was
replaced or removed, and `gone`, where an inode stood when its last name went. Both follow from the entries alone.

New inodes and names, and changed columns of inodes, are gathered and written together: an entry that fills a folder
writes the folder's row once. Whatever else is asked or changed first writes what was gathered.
"""

from __future__ import annotations

import sqlite3
import stat

from collective.catalog.tree import ROOT_NUMBER, Attributes, Inode, StoredContent, apply_operation
from collective.wire import feed_pb2

__all__ = ["CHANGES_PER_SEQ", "InodeTables", "make_root"]

# A change's place in its store: seq of the entry times this, plus its place in the entry (at most 1,024 operations).
CHANGES_PER_SEQ = 1024


def make_root(connection: sqlite3.Connection, store: int, time_ns: int) -> None:
    """The store's root directory, with the time of the feed's first entry."""
    connection.execute(
        "INSERT INTO inodes (store, number, mode, uid, gid, rdev, link_count, size_bytes, mtime_ns, ctime_ns, atime_ns)"
        " VALUES (?, ?, ?, 0, 0, 0, 2, 0, ?, ?, ?)",
        (store, ROOT_NUMBER, stat.S_IFDIR | 0o755, time_ns, time_ns, time_ns),
    )
    connection.execute("INSERT INTO store_numbers VALUES (?, ?)", (store, ROOT_NUMBER + 1))


class InodeTables:
    """One DataStore's tree in the tables, for the operations of one entry. `write` ends it."""

    def __init__(self, connection: sqlite3.Connection, store: int, seq: int, time_ns: int) -> None:
        self._sql = connection
        self._store = store
        self._seq = seq
        self._entry_ns = time_ns
        self._known: dict[int, Inode] = {}
        self._highest: int | None = None  # no inode has a higher number
        self._new_inodes: list[tuple[object, ...]] = []
        self._new_names: dict[tuple[int, bytes], int] = {}
        self._changes: dict[int, dict[str, int]] = {}
        self._made: dict[int, dict[bytes, int]] = {}  # folders of this entry, with all their names

    def apply(self, operation: feed_pb2.TreeOperation, index: int) -> str:
        """Apply the operation at `index` of the entry; "" or the reason why it was skipped."""
        self._change = self._seq * CHANGES_PER_SEQ + min(index, CHANGES_PER_SEQ - 1)
        self._time_ns = operation.time_nanoseconds or self._entry_ns
        self._writer, self._actor = operation.id.writer, operation.actor
        return apply_operation(self, operation, self._entry_ns)

    def write(self) -> None:
        """Bring what was gathered to the tables."""
        if self._new_inodes:
            self._sql.executemany(f"INSERT INTO inodes VALUES ({', '.join('?' * 18)})", self._new_inodes)
            self._new_inodes.clear()
        if self._new_names:
            rows = [(self._store, parent, name, number) for (parent, name), number in self._new_names.items()]
            self._sql.executemany("INSERT OR REPLACE INTO links VALUES (?, ?, ?, ?)", rows)
            self._new_names.clear()
        for number, changes in self._changes.items():
            assignments = ", ".join(f"{column} = ?" for column in changes)
            values = (*changes.values(), self._store, number)
            self._sql.execute(f"UPDATE inodes SET {assignments} WHERE store = ? AND number = ?", values)
        self._changes.clear()

    # ------------------------------------------------------------ what the rules ask

    def find(self, number: int) -> Inode | None:
        known = self._known.get(number)
        if known is not None:
            return known
        if self._highest is None:
            row = self._sql.execute("SELECT max(number) FROM inodes WHERE store = ?", (self._store,)).fetchone()
            self._highest = row[0] or 0
        if number > self._highest:
            return None
        row = self._sql.execute(
            "SELECT number, mode, link_count FROM inodes WHERE store = ? AND number = ?", (self._store, number)
        ).fetchone()
        if row is None:
            return None
        inode = self._known[number] = Inode(*row)
        return inode

    def target(self, parent: int, name: bytes) -> int | None:
        if parent in self._made:
            return self._made[parent].get(name)
        number = self._new_names.get((parent, name))
        if number is not None:
            return number
        row = self._sql.execute(
            "SELECT inode FROM links WHERE store = ? AND parent = ? AND name = ?", (self._store, _bounded(parent), name)
        ).fetchone()
        return int(row[0]) if row else None

    def parent_of(self, directory: int) -> int | None:
        self.write()
        row = self._sql.execute(
            "SELECT parent FROM links WHERE store = ? AND inode = ?", (self._store, directory)
        ).fetchone()
        return int(row[0]) if row else None

    def has_names(self, directory: int) -> bool:
        self.write()
        query = "SELECT 1 FROM links WHERE store = ? AND parent = ? LIMIT 1"
        return self._sql.execute(query, (self._store, directory)).fetchone() is not None

    # ------------------------------------------------------------ what the rules change

    def insert(self, number: int, attributes: Attributes) -> None:
        content = attributes.content
        version_id, stored = _columns(content)
        self._new_inodes.append(
            (
                self._store, number, attributes.mode, attributes.uid, attributes.gid, attributes.rdev,
                attributes.link_count, content.size_bytes, attributes.mtime_ns, attributes.ctime_ns,
                attributes.mtime_ns, attributes.symlink_target, version_id,
                self._writer, self._change, self._actor, content.provisional, stored,
            )
        )  # fmt: skip
        self._known[number] = Inode(number, attributes.mode, attributes.link_count)
        if self._highest is not None:
            self._highest = max(self._highest, number)
        if stat.S_ISDIR(attributes.mode):
            self._made[number] = {}

    def update(self, number: int, changes: dict[str, int]) -> None:
        self._changes.setdefault(number, {}).update(changes)
        known = self._known.get(number)
        if known is not None and not changes.keys().isdisjoint(("mode", "link_count")):
            self._known[number] = Inode(
                number, changes.get("mode", known.mode), changes.get("link_count", known.link_count)
            )

    def replace_content(self, number: int, content: StoredContent, mtime_ns: int, ctime_ns: int) -> None:
        self._remember(number, removed=False)
        self._sql.execute(
            "UPDATE inodes SET size_bytes = ?, version_id = ?, content = ?, mtime_ns = ?, ctime_ns = ?,"
            " content_change = ?, content_actor = ?, provisional = ? WHERE store = ? AND number = ?",
            (
                content.size_bytes, *_columns(content), mtime_ns, ctime_ns, self._change, self._actor,
                content.provisional, self._store, number,
            ),
        )  # fmt: skip

    def _remember(self, number: int, *, removed: bool) -> None:
        """What is about to be replaced or removed stays findable, unless it was only on the way to something."""
        self.write()
        self._sql.execute(
            "INSERT OR REPLACE INTO history SELECT store, number, content_change, content, version_id, size_bytes,"
            " mtime_ns, content_actor, ?, ?, ? FROM inodes"
            " WHERE store = ? AND number = ? AND NOT provisional AND (mode & ?) = ?",
            (self._change, self._time_ns, removed, self._store, number, stat.S_IFMT(0xFFFF), stat.S_IFREG),
        )

    def remove(self, number: int, parent: int, name: bytes) -> None:
        self._remember(number, removed=True)
        self._sql.execute(
            "INSERT OR REPLACE INTO gone VALUES (?, ?, ?, ?, ?)", (self._store, number, parent, name, self._change)
        )
        key = (self._store, number)
        self._sql.execute("DELETE FROM inodes WHERE store = ? AND number = ?", key)
        self._sql.execute("DELETE FROM xattrs WHERE store = ? AND inode = ?", key)
        self._known.pop(number, None)
        self._made.pop(number, None)

    def add_name(self, parent: int, name: bytes, number: int) -> None:
        self._new_names[parent, name] = number
        if parent in self._made:
            self._made[parent][name] = number

    def drop_name(self, parent: int, name: bytes) -> None:
        self.write()
        if parent in self._made:
            del self._made[parent][name]
        self._sql.execute("DELETE FROM links WHERE store = ? AND parent = ? AND name = ?", (self._store, parent, name))

    def set_xattr(self, number: int, name: bytes, value: bytes | None) -> None:
        if value is None:
            self._sql.execute(
                "DELETE FROM xattrs WHERE store = ? AND inode = ? AND name = ?", (self._store, number, name)
            )
        else:
            self._sql.execute("INSERT OR REPLACE INTO xattrs VALUES (?, ?, ?, ?)", (self._store, number, name, value))


def _columns(stored: StoredContent) -> tuple[bytes | None, bytes | None]:
    """(version_id, content)."""
    content = stored.content
    if content is None:
        return None, None
    return content.version_id or None, content.SerializeToString()


def _bounded(number: int) -> int:
    """SQLite holds 63 bits; a larger number names nothing."""
    return number if number < 1 << 63 else -1
