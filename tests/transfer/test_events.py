"""The bell: nobody misses a change, and a stream of changes is looked at in portions."""

from __future__ import annotations

import asyncio

import pytest

from collective.transfer.events import ChangeBell

PATIENCE_SECONDS = 20.0


class Counted:
    """A catalogue's counter, and how often it was read."""

    def __init__(self) -> None:
        self.value = 0
        self.reads = 0
        self.bell = ChangeBell(self.read)

    def read(self) -> int:
        self.reads += 1
        return self.value

    def change(self) -> None:
        self.value += 1
        self.bell.ring()


async def test_all_who_wait_hear_a_change_that_is_read_once() -> None:
    """However many wait, a ring costs one look at the database."""
    counted = Counted()
    waiting = [asyncio.create_task(counted.bell.wait_past(0, PATIENCE_SECONDS)) for _ in range(20)]
    await asyncio.sleep(0)
    before = counted.reads
    counted.change()
    assert await asyncio.gather(*waiting) == [1] * 20
    assert counted.reads == before + 1


async def test_a_change_before_the_wait_is_not_missed() -> None:
    """Whoever comes late finds the counter past already; a ring without a change wakes nobody for good."""
    counted = Counted()
    counted.value = 7
    assert await counted.bell.wait_past(6, PATIENCE_SECONDS) == 7
    waiting = asyncio.create_task(counted.bell.wait_past(7, PATIENCE_SECONDS))
    await asyncio.sleep(0)
    counted.bell.ring()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    counted.change()
    assert await waiting == 8
    assert await counted.bell.wait_past(8, 0.0) == 8, "the time is over"


async def test_rounds_look_at_what_came_during_a_look_once_more() -> None:
    """A hundred changes while one look and its rest last are one further look, which sees them all."""
    counted = Counted()
    seen: list[int] = []
    busy, go_on = asyncio.Event(), asyncio.Event()

    async def look() -> None:
        seen.append(counted.value)
        busy.set()
        await go_on.wait()

    rounds = asyncio.create_task(counted.bell.rounds(look, idle_seconds=1000.0, rest_seconds=0.01))
    async with asyncio.timeout(PATIENCE_SECONDS):
        await busy.wait()
        for _ in range(100):
            counted.change()
        go_on.set()
        while len(seen) < 2:
            await asyncio.sleep(0)
        assert seen == [0, 100]
        counted.change()
        while len(seen) < 3:
            await asyncio.sleep(0)
    assert seen == [0, 100, 101]
    rounds.cancel()
    with pytest.raises(asyncio.CancelledError):
        await rounds


async def test_rounds_look_now_and_then_without_a_change() -> None:
    """What depends on time alone is looked at too."""
    counted = Counted()
    looks = 0

    async def look() -> None:
        nonlocal looks
        looks += 1

    rounds = asyncio.create_task(counted.bell.rounds(look, idle_seconds=0.01, rest_seconds=0.001))
    async with asyncio.timeout(PATIENCE_SECONDS):
        while looks < 5:
            await asyncio.sleep(0)
    rounds.cancel()
    with pytest.raises(asyncio.CancelledError):
        await rounds
