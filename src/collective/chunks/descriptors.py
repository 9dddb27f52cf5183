"""Descriptors kept open for reading: a bounded cache, oldest out first; one in use stays open until it is done."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from collective.chunks.openfile import OpenFile

__all__ = ["Descriptors"]


class Descriptors:
    """Chunk id -> open file, at most `limit` besides those in use. Thread-safe."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._files: OrderedDict[bytes, OpenFile] = OrderedDict()

    def __len__(self) -> int:
        return len(self._files)

    @contextlib.contextmanager
    def reading(self, id_: bytes, path: Path) -> Iterator[OpenFile]:
        """The open file of a chunk, for as long as the block lasts. Raises: OSError."""
        with self._lock:
            file = self._files.pop(id_, None) or OpenFile(path)
            self._files[id_] = file
            file.users += 1
            while len(self._files) > self._limit:
                self._drop(next(iter(self._files)))
        try:
            yield file
        finally:
            with self._lock:
                file.users -= 1
                file.close_if_unused()

    def forget(self, id_: bytes) -> None:
        """The file at this chunk's path is not the one it was."""
        with self._lock:
            if id_ in self._files:
                self._drop(id_)

    def close(self) -> None:
        with self._lock:
            for id_ in list(self._files):
                self._drop(id_)

    def _drop(self, id_: bytes) -> None:
        file = self._files.pop(id_)
        file.dropped = True
        file.close_if_unused()
