"""Directory leases at their holder: used only while they hold, given up at once, never believed longer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from math import inf

import pytest

from collective.core.errors import Unreachable
from collective.mount.lease import PATIENCE_SECONDS, LeaseBook, Leases, until_reachable

STORE = b"s" * 32
KEY = (STORE, 7)
OTHER = (STORE, 8)


class Source:
    """A coordinator in memory: `answers` are given in order, then always the last; `gate` holds them back."""

    def __init__(self) -> None:
        self.session = 1
        self.valid_until = 100.0
        self.answers: list[float | Exception | None] = [3.0]
        self.asked: list[tuple[bytes, int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.recall: Callable[[bytes, int], Awaitable[None]] | None = None

    def leases_valid_until(self) -> float:
        return self.valid_until

    async def lease_directory(self, store_id: bytes, inode: int) -> float | None:
        self.asked.append((store_id, inode))
        await self.gate.wait()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def on_recall(self, give_up: Callable[[bytes, int], Awaitable[None]]) -> None:
        self.recall = give_up


class Clock:
    """Moves when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


@pytest.fixture
async def source() -> Source:
    return Source()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def settled() -> list[tuple[bytes, int]]:
    return []


@pytest.fixture
def leases(source: Source, clock: Clock, settled: list[tuple[bytes, int]]) -> Leases:
    async def settle(store_id: bytes, inode: int) -> None:
        settled.append((store_id, inode))

    return Leases(source, settle, clock, clock.sleep)


async def test_all_are_held_at_one_moment(leases: Leases, source: Source) -> None:
    assert not leases.holds((KEY,))
    assert await leases.acquire((KEY, OTHER))
    assert leases.holds((KEY, OTHER))
    assert source.asked == [KEY, OTHER]
    assert await leases.acquire((KEY,))
    assert len(source.asked) == 2, "a held lease is not asked for again"


async def test_a_lease_ends_with_its_session_and_with_the_renewals(
    leases: Leases, source: Source, clock: Clock
) -> None:
    await leases.acquire((KEY,))
    clock.now = 99.9
    assert leases.holds((KEY,))
    clock.now = 100.0
    assert not leases.holds((KEY,)), "nobody renewed"
    source.valid_until = 200.0
    assert leases.holds((KEY,)), "the same session renewed in time for its coordinator"
    source.session = 2
    assert not leases.holds((KEY,))
    source.session = 1
    assert not leases.holds((KEY,)), "a voided lease does not come back"


async def test_a_recall_stops_at_once_and_waits_for_what_was_changed(
    leases: Leases, source: Source, settled: list[tuple[bytes, int]]
) -> None:
    await leases.acquire((KEY,))
    assert source.recall is not None
    recalling = source.recall(*KEY)
    await recalling
    assert not leases.holds((KEY,))
    assert settled == [KEY]


async def test_a_recall_that_overtakes_its_grant_counts(leases: Leases, source: Source, clock: Clock) -> None:
    """The coordinator granted, then recalled, and the recall is seen first: the lease is not held."""
    source.gate.clear()
    source.answers = [3.0, None]
    acquiring = asyncio.create_task(leases.acquire((KEY,)))
    await asyncio.sleep(0)
    assert source.asked == [KEY]
    assert source.recall is not None
    await source.recall(*KEY)
    source.gate.set()
    assert not await acquiring
    assert not leases.holds((KEY,))


async def test_refused_for_long_it_gives_up_waiting(leases: Leases, source: Source, clock: Clock) -> None:
    source.answers = [None]
    assert not await leases.acquire((KEY,))
    assert PATIENCE_SECONDS <= clock.now < PATIENCE_SECONDS + 1


async def test_many_who_want_one_directory_ask_once(leases: Leases, source: Source) -> None:
    source.gate.clear()
    waiting = [asyncio.create_task(leases.acquire((KEY,))) for _ in range(20)]
    for _ in range(3):
        await asyncio.sleep(0)
    source.gate.set()
    assert all(await asyncio.gather(*waiting))
    assert source.asked == [KEY]


async def test_who_asked_and_gave_up_holds_nobody_up(leases: Leases, source: Source) -> None:
    source.gate.clear()
    first = asyncio.create_task(leases.acquire((KEY,)))
    await asyncio.sleep(0)
    second = asyncio.create_task(leases.acquire((KEY,)))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait({first})
    source.gate.set()
    assert await second


async def test_a_coordinator_that_is_away_is_asked_until_it_is_back(
    leases: Leases, source: Source, clock: Clock
) -> None:
    source.answers = [Unreachable("away"), Unreachable("away"), 3.0]
    with pytest.raises(Unreachable):
        await leases.acquire((KEY,))
    assert await until_reachable(lambda: leases.acquire((KEY,)), clock.sleep)


def held(*keys: tuple[bytes, int]) -> LeaseBook:
    book = LeaseBook()
    book.renew(1, 100.0)
    for key in keys:
        book.ask(key)
        assert book.answer(key, 1, 0.0, granted=True)
    return book


def test_an_absent_name_is_known_only_under_the_lease() -> None:
    book = held(KEY)
    assert not book.knows_absent(KEY, b"a", 1.0)
    book.found_absent(KEY, b"a")
    assert book.knows_absent(KEY, b"a", 1.0)
    assert not book.knows_absent(KEY, b"b", 1.0)
    book.added(KEY, b"a")
    assert not book.knows_absent(KEY, b"a", 1.0)
    book.removed(KEY, b"a")
    assert book.knows_absent(KEY, b"a", 1.0)
    assert not book.knows_absent(KEY, b"a", 100.0), "not after the lease"
    book.give_up(KEY)
    assert not book.knows_absent(KEY, b"a", 1.0)


def test_a_directory_made_here_is_known_in_full() -> None:
    book = held(KEY)
    book.made(OTHER, 1.0, KEY)
    assert book.holds(OTHER, 1.0)
    assert book.knows_absent(OTHER, b"anything", 1.0)
    book.added(OTHER, b"file")
    assert not book.knows_absent(OTHER, b"file", 1.0)
    book.removed(OTHER, b"file")
    assert book.knows_absent(OTHER, b"file", 1.0)


def test_a_directory_made_without_a_lease_is_nobodys() -> None:
    book = held()
    book.made(OTHER, 1.0, KEY)
    assert not book.holds(OTHER, 1.0)


def test_what_was_told_before_the_lease_or_a_doubt_is_not_certain() -> None:
    book = LeaseBook()
    book.renew(1, 100.0)
    book.ask(KEY)
    book.answer(KEY, 1, 5.0, granted=True)
    assert book.certain_since(KEY, 6.0) == 5.0
    assert book.certain_since(OTHER, 6.0) == inf
    book.made(OTHER, 6.0, KEY)
    book.doubt_names(7.0)
    assert book.holds(KEY, 7.0)
    assert book.certain_since(KEY, 7.0) == 7.0
    assert not book.knows_absent(OTHER, b"anything", 7.0)


def test_an_answer_of_an_older_session_is_no_lease() -> None:
    book = LeaseBook()
    book.renew(1, 100.0)
    book.ask(KEY)
    book.renew(2, 100.0)
    assert not book.answer(KEY, 1, 0.0, granted=True)
    assert not book.holds(KEY, 1.0)
