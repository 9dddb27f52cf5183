"""What a store entry changes in the tree: the only code that writes inodes, links and attributes.

`apply_operation` is total and deterministic: an operation that makes no sense in the tree as it stands is skipped
with a reason, at every member alike. Laws (tested): the tree rebuilt from the feed equals the live one; applying a
prefix again changes nothing.
"""

from __future__ import annotations

import sqlite3
import stat
from dataclasses import dataclass

from collective.core.address import validate_name
from collective.core.errors import Refused
from collective.core.layout import INLINE_LIMIT_BYTES
from collective.wire import feed_pb2

__all__ = ["MAX_NUMBER", "ROOT_NUMBER", "apply_operation", "make_root"]

ROOT_NUMBER = 1
RENAME_NO_REPLACE = 1
RENAME_EXCHANGE = 2
MAX_DEPTH = 1024  # no path is deeper; also what a walk to the root may take
MAX_XATTR_BYTES = 65_536
MAX_NUMBER = 1 << 40  # inode numbers share st_ino with 24 bits of prefix


class _SkipError(Exception):
    """The operation makes no sense here; the reason."""


@dataclass(frozen=True)
class _Inode:
    number: int
    mode: int
    link_count: int

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


def make_root(connection: sqlite3.Connection, store: int, time_ns: int) -> None:
    """The store's root directory, with the time of the feed's first entry."""
    connection.execute(
        "INSERT INTO inodes VALUES (?, ?, ?, 0, 0, 0, 2, 0, ?, ?, ?, NULL, NULL, NULL)",
        (store, ROOT_NUMBER, stat.S_IFDIR | 0o755, time_ns, time_ns, time_ns),
    )
    connection.execute("INSERT INTO store_numbers VALUES (?, ?)", (store, ROOT_NUMBER + 1))


def apply_operation(connection: sqlite3.Connection, store: int, operation: feed_pb2.TreeOperation, time_ns: int) -> str:
    """Apply one operation; "" or the reason why it was skipped. `time_ns` is the entry's wall time."""
    tree = _Tree(connection, store, time_ns)
    try:
        match operation.WhichOneof("change"):
            case "create":
                tree.create(operation.create)
            case "link":
                tree.link(operation.link)
            case "unlink":
                tree.unlink(operation.unlink)
            case "rename":
                tree.rename(operation.rename)
            case "set_attributes":
                tree.set_attributes(operation.set_attributes)
            case "set_xattr":
                tree.set_xattr(operation.set_xattr)
            case "set_content":
                tree.set_content(operation.set_content)
            case _:
                return "an operation of a later version"
    except (_SkipError, Refused) as error:
        return str(error)
    return ""


class _Tree:
    def __init__(self, connection: sqlite3.Connection, store: int, time_ns: int) -> None:
        self._sql = connection
        self._store = store
        self._time_ns = time_ns

    # ------------------------------------------------------------ operations

    def create(self, change: feed_pb2.Create) -> None:
        self._free_name(change.parent, change.name)
        if not ROOT_NUMBER < change.inode < MAX_NUMBER or self._find(change.inode) is not None:
            raise _SkipError("the inode number is taken")
        kind = stat.S_IFMT(change.mode)
        if kind not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK):
            raise _SkipError("an unknown kind of file")
        directory = kind == stat.S_IFDIR
        size, version, content = self._content(change.content) if kind == stat.S_IFREG else (0, None, None)
        target = change.symlink_target if kind == stat.S_IFLNK else None
        if target is not None:
            size = len(target)
        mtime = change.mtime_nanoseconds or self._time_ns
        self._sql.execute(
            "INSERT INTO inodes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                self._store, change.inode, change.mode, change.uid, change.gid, _bounded(change.rdev),
                2 if directory else 1, size, mtime, self._time_ns, mtime, target, version, content,
            ),
        )  # fmt: skip
        self._add_link(change.parent, change.name, change.inode, self._time_ns)
        if directory:
            self._count_links(change.parent, 1)
        self._sql.execute(
            "UPDATE store_numbers SET next_number = max(next_number, ?) WHERE store = ?",
            (change.inode + 1, self._store),
        )

    def link(self, change: feed_pb2.Link) -> None:
        inode = self._get(change.inode)
        if inode.is_directory:
            raise _SkipError("a directory has one name")
        self._free_name(change.parent, change.name)
        self._add_link(change.parent, change.name, inode.number, change.mtime_nanoseconds or self._time_ns)
        self._count_links(inode.number, 1)

    def unlink(self, change: feed_pb2.Unlink) -> None:
        inode = self._linked(change.parent, change.name)
        if change.inode and change.inode != inode.number:
            raise _SkipError("another file stands under the name")
        self._remove_link(change.parent, change.name, inode, change.mtime_nanoseconds or self._time_ns)

    def rename(self, change: feed_pb2.Rename) -> None:
        inode = self._linked(change.from_parent, change.from_name)
        if inode.number != change.inode:
            raise _SkipError("another file stands under the old name")
        self._directory(change.to_parent)
        validate_name(change.to_name)
        if (change.from_parent, change.from_name) == (change.to_parent, change.to_name):
            return
        if inode.is_directory:
            self._not_below(change.to_parent, inode.number)
        time_ns = change.mtime_nanoseconds or self._time_ns
        standing = self._link_target(change.to_parent, change.to_name)
        if change.flags & RENAME_EXCHANGE:
            self._exchange(change, inode, standing, time_ns)
            return
        if standing is not None:
            if standing == inode.number:
                # two names of one file: rename(2) leaves both as they are
                return
            if change.flags & RENAME_NO_REPLACE or change.replaced_inode != standing:
                raise _SkipError("something stands under the new name")
            replaced = self._get(standing)
            if replaced.is_directory != inode.is_directory:
                raise _SkipError("a directory and a file do not replace each other")
            self._remove_link(change.to_parent, change.to_name, replaced, time_ns)
        self._sql.execute(
            "DELETE FROM links WHERE store = ? AND parent = ? AND name = ?",
            (self._store, change.from_parent, change.from_name),
        )
        self._touch(change.from_parent, time_ns)
        self._add_link(change.to_parent, change.to_name, inode.number, time_ns)
        if inode.is_directory and change.from_parent != change.to_parent:
            self._count_links(change.from_parent, -1)
            self._count_links(change.to_parent, 1)

    def _exchange(self, change: feed_pb2.Rename, inode: _Inode, standing: int | None, time_ns: int) -> None:
        if standing is None:
            raise _SkipError("there is nothing to exchange with")
        other = self._get(standing)
        if other.is_directory:
            self._not_below(change.from_parent, other.number)
        for parent, name, number in (
            (change.to_parent, change.to_name, inode.number),
            (change.from_parent, change.from_name, other.number),
        ):
            self._sql.execute(
                "UPDATE links SET inode = ? WHERE store = ? AND parent = ? AND name = ?",
                (number, self._store, parent, name),
            )
            self._touch(parent, time_ns)
        moved = inode.is_directory - other.is_directory
        if change.from_parent != change.to_parent and moved:
            self._count_links(change.from_parent, -moved)
            self._count_links(change.to_parent, moved)

    def set_attributes(self, change: feed_pb2.SetAttributes) -> None:
        inode = self._get(change.inode)
        values: dict[str, int] = {"ctime_ns": change.ctime_nanoseconds or self._time_ns}
        if change.HasField("mode"):
            values["mode"] = stat.S_IFMT(inode.mode) | stat.S_IMODE(change.mode)
        for field, column in (
            ("uid", "uid"),
            ("gid", "gid"),
            ("mtime_nanoseconds", "mtime_ns"),
            ("atime_nanoseconds", "atime_ns"),
        ):
            if change.HasField(field):  # type: ignore[arg-type]  # the fields named in this table
                values[column] = getattr(change, field)
        assignments = ", ".join(f"{column} = ?" for column in values)
        self._sql.execute(
            f"UPDATE inodes SET {assignments} WHERE store = ? AND number = ?",
            (*values.values(), self._store, inode.number),
        )

    def set_xattr(self, change: feed_pb2.SetXattr) -> None:
        inode = self._get(change.inode)
        if not 0 < len(change.name) <= 255 or len(change.value) > MAX_XATTR_BYTES:
            raise _SkipError("an extended attribute's name or value is too long")
        self._sql.execute(
            "DELETE FROM xattrs WHERE store = ? AND inode = ? AND name = ?", (self._store, inode.number, change.name)
        )
        if not change.removed:
            self._sql.execute(
                "INSERT INTO xattrs VALUES (?, ?, ?, ?)", (self._store, inode.number, change.name, change.value)
            )
        self._sql.execute(
            "UPDATE inodes SET ctime_ns = ? WHERE store = ? AND number = ?",
            (change.ctime_nanoseconds or self._time_ns, self._store, inode.number),
        )

    def set_content(self, change: feed_pb2.SetContent) -> None:
        inode = self._get(change.inode)
        if not stat.S_ISREG(inode.mode):
            raise _SkipError("only a file has content")
        size, version, content = self._content(change.content)
        mtime = change.mtime_nanoseconds or self._time_ns
        self._sql.execute(
            "UPDATE inodes SET size_bytes = ?, version_id = ?, content = ?, mtime_ns = ?, ctime_ns = ?"
            " WHERE store = ? AND number = ?",
            (size, version, content, mtime, self._time_ns, self._store, inode.number),
        )

    # ------------------------------------------------------------ parts

    def _content(self, content: feed_pb2.Content) -> tuple[int, bytes | None, bytes | None]:
        if content.version_id:
            if content.size_bytes >= 1 << 62:
                raise _SkipError("a size beyond all bounds")
            return content.size_bytes, content.version_id, content.SerializeToString()
        if len(content.inline) > INLINE_LIMIT_BYTES or len(content.inline) != content.size_bytes:
            raise _SkipError("inline content of a wrong size")
        return content.size_bytes, None, content.SerializeToString() if content.inline else None

    def _find(self, number: int) -> _Inode | None:
        row = self._sql.execute(
            "SELECT number, mode, link_count FROM inodes WHERE store = ? AND number = ?",
            (self._store, _bounded(number)),
        ).fetchone()
        return _Inode(*row) if row else None

    def _get(self, number: int) -> _Inode:
        inode = self._find(number)
        if inode is None:
            raise _SkipError("there is no such inode")
        return inode

    def _directory(self, number: int) -> None:
        if not self._get(number).is_directory:
            raise _SkipError("the parent is not a directory")

    def _link_target(self, parent: int, name: bytes) -> int | None:
        row = self._sql.execute(
            "SELECT inode FROM links WHERE store = ? AND parent = ? AND name = ?", (self._store, _bounded(parent), name)
        ).fetchone()
        return int(row[0]) if row else None

    def _linked(self, parent: int, name: bytes) -> _Inode:
        target = self._link_target(parent, name)
        if target is None:
            raise _SkipError("there is no such name")
        return self._get(target)

    def _free_name(self, parent: int, name: bytes) -> None:
        validate_name(name)
        self._directory(parent)
        if self._link_target(parent, name) is not None:
            raise _SkipError("the name is taken")

    def _not_below(self, directory: int, ancestor: int) -> None:
        """That `directory` neither is `ancestor` nor lies below it."""
        number = directory
        for _ in range(MAX_DEPTH):
            if number == ancestor:
                raise _SkipError("a directory cannot be moved below itself")
            if number == ROOT_NUMBER:
                return
            row = self._sql.execute(
                "SELECT parent FROM links WHERE store = ? AND inode = ?", (self._store, number)
            ).fetchone()
            if row is None:
                return
            number = int(row[0])
        raise _SkipError("the path is too deep")

    def _add_link(self, parent: int, name: bytes, number: int, time_ns: int) -> None:
        self._sql.execute("INSERT INTO links VALUES (?, ?, ?, ?)", (self._store, parent, name, number))
        self._touch(parent, time_ns)

    def _remove_link(self, parent: int, name: bytes, inode: _Inode, time_ns: int) -> None:
        """Take a name away; the inode goes with its last one. A directory must be empty."""
        if inode.is_directory:
            held = self._sql.execute(
                "SELECT 1 FROM links WHERE store = ? AND parent = ? LIMIT 1", (self._store, inode.number)
            ).fetchone()
            if held:
                raise _SkipError("the directory is not empty")
            self._count_links(parent, -1)
        self._sql.execute("DELETE FROM links WHERE store = ? AND parent = ? AND name = ?", (self._store, parent, name))
        self._touch(parent, time_ns)
        if inode.is_directory or inode.link_count <= 1:
            key = (self._store, inode.number)
            self._sql.execute("DELETE FROM inodes WHERE store = ? AND number = ?", key)
            self._sql.execute("DELETE FROM xattrs WHERE store = ? AND inode = ?", key)
        else:
            self._count_links(inode.number, -1)

    def _count_links(self, number: int, step: int) -> None:
        self._sql.execute(
            "UPDATE inodes SET link_count = link_count + ?, ctime_ns = ? WHERE store = ? AND number = ?",
            (step, self._time_ns, self._store, number),
        )

    def _touch(self, directory: int, time_ns: int) -> None:
        self._sql.execute(
            "UPDATE inodes SET mtime_ns = ?, ctime_ns = ? WHERE store = ? AND number = ?",
            (time_ns, time_ns, self._store, directory),
        )


def _bounded(number: int) -> int:
    """SQLite holds 63 bits; a larger number names nothing."""
    return number if number < 1 << 63 else -1
