"""Uploads give way while programs write, by a driven clock."""

from __future__ import annotations

from collective.core.sizes import MIB
from collective.mount.pace import BUSY_BYTES_PER_SECOND, QUIET_SECONDS, Pace


class Desk:
    """A clock that moves when somebody sleeps, and a program that writes meanwhile while `writing`."""

    def __init__(self, *, writing: bool = False) -> None:
        self.now = 100.0
        self.hurried = False
        self.writing = writing
        self.pace = Pace(lambda: self.hurried, lambda: self.now, self._sleep)

    async def _sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds / 2  # a program writes before the time is over
        if self.writing:
            self.pace.wrote(MIB)
        self.now += seconds / 2

    async def took(self, size_bytes: int) -> float:
        began = self.now
        await self.pace.give_way(size_bytes)
        return self.now - began


async def test_nobody_writes_nothing_waits() -> None:
    assert await Desk().took(8 * MIB) == 0.0


async def test_the_last_write_is_waited_out_and_no_longer() -> None:
    desk = Desk()
    desk.pace.wrote(MIB)
    assert abs(await desk.took(8 * MIB) - QUIET_SECONDS) < 1e-6
    assert await desk.took(8 * MIB) == 0.0


async def test_an_upload_goes_on_beside_a_program_that_never_stops() -> None:
    desk = Desk(writing=True)
    desk.pace.wrote(MIB)
    assert abs(await desk.took(8 * MIB) - 8 * MIB / BUSY_BYTES_PER_SECOND) < 1e-6


async def test_small_writes_hold_nobody_up() -> None:
    desk = Desk()
    desk.pace.wrote(4096)
    assert await desk.took(8 * MIB) == 0.0


async def test_a_journal_that_fills_is_emptied_as_fast_as_it_goes() -> None:
    desk = Desk(writing=True)
    desk.pace.wrote(MIB)
    desk.hurried = True
    assert await desk.took(8 * MIB) == 0.0
