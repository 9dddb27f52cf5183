"""What the running kernel has to be told beside FUSE: how far it reads ahead of us.

Without it the kernel asks for 128 KiB at a time, whatever the file system could give; its read-ahead window is a
property of the mount's backing device and can only be raised once the mount is there, by root.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["MountEntry", "find_mount", "raise_read_ahead"]

MOUNT_TABLE = Path("/proc/self/mountinfo")
BACKING_DEVICES = Path("/sys/class/bdi")


@dataclass(frozen=True)
class MountEntry:
    """One line of the mount table: device as `major:minor`, file system type and source name."""

    mountpoint: Path
    device: str
    kind: str
    source: str


def find_mount(directory: Path, table: Path = MOUNT_TABLE) -> MountEntry | None:
    """What is mounted at `directory` (absolute), the topmost if several; asks nothing of the mount itself.

    Source: proc(5), /proc/pid/mountinfo.
    """
    found = None
    for line in table.read_text(errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        fields, rest = before.split(" "), after.split(" ")
        mountpoint = Path(_unescape(fields[4]))
        if mountpoint == directory:
            found = MountEntry(mountpoint, fields[2], rest[0], _unescape(rest[1]))
    return found


def raise_read_ahead(directory: Path, size_bytes: int) -> str:
    """Let the kernel read `size_bytes` ahead. Returns why it could not be done; empty when it was."""
    entry = find_mount(directory)
    if entry is None:
        return "the mount is not in the mount table"
    knob = BACKING_DEVICES / entry.device / "read_ahead_kb"
    try:
        knob.write_text(str(size_bytes // 1024))
    except OSError as error:
        return f"{knob}: {error.strerror}; as root: echo {size_bytes // 1024} > {knob}"
    return ""


def _unescape(text: str) -> str:
    """Spaces, tabs, newlines and backslashes stand as octal numbers."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text
