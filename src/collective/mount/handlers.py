"""What the kernel asks, handler by handler: pyfuse3's calls translated, errors mapped, deadlines set.

Whatever leaves a handler must be a FUSEError, else its caller hangs for ever: every handler stands behind
`_answering`. A buffer returned by `read` is written to the kernel before the event loop gets its turn, so views into
cache slots are safe.

What the kernel does by itself: permission bits (default_permissions), locks within the mount (flock and fcntl: no
handler, so it keeps them itself), the umask of the caller, `.` and `..`. Its write-back cache stays off: a write is
journalled before the program that wrote goes on.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Coroutine, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3

from collective.core.errors import CollectiveError, codes_of
from collective.core.observe import Observer
from collective.mount.deadline import Waiting, within
from collective.mount.filesystem import FileSystem
from collective.mount.names import Node
from collective.mount.operations import AttributeChange, NewInode
from collective.mount.settings import MountSettings

__all__ = ["KERNEL_ROOT_INO", "Operations", "kernel_ino"]

KERNEL_ROOT_INO = 1
BLOCK_BYTES = 4096
READ_BLOCK_BYTES = 1 << 20  # st_blksize: what `cp` and `cat` read at a time

P = ParamSpec("P")
T = TypeVar("T")


Handler = Callable[Concatenate["Operations", P], Coroutine[Any, Any, T]]


def kernel_ino(files: FileSystem, ino: int) -> int:
    """The number the kernel knows this inode by."""
    return KERNEL_ROOT_INO if ino == files.root_ino else ino


def _answering(handler: Handler[P, T]) -> Handler[P, T]:
    """Whatever the handler raises becomes an errno, too late is EIO, and so is what nobody expected, with an event."""

    @wraps(handler)
    async def answer(self: Operations, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await within(self.deadline_seconds, handler(self, *args, **kwargs), self.waiting)
        except pyfuse3.FUSEError:
            raise
        except CollectiveError as error:
            raise pyfuse3.FUSEError(codes_of(error).errno) from None
        except TimeoutError:
            self.observer.event("mount.deadline", operation=handler.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from None
        except OSError as error:
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from None
        except Exception as error:
            self.observer.event(
                "mount.unexpected", doing=handler.__name__, kind=type(error).__name__, reason=str(error)
            )
            raise pyfuse3.FUSEError(errno.EIO) from None

    return answer


class Operations(pyfuse3.Operations):
    """The handlers. Those of a read-only mount are the same: the kernel refuses changes itself (`ro`)."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, files: FileSystem, settings: MountSettings, observer: Observer) -> None:
        super().__init__()
        self.observer = observer
        self.deadline_seconds = settings.deadline_seconds
        self.waiting = Waiting()
        self._files = files
        self._settings = settings
        self._root_ino = files.root_ino
        self._shown_bits = ~(settings.umask or 0)

    def _ino(self, ino: int) -> int:
        return self._root_ino if ino == KERNEL_ROOT_INO else ino

    # ------------------------------------------------------------------ names

    @_answering
    async def lookup(self, parent_inode: int, name: bytes, ctx: object) -> pyfuse3.EntryAttributes:
        return self._attributes(self._files.lookup(self._ino(parent_inode), name))

    @_answering
    async def getattr(self, inode: int, ctx: object) -> pyfuse3.EntryAttributes:
        return self._attributes(self._files.getattr(self._ino(inode)))

    @_answering
    async def readlink(self, inode: int, ctx: object) -> bytes:
        return self._files.readlink(inode)

    @_answering
    async def access(self, inode: int, mode: int, ctx: object) -> bool:
        self._files.getattr(self._ino(inode))
        return True  # bits and owners are the kernel's business (default_permissions)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Inode numbers come from the names and live for ever; nothing is kept per lookup."""

    @_answering
    async def statfs(self, ctx: object) -> pyfuse3.StatvfsData:
        space = self._files.space()
        answer = pyfuse3.StatvfsData()
        answer.f_bsize = answer.f_frsize = BLOCK_BYTES
        answer.f_blocks = space.total_bytes // BLOCK_BYTES
        answer.f_bfree = answer.f_bavail = space.free_bytes // BLOCK_BYTES
        answer.f_namemax = 255
        return answer

    @_answering
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return await self._make(parent_inode, name, stat.S_IFDIR | stat.S_IMODE(mode), ctx)

    @_answering
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if stat.S_ISBLK(mode) or stat.S_ISCHR(mode):
            raise pyfuse3.FUSEError(errno.EPERM)  # a device of one machine means nothing on another
        return await self._make(parent_inode, name, mode, ctx)

    @_answering
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return await self._make(parent_inode, name, stat.S_IFLNK | 0o777, ctx, target)

    async def _make(
        self, parent: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext, target: bytes = b""
    ) -> pyfuse3.EntryAttributes:
        new = NewInode(mode, ctx.uid, ctx.gid, symlink_target=target)
        return self._attributes(await self._files.make(self._ino(parent), name, new))

    @_answering
    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: object) -> pyfuse3.EntryAttributes:
        return self._attributes(await self._files.link(self._ino(inode), self._ino(new_parent_inode), new_name))

    @_answering
    async def unlink(self, parent_inode: int, name: bytes, ctx: object) -> None:
        await self._files.unlink(self._ino(parent_inode), name)

    @_answering
    async def rmdir(self, parent_inode: int, name: bytes, ctx: object) -> None:
        await self._files.rmdir(self._ino(parent_inode), name)

    @_answering
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: object,
    ) -> None:
        old = (self._ino(parent_inode_old), name_old)
        await self._files.rename(old, (self._ino(parent_inode_new), name_new), flags)

    # ------------------------------------------------------------------ attributes

    @_answering
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: object,
    ) -> pyfuse3.EntryAttributes:
        asked = AttributeChange(
            mode=stat.S_IMODE(attr.st_mode) if fields.update_mode else None,
            uid=self._given(attr.st_uid, self._settings.uid) if fields.update_uid else None,
            gid=self._given(attr.st_gid, self._settings.gid) if fields.update_gid else None,
            size_bytes=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        )
        return self._attributes(await self._files.set_attributes(self._ino(inode), asked))

    @staticmethod
    def _given(asked: int, shown: int | None) -> int | None:
        """An owner to store; where the mount shows one owner for all, only that one may be asked for, and changes
        nothing."""
        if shown is None:
            return asked
        if asked != shown:
            raise pyfuse3.FUSEError(errno.EPERM)
        return None

    @_answering
    async def getxattr(self, inode: int, name: bytes, ctx: object) -> bytes:
        # The kernel asks this before every write: answered before anything else is looked at.
        if name == b"security.capability":
            raise pyfuse3.FUSEError(errno.ENODATA)
        return self._files.getxattr(self._ino(inode), name)

    @_answering
    async def listxattr(self, inode: int, ctx: object) -> Sequence[bytes]:
        return self._files.listxattr(self._ino(inode))

    @_answering
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: object) -> None:
        await self._files.setxattr(self._ino(inode), name, value)

    @_answering
    async def removexattr(self, inode: int, name: bytes, ctx: object) -> None:
        await self._files.setxattr(self._ino(inode), name, None)

    # ------------------------------------------------------------------ directories

    @_answering
    async def opendir(self, inode: int, ctx: object) -> int:
        return self._files.opendir(self._ino(inode))

    @_answering
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        position = start_id
        while entries := self._files.readdir(fh, position):
            first = position
            for name, node in entries:
                if not pyfuse3.readdir_reply(token, name, self._attributes(node), position + 1):
                    break
                position += 1
            self._files.told_entries(fh, entries[: position - first])
            if position - first < len(entries):
                return

    @_answering
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._files.fsyncdir(fh)

    @_answering
    async def releasedir(self, fh: int) -> None:
        self._files.releasedir(fh)

    # ------------------------------------------------------------------ files

    @_answering
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        new = NewInode(stat.S_IFREG | stat.S_IMODE(mode), ctx.uid, ctx.gid)
        opened, node = await self._files.create(self._ino(parent_inode), name, new, flags)
        return pyfuse3.FileInfo(fh=opened.handle, keep_cache=opened.keep_cache), self._attributes(node)

    @_answering
    async def open(self, inode: int, flags: int, ctx: object) -> pyfuse3.FileInfo:
        opened = await self._files.open(inode, flags)
        return pyfuse3.FileInfo(fh=opened.handle, keep_cache=opened.keep_cache)

    @_answering
    async def read(self, fh: int, off: int, size: int) -> bytes:
        return await self._files.read(fh, off, size)  # type: ignore[return-value]  # any buffer will do

    @_answering
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        await self._files.write(fh, off, buf)
        return len(buf)

    @_answering
    async def flush(self, fh: int) -> None:
        await self._files.flush(fh)

    @_answering
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._files.fsync(fh)

    @_answering
    async def release(self, fh: int) -> None:
        self._files.release(fh)

    def _attributes(self, node: Node) -> pyfuse3.EntryAttributes:
        found = pyfuse3.EntryAttributes()
        settings = self._settings
        found.st_ino = KERNEL_ROOT_INO if node.ino == self._root_ino else node.ino
        found.entry_timeout = found.attr_timeout = settings.names_timeout_seconds
        found.st_mode = node.mode & self._shown_bits
        found.st_nlink = node.link_count
        found.st_uid = node.uid if settings.uid is None else settings.uid
        found.st_gid = node.gid if settings.gid is None else settings.gid
        found.st_rdev = node.rdev
        found.st_size = node.size_bytes
        found.st_blksize = READ_BLOCK_BYTES
        found.st_blocks = -(-node.size_bytes // 512)
        found.st_mtime_ns = node.mtime_ns
        found.st_ctime_ns = node.ctime_ns
        found.st_atime_ns = node.atime_ns
        return found
