"""The one place that speaks to FUSE's library: translates calls, maps errors, serves until unmounted.

Theory: pyfuse3 reads requests from /dev/fuse in tasks of this event loop and calls a handler each. Whatever leaves a
handler must be a FUSEError, else its caller hangs for ever: every handler stands behind `_answering`. A buffer returned
by `read` is written to the kernel before the event loop gets its turn, so views into cache slots are safe. Notes to
the kernel ("forget this inode") can wait for pages we have yet to deliver: they are sent from a thread of their own.
pyfuse3 keeps one session per process.

    state       begins with                           ends with
    mounted     the mount call                        requests are answered from now on
    ready       the root answered a stat              on_ready
    stopping    cancelled, or unmounted from outside  fetches broken off, readers get EIO
    gone        unmounted, device closed              run_mount returns
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from functools import partial, wraps
from typing import Any, Concatenate, NoReturn, ParamSpec, TypeVar

import pyfuse3
import pyfuse3.asyncio

from collective.core.errors import CollectiveError, Misconfigured, Unreachable, codes_of
from collective.core.observe import SILENT, Observer
from collective.mount.changes import Stale, ToldNames
from collective.mount.device import DeviceWatch
from collective.mount.filesystem import FileSystem, Space
from collective.mount.keeper import follow_changes
from collective.mount.kernel import raise_read_ahead
from collective.mount.mountpoint import Mountpoint
from collective.mount.names import Names, Node, OpenSource
from collective.mount.reading import ContentReader
from collective.mount.settings import MountSettings

__all__ = ["run_mount"]

IDLE_WORKERS = 8  # tasks kept waiting for requests
MAXIMUM_WORKERS = 128  # requests answered at one time; the kernel queues the rest
BLOCK_BYTES = 4096
READ_BLOCK_BYTES = 1 << 20  # st_blksize: what `cp` and `cat` read at a time

P = ParamSpec("P")
T = TypeVar("T")


Handler = Callable[Concatenate["_Operations", P], Coroutine[Any, Any, T]]


def _answering(handler: Handler[P, T]) -> Handler[P, T]:
    """Whatever the handler raises becomes an errno; what nobody expected is EIO and an event."""

    @wraps(handler)
    async def answer(self: _Operations, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await handler(self, *args, **kwargs)
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


class _Operations(pyfuse3.Operations):
    """The handlers. What is missing (flush, fsync, xattrs) answers ENOSYS once, and the kernel never asks again."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, files: FileSystem, settings: MountSettings, observer: Observer) -> None:
        super().__init__()
        self.observer = observer
        self._files = files
        self._settings = settings

    # ------------------------------------------------------------------ names

    @_answering
    async def lookup(self, parent_inode: int, name: bytes, ctx: object) -> pyfuse3.EntryAttributes:
        return self._attributes(self._files.lookup(parent_inode, name))

    @_answering
    async def getattr(self, inode: int, ctx: object) -> pyfuse3.EntryAttributes:
        return self._attributes(self._files.getattr(inode))

    @_answering
    async def readlink(self, inode: int, ctx: object) -> bytes:
        return self._files.readlink(inode)

    @_answering
    async def access(self, inode: int, mode: int, ctx: object) -> bool:
        self._files.getattr(inode)
        return not mode & os.W_OK  # bits and owners are the kernel's business (default_permissions)

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

    # ------------------------------------------------------------------ directories

    @_answering
    async def opendir(self, inode: int, ctx: object) -> int:
        return self._files.opendir(inode)

    @_answering
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        position = start_id
        while entries := self._files.readdir(fh, position):
            for name, node in entries:
                position += 1
                if not pyfuse3.readdir_reply(token, name, self._attributes(node), position):
                    return
                self._files.told_entry(fh, name, node)

    @_answering
    async def releasedir(self, fh: int) -> None:
        self._files.releasedir(fh)

    # ------------------------------------------------------------------ files

    @_answering
    async def open(self, inode: int, flags: int, ctx: object) -> pyfuse3.FileInfo:
        opened = self._files.open(inode, flags)
        return pyfuse3.FileInfo(fh=opened.handle, keep_cache=opened.keep_cache)

    @_answering
    async def read(self, fh: int, off: int, size: int) -> bytes:
        return await self._files.read(fh, off, size)  # type: ignore[return-value]  # any buffer will do

    @_answering
    async def release(self, fh: int) -> None:
        self._files.release(fh)

    def _attributes(self, node: Node) -> pyfuse3.EntryAttributes:
        found = pyfuse3.EntryAttributes()
        found.st_ino = self._files.kernel_ino(node.ino)
        found.entry_timeout = found.attr_timeout = self._settings.names_timeout_seconds
        found.st_mode = node.mode
        found.st_nlink = node.link_count
        found.st_uid = node.uid if self._settings.uid is None else self._settings.uid
        found.st_gid = node.gid if self._settings.gid is None else self._settings.gid
        found.st_rdev = node.rdev
        found.st_size = node.size_bytes
        found.st_blksize = READ_BLOCK_BYTES
        found.st_blocks = -(-node.size_bytes // 512)
        found.st_mtime_ns = node.mtime_ns
        found.st_ctime_ns = node.ctime_ns
        found.st_atime_ns = node.atime_ns
        return found


async def _refuse_writing(*_: object) -> NoReturn:
    raise pyfuse3.FUSEError(errno.EROFS)


_CHANGING = ("create", "mkdir", "mknod", "symlink", "link", "unlink", "rmdir", "rename", "write", "setattr")
for _name in (*_CHANGING, "setxattr", "removexattr"):
    setattr(_Operations, _name, _refuse_writing)


async def run_mount(
    names: Names,
    open_source: OpenSource,
    settings: MountSettings,
    observer: Observer = SILENT,
    *,
    on_ready: Callable[[], None] | None = None,
    changes: AsyncIterator[object] | None = None,
    space: Callable[[], Space] = Space,
) -> None:
    """Mount and serve until unmounted from outside (returns) or cancelled (unmounts, then raises CancelledError).

    `changes` yields whenever `names.change_counter()` may have grown; without it the counter is asked twice a second.
    `space` tells `df`. `on_ready` is called once the mount answers.

    Raises: Misconfigured (mountpoint or FUSE unfit, settings impossible), with what to do.
    """
    settings.check()
    now = asyncio.get_running_loop().time
    told = ToldNames(names, settings.names_timeout_seconds)
    with await asyncio.to_thread(Mountpoint, settings.mountpoint, allow_other=settings.allow_other) as mountpoint:
        async with ContentReader(open_source, settings, observer) as reader:
            files = FileSystem(names, reader, told, now, space)
            _mount(_Operations(files, settings, observer), mountpoint, settings)
            try:
                keeping = follow_changes(names, told, partial(_note, files, observer), changes, observer)
                await _serve(reader, mountpoint, settings, observer, keeping, on_ready)
            finally:
                pyfuse3.close(unmount=True)


def _mount(operations: _Operations, mountpoint: Mountpoint, settings: MountSettings) -> None:
    options = {"fsname=collective", "subtype=collective", "ro", "noatime", "default_permissions"}
    if settings.allow_other:
        options.add("allow_other")
    watch = DeviceWatch(pyfuse3.asyncio.ClosedResourceError)
    pyfuse3.asyncio.enable()
    pyfuse3.asyncio.wait_readable = watch.wait_readable  # type: ignore[assignment]
    pyfuse3.asyncio.notify_closing = watch.close  # type: ignore[assignment]
    try:
        pyfuse3.init(operations, str(mountpoint.directory), options)
    except RuntimeError as error:
        raise Misconfigured(
            f"{mountpoint.directory} cannot be mounted: {error}", "the line above by fusermount3 or fuse says why"
        ) from None
    mountpoint.hide()


async def _serve(
    reader: ContentReader,
    mountpoint: Mountpoint,
    settings: MountSettings,
    observer: Observer,
    keeping: Coroutine[Any, Any, None],
    on_ready: Callable[[], None] | None,
) -> None:
    serving = asyncio.ensure_future(pyfuse3.main(min_tasks=IDLE_WORKERS, max_tasks=MAXIMUM_WORKERS))
    keeper = asyncio.ensure_future(keeping)
    try:
        try:
            await asyncio.to_thread(os.stat, mountpoint.directory)
        except OSError as error:
            raise Unreachable(f"{mountpoint.directory} is mounted but does not answer: {error.strerror}") from None
        problem = raise_read_ahead(mountpoint.directory, settings.kernel_read_ahead_bytes)
        observer.event("mount.ready", kernel_read_ahead=not problem, reason=problem)
        if on_ready is not None:
            on_ready()
        await asyncio.wait({serving})
    finally:
        keeper.cancel()  # first, while requests are still answered: a note to the kernel may wait for one
        with contextlib.suppress(asyncio.CancelledError):
            await keeper
        await reader.shut()
        if not serving.done():
            pyfuse3.terminate()
        await serving
        observer.event("mount.stopped", reads=reader.statistics.reads, read_bytes=reader.statistics.read_bytes)


def _note(files: FileSystem, observer: Observer, stale: Stale) -> None:
    """Have the kernel forget. In a thread: may wait for requests that the event loop answers."""
    ino = files.kernel_ino(stale.ino)
    try:
        if stale.name is None:
            pyfuse3.invalidate_inode(ino, attr_only=False)
        else:
            pyfuse3.invalidate_entry(ino, stale.name)
    except OSError as error:
        if error.errno != errno.ENOENT:  # the kernel had forgotten it already
            observer.event("mount.note_refused", reason=str(error))
