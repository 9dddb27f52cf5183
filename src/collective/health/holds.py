"""How long a process's event loop did not get round: a film's next segment waits for as long as that lasts.

A driver (`daemon/loopwatch`) looks at the clock again and again from the loop itself and notes how late it comes. What
the machine took is not counted: a loop that waits for a processor is not held by anything of ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from collective.health.finding import Finding
from collective.wire import lane_pb2

__all__ = ["BOUND_SECONDS", "Holds", "hold_findings", "holds_document"]

BOUND_SECONDS = 0.05  # what nobody playing a film notices: read-ahead covers it many times over
FINDING_SECONDS = 0.5  # what somebody clicking through folders does
WINDOW_SECONDS = 60.0  # `recent` reaches back one to two of these


@dataclass
class Holds:
    """The longest of all, the longest lately, and how many were over the bound. Times in seconds."""

    longest_seconds: float = 0.0
    over_bound: int = 0
    _window_ends: float = 0.0
    _this: float = 0.0
    _before: float = 0.0

    def note(self, now: float, held_seconds: float) -> bool:
        """A look that came so late; whether that is over the bound. `now` monotonic."""
        self._turn(now)
        self.longest_seconds = max(self.longest_seconds, held_seconds)
        self._this = max(self._this, held_seconds)
        if held_seconds <= BOUND_SECONDS:
            return False
        self.over_bound += 1
        return True

    def told(self, now: float) -> lane_pb2.LoopHolds:
        """For status. `now` monotonic."""
        self._turn(now)
        return lane_pb2.LoopHolds(
            longest_seconds=self.longest_seconds,
            recent_seconds=max(self._this, self._before),
            over_bound=self.over_bound,
        )

    def _turn(self, now: float) -> None:
        if now >= self._window_ends:
            stale = now >= self._window_ends + WINDOW_SECONDS
            self._before, self._this = 0.0 if stale else self._this, 0.0
            self._window_ends = now + WINDOW_SECONDS


def holds_document(told: lane_pb2.LoopHolds) -> dict[str, object]:
    """As plain values, for status and for a mount's record; times in milliseconds."""
    return {
        "longest_ms": round(told.longest_seconds * 1000, 1),
        "recent_ms": round(told.recent_seconds * 1000, 1),
        "over_bound": told.over_bound,
        "bound_ms": BOUND_SECONDS * 1000,
    }


def hold_findings(process: str, told: lane_pb2.LoopHolds) -> Iterable[Finding]:
    """A process that hung lately for so long that people notice."""
    if told.recent_seconds > FINDING_SECONDS:
        yield Finding(
            "warning",
            f"{process} answered nobody for {told.recent_seconds:.1f} s a moment ago",
            "its log says when (loop.held); if the disk or the memory is not short, please report it",
        )
