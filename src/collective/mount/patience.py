"""A read whose holders are all away waits for them: a node that restarts costs a pause, not an error.

Theory: an attempt that met nobody is made again, after a tenth of a second, then twice as long, up to a second, until
it succeeds or the time is over; the time is counted from when the content could not be had any more, so that what is
gone for long answers at once. Few reads wait: the kernel lets twelve requests of its read-ahead be under way in a
mount, and reads of other files shall find room among them. The others get the error now; where that was read-ahead, the
kernel asks again when a program comes to the place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

from collective.core.errors import Unreachable
from collective.core.observe import Observer

__all__ = ["Outage", "Patience"]

T = TypeVar("T")
USED_PART = 0.9  # of an operation's deadline; the rest is for the answer, before the deadline cuts it off
FIRST_PAUSE_SECONDS = 0.1
LAST_PAUSE_SECONDS = 1.0
MOST_WAITING = 8  # of the twelve
MOST_WAITING_FOR_ONE = 2  # what a program reads, and what the kernel reads ahead of it


@dataclass(slots=True)
class Outage:
    """Since when one content cannot be had, and when that was last seen (monotonic seconds); who waits for it."""

    since: float = 0.0
    seen: float = float("-inf")
    waiting: int = 0

    def failed(self, now: float, forgotten_seconds: float) -> None:
        """It cannot be had now; what was seen longer ago than `forgotten_seconds` was another outage."""
        if self.seen < now - forgotten_seconds:
            self.since = now
        self.seen = now

    def ended(self) -> None:
        self.seen = float("-inf")


class Patience:
    """All waiting reads of a mount. `deadline_seconds` is an operation's."""

    def __init__(self, deadline_seconds: float, observer: Observer) -> None:
        self._seconds = deadline_seconds * USED_PART
        self._observer = observer
        self._waiting = 0
        self._shut = asyncio.Event()

    def shut(self) -> None:
        """Nobody comes back any more: whoever waits gets its error now."""
        self._shut.set()

    async def read(self, outage: Outage, attempt: Callable[[], Awaitable[T]], what: str) -> T:
        """What `attempt` returns. Raises: Unreachable when the time is over, and what else `attempt` raises."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            result = await attempt()
        except Unreachable as error:
            outage.failed(loop.time(), self._seconds)
            until = min(began, outage.since) + self._seconds
            with self._counted(outage) as may_wait:
                result = await self._again(outage, attempt, what, until if may_wait else began, error)
        outage.ended()
        return result

    async def _again(
        self, outage: Outage, attempt: Callable[[], Awaitable[T]], what: str, until: float, error: Unreachable
    ) -> T:
        loop = asyncio.get_running_loop()
        pause = FIRST_PAUSE_SECONDS
        while (left := until - loop.time()) > 0 and not self._shut.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(min(pause, left)):
                    await self._shut.wait()
            pause = min(pause * 2, LAST_PAUSE_SECONDS)
            try:
                return await attempt()
            except Unreachable as failure:
                error = failure
                outage.failed(loop.time(), self._seconds)
        since = round(loop.time() - outage.since, 1)
        self._observer.event("mount.read_failed", content=what, away_seconds=since, reason=error.message)
        raise error

    @contextmanager
    def _counted(self, outage: Outage) -> Iterator[bool]:
        """Whether one more may wait."""
        self._waiting += 1
        outage.waiting += 1
        try:
            yield self._waiting <= MOST_WAITING and outage.waiting <= MOST_WAITING_FOR_ONE
        finally:
            self._waiting -= 1
            outage.waiting -= 1
