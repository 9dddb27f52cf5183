"""Who has a journal: a lock of the kernel's (flock), which ends with its process however that ends.

Its holder is a mount, or the home's *heir*, a process that sends what dead mounts left. An heir makes way for a mount:
it writes into the file who it is, and may be ended at any moment, as the death of a mount loses nothing either.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
from pathlib import Path

from collective.mount.journal_segments import disk_failure

__all__ = ["JournalLock", "is_locked", "process_start"]

LOOKED_AT_SECONDS = 0.02  # whoever looks at a lock has it for some microseconds
HEIR_SECONDS = 5.0  # how long an heir that was told to end is waited for
POLL_SECONDS = 0.005
PID_BYTES = 64


def process_start(pid: int) -> int:
    """When a process began, in clock ticks since boot; -1 when there is none, or it has ended and nobody has asked how.

    Source: proc(5), /proc/pid/stat, fields 3 and 22.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return -1
    return -1 if fields[0] in "ZX" else int(fields[19])


def is_locked(folder: Path) -> bool:
    """Whether somebody has the journal in `folder`. Raises: Unreachable (the disk)."""
    lock = JournalLock(folder)
    try:
        return not lock.try_take()
    finally:
        lock.release()


class JournalLock:
    """The lock of the journal in `folder`, which is made when it is missing. Raises: Full, Unreachable (the disk)."""

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise disk_failure(error, f"the journal at {folder} cannot be opened") from error

    def try_take(self) -> bool:
        """Whether it is ours now."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    async def take(self, *, as_heir: bool) -> bool:
        """Whether it is ours now. A mount ends an heir that has it; to an heir whoever has it is a mount."""
        if not await self._taken_within(LOOKED_AT_SECONDS) and (as_heir or not await self._end_heir()):
            return False
        os.ftruncate(self._descriptor, 0)
        if as_heir:
            os.pwrite(self._descriptor, f"{os.getpid()} {process_start(os.getpid())}".encode(), 0)
        return True

    def release(self) -> None:
        """Others may have it."""
        os.close(self._descriptor)

    async def _taken_within(self, seconds: float) -> bool:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while not self.try_take():
            if loop.time() >= deadline:
                return False
            await asyncio.sleep(POLL_SECONDS)
        return True

    async def _end_heir(self) -> bool:
        words = os.pread(self._descriptor, PID_BYTES, 0).split()
        if len(words) != 2 or process_start(int(words[0])) != int(words[1]):
            return False  # a mount's; or an heir's that cannot be seen from here (another container)
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(words[0]), signal.SIGTERM)
        return await self._taken_within(HEIR_SECONDS)
