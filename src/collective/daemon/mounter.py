"""The mount process: names from the home's database, bytes from the holders, a folder for everybody else.

It is a process of its own, started by `collective mount`, and outlives its coordinator: names are read from the
database itself, tickets are asked of whoever holds the bytes.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from collective.core.clock import Clock
from collective.core.errors import CollectiveError, Misconfigured, NotFound
from collective.core.observe import Observer
from collective.daemon.client import ReadSide, dial_own_coordinator, open_read_side
from collective.daemon.home import Home
from collective.daemon.loopwatch import LoopWatch
from collective.daemon.mount_writing import open_writer
from collective.daemon.runtime import LogObserver, first_error, until_stopped
from collective.health.holds import holds_document
from collective.mount import MountSettings
from collective.mount import unmount as unmount_directory
from collective.mount.filesystem import Space
from collective.mount.journal_lock import process_start
from collective.mount.writing import Writer
from collective.net.lane import LaneConnection
from collective.wire import lane_pb2

__all__ = ["MountOptions", "mount_in_background", "run_mounter", "unmount"]

READY_SECONDS = 30.0
UNMOUNT_SECONDS = 10.0
STATISTICS_SECONDS = 1.0
POLL_SECONDS = 0.5  # how often the database is looked at while no coordinator tells of changes
EVENT_TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class MountOptions:
    """`directory` absolute; sizes in bytes; `uid`, `gid`, `umask` None: as the names say."""

    directory: Path
    allow_other: bool = False
    read_only: bool = False
    cache_bytes: int = 128 << 20
    read_ahead_bytes: int = 32 << 20
    journal_bytes: int = 4 << 30
    uid: int | None = None
    gid: int | None = None
    umask: int | None = None

    def settings(self) -> MountSettings:
        """For the mount room."""
        return MountSettings(
            mountpoint=self.directory,
            allow_other=self.allow_other,
            read_only=self.read_only,
            cache_size_bytes=self.cache_bytes,
            read_ahead_bytes=self.read_ahead_bytes,
            journal_bytes=self.journal_bytes,
            uid=self.uid,
            gid=self.gid,
            umask=self.umask,
        )

    def arguments(self) -> list[str]:
        """The same options as the command line takes them."""
        named = (
            ("--uid", self.uid),
            ("--gid", self.gid),
            ("--umask", None if self.umask is None else f"{self.umask:o}"),
        )
        return [
            *("--vfs-cache-max-size", str(self.cache_bytes), "--vfs-read-ahead", str(self.read_ahead_bytes)),
            *("--vfs-write-buffer", str(self.journal_bytes)),
            *(("--allow-other",) if self.allow_other else ()),
            *(("--read-only",) if self.read_only else ()),
            *(word for name, value in named if value is not None for word in (name, str(value))),
        ]


async def run_mounter(home: Home, options: MountOptions, clock: Clock, ready_descriptor: int = -1) -> None:
    """Serve the mount until it is unmounted or told to stop. Raises: Misconfigured with what is missing.

    `ready_descriptor`: a pipe that gets one line when the mount is there, or the reason why not.
    """
    from collective.mount.fuse import run_mount  # pyfuse3 is an expensive adapter that no other command loads

    observer = LogObserver(sys.stderr)

    def tell(line: str) -> None:
        if ready_descriptor >= 0:
            os.write(ready_descriptor, (line + "\n").encode())
            os.close(ready_descriptor)

    def on_ready() -> None:
        _write_record(record, options, writer, watch, {})
        tell("ready")

    def tell_why_not(error: CollectiveError) -> None:
        if not record.exists():
            tell(json.dumps({"message": error.message, "hint": error.hint}))

    home.check()
    home.mounts.mkdir(mode=0o700, exist_ok=True)
    writer: Writer | None = None
    watch = LoopWatch(clock, observer)
    record = home.mounts / f"{os.getpid()}.json"
    try:
        async with AsyncExitStack() as stack:
            side = await stack.enter_async_context(open_read_side(home, clock, observer))
            committer = None
            if not options.read_only:
                writer, committer = await stack.enter_async_context(
                    open_writer(home, side, options.journal_bytes, clock, observer)
                )
            group = await stack.enter_async_context(asyncio.TaskGroup())
            background = [
                group.create_task(watch.run()),
                group.create_task(_write_statistics(side, options, record, writer, watch)),
            ]
            if committer is not None:
                background.append(group.create_task(committer.run()))
            with until_stopped() as stop:
                serving = group.create_task(
                    run_mount(side.reader, side.open, options.settings(), observer, on_ready=on_ready,
                              changes=_changes(side, observer), writer=writer,
                              space=committer.space if committer is not None else lambda: _space(side)),
                )  # fmt: skip
                stopping = group.create_task(stop.wait())
                await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
                stopping.cancel()
                serving.cancel()
                with suppress(asyncio.CancelledError):
                    await serving
            for task in background:
                task.cancel()
    except BaseExceptionGroup as group_error:
        first = first_error(group_error)
        if isinstance(first, CollectiveError):
            tell_why_not(first)
        raise first from None
    except CollectiveError as error:
        tell_why_not(error)
        raise
    finally:
        record.unlink(missing_ok=True)


def _space(side: ReadSide) -> Space:
    """What `df` shows: the readable DataStores' bytes, and nothing free, since the mount only reads."""
    used = sum(side.reader.usage(store.feed_id)[1] for store in side.reader.datastores() if store.readable)
    return Space(total_bytes=used, free_bytes=0)


async def _write_statistics(
    side: ReadSide, options: MountOptions, record: Path, writer: Writer | None, watch: LoopWatch
) -> None:
    """Keep what the mount did beside its pid, for `status` and the curious."""
    while True:
        await asyncio.sleep(STATISTICS_SECONDS)
        if record.exists():
            _write_record(record, options, writer, watch, side.fetcher.bytes_by_member())


def _write_record(
    record: Path, options: MountOptions, writer: Writer | None, watch: LoopWatch, bytes_by_member: dict[str, int]
) -> None:
    document = {
        "directory": str(options.directory),
        "pid": os.getpid(),
        "started": process_start(os.getpid()),
        "bytes_by_member": bytes_by_member,
        "pending": writer.journal.unsettled_count if writer is not None else 0,
        "trouble": writer.writing.trouble if writer is not None and writer.writing is not None else "",
        "loop": holds_document(watch.told()),
    }
    temporary = record.with_suffix(".new")
    temporary.write_text(json.dumps(document) + "\n")
    temporary.replace(record)


async def _changes(side: ReadSide, observer: Observer) -> AsyncIterator[int]:
    """The change counter, each time it moved: told by the coordinator's lane, else seen in the database."""
    counter = side.reader.change_counter()
    joined = -1
    lane: LaneConnection | None = None
    while True:
        try:
            if lane is None or lane.is_closed:
                lane = await dial_own_coordinator(side)
            request = lane_pb2.EventsRequest(after=counter).SerializeToString()
            await lane.call(lane_pb2.LANE_EVENTS, request, timeout_seconds=EVENT_TIMEOUT_SECONDS)
        except CollectiveError:
            lane = None
            await asyncio.sleep(POLL_SECONDS)
        fresh = side.reader.counters()
        if fresh.changes != counter:
            counter = fresh.changes
            if fresh.joined != joined:  # else nobody came or went
                joined = fresh.joined
                side.refresh_trust()
            yield counter


def mount_in_background(home: Home, options: MountOptions) -> None:
    """Start the mount process and return when the mount is there. Raises: Misconfigured with the reason why not."""
    home.check()
    reading, writing = os.pipe()
    arguments = [
        *(sys.executable, "-m", "collective.cli.main", "--home", str(home.path), "mount", str(options.directory)),
        *("--foreground", "--ready-descriptor", str(writing)),
        *options.arguments(),
    ]
    log_path = home.path / "mount.log"
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(writing,),
            start_new_session=True,
            cwd="/",
        )
    os.close(writing)
    with open(reading, "rb", buffering=0) as pipe:
        line = pipe.readline().decode().strip()
    if line == "ready":
        return
    process.wait(READY_SECONDS)
    if line:
        told = json.loads(line)
        raise Misconfigured(told["message"], told["hint"])
    raise Misconfigured("the mount process ended before the mount was there", f"its log says why: {log_path}")


def unmount(home: Home, directory: Path) -> None:
    """Unmount and wait until the process is gone. Raises: NotFound when nothing is mounted there, Conflict (busy)."""
    pids = [int(str(row["pid"])) for row in home.read_mounts() if row["directory"] == str(directory)]
    if not pids and not os.path.ismount(directory):
        raise NotFound(f"nothing is mounted at {directory}")
    for pid in pids:
        with suppress(ProcessLookupError):
            process = os.pidfd_open(pid)
            os.kill(pid, signal.SIGTERM)
            select.select([process], [], [], UNMOUNT_SECONDS)
            os.close(process)
    if os.path.ismount(directory):
        unmount_directory(directory)
