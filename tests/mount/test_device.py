"""Waiting for the device: who gets the turn, and that nothing is missed, on a pipe in place of /dev/fuse."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest

from collective.mount.device import DeviceWatch, Turns


class Closed(Exception):
    """The device is gone."""


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


# ------------------------------------------------------------ turns


async def test_a_worker_that_need_not_wait_keeps_the_turn() -> None:
    turns, taken = Turns(), []

    async def worker(name: str) -> None:
        for _ in range(3):
            async with turns:
                taken.append(name)

    await asyncio.gather(worker("a"), worker("b"))
    assert taken == [*"aaabbb"]


async def test_a_worker_whose_request_waits_hands_the_turn_on() -> None:
    turns, taken = Turns(), []
    answer = asyncio.get_running_loop().create_future()
    device = asyncio.Event()

    async def worker(name: str, request: asyncio.Future[None] | None) -> None:
        async with turns:
            taken.append(name)
            await device.wait()
        if request is not None:
            await request

    tasks = [asyncio.create_task(worker(name, answer if name == "a" else None)) for name in "abc"]
    await settle()
    assert taken == ["a"]  # one at a time waits for the device
    device.set()
    await settle()
    assert taken == ["a", "b", "c"]
    answer.set_result(None)
    await asyncio.gather(*tasks)


async def test_a_turn_is_not_lost_with_a_worker_that_ends() -> None:
    turns, taken = Turns(), []
    held = asyncio.Event()

    async def worker(name: str) -> None:
        async with turns:
            taken.append(name)
            await held.wait()

    tasks = [asyncio.create_task(worker(name)) for name in "abc"]
    await settle()
    held.set()
    await asyncio.sleep(0)  # a has left, b was woken and has not run
    tasks[1].cancel()
    await asyncio.wait(tasks)
    assert taken in (["a", "c"], ["a", "b", "c"])
    assert not tasks[2].cancelled()


async def test_whoever_waits_for_a_turn_may_give_up() -> None:
    turns = Turns()
    async with turns:
        waiting = asyncio.create_task(turns.__aenter__())
        await settle()
        waiting.cancel()
        await asyncio.wait([waiting])
    await settle()
    async with asyncio.timeout(1.0):
        async with turns:
            pass


# ------------------------------------------------------------ the device


async def test_it_returns_when_there_is_something_to_read(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    watch = DeviceWatch(Closed, lambda: False)
    waiting = asyncio.create_task(watch.wait_readable(reading))
    await settle()
    assert not waiting.done()
    os.write(writing, b"1")
    await asyncio.wait_for(waiting, 5.0)
    assert os.read(reading, 1) == b"1"
    waiting = asyncio.create_task(watch.wait_readable(reading))
    await settle()
    os.write(writing, b"2")
    await asyncio.wait_for(waiting, 5.0)
    watch.stop()


async def test_a_device_that_is_never_empty_leaves_the_loop_its_share(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.write(writing, b"always")
    watch = DeviceWatch(Closed, lambda: False)
    others = 0

    async def other() -> None:
        nonlocal others
        while True:
            others += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(other())
    for _ in range(100):
        await watch.wait_readable(reading)
    beside.cancel()
    assert others >= 5


async def test_while_nobody_waits_the_loop_is_not_told_of_the_device(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    watch = DeviceWatch(Closed, lambda: False)
    waiting = asyncio.create_task(watch.wait_readable(reading))
    await settle()
    os.write(writing, b"1")
    await asyncio.wait_for(waiting, 5.0)
    async with asyncio.timeout(5.0):
        while watch.is_watching:  # the first time it is told for nothing ends it
            await asyncio.sleep(0)
    assert not asyncio.get_running_loop().remove_reader(reading)


async def test_the_next_request_is_waited_for_awake_unless_that_is_in_vain_again_and_again(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that comes within the moment is found without the event loop; when none came three times, it is left."""
    reading, writing = pipe
    looks, comes_at = 0, 0

    def clock() -> float:
        nonlocal looks
        looks += 1
        if looks == comes_at:
            os.write(writing, b"x")
        return looks * 0.00001

    monkeypatch.setattr("collective.mount.device.monotonic", clock)
    watch = DeviceWatch(Closed, lambda: False)

    async def answered(comes: int) -> int:
        """One more request, at that look or else long after; how often the watch looked for it."""
        nonlocal looks, comes_at
        looks, comes_at = 0, comes
        if not comes:
            asyncio.get_running_loop().call_later(0.02, os.write, writing, b"x")
        await watch.wait_readable(reading)
        os.read(reading, 1)
        watch._straight = 1  # it is answered at once
        return looks

    os.write(writing, b"x")
    await answered(-1)
    assert await answered(5) == 5
    assert not watch.is_watching, "found without the event loop"
    assert [await answered(0) > 5 for _ in range(4)] == [True, True, True, False]
    for _ in range(7):
        assert await answered(0) == 0, "left for a while"
    assert await answered(0) > 5, "tried again"
    watch.stop()


async def test_closing_ends_the_wait(pipe: tuple[int, int]) -> None:
    watch = DeviceWatch(Closed, lambda: False)
    waiting = asyncio.create_task(watch.wait_readable(pipe[0]))
    await settle()
    watch.close(pipe[0])
    with pytest.raises(Closed):
        await waiting
    with pytest.raises(Closed):
        await watch.wait_readable(pipe[0])
    assert not asyncio.get_running_loop().remove_reader(pipe[0])
