"""What an operation changes in a tree: the one set of rules, for the tables of the catalogue and for every view of it.

`apply_operation` is total and deterministic: an operation that makes no sense in the tree as it stands is skipped
with a reason, at every member alike, and then changes nothing. The tree itself is anything that has the methods of
`TreeState`: the tables (catalog/inodes), where signed entries land, and the view of a mount or of staged work
(catalog/overlay), which shows the same before the entry is there. Laws (tested): the tree rebuilt from the feed equals
the live one; applying a prefix again changes nothing; a view and the tables agree on every operation.
"""

from __future__ import annotations

import stat
from typing import NamedTuple, Protocol

from collective.core.address import validate_name
from collective.core.errors import Refused
from collective.core.layout import INLINE_LIMIT_BYTES
from collective.wire import feed_pb2

__all__ = [
    "MAX_NUMBER",
    "MAX_XATTR_BYTES",
    "RENAME_EXCHANGE",
    "RENAME_NO_REPLACE",
    "ROOT_NUMBER",
    "Attributes",
    "Inode",
    "StoredContent",
    "TreeState",
    "apply_operation",
]

ROOT_NUMBER = 1
RENAME_NO_REPLACE = 1
RENAME_EXCHANGE = 2
MAX_DEPTH = 1024  # no path is deeper; also what a walk to the root may take
MAX_XATTR_BYTES = 65_536
MAX_NUMBER = 1 << 40  # inode numbers share st_ino with 24 bits of prefix
_KINDS = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK)


class _SkipError(Exception):
    """The operation makes no sense here; the reason."""


class Inode(NamedTuple):
    """What the rules need to know of an inode."""

    number: int
    mode: int
    link_count: int

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


class StoredContent(NamedTuple):
    """A file's content as a tree keeps it. `provisional`: nobody will want it back once it is replaced."""

    size_bytes: int
    content: feed_pb2.Content | None
    provisional: bool


class Attributes(NamedTuple):
    """A new inode."""

    mode: int
    uid: int
    gid: int
    rdev: int
    link_count: int
    mtime_ns: int
    ctime_ns: int
    symlink_target: bytes | None
    content: StoredContent


class TreeState(Protocol):
    """One DataStore's tree, by inode numbers. The rules ask first and change afterwards, never the other way."""

    def find(self, number: int) -> Inode | None: ...
    def target(self, parent: int, name: bytes) -> int | None:
        """The inode under a name."""
        ...

    def parent_of(self, directory: int) -> int | None: ...
    def has_names(self, directory: int) -> bool: ...
    def insert(self, number: int, attributes: Attributes) -> None: ...
    def update(self, number: int, changes: dict[str, int]) -> None:
        """Set columns: mode, uid, gid, link_count, mtime_ns, ctime_ns, atime_ns."""
        ...

    def replace_content(self, number: int, content: StoredContent, mtime_ns: int, ctime_ns: int) -> None: ...
    def remove(self, number: int, parent: int, name: bytes) -> None:
        """The inode's last name, (parent, name), is gone."""
        ...

    def add_name(self, parent: int, name: bytes, number: int) -> None:
        """Also in place of what stands there."""
        ...

    def drop_name(self, parent: int, name: bytes) -> None: ...
    def set_xattr(self, number: int, name: bytes, value: bytes | None) -> None: ...


def apply_operation(tree: TreeState, operation: feed_pb2.TreeOperation, time_ns: int) -> str:
    """Apply one operation; "" or the reason why it was skipped.

    `time_ns` is the entry's wall time, for operations that carry none of their own.
    """
    rules = _Rules(tree, operation.time_nanoseconds or time_ns)
    try:
        match operation.WhichOneof("change"):
            case "create":
                rules.create(operation.create)
            case "link":
                rules.link(operation.link)
            case "unlink":
                rules.unlink(operation.unlink)
            case "rename":
                rules.rename(operation.rename)
            case "set_attributes":
                rules.set_attributes(operation.set_attributes)
            case "set_xattr":
                rules.set_xattr(operation.set_xattr)
            case "set_content":
                rules.set_content(operation.set_content)
            case _:
                return "an operation of a later version"
    except (_SkipError, Refused) as error:
        return str(error)
    return ""


class _Rules:
    def __init__(self, tree: TreeState, time_ns: int) -> None:
        self._tree = tree
        self._time_ns = time_ns

    # ------------------------------------------------------------ operations

    def create(self, change: feed_pb2.Create) -> None:
        parent = self._free_name(change.parent, change.name)
        if not ROOT_NUMBER < change.inode < MAX_NUMBER or self._tree.find(change.inode) is not None:
            raise _SkipError("the inode number is taken")
        kind = stat.S_IFMT(change.mode)
        if kind not in _KINDS:
            raise _SkipError("an unknown kind of file")
        directory = kind == stat.S_IFDIR
        target = change.symlink_target if kind == stat.S_IFLNK else None
        if kind == stat.S_IFREG:
            # a file made empty and filled afterwards: nobody wants the empty one back
            content = _stored(change.content, provisional=not change.HasField("content"))
        else:
            content = StoredContent(len(target or b""), None, provisional=True)
        mtime_ns = change.mtime_nanoseconds if change.HasField("mtime_nanoseconds") else self._time_ns
        attributes = Attributes(
            mode=change.mode,
            uid=change.uid,
            gid=change.gid,
            rdev=_bounded(change.rdev),
            link_count=2 if directory else 1,
            mtime_ns=mtime_ns,
            # a content that came after the name is the later change
            ctime_ns=max(self._time_ns, mtime_ns) if change.content.size_bytes else self._time_ns,
            symlink_target=target,
            content=content,
        )
        self._tree.insert(change.inode, attributes)
        self._tree.add_name(change.parent, change.name, change.inode)
        self._touch(parent, self._time_ns, subfolders=int(directory))

    def link(self, change: feed_pb2.Link) -> None:
        inode = self._get(change.inode)
        if inode.is_directory:
            raise _SkipError("a directory has one name")
        parent = self._free_name(change.parent, change.name)
        self._tree.add_name(change.parent, change.name, inode.number)
        self._touch(parent, change.mtime_nanoseconds or self._time_ns)
        self._count(inode, 1)

    def unlink(self, change: feed_pb2.Unlink) -> None:
        inode = self._linked(change.parent, change.name)
        if change.inode and change.inode != inode.number:
            raise _SkipError("another file stands under the name")
        parent = self._get(change.parent)
        self._remove_name(change.parent, change.name, inode)
        self._touch(parent, change.mtime_nanoseconds or self._time_ns, -int(inode.is_directory))

    def rename(self, change: feed_pb2.Rename) -> None:
        inode = self._linked(change.from_parent, change.from_name)
        if inode.number != change.inode:
            raise _SkipError("another file stands under the old name")
        self._directory(change.from_parent)
        self._directory(change.to_parent)
        validate_name(change.to_name)
        if (change.from_parent, change.from_name) == (change.to_parent, change.to_name):
            return
        if inode.is_directory:
            self._not_below(change.to_parent, inode.number)
        standing = self._tree.target(change.to_parent, change.to_name)
        if change.flags & RENAME_EXCHANGE:
            self._exchange(change, inode, standing)
            return
        replaced = None
        if standing is not None:
            if standing == inode.number:
                # two names of one file: rename(2) leaves both as they are
                return
            if change.flags & RENAME_NO_REPLACE or change.replaced_inode != standing:
                raise _SkipError("something stands under the new name")
            replaced = self._get(standing)
            if replaced.is_directory != inode.is_directory:
                raise _SkipError("a directory and a file do not replace each other")
            self._remove_name(change.to_parent, change.to_name, replaced)
        self._tree.drop_name(change.from_parent, change.from_name)
        self._tree.add_name(change.to_parent, change.to_name, inode.number)
        self._moved(change, int(inode.is_directory), int(replaced is not None and replaced.is_directory))

    def _moved(self, change: feed_pb2.Rename, moved: int, replaced: int) -> None:
        """Times and counts of both folders after `moved` sub-folders went over and `replaced` ones vanished."""
        time_ns = change.mtime_nanoseconds or self._time_ns
        if change.from_parent == change.to_parent:
            self._touch(self._get(change.to_parent), time_ns, -replaced)
            return
        self._touch(self._get(change.from_parent), time_ns, -moved)
        self._touch(self._get(change.to_parent), time_ns, moved - replaced)

    def _exchange(self, change: feed_pb2.Rename, inode: Inode, standing: int | None) -> None:
        if standing is None:
            raise _SkipError("there is nothing to exchange with")
        other = self._get(standing)
        if other.is_directory:
            self._not_below(change.from_parent, other.number)
        self._tree.add_name(change.to_parent, change.to_name, inode.number)
        self._tree.add_name(change.from_parent, change.from_name, other.number)
        self._moved(change, inode.is_directory - other.is_directory, 0)

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
        self._tree.update(inode.number, values)

    def set_xattr(self, change: feed_pb2.SetXattr) -> None:
        inode = self._get(change.inode)
        if not 0 < len(change.name) <= 255 or len(change.value) > MAX_XATTR_BYTES:
            raise _SkipError("an extended attribute's name or value is too long")
        self._tree.set_xattr(inode.number, change.name, None if change.removed else change.value)
        self._tree.update(inode.number, {"ctime_ns": change.ctime_nanoseconds or self._time_ns})

    def set_content(self, change: feed_pb2.SetContent) -> None:
        inode = self._get(change.inode)
        if not stat.S_ISREG(inode.mode):
            raise _SkipError("only a file has content")
        content = _stored(change.content, provisional=change.provisional)
        mtime_ns = change.mtime_nanoseconds if change.HasField("mtime_nanoseconds") else self._time_ns
        self._tree.replace_content(inode.number, content, mtime_ns, self._time_ns)

    # ------------------------------------------------------------ parts

    def _get(self, number: int) -> Inode:
        inode = self._tree.find(number)
        if inode is None:
            raise _SkipError("there is no such inode")
        return inode

    def _directory(self, number: int) -> Inode:
        inode = self._get(number)
        if not inode.is_directory:
            raise _SkipError("the parent is not a directory")
        return inode

    def _linked(self, parent: int, name: bytes) -> Inode:
        target = self._tree.target(parent, name)
        if target is None:
            raise _SkipError("there is no such name")
        return self._get(target)

    def _free_name(self, parent: int, name: bytes) -> Inode:
        validate_name(name)
        directory = self._directory(parent)
        if self._tree.target(parent, name) is not None:
            raise _SkipError("the name is taken")
        return directory

    def _not_below(self, directory: int, ancestor: int) -> None:
        """That `directory` neither is `ancestor` nor lies below it."""
        number: int | None = directory
        for _ in range(MAX_DEPTH):
            if number == ancestor:
                raise _SkipError("a directory cannot be moved below itself")
            if number is None or number == ROOT_NUMBER:
                return
            number = self._tree.parent_of(number)
        raise _SkipError("the path is too deep")

    def _remove_name(self, parent: int, name: bytes, inode: Inode) -> None:
        """Take a name away; the inode goes with its last one. A directory must be empty."""
        if inode.is_directory and self._tree.has_names(inode.number):
            raise _SkipError("the directory is not empty")
        self._tree.drop_name(parent, name)
        if inode.is_directory or inode.link_count <= 1:
            self._tree.remove(inode.number, parent, name)
        else:
            self._count(inode, -1)

    def _count(self, inode: Inode, step: int) -> None:
        self._tree.update(inode.number, {"link_count": inode.link_count + step, "ctime_ns": self._time_ns})

    def _touch(self, directory: Inode, time_ns: int, subfolders: int = 0) -> None:
        """A name in the directory changed, and with it so many sub-folders came or went."""
        changes = {"mtime_ns": time_ns, "ctime_ns": time_ns}
        if subfolders:
            changes["link_count"] = directory.link_count + subfolders
        self._tree.update(directory.number, changes)


def _bounded(number: int) -> int:
    """A column holds 63 bits."""
    return number if number < 1 << 63 else -1


def _stored(content: feed_pb2.Content, *, provisional: bool) -> StoredContent:
    if content.version_id:
        if content.size_bytes >= 1 << 62:
            raise _SkipError("a size beyond all bounds")
        return StoredContent(content.size_bytes, content, provisional)
    if len(content.inline) > INLINE_LIMIT_BYTES or len(content.inline) != content.size_bytes:
        raise _SkipError("inline content of a wrong size")
    return StoredContent(content.size_bytes, content if content.inline else None, provisional)
