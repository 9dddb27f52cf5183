"""The name under which a change is kept that found its own taken (decision 0007): the same for whoever works it out."""

from __future__ import annotations

from datetime import UTC, datetime

__all__ = ["conflict_name"]

MAX_NAME_BYTES = 255
MAX_EXTENSION_BYTES = 32
_LAST_DAY_SECONDS = 253_402_300_799  # 9999-12-31


def conflict_name(name: bytes, writer: str, time_ns: int, random: bytes, digits: int = 4) -> bytes:
    """`name (conflict bob 2026-11-22 1f3a).ext`, at most 255 bytes: the stem gives way."""
    seconds = min(max(time_ns // 1_000_000_000, 0), _LAST_DAY_SECONDS)
    day = datetime.fromtimestamp(seconds, UTC).date().isoformat()
    mark = f" (conflict {writer.split('.')[0]} {day} {random.hex()[:digits]})".encode()
    dot = name.rfind(b".")
    stem, extension = (name[:dot], name[dot:]) if dot > 0 and len(name) - dot <= MAX_EXTENSION_BYTES else (name, b"")
    room = MAX_NAME_BYTES - len(mark) - len(extension)
    if len(stem) > room:
        stem = stem[:room].decode(errors="ignore").encode() or stem[:room]
    return stem + mark + extension
