"""Byte counts in words and back: `25TB` is 25 * 10**12, `8MiB` is 8 * 2**20."""

from __future__ import annotations

import re

from collective.core.errors import Misconfigured

__all__ = ["GIB", "KIB", "MIB", "format_size", "parse_duration", "parse_size"]

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgtp", start=1):
    _UNITS[_letter] = _UNITS[_letter + "b"] = 1000**_power
    _UNITS[_letter + "ib"] = 1024**_power
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")


def parse_size(text: str) -> int:
    """Bytes in `25TB`, `8MiB`, `512k` or `1000`. Raises: Misconfigured."""
    match = _SIZE.fullmatch(text)
    if match is None or match.group(2).lower() not in _UNITS:
        raise Misconfigured(f"{text!r} is not a size", "write it as 25TB, 512MiB or a number of bytes")
    return int(float(match.group(1)) * _UNITS[match.group(2).lower()])


def format_size(size_bytes: int) -> str:
    """For people: three figures and a decimal unit (`1.02 GB`)."""
    if size_bytes < 1000:
        return f"{size_bytes} B"
    value = float(size_bytes)
    for unit in ("kB", "MB", "GB", "TB", "PB"):
        value /= 1000
        if value < 999.5 or unit == "PB":
            break
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


def parse_duration(text: str) -> float:
    """Seconds in `30s`, `7d`, `1h30m`. Raises: Misconfigured."""
    compact = text.strip().lower()
    parts = _DURATION.findall(compact)
    if not parts or "".join(number + unit for number, unit in parts) != compact:
        raise Misconfigured(f"{text!r} is not a duration", "write it as 30s, 15m, 24h or 7d")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)
