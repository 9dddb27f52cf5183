"""Changes of names and attributes: checked against what this mount shows, then done (mount/commit).

Each method plans: looks, refuses as Linux does, makes the operation. A plan may run again, when a lease was lost or the
journal was full; what it says last is what is done.
"""

from __future__ import annotations

import asyncio
import errno
import stat
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from collective.catalog.models import DataStore, Node
from collective.core.errors import NotFound
from collective.mount.commit import Commits, ExactSubmit, Planned, Recorder
from collective.mount.lease import DirectoryKey, Leases
from collective.mount.numbers import InodeNumbers
from collective.mount.operations import RENAME_EXCHANGE, RENAME_NO_REPLACE, AttributeChange, NewInode, OperationMaker
from collective.mount.view import TreeView

__all__ = ["TreeChanges"]

MAXIMUM_NAME_BYTES = 255
MAXIMUM_TARGET_BYTES = 4095
SHOWN_POLL_SECONDS = 0.01  # between two looks whether an exact change is in the database


class FilesByIno(Protocol):
    """What changes of names mean to open and changed files."""

    def close_flushed(self, ino: int) -> None: ...
    def losing_last_name(self, ino: int) -> None:
        """The file's last name is about to go: who has it open keeps it. May turn out otherwise."""
        ...

    def lost_last_name(self, ino: int) -> None:
        """It went."""
        ...


class TreeChanges:
    """Everything that changes a name or an attribute. Raises, each: OSError as Linux gives it, CollectiveError.

    `wall_ns` is the time of day in nanoseconds; inos are those of the joined tree.
    """

    def __init__(
        self,
        view: TreeView,
        recorder: Recorder,
        leases: Leases,
        committer: ExactSubmit,
        numbers: InodeNumbers,
        maker: OperationMaker,
        files: FilesByIno,
        wall_ns: Callable[[], int],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._view = view
        self._leases = leases
        self._commits = Commits(maker.writer, recorder, leases, committer, sleep)
        self._numbers = numbers
        self._maker = maker
        self._files = files
        self._wall_ns = wall_ns
        self._sleep = sleep

    # ------------------------------------------------------------------ names

    async def make(self, parent_ino: int, name: bytes, new: NewInode, *, exclusive: bool = True) -> Node:
        """Create, mkdir, mknod, symlink. Raises: EEXIST, ENOENT, …"""
        if len(new.symlink_target) > MAXIMUM_TARGET_BYTES:
            raise OSError(errno.ENAMETOOLONG, "a link's target has 4095 bytes at most")
        parent = self._directory(parent_ino)
        store = self._view.writable_directory(parent)
        number = await self._numbers.take(store.feed_id)
        key = (store.feed_id, parent.number)
        made = _inherit(new, parent)

        def plan() -> Planned:
            self._directory(parent_ino)
            if self._standing(parent_ino, name) is not None:
                raise OSError(errno.EEXIST, "the name is taken")
            return self._maker.create(parent.number, name, number, made, self._wall_ns()), stat.S_ISDIR(made.mode)

        ino = parent.ino - parent.number + number
        with self._view.unborn(ino):
            await self._commits.commit(store, lambda: (key,), plan, exclusive=exclusive)
        self._leases.book.added(key, name)
        if stat.S_ISDIR(made.mode):
            self._leases.made((store.feed_id, number), key)
        return await self._shown(ino)

    async def link(self, ino: int, parent_ino: int, name: bytes) -> Node:
        parent = self._directory(parent_ino)
        store = self._view.writable_directory(parent)
        key = (store.feed_id, parent.number)

        def plan() -> Planned:
            self._directory(parent_ino)
            node = self._view.get(ino)
            if stat.S_ISDIR(node.mode):
                raise OSError(errno.EPERM, "a directory has one name")
            if node.store_id != store.feed_id:
                raise OSError(errno.EXDEV, "a link stays within its DataStore")
            if not node.link_count:
                raise OSError(errno.ENOENT, "the file was removed")
            if self._standing(parent_ino, name) is not None:
                raise OSError(errno.EEXIST, "the name is taken")
            self._files.close_flushed(ino)
            return self._maker.link(node.number, parent.number, name, self._wall_ns()), False

        await self._commits.commit(store, lambda: (key,), plan, exclusive=True)
        self._leases.book.added(key, name)
        return self._view.get(ino)

    async def unlink(self, parent_ino: int, name: bytes) -> int:
        """The ino that lost a name."""
        parent = self._directory(parent_ino)
        store = self._view.writable_directory(parent)
        key = (store.feed_id, parent.number)
        removed = parent

        def plan() -> Planned:
            nonlocal removed
            removed = self._existing(parent_ino, name)
            if stat.S_ISDIR(removed.mode):
                raise OSError(errno.EISDIR, "a directory")
            self._losing_name(removed)
            return self._maker.unlink(parent.number, name, removed.number, self._wall_ns()), False

        await self._commits.commit(store, lambda: (key,), plan)
        self._leases.book.removed(key, name)
        self._lost_name(removed)
        return removed.ino

    async def rmdir(self, parent_ino: int, name: bytes) -> int:
        """The ino that is gone."""
        parent = self._directory(parent_ino)
        store = self._view.writable_directory(parent)
        key = (store.feed_id, parent.number)
        removed = parent

        def plan() -> Planned:
            nonlocal removed
            removed = self._existing(parent_ino, name)
            self._check_removable(removed, store)
            return self._maker.unlink(parent.number, name, removed.number, self._wall_ns()), True

        await self._commits.commit(store, lambda: self._with_replaced((key,), parent_ino, name), plan)
        self._leases.book.removed(key, name)
        return removed.ino

    async def rename(self, old: tuple[int, bytes], new: tuple[int, bytes], flags: int) -> int | None:
        """`old` and `new` are (parent ino, name). The ino that was replaced. Raises: EXDEV, EBUSY, ENOTEMPTY, …"""
        if flags not in (0, RENAME_NO_REPLACE, RENAME_EXCHANGE):
            raise OSError(errno.EINVAL, "an unknown kind of rename")
        parents = self._directory(old[0]), self._directory(new[0])
        store = self._view.writable_directory(parents[0])
        if self._view.writable_directory(parents[1]).feed_id != store.feed_id:
            raise OSError(errno.EXDEV, "a rename stays within its DataStore")
        keys = [(store.feed_id, parent.number) for parent in parents]
        replaced: Node | None = None

        def leased() -> Sequence[DirectoryKey]:
            return keys if flags else self._with_replaced(keys, *new)

        def plan() -> Planned:
            nonlocal replaced
            node = self._existing(*old)
            standing = replaced = self._standing(*new)
            self._check_rename(store, node, standing, flags, (old[0], new[0]))
            if standing is not None and standing.ino == node.ino:
                return None  # two names of one file: rename(2) leaves both as they are
            self._files.close_flushed(node.ino)
            if standing is not None and not flags & RENAME_EXCHANGE:
                self._losing_name(standing)
            operation = self._maker.rename(
                node.number, (parents[0].number, old[1]), (parents[1].number, new[1]),
                standing.number if standing is not None else 0, flags, self._wall_ns(),
            )  # fmt: skip
            return operation, stat.S_ISDIR(node.mode)

        done = await self._commits.commit(store, leased, plan, exclusive=flags == RENAME_NO_REPLACE)
        if done is None or flags & RENAME_EXCHANGE:
            return None
        self._leases.book.removed(keys[0], old[1])
        self._leases.book.added(keys[1], new[1])
        if replaced is None:
            return None
        self._lost_name(replaced)
        return replaced.ino

    # ------------------------------------------------------------------ attributes

    def writable(self, ino: int) -> Node:
        """The node, whose content may be changed. Raises: Refused, PermissionError, NotFound."""
        node = self._view.get(ino)
        self._view.writable_store(node)
        return node

    async def set_attributes(self, ino: int, asked: AttributeChange) -> None:
        """Mode, owner and times; the size is content."""
        node = self._view.get(ino)
        store = self._view.writable_store(node)
        if not node.link_count:
            self._view.amend(node, asked, self._wall_ns())
            return

        def plan() -> Planned:
            return self._maker.set_attributes(node.number, asked, self._wall_ns()), stat.S_ISDIR(node.mode)

        await self._commits.commit(store, tuple, plan)

    async def set_xattr(self, ino: int, name: bytes, value: bytes | None) -> None:
        """`value` None removes it. Raises: ENODATA when it is not there."""
        node = self._view.get(ino)
        store = self._view.writable_store(node)

        def plan() -> Planned:
            if value is None and name not in self._view.xattrs(ino):
                raise OSError(errno.ENODATA, "no such attribute")
            return self._maker.set_xattr(node.number, name, value, self._wall_ns()), False

        await self._commits.commit(store, tuple, plan)

    # ------------------------------------------------------------------ looking

    def _directory(self, ino: int) -> Node:
        node = self._view.get(ino)
        if not stat.S_ISDIR(node.mode):
            raise OSError(errno.ENOTDIR, "not a directory")
        return node

    def _standing(self, parent_ino: int, name: bytes) -> Node | None:
        """What has the name now."""
        if len(name) > MAXIMUM_NAME_BYTES:
            raise OSError(errno.ENAMETOOLONG, "a name has 255 bytes at most")
        try:
            return self._view.lookup(parent_ino, name)
        except NotFound:
            return None

    def _existing(self, parent_ino: int, name: bytes) -> Node:
        node = self._standing(parent_ino, name)
        if node is None:
            raise OSError(errno.ENOENT, "no such name")
        return node

    def _losing_name(self, node: Node) -> None:
        if node.link_count == 1 and not stat.S_ISDIR(node.mode):
            self._files.losing_last_name(node.ino)

    def _lost_name(self, node: Node) -> None:
        """`node` as it was before."""
        if node.link_count == 1 and not stat.S_ISDIR(node.mode):
            self._files.lost_last_name(node.ino)

    def _with_replaced(self, keys: Sequence[DirectoryKey], parent_ino: int, name: bytes) -> Sequence[DirectoryKey]:
        """And the directory that has the name, so that it stays empty until it is gone."""
        standing = self._standing(parent_ino, name)
        if standing is None or standing.store_id is None or not stat.S_ISDIR(standing.mode):
            return keys
        return (*keys, (standing.store_id, standing.number))

    def _check_removable(self, node: Node, store: DataStore) -> None:
        """A directory that may go."""
        if not stat.S_ISDIR(node.mode):
            raise OSError(errno.ENOTDIR, "not a directory")
        if node.store_id != store.feed_id:
            raise OSError(errno.EBUSY, "a DataStore stands here")
        if self._view.list(node.ino, b"", 1):
            raise OSError(errno.ENOTEMPTY, "the directory is not empty")

    def _check_rename(
        self, store: DataStore, node: Node, standing: Node | None, flags: int, parents: tuple[int, int]
    ) -> None:
        """`parents` are the inos of the directories from which and to which. In Linux's order (fs/namei.c)."""
        if standing is not None and flags & RENAME_NO_REPLACE:
            raise OSError(errno.EEXIST, "the name is taken")
        if standing is None and flags & RENAME_EXCHANGE:
            raise OSError(errno.ENOENT, "there is nothing to exchange with")
        self._check_not_below(node, parents[1])
        for one in (node, standing):
            if one is not None and one.store_id != store.feed_id:
                raise OSError(errno.EBUSY, "a DataStore stands here")
            if one is not None and stat.S_ISDIR(one.mode) and self._view.encloses_datastore(one.ino):
                raise OSError(errno.EBUSY, "a DataStore stands below")
        if standing is None or standing.ino == node.ino:
            return
        if flags & RENAME_EXCHANGE:
            self._check_not_below(standing, parents[0])
        elif stat.S_ISDIR(node.mode):
            self._check_removable(standing, store)
        elif stat.S_ISDIR(standing.mode):
            raise OSError(errno.EISDIR, "a directory")

    def _check_not_below(self, moved: Node, parent_ino: int) -> None:
        if stat.S_ISDIR(moved.mode) and self._view.is_below(parent_ino, moved.ino):
            raise OSError(errno.EINVAL, "a directory cannot be moved below itself")

    async def _shown(self, ino: int) -> Node:
        """The node, once the database shows it: at once, but for a change that another home has just committed."""
        while True:
            try:
                return self._view.get(ino)
            except NotFound:
                await self._sleep(SHOWN_POLL_SECONDS)


def _inherit(new: NewInode, parent: Node) -> NewInode:
    """What is made in a set-group-id directory belongs to the directory's group. Source: mkdir(2), open(2)."""
    if not parent.mode & stat.S_ISGID:
        return new
    mode = new.mode | stat.S_ISGID if stat.S_ISDIR(new.mode) else new.mode
    return NewInode(mode, new.uid, parent.gid, new.rdev, new.symlink_target)
