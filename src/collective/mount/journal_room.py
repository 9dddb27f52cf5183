"""How much a journal may hold: what the settings allow, and what the disk can spare."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from collective.core.sizes import GIB, MIB

__all__ = ["JournalRoom", "JournalSettings"]

CHECK_EVERY_BYTES = 8 * MIB  # how much is appended between two looks at the free disk


@dataclass(frozen=True)
class JournalSettings:
    """Sizes in bytes, times in seconds."""

    bound_bytes: int = 4 * GIB
    """`--vfs-write-buffer`: how much may wait for the uploader."""

    segment_bytes: int = 64 * MIB
    """A file of the journal; disk comes back in these steps."""

    reserve_bytes: int = GIB
    """The journal never takes the disk's last bytes: so many stay free …"""

    reserve_share: float = 0.05
    """… and this share of the disk, whichever is more."""

    deadline_seconds: float = 25.0
    """How long a writer waits for room before it is told ENOSPC; less than the mount's own deadline, which says EIO."""


class JournalRoom:
    """`total_bytes` of all segments, and whether more may come. What is set down (nothing of it counts, and its file
    goes with the next sync) takes room, and is no reason to hurry."""

    def __init__(self, folder: Path, settings: JournalSettings, total_bytes: int) -> None:
        self._folder = folder
        self._settings = settings
        self.total_bytes = total_bytes
        self._set_down_bytes = 0
        self._limit = settings.bound_bytes
        self._until_look = 0

    def grown(self, size_bytes: int) -> None:
        self.total_bytes += size_bytes
        self._until_look -= size_bytes

    def set_down(self, size_bytes: int) -> None:
        self._set_down_bytes += size_bytes

    def shrunk(self, size_bytes: int) -> None:
        """What was set down is gone."""
        self.total_bytes -= size_bytes
        self._set_down_bytes -= size_bytes

    @property
    def _counting_bytes(self) -> int:
        return self.total_bytes - self._set_down_bytes

    def fits(self, size_bytes: int) -> bool:
        """Whether so many more are within the bound, as far as is known; looks at the disk now and then."""
        return self._until_look > 0 and self.total_bytes + size_bytes <= self._limit

    def look(self, size_bytes: int) -> bool:
        """As `fits`, by what the disk has free now. What it can give is that and what the journal has already."""
        disk = os.statvfs(self._folder)
        total, free = disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize
        reserve = max(self._settings.reserve_bytes, int(total * self._settings.reserve_share))
        self._limit = min(self._settings.bound_bytes, self.total_bytes + free - reserve)
        self._until_look = CHECK_EVERY_BYTES
        return self.total_bytes + size_bytes <= self._limit

    @property
    def half_full(self) -> bool:
        return self._counting_bytes > self._limit // 2

    def mostly_over(self, live_bytes: int) -> bool:
        """Whether it is half full while what counts in it is at most a quarter: writing that again frees more."""
        return self.half_full and live_bytes <= self._limit // 4

    @property
    def far_over(self) -> bool:
        """Even small changes must stop: they may pass the bound, which is the data's, by two segments."""
        return self._counting_bytes > self._limit + 2 * self._settings.segment_bytes
