"""A disk's own folder, beside its chunks: the marker, the lock, the feed heads, what was set aside.

    DIR/collective-disk          marker: this disk's random id; locked while the disk is open
    DIR/chunks/ab/<id>-<size>    sealed bytes, then a trailer {version byte, hash list}; <size> without the trailer
    DIR/tmp/                     files being written; emptied at open
    DIR/quarantine/              chunks that turned out broken, with reasons.jsonl
    DIR/heads/<feed id>          signed feed heads kept for the coordinator

Source: docs/protocol/chunks.md.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import secrets
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from collective.core.errors import CollectiveError, Full, Misconfigured
from collective.core.layout import CHUNK_ID_BYTES, MAX_SEALED_CHUNK_BYTES

__all__ = ["Disk", "disk_error", "sync_file_system", "sync_folder"]

MARKER = "collective-disk"
REASONS = "reasons.jsonl"
FOLDERS = 256
_UNFINISHED = ".new"


def disk_error(error: OSError, what: str) -> CollectiveError:
    """A disk's refusal in our words: Full when there is no room, Misconfigured otherwise."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Full(f"the disk is full: {what}", "make room or add storage")
    return Misconfigured(f"{what}: {error.strerror or error}", "look at the disk and the kernel's log")


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable. Raises: OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_LIBC = ctypes.CDLL(None, use_errno=True)


def sync_file_system(descriptor: int) -> None:
    """Make everything durable on the file system that a descriptor is of. Raises: OSError.

    Since Linux 5.8 it also tells of write-back errors since the descriptor was opened.
    """
    if _LIBC.syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Disk:
    """The folders of one disk, open in this process alone."""

    def __init__(self, directory: Path, lock_descriptor: int, marker: str) -> None:
        self.directory = directory
        self.marker = marker
        self.temporary = directory / "tmp"
        self._lock_descriptor = lock_descriptor
        self._chunks = directory / "chunks"
        self._quarantine = directory / "quarantine"
        self._heads = directory / "heads"
        self._heads_lock = threading.Lock()

    @classmethod
    def open(cls, directory: Path, expected_marker: str | None) -> Disk:
        """Open a disk, making its folders the first time; unfinished writes of a killed process are cleared away.

        With `expected_marker` nothing is made unless the disk that bears it is mounted. Raises: Misconfigured.
        """
        try:
            if expected_marker is None:
                directory.mkdir(parents=True, exist_ok=True)
            descriptor, marker = _take_marker(directory, expected_marker)
            disk = cls(directory, descriptor, marker)
            try:
                disk._prepare()
            except BaseException:
                disk.close()
                raise
        except OSError as error:
            raise disk_error(error, f"the chunk folder {directory} cannot be opened") from error
        return disk

    def _prepare(self) -> None:
        for folder in (self._chunks, self.temporary, self._quarantine, self._heads):
            folder.mkdir(mode=0o700, exist_ok=True)
        for number in range(FOLDERS):
            (self._chunks / f"{number:02x}").mkdir(mode=0o700, exist_ok=True)
        for left in self.temporary.iterdir():
            left.unlink()
        # A process killed between rename and folder sync leaves names that are here now and may be gone after a
        # power loss. From here on they are told as kept, so they are made durable first.
        sync_file_system(self._lock_descriptor)

    def close(self) -> None:
        """Let another process open the disk."""
        os.close(self._lock_descriptor)

    def free_bytes(self) -> int:
        """What the file system still has for us. Raises: Misconfigured."""
        try:
            figures = os.statvfs(self.directory)
        except OSError as error:
            raise disk_error(error, f"{self.directory} does not tell its free space") from error
        return figures.f_bavail * figures.f_frsize

    # ------------------------------------------------------------ chunk files

    def chunk_path(self, id_: bytes, size_bytes: int) -> Path:
        return self._chunks / f"{id_[0]:02x}" / f"{id_.hex()}-{size_bytes}"

    def chunks_in(self, folder: int) -> Iterator[tuple[bytes, int]]:
        """(id, sealed size) of every chunk in one of the 256 folders, by names alone. Raises: OSError."""
        with os.scandir(self._chunks / f"{folder:02x}") as entries:
            yield from _parsed(folder, (entry.name for entry in entries))

    def set_aside(self, id_: bytes, size_bytes: int, reason: str) -> bool:
        """Move a chunk file to the quarantine, its reason beside it; False when the file is not there.

        Raises: OSError; the chunk is where it was, or only its reason could not be written.
        """
        path = self.chunk_path(id_, size_bytes)
        kept = self._quarantine / path.name
        while kept.exists():  # set aside before and fetched again since: keep both
            kept = self._quarantine / f"{path.name}-{secrets.token_hex(4)}"
        try:
            path.rename(kept)
            moved = True
        except FileNotFoundError:
            moved = False
        line = json.dumps({"chunk": kept.name, "reason": reason}).encode() + b"\n"
        with (self._quarantine / REASONS).open("a+b") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(0, size - 1))
            torn = log.read(1) not in (b"", b"\n")  # by a power loss: what comes now has a line of its own
            log.write(b"\n" + line if torn else line)
            log.flush()
            os.fsync(log.fileno())
        return moved

    def set_aside_ids(self) -> set[bytes]:
        """The ids of all chunks that were ever set aside here, also those whose file was gone. Raises: OSError."""
        try:
            lines = (self._quarantine / REASONS).read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return set()
        ids = set()
        for line in lines:
            try:
                ids.add(bytes.fromhex(json.loads(line)["chunk"].partition("-")[0]))
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # a line that a power loss tore
        return {id_ for id_ in ids if len(id_) == CHUNK_ID_BYTES}

    def set_aside_count(self) -> int:
        """Chunk files in the quarantine. Raises: OSError."""
        return sum(1 for path in self._quarantine.iterdir() if path.name != REASONS)

    # ------------------------------------------------------------ heads

    def keep_head(self, feed_id: bytes, head: bytes) -> None:
        """Keep a signed feed head, synced, in place of the one before. Raises: Full, Misconfigured."""
        path = self._heads / feed_id.hex()
        unfinished = path.with_suffix(_UNFINISHED)
        try:
            with self._heads_lock:
                with unfinished.open("wb") as file:
                    file.write(head)
                    file.flush()
                    os.fsync(file.fileno())
                unfinished.replace(path)
                sync_folder(self._heads)
        except OSError as error:
            raise disk_error(error, "a feed head cannot be kept") from error

    def heads(self) -> dict[bytes, bytes]:
        """Feed id -> the head kept. Raises: Misconfigured."""
        try:
            with self._heads_lock:
                paths = [path for path in self._heads.iterdir() if path.suffix != _UNFINISHED]
                return {bytes.fromhex(path.name): path.read_bytes() for path in paths}
        except (OSError, ValueError) as error:
            raise Misconfigured(f"the feed heads in {self._heads} cannot be read: {error}") from error


def _take_marker(directory: Path, expected: str | None) -> tuple[int, str]:
    """Lock the marker file and read it, making it where none is expected. Raises: Misconfigured, OSError."""
    hint = "mount the disk, or name another --storage-path"
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if expected is None else 0)
    try:
        descriptor = os.open(directory / MARKER, flags, 0o600)
    except FileNotFoundError:
        raise Misconfigured(f"{directory} is not the disk that was here before: it has no marker", hint) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        marker = os.pread(descriptor, 256, 0).decode("ascii", "replace").strip()
        if expected is not None and marker != expected:
            raise Misconfigured(f"{directory} is not the disk that was here before: it has another marker", hint)
        if not marker:
            marker = secrets.token_hex(16)
            os.pwrite(descriptor, marker.encode() + b"\n", 0)
            os.fsync(descriptor)
    except BlockingIOError:
        os.close(descriptor)
        raise Misconfigured(f"{directory} is in use by another process", "one node per disk") from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, marker


def _parsed(folder: int, names: Iterable[str]) -> Iterator[tuple[bytes, int]]:
    """Chunks by their file names; whatever else lies there is not ours."""
    for name in names:
        id_hex, _, size_text = name.partition("-")
        try:
            id_, size_bytes = bytes.fromhex(id_hex), int(size_text)
        except ValueError:
            continue
        canonical = name == f"{id_.hex()}-{size_bytes}" and len(id_) == CHUNK_ID_BYTES and id_[0] == folder
        if canonical and 0 < size_bytes <= MAX_SEALED_CHUNK_BYTES:
            yield id_, size_bytes
