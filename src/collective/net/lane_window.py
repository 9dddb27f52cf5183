"""How much may be on the way: a count of calls and of request bytes, the same at both ends of a lane.

The asking side waits here before it sends; the answering side counts the same and cuts a peer that oversteps. A slot
is given back when the answer is there, not when the asker loses interest, so both ends count alike.
"""

from __future__ import annotations

import asyncio
from collections import deque

from collective.net.lane_frames import MAX_BODY_BYTES

__all__ = ["CALLS_IN_FLIGHT", "REQUEST_BYTES_IN_FLIGHT", "Window"]

CALLS_IN_FLIGHT = 64  # per connection and direction; enough to fill 1 Gbit/s at 100 ms with ranges of 256 KiB
REQUEST_BYTES_IN_FLIGHT = 4 * MAX_BODY_BYTES  # 32 MiB of sealed chunks that the answering side must hold at once


class Window:
    """Slots for calls, first come first served. One caller is always let in, whatever its size (<= MAX_BODY_BYTES)."""

    def __init__(self, calls: int = CALLS_IN_FLIGHT, request_bytes: int = REQUEST_BYTES_IN_FLIGHT) -> None:
        self._free_calls = calls
        self._free_bytes = request_bytes
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    def try_enter(self, size_bytes: int) -> bool:
        """Take a slot if one is free and nobody waits before us."""
        if self._waiting or not self._fits(size_bytes):
            return False
        self._take(size_bytes)
        return True

    async def enter(self, size_bytes: int) -> None:
        """Take a slot, waiting for it; a cancelled wait takes none."""
        if self.try_enter(size_bytes):
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append((waiter, size_bytes))
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.leave(size_bytes)  # the slot was given in the same moment
            elif (waiter, size_bytes) in self._waiting:
                self._waiting.remove((waiter, size_bytes))
                self._wake()  # a smaller one behind us may fit
            raise

    def leave(self, size_bytes: int) -> None:
        """Give a slot back."""
        self._free_calls += 1
        self._free_bytes += size_bytes
        self._wake()

    def open_wide(self) -> None:
        """Let everybody in: the connection has ended, and they shall be told so."""
        self._free_calls = self._free_bytes = 1 << 62
        self._wake()

    def _wake(self) -> None:
        while self._waiting and self._fits(self._waiting[0][1]):
            waiter, size_bytes = self._waiting.popleft()
            if not waiter.done():
                self._take(size_bytes)
                waiter.set_result(None)

    def _fits(self, size_bytes: int) -> bool:
        return self._free_calls > 0 and size_bytes <= self._free_bytes

    def _take(self, size_bytes: int) -> None:
        self._free_calls -= 1
        self._free_bytes -= size_bytes
