"""The window and the outbox: what limits a lane, without a socket."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from collective.net.lane_outbox import JOINED_BYTES, SLICE_BYTES, Outbox, OutgoingFrame, as_views
from collective.net.lane_window import Window


class Pipe:
    """Takes what is written; says it is full after `room` bytes."""

    def __init__(self, outbox: Outbox, room: int) -> None:
        self.outbox, self.room = outbox, room
        self.taken = bytearray()
        self.largest = 0

    def write(self, data: memoryview) -> None:
        self.taken += data
        self.largest = max(self.largest, len(data))
        self.room -= len(data)
        if self.room <= 0:
            self.outbox.pause()

    def drain(self, room: int) -> None:
        self.room = room
        self.outbox.resume()


def frame(front: bytes, *bodies: bytes | bytearray, sent=None) -> OutgoingFrame:
    return OutgoingFrame(front, as_views(bodies), sent)


@given(
    frames=st.lists(st.tuples(st.binary(min_size=16, max_size=40), st.lists(st.integers(0, 700_000), max_size=3))),
    rooms=st.lists(st.integers(1, 600_000), min_size=1, max_size=5),
)
def test_everything_is_written_in_order_in_slices(frames, rooms):
    """Whatever the transport takes at a time, the bytes leave in order, at most a slice at once, and are counted."""
    outbox, sent = Outbox(), []
    pipe = Pipe(outbox, rooms[0])
    outbox.attach(pipe.write)
    expected = b""
    for number, (front, sizes) in enumerate(frames):
        bodies = [bytes([number % 256]) * size for size in sizes]
        outbox.put(frame(front, *bodies, sent=lambda number=number: sent.append(number)))
        expected += front + b"".join(bodies)
    turn = 0
    while outbox.backlog_bytes:
        turn += 1
        pipe.drain(rooms[turn % len(rooms)])
    assert pipe.taken == expected
    assert sent == list(range(len(frames)))
    assert pipe.largest <= max(SLICE_BYTES, JOINED_BYTES)


def test_giving_up():
    """A frame that has not begun is taken back; one that has begun is completed with the bytes it had."""
    outbox = Outbox()
    pipe = Pipe(outbox, 1)
    outbox.attach(pipe.write)
    first, second = bytearray(b"a" * 600_000), bytearray(b"b" * 600_000)
    begun, waiting = outbox.put(frame(b"1" * 16, first)), outbox.put(frame(b"2" * 16, second))
    assert begun.begun
    assert not outbox.give_up(begun)
    assert outbox.give_up(waiting)
    first[:] = b"x" * len(first)
    second[:] = b"x" * len(second)
    while outbox.backlog_bytes:
        pipe.drain(1)
    assert pipe.taken == b"1" * 16 + b"a" * 600_000
    assert not outbox.give_up(begun)


def test_frames_wait_for_the_transport_and_leave_with_it():
    """What is put before there is a transport is written when it comes; what is left when it goes is let go."""
    outbox = Outbox()
    outbox.put(frame(b"early"))
    pipe = Pipe(outbox, 1)
    outbox.attach(pipe.write)
    assert pipe.taken == b"early"
    outbox.put(frame(b"late"))
    outbox.detach()
    assert outbox.backlog_bytes == 0
    assert pipe.taken == b"early"


async def test_the_window_is_first_come_first_served():
    """A large call is not overtaken for ever by small ones; a cancelled one lets those behind it in."""
    window = Window(calls=10, request_bytes=100)
    assert window.try_enter(60)
    large = asyncio.create_task(window.enter(60))
    await asyncio.sleep(0)
    assert not window.try_enter(1)
    small = asyncio.create_task(window.enter(1))
    await asyncio.sleep(0)
    large.cancel()
    await asyncio.gather(large, return_exceptions=True)
    await small
    window.leave(60)
    window.leave(1)
    assert window.try_enter(100)


async def test_a_slot_given_in_the_moment_of_cancellation_is_not_lost():
    """Neither order of leaving and cancelling loses or doubles a slot."""
    window = Window(calls=1, request_bytes=100)
    for _ in range(2):
        assert window.try_enter(1)
        waiter = asyncio.create_task(window.enter(1))
        await asyncio.sleep(0)
        window.leave(1)
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
    for _ in range(2):
        assert window.try_enter(1)
        waiter = asyncio.create_task(window.enter(1))
        await asyncio.sleep(0)
        waiter.cancel()
        window.leave(1)
        await asyncio.gather(waiter, return_exceptions=True)
    assert window.try_enter(1)
    assert not window.try_enter(1)
