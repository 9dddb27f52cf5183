"""The bell that rings when the catalogue moved: streams to peers, waiting commands and mounts listen to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["ChangeBell"]


class ChangeBell:
    """Wakes everybody who waits for the catalogue's change counter to pass a number.

    `counter` reads the catalogue; `ring` is called on the event loop after anything was applied. A waiter never
    misses a ring: it compares the counter before it sleeps.
    """

    def __init__(self, counter: Callable[[], int]) -> None:
        self._counter = counter
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Wake all waiters; each looks at the counter itself."""
        self._rung.set()
        self._rung = asyncio.Event()

    async def wait_past(self, after: int, timeout_seconds: float) -> int:
        """The counter, as soon as it is above `after`, or as it is when the time is over."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while True:
                    rung = self._rung
                    counter = self._counter()
                    if counter > after:
                        return counter
                    await rung.wait()
        except TimeoutError:
            return self._counter()
