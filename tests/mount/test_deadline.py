"""A deadline is set only where something waits, and then holds."""

from __future__ import annotations

import asyncio

import pytest

from collective.mount.deadline import Waiting, within


async def test_what_does_not_wait_needs_no_event_loop_turn() -> None:
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def answer() -> int:
        return 42

    counting = asyncio.create_task(count_turns())
    assert await within(1.0, answer(), Waiting()) == 42
    assert turns == 0
    counting.cancel()


async def test_what_waits_goes_on_where_it_stopped() -> None:
    gate = asyncio.Event()
    seen: list[str] = []

    async def work() -> str:
        seen.append("begun")
        await gate.wait()
        seen.append("woken")
        await asyncio.sleep(0)
        return "done"

    running = asyncio.create_task(within(10.0, work(), Waiting()))
    await asyncio.sleep(0)
    assert seen == ["begun"]
    gate.set()
    assert await running == "done"
    assert seen == ["begun", "woken"]


async def test_too_late_is_a_timeout_and_the_work_is_told() -> None:
    ended: list[str] = []

    async def never() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    with pytest.raises(TimeoutError):
        await within(0.01, never(), Waiting())
    assert ended == ["cancelled"]


async def test_errors_come_through_from_both_sides_of_a_wait() -> None:
    async def at_once() -> None:
        raise ValueError("at once")

    async def later() -> None:
        await asyncio.sleep(0)
        raise ValueError("later")

    async def caught() -> str:
        try:
            await later()
        except ValueError as error:
            return str(error)
        return "nothing"

    with pytest.raises(ValueError, match="at once"):
        await within(1.0, at_once(), Waiting())
    with pytest.raises(ValueError, match="later"):
        await within(1.0, later(), Waiting())
    assert await within(1.0, caught(), Waiting()) == "later"
