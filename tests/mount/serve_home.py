"""A child process that mounts a home in memory, for writing, at FOLDER/mount, until SIGTERM.

The catalogue and the journal lie in FOLDER; contents live as long as the process. It prints `ready` when the mount
answers, and at the end `left N` with the bytes of the journal that were not sent.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from home_in_memory import ALICE, MemoryCommitter, RealClock, home_in_memory

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


async def serve(folder: Path) -> None:
    running = asyncio.current_task()
    assert running is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    (folder / "mount").mkdir(exist_ok=True)
    (folder / "journals").mkdir(exist_ok=True)
    observer = PrintingObserver()
    with home_in_memory(folder / "home", b"/media", b"/media/inner", b"/backups") as (desk, open_reader):
        settings = JournalSettings(reserve_bytes=0, reserve_share=0)
        journals = JournalFolder(folder / "journals", settings, b"boot" * 4, SILENT)
        journal = await journals.open()
        writer = Writer(MemoryCommitter(desk), journal, Author(ALICE, f"client@{ALICE}"), RealClock())
        try:
            await run_mount(
                open_reader(), desk.open_source, MountSettings(folder / "mount", cache_size_bytes=32 * MIB), observer,
                on_ready=lambda: print("ready", flush=True), writer=writer, space=MemoryCommitter(desk).space,
            )  # fmt: skip
        except asyncio.CancelledError:
            print(f"operations {desk.submitted}", flush=True)
        finally:
            await journal.close()
            journals.release()


if __name__ == "__main__":
    if "--uvloop" in sys.argv:
        import uvloop

        uvloop.run(serve(Path(sys.argv[1])))
    else:
        asyncio.run(serve(Path(sys.argv[1])))
