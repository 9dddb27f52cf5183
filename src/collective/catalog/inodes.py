"""The tree's tables: the only code that writes inodes, links and attributes, and what files were before.

By the rules of catalog/tree. Beside the tree stands what makes it forget nothing: `history`, every content that was
replaced or removed, and `gone`, where an inode stood when its last name went. Both follow from the entries alone.
"""

from __future__ import annotations

import sqlite3
import stat

from collective.catalog.tree import ROOT_NUMBER, Attributes, Inode, StoredContent, apply_operation
from collective.wire import feed_pb2

__all__ = ["CHANGES_PER_SEQ", "InodeTables", "apply_to_tables", "make_root"]

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


def apply_to_tables(
    connection: sqlite3.Connection, store: int, operation: feed_pb2.TreeOperation, *, seq: int, index: int, time_ns: int
) -> str:
    """Apply the operation at `index` of entry `seq`; "" or the reason why it was skipped."""
    made_ns = operation.time_nanoseconds or time_ns
    tree = InodeTables(
        connection, store, change=seq * CHANGES_PER_SEQ + min(index, CHANGES_PER_SEQ - 1), time_ns=made_ns,
        writer=operation.id.writer, actor=operation.actor,
    )  # fmt: skip
    return apply_operation(tree, operation, time_ns)


class InodeTables:
    """One DataStore's tree in the tables, for one operation (`change` is its place in the store)."""

    def __init__(
        self, connection: sqlite3.Connection, store: int, *, change: int, time_ns: int, writer: str, actor: str
    ) -> None:
        self._sql = connection
        self._store = store
        self._change = change
        self._time_ns = time_ns
        self._writer = writer
        self._actor = actor

    # ------------------------------------------------------------ what the rules ask

    def find(self, number: int) -> Inode | None:
        row = self._sql.execute(
            "SELECT number, mode, link_count FROM inodes WHERE store = ? AND number = ?",
            (self._store, _bounded(number)),
        ).fetchone()
        return Inode(*row) if row else None

    def target(self, parent: int, name: bytes) -> int | None:
        row = self._sql.execute(
            "SELECT inode FROM links WHERE store = ? AND parent = ? AND name = ?", (self._store, _bounded(parent), name)
        ).fetchone()
        return int(row[0]) if row else None

    def parent_of(self, directory: int) -> int | None:
        row = self._sql.execute(
            "SELECT parent FROM links WHERE store = ? AND inode = ?", (self._store, directory)
        ).fetchone()
        return int(row[0]) if row else None

    def has_names(self, directory: int) -> bool:
        query = "SELECT 1 FROM links WHERE store = ? AND parent = ? LIMIT 1"
        return self._sql.execute(query, (self._store, directory)).fetchone() is not None

    # ------------------------------------------------------------ what the rules change

    def insert(self, number: int, attributes: Attributes) -> None:
        content = attributes.content
        version_id, stored = _columns(content)
        self._sql.execute(
            "INSERT INTO inodes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                self._store, number, attributes.mode, attributes.uid, attributes.gid, attributes.rdev,
                attributes.link_count, content.size_bytes, attributes.mtime_ns, attributes.ctime_ns,
                attributes.mtime_ns, attributes.symlink_target, version_id,
                self._writer, self._change, self._actor, content.provisional, stored,
            ),
        )  # fmt: skip

    def update(self, number: int, changes: dict[str, int]) -> None:
        assignments = ", ".join(f"{column} = ?" for column in changes)
        self._sql.execute(
            f"UPDATE inodes SET {assignments} WHERE store = ? AND number = ?", (*changes.values(), self._store, number)
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

    def add_name(self, parent: int, name: bytes, number: int) -> None:
        self._sql.execute("INSERT OR REPLACE INTO links VALUES (?, ?, ?, ?)", (self._store, parent, name, number))

    def drop_name(self, parent: int, name: bytes) -> None:
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
