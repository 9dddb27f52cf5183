"""What writes into the library from a journal: a mount, and the heir that sends what dead mounts left."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from collective.core.clock import Clock
from collective.core.observe import Observer
from collective.daemon.client import ReadSide, open_read_side
from collective.daemon.committing import LaneCommitter
from collective.daemon.home import Home
from collective.daemon.runtime import LogObserver
from collective.mount.committing import Author
from collective.mount.dirty import DirtyTable
from collective.mount.journal_folder import JournalFolder
from collective.mount.journal_room import JournalSettings
from collective.mount.replay import Replay
from collective.mount.writing import Writer

__all__ = ["open_writer", "run_heir"]

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@contextlib.asynccontextmanager
async def open_writer(
    home: Home, side: ReadSide, journal_bytes: int, clock: Clock, observer: Observer
) -> AsyncIterator[tuple[Writer, LaneCommitter]]:
    """The writer, and its committer, whose `run` is the caller's to keep going. Raises: Full, Unreachable, Conflict."""
    folder = _journals(home, JournalSettings(bound_bytes=journal_bytes), observer)
    journal = await folder.open()
    committer = LaneCommitter(side, folder.number, clock, observer)
    try:
        yield Writer(committer, journal, _author(side), clock), committer
    finally:
        await journal.close()
        folder.release()


async def run_heir(home: Home, clock: Clock) -> None:
    """Send what mounts that are gone had not sent, and return when all of it is the library's; wait while something is
    left that nobody takes.

    A mount that starts meanwhile ends this process, and goes on with what is left. Raises: Full, Unreachable (disk).
    """
    observer = LogObserver(sys.stderr)
    folder = _journals(home, JournalSettings(), observer)
    journal = await folder.open_left()
    if journal is None:
        return
    observer.event("heir.began", journal=folder.number, records=journal.unsettled_count)
    try:
        async with open_read_side(home, clock, observer) as side:
            committer = LaneCommitter(side, folder.number, clock, observer)
            author = _author(side)
            replay = Replay(
                journal, DirtyTable(), committer, side.open, author, clock, observer, on_settled=lambda seqs: None
            )
            replay.recover()
            committer.on_recall(replay.settle_directory)
            committer.on_connect(replay.directories)
            async with replay, asyncio.TaskGroup() as group:
                connected = group.create_task(committer.run())
                await replay.wait()
                if journal.unsettled_count:  # the next start tries again; until then nobody waits for an heir
                    observer.event("heir.left", records=journal.unsettled_count, reason=replay.trouble)
                    await asyncio.Event().wait()
                connected.cancel()
    finally:
        await journal.close()
        folder.release()
    observer.event("heir.ended", journal=folder.number)


def _journals(home: Home, settings: JournalSettings, observer: Observer) -> JournalFolder:
    return JournalFolder(home.mounts, settings, BOOT_ID.read_bytes().strip(), observer)


def _author(side: ReadSide) -> Author:
    identity = side.credentials.identity
    return Author(identity.member_domain, str(identity.address))
