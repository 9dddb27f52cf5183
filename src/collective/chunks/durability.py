"""Group durability: many files made safe with few syncs.

Writers leave temporary files and wait. One thread takes all that wait, up to 64 MiB, syncs their data (each file
when they are few, the whole file system at once when they are many), renames them into place, syncs the folders they
went to, and answers all together. While it syncs the next group gathers, so a lone writer never waits for company.
Measured elsewhere: 0.2 ms a file against 2.5 ms synced one by one. A failed sync is a failed write: the file
is removed and its writer told; nothing is tried again on data the kernel may have dropped.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from collective.core.errors import CollectiveError, Full, Misconfigured

__all__ = ["GroupCommitter", "disk_error"]

GROUP_BYTES = 64 << 20
FEW_FILES = 4  # up to here each file is synced by itself: syncfs also waits for everybody else's data


def disk_error(error: OSError, what: str) -> CollectiveError:
    """A disk's refusal in our words: Full when there is no room, Misconfigured otherwise."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Full(f"the disk is full: {what}", "make room or add storage")
    return Misconfigured(f"{what}: {error.strerror}", "look at the disk and the kernel's log")


@dataclass
class _Pending:
    temporary: Path
    final: Path
    size_bytes: int
    descriptor: int
    done: Future[None] = field(default_factory=Future)


class GroupCommitter:
    """One thread that makes temporary files durable under their final names."""

    def __init__(self, root: Path) -> None:
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._queue: queue.SimpleQueue[_Pending | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="durability", daemon=True)
        self._thread.start()

    def submit(self, temporary: Path, final: Path, size_bytes: int, descriptor: int) -> Future[None]:
        """Make a written file durable as `final`. Takes over the descriptor. The future raises on failure."""
        pending = _Pending(temporary, final, size_bytes, descriptor)
        self._queue.put(pending)
        return pending.done

    def close(self) -> None:
        """Finish what waits, then end the thread."""
        self._queue.put(None)
        self._thread.join()
        os.close(self._root)

    def _work(self) -> None:
        ending = False
        while not ending:
            group: list[_Pending] = []
            first = self._queue.get()
            if first is None:
                return
            group.append(first)
            while sum(pending.size_bytes for pending in group) < GROUP_BYTES:
                try:
                    more = self._queue.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    ending = True
                    break
                group.append(more)
            self._commit(group)

    def _commit(self, group: list[_Pending]) -> None:
        try:
            self._sync_data(group)
            for pending in group:
                pending.temporary.rename(pending.final)
            for folder in {pending.final.parent for pending in group}:
                self._sync_folder(folder)
        except OSError as error:
            self._fail(group, error)
        else:
            for pending in group:
                os.close(pending.descriptor)
                pending.done.set_result(None)

    def _fail(self, group: list[_Pending], error: OSError) -> None:
        """Leave nothing under a final name that may not be durable, and tell every writer."""
        for pending in group:
            with contextlib.suppress(OSError):
                os.close(pending.descriptor)
            for path in (pending.temporary, pending.final):
                with contextlib.suppress(OSError):
                    path.unlink()
            pending.done.set_exception(
                disk_error(error, f"a chunk could not be made durable in {pending.final.parent}")
            )

    def _sync_data(self, group: list[_Pending]) -> None:
        if len(group) <= FEW_FILES:
            for pending in group:
                os.fsync(pending.descriptor)
        elif self._libc.syncfs(self._root) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    @staticmethod
    def _sync_folder(folder: Path) -> None:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
