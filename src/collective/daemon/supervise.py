"""The coordinator's child processes, which end with their parent: its own node, and heirs of mounts that died."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from collective.core.clock import Clock
from collective.core.observe import Observer
from collective.transfer.serve_leases import LeaseDesk

__all__ = ["Heirs", "NodeChild", "keep_running", "start_process", "stop_process"]

FIRST_PAUSE_SECONDS = 0.5
LAST_PAUSE_SECONDS = 5.0  # readers and writers of this home wait for it
STEADY_SECONDS = 10.0  # a child that ran this long failed for a new reason: the pause begins anew
STOP_SECONDS = 10.0
HEIR_SECONDS = 5.0  # an heir has begun by then, or will not
LOOK_SECONDS = 1.0  # between two looks at the journals of mounts …
OPEN_LOOK_SECONDS = 0.05  # … while somebody may wait for what is in one


class NodeChild:
    """Keeps one node process running until cancelled, then stops it with SIGTERM, SIGKILL when it does not end."""

    def __init__(self, arguments: Sequence[str], log_path: Path, clock: Clock, observer: Observer) -> None:
        self._arguments = [*arguments, "--parent", str(os.getpid())]
        self._log_path = log_path
        self._clock = clock
        self._observer = observer
        self.pid: int | None = None

    async def run(self) -> None:
        """Ends only by cancellation."""
        await keep_running(self._run_one, self._clock)

    async def _run_one(self) -> None:
        process = await start_process(self._arguments, self._log_path)
        self.pid = process.pid
        self._observer.event("node.started", pid=process.pid)
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            await stop_process(process)
            raise
        self.pid = None
        self._observer.event("node.ended", exit_code=code, log=str(self._log_path))


class Heirs:
    """Looks at the journals of this home's mounts, and starts an heir while one has nobody, until cancelled."""

    def __init__(self, home: Path, leases: LeaseDesk, clock: Clock, observer: Observer) -> None:
        self._arguments = ("--home", str(home), "heir", "--parent", str(os.getpid()))
        self._log_path = home / "mount.log"
        self._leases = leases
        self._clock = clock
        self._observer = observer

    async def run(self) -> None:
        """Ends only by cancellation."""
        not_before = 0.0
        async with asyncio.TaskGroup() as group:
            while True:
                self._leases.look()
                if not self._leases.legacies.orphaned:
                    not_before = 0.0
                elif (now := self._clock.monotonic()) >= not_before:
                    not_before = now + HEIR_SECONDS
                    group.create_task(self._run_one())
                await asyncio.sleep(OPEN_LOOK_SECONDS if self._leases.legacies.open else LOOK_SECONDS)

    async def _run_one(self) -> None:
        try:
            process = await start_process(self._arguments, self._log_path)
        except OSError as error:  # no memory, no descriptors: tried again
            self._observer.event("heir.not_started", reason=str(error))
            return
        self._observer.event("heir.started", pid=process.pid)
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            await stop_process(process)
            raise
        self._observer.event("heir.ended", exit_code=code, log=str(self._log_path))


async def keep_running(run_one: Callable[[], Awaitable[None]], clock: Clock) -> None:
    """One life after the other, with pauses that double while lives are short. Ends only by cancellation."""
    pause = FIRST_PAUSE_SECONDS
    while True:
        began = clock.monotonic()
        await run_one()
        if clock.monotonic() - began > STEADY_SECONDS:
            pause = FIRST_PAUSE_SECONDS
        await asyncio.sleep(pause)
        pause = min(pause * 2, LAST_PAUSE_SECONDS)


async def start_process(
    arguments: Sequence[str], log_path: Path, *, talking: bool = False
) -> asyncio.subprocess.Process:
    """This program as a child, what it says in the log; `talking` keeps its stdin and stdout for the caller."""
    with log_path.open("ab") as log:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "collective.cli.main",
            *arguments,
            stdin=asyncio.subprocess.PIPE if talking else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE if talking else log,
            stderr=log,
        )


async def stop_process(process: asyncio.subprocess.Process) -> None:
    """SIGTERM, and SIGKILL when it does not end."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
