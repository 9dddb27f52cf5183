"""What a change leaves to be done once the program that asked for it has its answer, and prepares its next call.

That a program asks again takes some 10 to 30 us, in which whoever looks for its request has nothing else to do
(mount/device). What an answer does not depend on is put off until then, and is done at the latest before the event loop
turns to something else. Whoever needs it done before calls `finish`, so nobody ever sees it undone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from collective.core.observe import Observer

__all__ = ["Afterwork"]


class Afterwork:
    """One mount's, in its event loop."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._left: deque[Callable[[], None]] = deque()

    def __bool__(self) -> bool:
        return bool(self._left)

    def later(self, work: Callable[[], None]) -> None:
        """Do this after what was put off before: soon, or when somebody says `finish`."""
        if not self._left:
            asyncio.get_running_loop().call_soon(self.finish)
        self._left.append(work)

    def step(self) -> None:
        """Do the first of what is left; nobody waits for it, so what it raises is an event."""
        work = self._left.popleft()
        try:
            work()
        except Exception as error:
            self._observer.event("mount.unexpected", doing="afterwork", kind=type(error).__name__, reason=str(error))

    def finish(self) -> None:
        """Do all of it now."""
        while self._left:
            self.step()
