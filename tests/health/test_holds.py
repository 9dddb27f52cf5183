"""What is noted of a loop that was held: the longest, the longest lately, how many over the bound."""

from __future__ import annotations

import asyncio
import time

import pytest

from collective.core.observe import SILENT
from collective.daemon.loopwatch import LoopWatch
from collective.daemon.runtime import SystemClock
from collective.health.holds import BOUND_SECONDS, WINDOW_SECONDS, Holds, hold_findings

pytestmark = pytest.mark.timeout(30)


def test_the_longest_stays_and_the_recent_goes() -> None:
    """A hold is recent for at least one window and at most two; the longest is kept for ever."""
    holds = Holds()
    assert holds.note(10.0, 0.3)
    assert not holds.note(20.0, BOUND_SECONDS)
    assert holds.told(10.0 + WINDOW_SECONDS).recent_seconds == pytest.approx(0.3)
    later = holds.told(10.0 + 2 * WINDOW_SECONDS)
    assert (later.longest_seconds, later.recent_seconds, later.over_bound) == (pytest.approx(0.3), 0.0, 1)


def test_after_a_long_silence_nothing_is_recent() -> None:
    """Both windows are over when nobody looked for longer than they last."""
    holds = Holds()
    holds.note(0.0, 0.2)
    assert holds.told(5 * WINDOW_SECONDS).recent_seconds == 0.0


def test_only_what_people_notice_is_a_finding() -> None:
    """A hold over the bound is counted; half a second is told."""
    holds = Holds()
    holds.note(0.0, 0.1)
    assert list(hold_findings("the coordinator", holds.told(1.0))) == []
    holds.note(2.0, 0.7)
    (finding,) = hold_findings("the coordinator", holds.told(3.0))
    assert finding.severity == "warning"
    assert "0.7 s" in finding.message


async def test_a_loop_that_is_held_is_seen() -> None:
    """A callback that blocks the loop is noted, as long as it took less one look; before it nothing was."""
    watch = LoopWatch(SystemClock(), SILENT)
    watching = asyncio.create_task(watch.run())
    for _ in range(3):
        await asyncio.sleep(0.03)
    before = watch.told().over_bound
    time.sleep(0.4)  # noqa: ASYNC251 - the fault itself
    while watch.told().over_bound == before:
        await asyncio.sleep(0.01)
    assert 0.3 < watch.told().longest_seconds < 5.0
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
