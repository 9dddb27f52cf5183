"""Waiting for the next request at /dev/fuse without spending a trip through the event loop on each.

pyfuse3 waits for the device, then reads it with a call that blocks when nothing is there. A request may vanish
in between (its caller was killed), and then the whole process would stand still, deadlines included, until somebody
else asks something. So the device is polled again in the same step in which the wait returns.

A trip through the event loop costs as much as a small request itself, and a program that asks one thing after the other
asks the next one some 50 us after it was answered. So whoever answered a request looks for the next one in the same
step, and, while nothing else is to be done, for as long as that, awake: to fall asleep and be woken would cost as much
again. Where that is in vain again and again it is left for a while. Now and then it gives way.

    worker  turn taken -> device readable -> turn given back -> request answered -> ...
                ^--------- takes the next turn at once; when its request must wait, another worker does
"""

from __future__ import annotations

import asyncio
import select
from collections import deque
from collections.abc import Callable
from time import monotonic
from types import TracebackType

__all__ = ["DeviceWatch", "Turns"]

STRAIGHT_REQUESTS = 16  # taken in a row before others get the event loop
NEXT_REQUEST_SECONDS = 0.0001  # the event loop stands still for no longer at a time
MOST_IN_VAIN = 3  # in a row; where there is no processor to spare, who would ask cannot run while we look …
ASLEEP_AFTER_THAT = 8  # … so for so many requests it is not tried


class Turns:
    """Whose turn it is to wait for the device: a lock (`asyncio.Lock`, as far as pyfuse3 uses it) that whoever gave it
    back may take again in the same step, before those who wait: handing it on costs two switches between tasks."""

    def __init__(self) -> None:
        self._taken = False
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._looking = False

    async def __aenter__(self) -> None:
        while self._taken:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                self._look_soon()  # the turn may have been this one's already
                raise
        self._taken = True

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._taken = False
        if self._waiting:
            self._look_soon()

    def _look_soon(self) -> None:
        """In the next step, when whoever gave the turn back has gone on as far as it can."""
        if not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        self._looking = False
        while not self._taken and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return


class DeviceWatch:
    """Waits on one file descriptor for one waiter at a time; `closed_error` is raised in it by `close`. `is_busy` says
    that the event loop has other things to do: requests that wait, bytes that arrive."""

    def __init__(self, closed_error: type[Exception], is_busy: Callable[[], bool]) -> None:
        self._closed_error = closed_error
        self._is_busy = is_busy
        self._waiting: asyncio.Future[None] | None = None
        self._watched: int | None = None
        self._straight = 0
        self._in_vain = 0  # waits in a row that met no request
        self._asleep = 0  # so many more times nothing is waited for awake
        self._closed = False
        self._polled = -1
        self._poll = select.poll()

    async def wait_readable(self, descriptor: int) -> None:
        """Return when the descriptor is readable now. Raises: the closed error."""
        while not self._closed:
            if self._straight < STRAIGHT_REQUESTS and self._is_readable(descriptor):
                self._straight += 1
                return
            if self._straight:
                self._straight = 0
                await asyncio.sleep(0)
                continue
            await self._wait(descriptor)
        raise self._closed_error

    def close(self, descriptor: int) -> None:
        """Nobody waits for this descriptor any more. May be repeated."""
        self._closed = True
        self.stop()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    @property
    def is_watching(self) -> bool:
        """Whether the event loop looks at the descriptor."""
        return self._watched is not None

    def stop(self) -> None:
        """Have the event loop forget the descriptor; before it is closed."""
        if self._watched is not None:
            asyncio.get_running_loop().remove_reader(self._watched)
            self._watched = None

    def _is_readable(self, descriptor: int) -> bool:
        """Now; or, when a request was just answered and nothing else is to be done, in a moment."""
        if self._polled != descriptor:
            self._poll, self._polled = select.poll(), descriptor
            self._poll.register(descriptor, select.POLLIN)
        look = self._poll.poll
        if look(0):
            return True
        if not self._straight or self._is_busy():
            return False
        if self._asleep:
            self._asleep -= 1
            return False
        until = monotonic() + NEXT_REQUEST_SECONDS
        while monotonic() < until:
            if look(0):
                self._in_vain = 0
                return True
        self._in_vain += 1
        if self._in_vain >= MOST_IN_VAIN:
            self._asleep = ASLEEP_AFTER_THAT
        return False

    async def _wait(self, descriptor: int) -> None:
        loop = asyncio.get_running_loop()
        self._waiting = loop.create_future()
        if self._watched is None:
            self._watched = descriptor
            loop.add_reader(descriptor, self._seen_readable)
        try:
            await self._waiting
        finally:
            self._waiting = None

    def _seen_readable(self) -> None:
        if self._waiting is None:
            self.stop()  # else this is called again and again until somebody has time for it
        elif not self._waiting.done():
            self._waiting.set_result(None)
