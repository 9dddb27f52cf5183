"""Which journal a mount uses: one folder per mount, one lock each; the next mount takes over what a dead one left.

    <home>/mounts/journal-1/lock, 00000001.segment, …

The lock is the kernel's (flock): it ends with its process however that ends.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from collective.core.errors import CollectiveError
from collective.core.observe import Observer
from collective.mount.journal import Journal, JournalSettings
from collective.mount.journal_records import BaseRecord, FlushRecord, OperationRecord, Record, WriteRecord
from collective.mount.journal_recovery import recover
from collective.mount.journal_segments import disk_failure

__all__ = ["JournalFolder"]

PREFIX = "journal-"
MOST_JOURNALS = 1024  # mounts of one home at one time


class JournalFolder:
    """The journals of one home. `boot_id` names this start of the machine (16 bytes or so)."""

    def __init__(self, folder: Path, settings: JournalSettings, boot_id: bytes, observer: Observer) -> None:
        self._folder = folder
        self._settings = settings
        self._boot_id = boot_id
        self._observer = observer
        self._locks: list[int] = []
