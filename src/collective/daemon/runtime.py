"""What every long-lived process does first: real clock, log, memory settings, event loop, signals."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, TypeVar

import uvloop

from collective.core.errors import CollectiveError

__all__ = [
    "LogObserver",
    "SystemClock",
    "Writer",
    "die_with_parent",
    "first_error",
    "raise_memory_thresholds",
    "ready",
    "run",
    "until_stopped",
]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_PR_SET_PDEATHSIG = 1
_GC_YOUNG_OBJECTS, _GC_YOUNG_ROUNDS, _GC_MIDDLE_ROUNDS = 100_000, 10, 10  # some 20 MB of garbage in cycles at most
Result = TypeVar("Result")


class SystemClock:
    """The machine's clocks."""

    def wall(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


class LogObserver:
    """Writes each event as one JSON line: time, event, fields."""

    def __init__(self, stream: IO[str], *, minimum: str = "info") -> None:
        self._stream = stream
        self._quiet = minimum != "debug"

    def event(self, name: str, **fields: str | int | float | bool | None) -> None:
        if self._quiet and name.startswith("debug."):
            return
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "event": name, **fields}
        print(json.dumps(line, default=str), file=self._stream, flush=True)


class Writer:
    """The one thread on which the catalogue is changed; changes run in the order they were asked for."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "catalog")

    async def __call__(self, change: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, change)

    def close(self) -> None:
        self._thread.shutdown(wait=True)


def raise_memory_thresholds() -> None:
    """Keep freed multi-megabyte buffers in the process: fresh ones cost more in page faults than AES and BLAKE3
    together (0.8 GB/s against 12-17 GB/s copied). Has an effect with glibc only.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 64 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 128 << 20)


def die_with_parent(parent: int) -> None:
    """Have the kernel end this process when `parent` ends, and end now if that happened already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise SystemExit(0)


def run(main: Coroutine[object, object, Result]) -> Result:
    """Run a process's main coroutine on uvloop."""
    gc.freeze()  # modules and message types live for ever; walking them again and again took 4 % of a busy mount
    gc.set_threshold(_GC_YOUNG_OBJECTS, _GC_YOUNG_ROUNDS, _GC_MIDDLE_ROUNDS)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main)
    except BaseExceptionGroup as group:
        raise first_error(group) from group


def first_error(error: BaseException) -> BaseException:
    """What a person should read of a group of failures: the first that is one of our kinds, else the first."""
    leaves: list[BaseException] = []
    waiting = [error]
    while waiting:
        one = waiting.pop(0)
        if isinstance(one, BaseExceptionGroup):
            waiting = [*one.exceptions, *waiting]
        else:
            leaves.append(one)
    return next((leaf for leaf in leaves if isinstance(leaf, CollectiveError)), leaves[0])


@contextlib.contextmanager
def until_stopped() -> Iterator[asyncio.Event]:
    """An event that SIGTERM, SIGINT and SIGHUP set, for as long as the context lasts."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    for number in signals:
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def ready(line: str) -> None:
    """Tell whoever started this process that it serves now."""
    print(line, flush=True)
