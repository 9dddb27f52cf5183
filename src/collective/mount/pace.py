"""Uploads give way to programs that write: both need the same cores, and what was written is in the journal already.

programs write much                            8 MiB of a large content are read for its upload each quarter second
none did for 50 ms, or half the journal is full  as fast as it goes
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from collective.core.sizes import KIB, MIB

__all__ = ["Pace"]

QUIET_SECONDS = 0.05
BUSY_BYTES_PER_SECOND = 32 * MIB
MUCH_BYTES = 64 * KIB  # in one write; smaller ones leave the processor to others anyway


class Pace:
    """One mount's. `hurried` says that the journal needs its room; `now` is the clock that `sleep` goes by."""

    def __init__(
        self,
        hurried: Callable[[], bool],
        now: Callable[[], float] = lambda: asyncio.get_running_loop().time(),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._hurried = hurried
        self._now = now
        self._sleep = sleep
        self._quiet_from = 0.0

    def wrote(self, size_bytes: int) -> None:
        """A program wrote so much at once."""
        if size_bytes >= MUCH_BYTES:
            self._quiet_from = self._now() + QUIET_SECONDS

    async def give_way(self, size_bytes: int) -> None:
        """Before so much is read for an upload."""
        latest = self._now() + size_bytes / BUSY_BYTES_PER_SECOND
        while not self._hurried() and (left := min(latest, self._quiet_from) - self._now()) > 0:
            await self._sleep(left)
