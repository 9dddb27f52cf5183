"""What a mount needs to write, made from its home: a journal of its own, and the way out to the coordinator."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from collective.core.clock import Clock
from collective.core.observe import Observer
from collective.daemon.client import ReadSide
from collective.daemon.committing import LaneCommitter
from collective.daemon.home import Home
from collective.mount.committing import Author
from collective.mount.journal_folder import JournalFolder
from collective.mount.journal_room import JournalSettings
from collective.mount.writing import Writer

__all__ = ["open_writer"]

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@contextlib.asynccontextmanager
async def open_writer(
    home: Home, side: ReadSide, journal_bytes: int, clock: Clock, observer: Observer
) -> AsyncIterator[tuple[Writer, LaneCommitter]]:
    """The writer, and its committer, whose `run` is the caller's to keep going. Raises: Full, Unreachable, Conflict."""
    committer = LaneCommitter(side, clock, observer)
    settings = JournalSettings(bound_bytes=journal_bytes)
    folder = JournalFolder(home.mounts, settings, BOOT_ID.read_bytes().strip(), observer)
    journal = await folder.open()
    identity = side.credentials.identity
    try:
        yield Writer(committer, journal, Author(identity.member_domain, str(identity.address)), clock), committer
    finally:
        await journal.close()
        folder.release()
