"""How a mount behaves; made by whoever starts it, read-only afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from collective.core.errors import Misconfigured
from collective.core.layout import MAX_CHUNK_SIZE_BYTES
from collective.core.sizes import KIB, MIB, format_size

__all__ = ["MINIMUM_CACHE_BYTES", "MountSettings"]

MINIMUM_CACHE_BYTES = 2 * MAX_CHUNK_SIZE_BYTES  # one slot being read, one being filled
MAXIMUM_READ_AHEAD_BYTES = 1024 * MIB


@dataclass(frozen=True)
class MountSettings:
    """One mount. Sizes are bytes, times are seconds."""

    mountpoint: Path
    """An existing empty directory."""

    allow_other: bool = False
    """Other users of the machine see the mount too (a media server usually is another user)."""

    cache_size_bytes: int = 128 * MIB
    """`--vfs-cache-max-size`: memory for plain bytes on their way to readers."""

    read_ahead_bytes: int = 32 * MIB
    """`--vfs-read-ahead`: the most that is fetched ahead of one sequential reader."""

    initial_read_ahead_bytes: int = 256 * KIB
    """What a reader that just began gets fetched ahead."""

    parallel_fetches: int = 8
    """Fetches ahead of readers (2 MiB each) that run at one time, demanded ones not counted: enough for 1.6 GB/s at
    5 ms or 160 MB/s at 50 ms, few enough that somebody who seeks on a thin line does not wait long behind them."""

    deadline_seconds: float = 30.0
    """An operation that takes longer answers EIO."""

    names_timeout_seconds: float = 5.0
    """`--dir-cache-time`: how long the kernel may use a name or attribute without asking again."""

    kernel_read_ahead_bytes: int = 4 * MIB
    """How far the kernel asks ahead of a sequential reader; also what makes its requests 1 MiB large."""

    read_only: bool = False
    """`--read-only`: nothing can be changed through this mount."""

    journal_bytes: int = 4 << 30
    """`--vfs-write-buffer`: how much may be written that is not uploaded yet; beyond it writers wait."""

    umask: int | None = None
    """Permission bits that no file or folder is shown with; None: what the names say."""

    uid: int | None = None
    """Everything belongs to this user; None: what the names say."""

    gid: int | None = None
    """Everything belongs to this group; None: what the names say."""

    idle_contents: int = 64
    """Contents whose read-ahead state and source are kept after the last close (players reopen for every read)."""

    def check(self) -> None:
        """Raises: Misconfigured for values that cannot work."""
        if self.cache_size_bytes < MINIMUM_CACHE_BYTES:
            raise Misconfigured(
                f"a cache of {format_size(self.cache_size_bytes)} is too small to read through",
                f"give --vfs-cache-max-size at least {MINIMUM_CACHE_BYTES // MIB}MiB",
            )
        if not 0 <= self.read_ahead_bytes <= MAXIMUM_READ_AHEAD_BYTES:
            raise Misconfigured(
                f"a read-ahead of {format_size(self.read_ahead_bytes)} makes no sense",
                "give --vfs-read-ahead between 0 and 1GiB",
            )
        if self.deadline_seconds <= 0 or self.names_timeout_seconds < 0 or self.parallel_fetches < 1:
            raise Misconfigured("timeouts and counts of a mount must be positive", "see `collective mount --help`")
