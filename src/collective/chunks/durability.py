"""Group durability: many files made safe with few syncs.

Writers leave temporary files and wait. One thread takes all that wait, up to 64 MiB, syncs their data (each file
when they are few, the whole file system at once when they are many), renames them into place, syncs the folders they
went to, and answers all together. While it syncs the next group gathers, so a lone writer never waits for company.
A failed sync is a failed write: the file is removed and its writer told; nothing is tried again on data the kernel
may have dropped (Rebello et al., "Can applications recover from fsync failures?", 2020).
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from collective.chunks.disk import disk_error, sync_file_system, sync_folder
from collective.core.errors import CollectiveError, Unreachable

__all__ = ["GroupCommitter", "WrittenFile"]

GROUP_BYTES = 64 << 20
GROUP_FILES = 1024  # bounds how long the first of many small files waits
FEW_FILES = 4  # up to here each file is synced by itself: syncfs also waits for everybody else's data


@dataclass(frozen=True)
class WrittenFile:
    """A temporary file, written and still open; `settle` is called once, with None when it is durable as `final`."""

    temporary: Path
    final: Path
    size_bytes: int
    descriptor: int
    settle: Callable[[CollectiveError | None], None]


class GroupCommitter:
    """One thread that makes temporary files durable under their final names."""

    def __init__(self, root: Path) -> None:
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._queue: queue.SimpleQueue[WrittenFile | None] = queue.SimpleQueue()
        self._closing = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="durability", daemon=True)
        self._thread.start()

    def submit(self, file: WrittenFile) -> None:
        """Make a written file durable; its descriptor is closed here. The answer comes through `file.settle`."""
        with self._closing:
            if not self._closed:
                self._queue.put(file)
                return
        _take_back([file], Unreachable("the storage is closing"))

    def close(self) -> None:
        """Finish what waits, then end the thread; later submissions fail. May be repeated."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        self._thread.join()
        os.close(self._root)

    def _work(self) -> None:
        ending = False
        while not ending:
            group: list[WrittenFile] = []
            size_bytes = 0
            while size_bytes < GROUP_BYTES and len(group) < GROUP_FILES:
                try:
                    file = self._queue.get(block=not group)
                except queue.Empty:
                    break
                if file is None:
                    ending = True
                    break
                group.append(file)
                size_bytes += file.size_bytes
            if group:
                self._commit(group)

    def _commit(self, group: list[WrittenFile]) -> None:
        try:
            if len(group) <= FEW_FILES:
                for file in group:
                    os.fsync(file.descriptor)
            else:
                sync_file_system(self._root)
            for file in group:
                file.temporary.rename(file.final)
            for folder in {file.final.parent for file in group}:
                sync_folder(folder)
        except OSError as error:
            _take_back(group, disk_error(error, f"chunks could not be made durable in {group[0].final.parent.parent}"))
        else:
            for file in group:
                _close(file.descriptor)
                file.settle(None)


def _take_back(group: list[WrittenFile], error: CollectiveError) -> None:
    """Leave nothing under a final name that may not be durable, and tell every writer."""
    for file in group:
        _close(file.descriptor)
        for path in (file.temporary, file.final):
            with contextlib.suppress(OSError):  # the other of the two, or a disk that refuses everything
                path.unlink()
        file.settle(error)


def _close(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # what close() has to say, the sync has said
        os.close(descriptor)
