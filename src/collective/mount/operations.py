"""The operations a mount's changes become: everything that identifies a change is fixed when it is made.

Pure but for the randomness of ids, which is the author's. Times are nanoseconds since 1970; numbers are inode numbers
within the DataStore.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from blake3 import blake3

from collective.mount.committing import Author
from collective.wire import feed_pb2

__all__ = ["RENAME_EXCHANGE", "RENAME_NO_REPLACE", "AttributeChange", "NewInode", "OperationMaker", "fill_create"]

RENAME_NO_REPLACE = 1
RENAME_EXCHANGE = 2


class NewInode(NamedTuple):
    """What `mknod`, `mkdir`, `symlink` or `create` asked for; `mode` carries the type bits."""

    mode: int
    uid: int
    gid: int
    rdev: int = 0
    symlink_target: bytes = b""


@dataclass(frozen=True, slots=True)
class AttributeChange:
    """What `chmod`, `chown`, `utimens` or `truncate` asked for; None leaves it as it is."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size_bytes: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None

    @property
    def is_size_only(self) -> bool:
        return all(value is None for value in (self.mode, self.uid, self.gid, self.atime_ns, self.mtime_ns))


def fill_create(create: feed_pb2.Create, data: bytes, mtime_ns: int) -> None:
    """Have a create take a file's content along. After a crash the very same is made of what the journal holds."""
    create.mtime_nanoseconds = mtime_ns
    create.content.size_bytes = len(data)
    create.content.inline = data


class OperationMaker:
    """Makes one mount's operations."""

    def __init__(self, author: Author) -> None:
        self.writer = author.domain
        self._operation = author.operation

    def create(self, parent: int, name: bytes, number: int, new: NewInode, time_ns: int) -> feed_pb2.TreeOperation:
        operation = self._operation(time_ns)
        change = operation.create
        change.parent = parent
        change.name = name
        change.inode = number
        change.mode = new.mode
        change.uid = new.uid
        change.gid = new.gid
        change.mtime_nanoseconds = time_ns
        if new.symlink_target:
            change.symlink_target = new.symlink_target
        if new.rdev:
            change.rdev = new.rdev
        return operation

    def link(self, number: int, parent: int, name: bytes, time_ns: int) -> feed_pb2.TreeOperation:
        operation = self._operation(time_ns)
        operation.link.inode = number
        operation.link.parent = parent
        operation.link.name = name
        operation.link.mtime_nanoseconds = time_ns
        return operation

    def unlink(self, parent: int, name: bytes, number: int, time_ns: int) -> feed_pb2.TreeOperation:
        operation = self._operation(time_ns)
        operation.unlink.parent = parent
        operation.unlink.name = name
        operation.unlink.inode = number
        operation.unlink.mtime_nanoseconds = time_ns
        return operation

    def rename(
        self, number: int, old: tuple[int, bytes], new: tuple[int, bytes], replaced: int, flags: int, time_ns: int
    ) -> feed_pb2.TreeOperation:
        """`old` and `new` are (parent, name)."""
        operation = self._operation(time_ns)
        change = operation.rename
        change.inode = number
        change.from_parent, change.from_name = old
        change.to_parent, change.to_name = new
        change.replaced_inode = replaced
        change.flags = flags
        change.mtime_nanoseconds = time_ns
        return operation

    def set_attributes(self, number: int, asked: AttributeChange, time_ns: int) -> feed_pb2.TreeOperation:
        """All but the size, which is content."""
        operation = self._operation(time_ns)
        change = operation.set_attributes
        change.inode = number
        change.ctime_nanoseconds = time_ns
        if asked.mode is not None:
            change.mode = asked.mode
        if asked.uid is not None:
            change.uid = asked.uid
        if asked.gid is not None:
            change.gid = asked.gid
        if asked.mtime_ns is not None:
            change.mtime_nanoseconds = asked.mtime_ns
        if asked.atime_ns is not None:
            change.atime_nanoseconds = asked.atime_ns
        return operation

    def set_content(
        self, number: int, content: feed_pb2.Content, before: feed_pb2.Content, mtime_ns: int, time_ns: int, *,
        provisional: bool,
    ) -> feed_pb2.TreeOperation:  # fmt: skip
        """In place of the content `before`, which it expects."""
        operation = self._operation(time_ns)
        change = operation.set_content
        change.inode = number
        change.content.CopyFrom(content)
        change.mtime_nanoseconds = mtime_ns
        change.provisional = provisional
        expected = operation.expectations.add().content
        expected.inode = number
        if before.version_id:
            expected.version_id = before.version_id
        else:
            expected.inline_hash = blake3(before.inline).digest()
        return operation

    def set_xattr(self, number: int, name: bytes, value: bytes | None, time_ns: int) -> feed_pb2.TreeOperation:
        """`value` None takes it away."""
        operation = self._operation(time_ns)
        change = operation.set_xattr
        change.inode = number
        change.name = name
        change.ctime_nanoseconds = time_ns
        if value is None:
            change.removed = True
        else:
            change.value = value
        return operation
