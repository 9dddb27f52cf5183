"""A child process that mounts a library with one film at the directory given, until SIGTERM."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from memory_library import MemoryNames, MemorySources, pattern_bytes

from collective.core.sizes import MIB
from collective.mount.fuse import run_mount
from collective.mount.settings import MountSettings


async def serve(directory: Path) -> None:
    names = MemoryNames()
    names.make_file(b"film", pattern_bytes(1, 3 * MIB))
    running = asyncio.current_task()
    assert running is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    try:
        await run_mount(
            names, MemorySources(names).open, MountSettings(directory), on_ready=lambda: print("ready", flush=True)
        )
    except asyncio.CancelledError:
        return


if __name__ == "__main__":
    if "--uvloop" in sys.argv:
        import uvloop

        uvloop.run(serve(Path(sys.argv[1])))
    else:
        asyncio.run(serve(Path(sys.argv[1])))
