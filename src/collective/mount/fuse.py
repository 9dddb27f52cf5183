"""Mount, serve until unmounted: the session with the kernel, around the handlers (mount/handlers).

Theory: pyfuse3 reads requests from /dev/fuse in tasks of this event loop and calls a handler each. Notes to the
kernel ("forget this inode") can wait for pages we have yet to deliver: they are sent from a thread of their own.
pyfuse3 keeps one session per process, and is imported by this module and the handlers alone.

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
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pyfuse3
import pyfuse3.asyncio

from collective.core.errors import Misconfigured, Unreachable
from collective.core.observe import SILENT, Observer
from collective.mount.changes import Stale, ToldNames
from collective.mount.device import DeviceWatch, Turns
from collective.mount.files import OpenFiles
from collective.mount.filesystem import FileSystem
from collective.mount.handlers import Operations, kernel_ino
from collective.mount.keeper import follow_changes
from collective.mount.kernel import raise_read_ahead
from collective.mount.mountpoint import Mountpoint
from collective.mount.names import Names, OpenSource, Space
from collective.mount.reading import ContentReader
from collective.mount.settings import MountSettings
from collective.mount.writing import Writer

__all__ = ["run_mount"]

IDLE_WORKERS = 8  # tasks kept waiting for requests
MAXIMUM_WORKERS = 128  # requests answered at one time; the kernel queues the rest


async def run_mount(
    names: Names,
    open_source: OpenSource,
    settings: MountSettings,
    observer: Observer = SILENT,
    *,
    on_ready: Callable[[], None] | None = None,
    changes: AsyncIterator[object] | None = None,
    space: Callable[[], Space] = Space,
    writer: Writer | None = None,
) -> None:
    """Mount and serve until unmounted from outside (returns) or cancelled (unmounts, then raises CancelledError).

    Without a `writer` the mount is read-only; with one `names` must be `WritableNames`. `changes` yields whenever
    `names.change_counter()` may have grown; without it the counter is asked twice a second.
    `space` tells `df`. `on_ready` is called once the mount answers.

    Raises: Misconfigured (mountpoint or FUSE unfit, settings impossible), with what to do.
    """
    settings.check()
    now = asyncio.get_running_loop().time
    with await asyncio.to_thread(Mountpoint, settings.mountpoint, allow_other=settings.allow_other) as mountpoint:
        async with ContentReader(open_source, settings, observer) as reader, AsyncExitStack() as stack:
            if writer is None or settings.read_only:
                told = ToldNames(names, settings.names_timeout_seconds)
                files = FileSystem(names, OpenFiles(names, reader), told, now, space)
                changed: Callable[[], None] = _nothing
            else:
                writing = await stack.enter_async_context(writer.begin(names, reader, open_source, observer))
                told = ToldNames(writing.view, settings.names_timeout_seconds, writing.certain_since)
                files = FileSystem(writing.view, writing.files, told, now, space, writing.changes, writing.forget)
                changed = writing.view.refresh
            operations = Operations(files, settings, observer)
            watch = DeviceWatch(
                pyfuse3.asyncio.ClosedResourceError, lambda: operations.waiting.count > 0 or reader.is_fetching
            )
            _mount(operations, watch, mountpoint, settings, read_only=writer is None or settings.read_only)
            try:
                keeping = follow_changes(names, told, partial(_note, files, observer), changes, observer, changed)
                await _serve(reader, mountpoint, settings, observer, keeping, on_ready)
            finally:
                watch.stop()
                pyfuse3.close(unmount=True)


def _nothing() -> None:
    """Nothing has to be looked at again when the names changed."""


def _mount(
    operations: Operations, watch: DeviceWatch, mountpoint: Mountpoint, settings: MountSettings, *, read_only: bool
) -> None:
    options = {"fsname=collective", "subtype=collective", "noatime", "default_permissions"}
    if read_only:
        options.add("ro")
    if settings.allow_other:
        options.add("allow_other")
    pyfuse3.asyncio.enable()
    pyfuse3.asyncio.Lock = Turns  # type: ignore[assignment]
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
    ino = kernel_ino(files, stale.ino)
    try:
        if stale.name is None:
            pyfuse3.invalidate_inode(ino, attr_only=False)
        else:
            pyfuse3.invalidate_entry(ino, stale.name)
    except OSError as error:
        if error.errno != errno.ENOENT:  # the kernel had forgotten it already
            observer.event("mount.note_refused", reason=str(error))
