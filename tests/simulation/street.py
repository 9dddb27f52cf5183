"""A street: virtual time, the network between homes, what each was seen to do, and what nobody expected."""

from __future__ import annotations

import asyncio
import contextvars
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from simulation.loop import VirtualLoop
from simulation.world import START, Network

from collective.wire import feed_pb2

if TYPE_CHECKING:
    from simulation.homes import Home, Life

__all__ = ["LIFE", "HomeClock", "Killed", "Street", "Witness", "look_at"]

EVENTS_KEPT = 40
MOST_MESSAGES = 20_000  # of a story; ten times what is usual
DRAIN_TURNS = 20  # of the loop, for what was cancelled to end


LIFE: contextvars.ContextVar[Life | None] = contextvars.ContextVar("LIFE", default=None)


def look_at(task: asyncio.Task[Any], expected: type[BaseException]) -> None:
    """Take note of an error of this kind, so that it is not told as one that nobody looked at."""
    if not task.cancelled() and isinstance(task._exception, expected):  # type: ignore[attr-defined]  # not to look yet
        task.exception()


class Killed(BaseException):
    """The process ended here; nothing after this line was done."""


class Street:
    """Virtual time, the network between homes, and what nobody expected."""

    def __init__(self, seed: int, network: Network, *, real_signatures: bool) -> None:
        self.random = Random(seed)
        self.network = network
        self.real_signatures = real_signatures
        self.loop = VirtualLoop()
        self.loop.set_task_factory(self._new_task)
        self.loop.set_exception_handler(self._unexpected)
        self.homes: dict[str, Home] = {}
        self.surprises: list[str] = []
        self.states: list[tuple[float, str, str, str]] = []  # (when, who thinks, of whom, what)

    def introduce(self) -> None:
        """Everybody knows where everybody is, as after a join."""
        for home in self.homes.values():
            home.book = {
                other.domain: [feed_pb2.Endpoint(type="lan", grpc=other.place)]
                for other in self.homes.values()
                if other is not home
            }

    @staticmethod
    def _new_task(loop: asyncio.AbstractEventLoop, work: Any, **more: Any) -> asyncio.Task[Any]:
        """A task belongs to the life in which it was begun, and dies with it."""
        task = asyncio.Task(work, loop=loop, **more)
        life = more.get("context", contextvars.copy_context()).get(LIFE)
        if life is not None:
            life.owns(task)
        return task

    def _unexpected(self, loop: asyncio.AbstractEventLoop, told: dict[str, Any]) -> None:
        self.surprises.append(f"{told.get('message')}: {told.get('exception')!r}")

    @property
    def now(self) -> float:
        return self.loop.time()

    def run(self, seconds: float) -> None:
        """Let time pass. Raises: AssertionError when so much is said that it will never come to rest."""
        end = self.now + seconds
        while True:
            self.loop.pass_time(min(1.0, max(0.0, end - self.now)))
            assert self.network.messages < MOST_MESSAGES, f"{self.network.messages} messages: it never comes to rest"
            if self.now >= end:
                return

    def run_until(self, what_is_left: Callable[[], str], most_seconds: float, step: float = 0.25) -> float:
        """Let time pass until nothing is left; how long that took. Raises: AssertionError."""
        began = self.now
        while left := what_is_left():
            if self.now - began > most_seconds:
                raise AssertionError(f"after {most_seconds} simulated seconds {left}")
            self.run(step)
        return self.now - began

    def close(self) -> None:
        for home in self.homes.values():
            home.end()
        for _ in range(DRAIN_TURNS):
            self.loop.pass_time(0)
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()


class Witness:
    """Sees what a home's parts tell, and remembers the newest."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self.counts: Counter[str] = Counter()
        self.newest: list[str] = []

    def event(self, name: str, **fields: object) -> None:
        if name.startswith("debug."):
            return
        street = self._home.street
        self.counts[name] += 1
        told = f"{street.now:8.2f}  {self._home.label}: {name} {fields}"
        self.newest = [*self.newest[-EVENTS_KEPT:], told]
        if name.endswith(".unexpected"):
            street.surprises.append(told)
        if name == "gossip.member":
            street.states.append((street.now, self._home.domain, str(fields["member"]), str(fields["now"])))


@dataclass(frozen=True)
class HomeClock:
    """The wall clock is years off where the home's is; the monotonic one began when the machine did."""

    street: Street
    skew: float
    offset: float

    def wall(self) -> float:
        return START + self.street.now + self.skew

    def monotonic(self) -> float:
        return self.street.now + self.offset
