"""The signed head of each own feed, in small files beside the database: what betrays a database that is too old.

A file named `recovered` among them says that the database was had back from others: whoever brings one back writes it,
and the home wakes up in doubt about all its feeds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from google.protobuf.message import DecodeError

from collective.core.errors import Misconfigured
from collective.wire import feed_pb2

__all__ = ["RECOVERED_NAME", "FolderHeadKeeper", "HeadKeeper"]

RECOVERED_NAME = "recovered"
_FEED_NAME = re.compile("[0-9a-f]{64}")


class HeadKeeper(Protocol):
    """Keeps heads where the database does not lie. `keep` returns when the head is synced."""

    def keep(self, feed_id: bytes, position: feed_pb2.Position) -> None: ...

    def newest(self, feed_id: bytes) -> feed_pb2.Position | None: ...

    def feeds(self) -> set[bytes]:
        """The feeds whose heads are kept: all that this home ever wrote, also those its database forgot."""
        ...

    def recovered(self) -> bool:
        """Whether the database was had back from others since it last was the newest."""
        ...

    def settle(self) -> None:
        """The doubt is over: forget that the database was recovered."""
        ...


class FolderHeadKeeper:
    """One file per feed in each of several folders, replaced whole and synced."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = list(folders)

    def keep(self, feed_id: bytes, position: feed_pb2.Position) -> None:
        """Raises: Misconfigured when not one folder takes it; the entry must not leave then."""
        last: OSError | None = None
        kept = 0
        for folder in self._folders:
            try:
                _write(folder, feed_id.hex(), position.SerializeToString())
                kept += 1
            except OSError as error:
                last = error
        if not kept and last is not None:
            raise Misconfigured(f"the head of a feed cannot be kept: {last.strerror}", f"look at {self._folders[0]}")

    def newest(self, feed_id: bytes) -> feed_pb2.Position | None:
        """The highest head kept, by epoch and seq."""
        found: list[feed_pb2.Position] = []
        for folder in self._folders:
            try:
                found.append(feed_pb2.Position.FromString((folder / feed_id.hex()).read_bytes()))
            except (FileNotFoundError, DecodeError):
                continue  # never written there, or torn: the other folders know
            except OSError as error:
                raise Misconfigured(
                    f"the head of a feed cannot be read: {error.strerror}", f"look at {folder} and at its disk"
                ) from error
        return max(found, key=lambda position: (position.epoch_number, position.seq), default=None)

    def feeds(self) -> set[bytes]:
        names = {path.name for folder in self._folders if folder.is_dir() for path in folder.iterdir()}
        return {bytes.fromhex(name) for name in names if _FEED_NAME.fullmatch(name)}

    def recovered(self) -> bool:
        return any((folder / RECOVERED_NAME).exists() for folder in self._folders)

    def settle(self) -> None:
        for folder in self._folders:
            (folder / RECOVERED_NAME).unlink(missing_ok=True)


def _write(folder: Path, name: str, content: bytes) -> None:
    folder.mkdir(parents=True, mode=0o700, exist_ok=True)
    temporary = folder / f"{name}.new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.replace(folder / name)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
