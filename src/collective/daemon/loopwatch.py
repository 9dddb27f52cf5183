"""Looks at the clock from the event loop again and again: what comes late was held up (health/holds).

The kernel tells how long the loop's thread stood in line for a processor; that is taken off, so that a busy machine is
not taken for a busy loop. Source: Documentation/scheduler/sched-stats.rst, /proc/<pid>/schedstat.
"""

from __future__ import annotations

import asyncio
import os
import time

from collective.core.clock import Clock
from collective.core.observe import Observer
from collective.health.holds import Holds
from collective.wire import lane_pb2

__all__ = ["LoopWatch"]

TICK_SECONDS = 0.025  # a hold is seen short by up to this; 40 looks a second cost 0.4 % of a processor


class LoopWatch:
    """One process's. `run` on the loop that is watched."""

    def __init__(self, clock: Clock, observer: Observer) -> None:
        self._clock = clock
        self._observer = observer
        self._holds = Holds()

    def told(self) -> lane_pb2.LoopHolds:
        """What was seen so far."""
        return self._holds.told(self._clock.monotonic())

    async def run(self) -> None:
        """Look until cancelled."""
        queue = _Queue()
        try:
            queued, busy = queue.seconds(), time.process_time()
            while True:
                due = self._clock.monotonic() + TICK_SECONDS
                await asyncio.sleep(TICK_SECONDS)
                now, queued_before, busy_before = self._clock.monotonic(), queued, busy
                queued, busy = queue.seconds(), time.process_time()
                held = now - due - (queued - queued_before)
                if self._holds.note(now, held):
                    # little of its own work in a long hold: it waited for a disk, or another thread for a processor
                    worked = round((busy - busy_before) * 1000)
                    self._observer.event("loop.held", milliseconds=round(held * 1000), worked_milliseconds=worked)
        finally:
            queue.close()


class _Queue:
    """What this thread waited for a processor; always 0 where the kernel does not count it."""

    def __init__(self) -> None:
        try:
            self._descriptor = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._descriptor = -1

    def seconds(self) -> float:
        """Since the thread began; the second of the file's three numbers."""
        return int(os.pread(self._descriptor, 96, 0).split()[1]) / 1e9 if self._descriptor >= 0 else 0.0

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
