"""Time as an argument: brains take `now`, drivers hold a `Clock`."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Clock", "ManualClock"]


class Clock(Protocol):
    """Two readings: `wall` in seconds since 1970 (may jump), `monotonic` in seconds (never goes back)."""

    def wall(self) -> float: ...

    def monotonic(self) -> float: ...


class ManualClock:
    """A clock that stands still until told otherwise; for simulation and tests."""

    def __init__(self, wall_seconds: float = 1_700_000_000.0) -> None:
        self._wall_seconds = wall_seconds
        self._monotonic_seconds = 0.0

    def wall(self) -> float:
        return self._wall_seconds

    def monotonic(self) -> float:
        return self._monotonic_seconds

    def advance(self, seconds: float) -> None:
        """Move both readings forward by `seconds` (>= 0)."""
        if seconds < 0:
            raise ValueError("a clock advances forward; use jump() for a wall clock set back")
        self._wall_seconds += seconds
        self._monotonic_seconds += seconds

    def jump(self, seconds: float) -> None:
        """Set the wall reading forward or back; the monotonic one stays."""
        self._wall_seconds += seconds
