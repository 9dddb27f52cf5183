"""An event loop in virtual time: when nothing more can be done now, it is at once as late as the next thing is due.

So the daemons' own asyncio code runs for hours in a second, in the same order each time.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["VirtualLoop"]


MOMENT_SECONDS = 1e-6  # time passes by at least so much, more than what is lost where clocks are added up
MOST_TURNS = 20_000  # of the loop in one moment


class VirtualLoop(asyncio.BaseEventLoop):
    """No sockets, no signals, no threads: tasks and timers alone."""

    _scheduled: list[asyncio.TimerHandle]

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._selector = self  # what BaseEventLoop asks to wait
        self._clock_resolution = math.ulp(0.0)  # nothing is due before its time, be it ever so little
        self._turns = 0

    def time(self) -> float:
        return self._now

    def pass_time(self, seconds: float) -> None:
        """Run what is due in the next `seconds`."""
        self.run_until_complete(asyncio.sleep(seconds))

    def select(self, timeout_seconds: float | None) -> Sequence[Any]:
        if timeout_seconds is None:
            raise RuntimeError("everybody waits, and nothing will ever happen")
        if timeout_seconds > 0:
            self._now = max(self._now + MOMENT_SECONDS, self._scheduled[0].when())
            self._clock_resolution = math.ulp(self._now)
            self._turns = 0
        self._turns += 1
        if self._turns > MOST_TURNS:
            tasks = sorted({task.get_name() for task in asyncio.all_tasks(self)})
            raise RuntimeError(f"something goes round and round at {self._now:.3f}: {', '.join(tasks)}")
        return ()

    def run_in_executor(  # type: ignore[override]  # BaseEventLoop's takes types that have no name
        self, executor: Any, work: Callable[..., Any], *arguments: Any
    ) -> asyncio.Future[Any]:
        """What the daemons leave to a thread is done before anything else happens."""
        done = self.create_future()
        try:
            done.set_result(work(*arguments))
        except Exception as error:
            done.set_exception(error)
        return done

    def _process_events(self, events: Sequence[Any]) -> None:
        assert not events

    def _write_to_self(self) -> None:
        """Nobody calls from another thread."""
