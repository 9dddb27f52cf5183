"""The coordinator's own node as a child process: started, watched, started again, ended with its parent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from collective.core.clock import Clock
from collective.core.observe import Observer

__all__ = ["NodeChild"]

FIRST_PAUSE_SECONDS = 0.5
LAST_PAUSE_SECONDS = 5.0  # readers and writers of this home wait for it
STEADY_SECONDS = 10.0  # a child that ran this long failed for a new reason: the pause begins anew
STOP_SECONDS = 10.0


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
        pause = FIRST_PAUSE_SECONDS
        while True:
            began = self._clock.monotonic()
            with self._log_path.open("ab") as log:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "collective.cli.main",
                    *self._arguments,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            self.pid = process.pid
            self._observer.event("node.started", pid=process.pid)
            try:
                code = await process.wait()
            except asyncio.CancelledError:
                await self._stop(process)
                raise
            self.pid = None
            self._observer.event("node.ended", exit_code=code, log=str(self._log_path))
            if self._clock.monotonic() - began > STEADY_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            await asyncio.sleep(pause)
            pause = min(pause * 2, LAST_PAUSE_SECONDS)

    @staticmethod
    async def _stop(process: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
