"""The read-ahead brain against a model of readers: how much it fetches that nobody asked for, and how early."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from collective.core.sizes import GIB, KIB, MIB
from collective.mount.readahead import IDLE_SECONDS, MAXIMUM_STREAMS, RUN_BYTES, ReadAhead, Span


class Wire:
    """Drives a brain like the reader does and counts segments fetched, by demand and ahead."""

    def __init__(self, size_bytes: int = 4 * GIB, maximum_bytes: int = 32 * MIB) -> None:
        self.size_bytes = size_bytes
        self.brain = ReadAhead(size_bytes, maximum_bytes=maximum_bytes)
        self.fetched: set[int] = set()
        self.missed_bytes = 0
        self.now = 0.0

    def read(self, offset: int, length: int) -> None:
        stream = self.brain.observe(offset, length, self.now)
        first, last = offset // (64 * KIB), (offset + length - 1) // (64 * KIB)
        missing = [segment for segment in range(first, last + 1) if segment not in self.fetched]
        self.missed_bytes += len(missing) * 64 * KIB
        if missing:
            self._fetch(self.brain.demand(stream, offset, offset + length))
        while (span := self.brain.take(self.now)) is not None:
            assert span.start // RUN_BYTES == (span.end - 1) // RUN_BYTES, "ahead, a span lies in one run"
            self._fetch(span)

    def _fetch(self, span: Span) -> None:
        assert span.start % (64 * KIB) == 0
        assert span.start < span.end <= self.size_bytes
        self.fetched.update(range(span.start // (64 * KIB), -(-span.end // (64 * KIB))))

    @property
    def fetched_bytes(self) -> int:
        return len(self.fetched) * 64 * KIB


def test_a_sequential_reader_soon_waits_for_nothing() -> None:
    """After the first few requests, everything a sequential reader asks for is on its way already."""
    wire = Wire()
    for offset in range(0, 64 * MIB, 128 * KIB):
        wire.read(offset, 128 * KIB)
    assert wire.missed_bytes <= 512 * KIB
    assert 64 * MIB <= wire.fetched_bytes <= 64 * MIB + 33 * MIB


def test_the_window_grows_with_what_was_read_and_no_further_than_the_setting() -> None:
    wire = Wire(maximum_bytes=8 * MIB)
    for offset in range(0, 256 * MIB, MIB):
        wire.read(offset, MIB)
        read = offset + MIB
        assert wire.fetched_bytes <= read + min(max(read, 256 * KIB), 8 * MIB) + MIB


def test_random_reads_fetch_only_their_segments() -> None:
    """64 KiB here and there costs 64 KiB each (and at most a neighbour or two when two happen to meet)."""
    wire = Wire()
    dice = random.Random(4)
    for _ in range(500):
        wire.read(dice.randrange(1, wire.size_bytes // (64 * KIB) - 1) * 64 * KIB, 64 * KIB)
    assert wire.fetched_bytes <= 500 * 64 * KIB * 1.1


def test_a_player_that_reopens_for_every_read_is_one_reader() -> None:
    """Nothing about handles reaches the brain: reads with pauses, in small pieces, with steps back of a header."""
    wire = Wire()
    for offset in range(0, 32 * MIB, 256 * KIB):
        wire.read(offset, 256 * KIB)
        wire.now += 2.0
    assert wire.missed_bytes <= 512 * KIB


def test_a_library_scan_never_pulls_whole_films() -> None:
    """Head and tail of 5 MiB and 1 MiB cost about twice that, not a film."""
    wire = Wire()
    for offset in range(0, 5 * MIB, 128 * KIB):
        wire.read(offset, 128 * KIB)
    for offset in range(wire.size_bytes - MIB, wire.size_bytes, 128 * KIB):
        wire.read(offset, 128 * KIB)
    assert wire.fetched_bytes <= 13 * MIB


def test_a_single_look_at_the_head_costs_little() -> None:
    wire = Wire()
    wire.read(0, 128 * KIB)
    assert wire.fetched_bytes <= 128 * KIB + 256 * KIB


def test_two_readers_of_one_film_are_told_apart() -> None:
    wire = Wire()
    for step in range(0, 64 * MIB, 512 * KIB):
        wire.read(step, 512 * KIB)
        wire.read(2 * GIB + step, 512 * KIB)
    assert wire.missed_bytes <= 4 * MIB
    assert wire.fetched_bytes >= 128 * MIB


def test_random_reads_do_not_make_a_sequential_reader_forgotten() -> None:
    wire = Wire()
    dice = random.Random(5)
    for step in range(0, 32 * MIB, MIB):
        wire.read(step, MIB)
        for _ in range(MAXIMUM_STREAMS * 2):
            wire.read(dice.randrange(GIB, 4 * GIB - MIB), 4 * KIB)
    missed_by_chance = 32 * MAXIMUM_STREAMS * 2 * 128 * KIB
    assert wire.missed_bytes <= 4 * MIB + missed_by_chance
    assert max(stream.window for stream in wire.brain.streams) == 32 * MIB


def test_nothing_is_fetched_for_a_reader_that_stopped() -> None:
    brain = ReadAhead(GIB, maximum_bytes=32 * MIB)
    for offset in range(0, 16 * MIB, MIB):
        brain.observe(offset, MIB, now=0.0)
    assert brain.take(now=1.0) is not None
    assert brain.take(now=IDLE_SECONDS + 1.0) is None


def test_requests_that_arrive_shuffled_are_still_one_reader() -> None:
    wire = Wire()
    for offset in range(0, 64 * MIB, 2 * MIB):
        wire.read(offset + MIB, MIB)
        wire.read(offset, MIB)
    assert len(wire.brain.streams) == 1
    assert wire.missed_bytes <= 4 * MIB


def test_a_span_given_back_is_offered_again() -> None:
    brain = ReadAhead(GIB, maximum_bytes=32 * MIB)
    for offset in range(0, 8 * MIB, MIB):
        brain.observe(offset, MIB, now=0.0)
    span = brain.take(now=0.0)
    assert span is not None
    brain.give_back(span)
    assert brain.take(now=0.0) == span


def test_a_proven_reader_has_passed_what_it_read() -> None:
    brain = ReadAhead(GIB, maximum_bytes=32 * MIB)
    for offset in range(0, 9 * MIB, MIB):
        brain.observe(offset, MIB, now=0.0)
    assert brain.passed(0, 8 * MIB)
    assert not brain.passed(8 * MIB, 16 * MIB)


@given(
    size_bytes=st.integers(1, 64 * MIB),
    reads=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 2 * MIB)), max_size=60),
    maximum_bytes=st.integers(0, 16 * MIB),
)
def test_any_reads_keep_the_laws(size_bytes: int, reads: list[tuple[float, int]], maximum_bytes: int) -> None:
    """Demand covers what is asked, nothing lies outside the content, take ends, streams are bounded."""
    wire = Wire(size_bytes, maximum_bytes)
    for place, length in reads:
        offset = min(int(place * size_bytes), size_bytes - 1)
        length = min(length, size_bytes - offset)
        wire.read(offset, length)
        assert set(range(offset // (64 * KIB), -(-(offset + length) // (64 * KIB)))) <= wire.fetched
        assert len(wire.brain.streams) <= MAXIMUM_STREAMS
        assert all(stream.window <= maximum_bytes for stream in wire.brain.streams)
