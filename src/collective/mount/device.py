"""Waiting for the next request at /dev/fuse without spending a trip through the event loop on each.

pyfuse3 waits for the device, then reads it with a call that blocks when nothing is there. A request may vanish
in between (its caller was killed), and then the whole process would stand still, deadlines included, until somebody
else asks something. So the device is polled again in the same step in which the wait returns. The same poll lets a
worker go on at once while requests are queued (measured: a tenth of the time of a small call), giving way now and then
so that fetches keep flowing.
"""

from __future__ import annotations

import asyncio
import select

__all__ = ["DeviceWatch"]

STRAIGHT_REQUESTS = 16  # taken in a row before others get the event loop


class DeviceWatch:
    """Waits on one file descriptor for one waiter at a time; `closed_error` is raised in it by `close`."""

    def __init__(self, closed_error: type[Exception]) -> None:
        self._closed_error = closed_error
        self._waiting: asyncio.Future[None] | None = None
        self._straight = 0
        self._closed = False

    async def wait_readable(self, descriptor: int) -> None:
        """Return when the descriptor is readable now. Raises: the closed error."""
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while not self._closed:
            if self._straight < STRAIGHT_REQUESTS and poll.poll(0):
                self._straight += 1
                return
            if self._straight:
                self._straight = 0
                await asyncio.sleep(0)
                continue
            await self._wait(descriptor)
        raise self._closed_error

    def close(self, descriptor: int) -> None:
        """Nobody waits for this descriptor any more."""
        self._closed = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def _wait(self, descriptor: int) -> None:
        loop = asyncio.get_running_loop()
        waiting = self._waiting = loop.create_future()

        def readable() -> None:
            if not waiting.done():
                waiting.set_result(None)

        loop.add_reader(descriptor, readable)
        try:
            await waiting
        finally:
            loop.remove_reader(descriptor)
            self._waiting = None
