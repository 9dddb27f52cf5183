"""A child process that mounts a home in memory, for writing, at FOLDER/mount, until SIGTERM.

Catalogue, journal and contents lie in FOLDER; its keys are this process's, which forks the one that serves and says
`serving PID`, then `ready` when the mount answers. When that one is killed, another takes its place.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from home_in_memory import ALICE, FolderContents, MemoryCommitter, RealClock, desk_of, make_home
from support.catalogs import TestFederation

from collective.core.observe import SILENT
from collective.core.sizes import MIB
from collective.mount.committing import Author
from collective.mount.fuse import run_mount
from collective.mount.journal import JournalSettings
from collective.mount.journal_folder import JournalFolder
from collective.mount.settings import MountSettings
from collective.mount.writing import Writer


class PrintingObserver:
    """What went wrong, on stderr."""

    def event(self, name: str, **fields: object) -> None:
        if name in ("mount.unexpected", "mount.deadline", "mount.change_refused", "replay.not_as_asked"):
            print(name, fields, file=sys.stderr, flush=True)


async def serve(folder: Path, federation: TestFederation) -> None:
    running = asyncio.current_task()
    assert running is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    (folder / "mount").mkdir(exist_ok=True)
    (folder / "journals").mkdir(exist_ok=True)
    federation.catalogs["alice"] = federation.open("alice")
    with desk_of(federation, FolderContents(folder / "contents")) as (desk, open_reader):
        settings = JournalSettings(reserve_bytes=0, reserve_share=0)
        journals = JournalFolder(folder / "journals", settings, b"boot" * 4, SILENT)
        journal = await journals.open()
        committer = MemoryCommitter(desk)
        writer = Writer(committer, journal, Author(ALICE, f"client@{ALICE}"), RealClock())
        try:
            await run_mount(
                open_reader(), desk.open_source,
                MountSettings(folder / "mount", cache_size_bytes=32 * MIB, allow_other="--allow-other" in sys.argv),
                PrintingObserver(), on_ready=lambda: print("ready", flush=True), writer=writer, space=committer.space,
            )  # fmt: skip
        except asyncio.CancelledError:
            return
        finally:
            await journal.close()
            journals.release()


def serve_until_told(folder: Path, run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    federation = make_home(folder / "home", b"/media", b"/media/inner", b"/backups")
    federation.close()
    while True:
        child = os.fork()
        if not child:
            run(serve(folder, federation))
            os._exit(0)
        signal.signal(signal.SIGTERM, lambda number, frame, child=child: os.kill(child, signal.SIGTERM))
        print(f"serving {child}", flush=True)
        if os.waitpid(child, 0)[1] != signal.SIGKILL:
            return


if __name__ == "__main__":
    if "--uvloop" in sys.argv:
        import uvloop

        serve_until_told(Path(sys.argv[1]), uvloop.run)
    else:
        serve_until_told(Path(sys.argv[1]), asyncio.run)
