"""The bell that rings when the catalogue moved: gossip, background work, waiting commands and mounts listen to it.

A stream of changes (a mount that makes thousands of files) rings it dozens of times a second. So a ring reads the
counter once for all who wait, and `rounds`, the loop of all background work, rests after each round: the first change
is looked at at once, those that come while it rests together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

__all__ = ["ChangeBell"]


class ChangeBell:
    """Wakes everybody who waits for the catalogue's change counter to pass a number.

    `counter` reads the catalogue; `ring` is called on the event loop after anything was applied. A waiter never
    misses a ring: it compares the counter before it sleeps.
    """

    def __init__(self, counter: Callable[[], int]) -> None:
        self._counter = counter
        self._rung = asyncio.Event()
        self._rings = 0
        self._heard = (0, 0)  # the last ring after which the counter was read, and what it was

    def ring(self) -> None:
        """Wake all waiters."""
        self._rings += 1
        self._rung.set()
        self._rung = asyncio.Event()

    async def wait_past(self, after: int, timeout_seconds: float) -> int:
        """The counter, as soon as it is above `after`, or as it is when the time is over."""
        counter = self._counter()
        try:
            async with asyncio.timeout(timeout_seconds):
                while counter <= after:
                    await self._rung.wait()
                    counter = self._after_ring()
        except TimeoutError:
            return self._counter()
        return counter

    def _after_ring(self) -> int:
        """The counter, read once for all whom a ring woke."""
        if self._heard[0] != self._rings:
            self._heard = (self._rings, self._counter())
        return self._heard[1]

    async def rounds(self, look: Callable[[], Awaitable[None]], *, idle_seconds: float, rest_seconds: float) -> None:
        """`look` for ever: when the catalogue moved since the last look began, and every `idle_seconds` at least, with
        `rest_seconds` or more between two. Ends by cancellation, or with what `look` raises."""
        while True:
            before = self._counter()
            await look()
            await asyncio.sleep(rest_seconds)
            await self.wait_past(before, max(0.0, idle_seconds - rest_seconds))
