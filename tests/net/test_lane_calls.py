"""Calls over a real lane on loopback: answers, bodies in the caller's memory, either side, errors, cancellation."""

from __future__ import annotations

import asyncio
import os
import tracemalloc
from collections.abc import Callable, Sequence

import pytest
from typing_extensions import Buffer

from collective.core.errors import (
    ERROR_CODES,
    CollectiveError,
    Corrupt,
    NotFound,
    Refused,
    Unreachable,
)
from collective.core.sizes import KIB, MIB
from collective.net.lane import LaneCaller
from collective.net.lane_frames import MAX_BODY_BYTES, MAX_HEAD_BYTES

ECHO, FAIL, BYTES, WAIT, ASK_BACK, SLOW_FAIL, TOO_MUCH, COUNT = range(1, 9)
Answer = tuple[bytes, Sequence[Buffer]]


async def until(condition: Callable[[], object]) -> None:
    """Give way to the loop until the condition holds."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(10):
        while not condition():
            turn = loop.create_future()
            loop.call_soon(turn.set_result, None)
            await turn


async def echo(caller: LaneCaller, head: bytes, body: memoryview) -> Answer:
    return head, [body]


async def send_bytes(caller: LaneCaller, head: bytes, body: memoryview) -> Answer:
    """As many bytes as the head says, in two parts, of a pattern."""
    size = int(head)
    pattern = bytes(range(251)) * (size // 251 + 1)
    return b"", [pattern[: size // 3], memoryview(pattern)[size // 3 : size]]


@pytest.mark.parametrize("size", [0, 1, 100, 16 * KIB, 16 * KIB + 1, MIB, MAX_BODY_BYTES])
async def test_echo(park, size):
    """What goes there comes back, of every size a body may have."""
    _, port = await park.serve({ECHO: echo})
    lane = await park.connect(port)
    body = os.urandom(size)
    reply = await lane.call(ECHO, b"head" * 3, body, timeout_seconds=10)
    assert reply.head == b"head" * 3
    assert reply.body == body


async def test_a_body_lands_in_the_callers_memory(park):
    """With `into` the reply is the caller's own memory, and nothing beside it is touched."""
    _, port = await park.serve({BYTES: send_bytes})
    lane = await park.connect(port)
    memory = bytearray(b"\xee" * (3 * MIB))
    reply = await lane.call(BYTES, str(MIB).encode(), into=memoryview(memory)[MIB : 2 * MIB + 10], timeout_seconds=10)
    assert len(reply.body) == MIB
    assert reply.body.obj is memory
    assert memory[MIB : 2 * MIB] == (bytes(range(251)) * 4200)[:MIB]
    assert memory[:MIB] == b"\xee" * MIB
    assert memory[2 * MIB :] == b"\xee" * MIB


async def test_an_answer_larger_than_the_callers_memory_is_corrupt(park):
    """More than was asked for goes nowhere, and the lane goes on."""
    _, port = await park.serve({BYTES: send_bytes, ECHO: echo})
    lane = await park.connect(port)
    memory = bytearray(100)
    with pytest.raises(Corrupt):
        await lane.call(BYTES, b"101", into=memoryview(memory), timeout_seconds=10)
    assert memory == bytes(100)
    assert (await lane.call(ECHO, b"still", timeout_seconds=10)).head == b"still"


async def test_a_thousand_calls_at_once(park):
    """All are answered, each with its own answer, though only 64 are on the way at a time."""
    running = most = 0

    async def count(caller: LaneCaller, head: bytes, body: memoryview) -> Answer:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return head, [body]

    _, port = await park.serve({COUNT: count})
    lane = await park.connect(port)
    replies = await asyncio.gather(
        *(lane.call(COUNT, str(i).encode(), os.urandom(i % 50), timeout_seconds=30) for i in range(1000))
    )
    assert [reply.head for reply in replies] == [str(i).encode() for i in range(1000)]
    assert 1 < most <= 64


async def test_large_requests_wait_for_each_other(park):
    """32 MiB of requests may be on the way; more wait, and all arrive."""
    _, port = await park.serve({ECHO: echo})
    lane = await park.connect(port)
    body = os.urandom(8 * MIB)
    replies = await asyncio.gather(*(lane.call(ECHO, b"", body, timeout_seconds=60) for _ in range(12)))
    assert all(reply.body == body for reply in replies)


async def test_either_side_asks(park):
    """A handler asks back over the caller's own connection while the caller waits."""

    async def ask_back(caller: LaneCaller, head: bytes, body: memoryview) -> Answer:
        reply = await caller.connection.call(ECHO, b"back", b"ask", timeout_seconds=5)
        return reply.head, [reply.body]

    async def answer(caller: LaneCaller, head: bytes, body: memoryview) -> Answer:
        return head + str(caller.peer.address).encode(), [bytes(body) * 2]

    _, port = await park.serve({ASK_BACK: ask_back})
    lane = await park.connect(port, handlers={ECHO: answer})
    reply = await lane.call(ASK_BACK, b"", timeout_seconds=5)
    assert reply.head == b"back" + str(park.federation.address("alice", "node-01")).encode()
    assert reply.body == b"askask"


async def test_state_belongs_to_the_connection(park):
    """What a handler remembers of one connection no other one sees."""

    async def count(caller: LaneCaller, head: bytes, body: memoryview) -> Answer:
        caller.state["calls"] = caller.state.get("calls", 0) + 1
        return str(caller.state["calls"]).encode(), []

    _, port = await park.serve({COUNT: count})
    first, second = await park.connect(port), await park.connect(port)
    assert [(await lane.call(COUNT, b"", timeout_seconds=5)).head for lane in (first, first, second)] == [
        b"1",
        b"2",
        b"1",
    ]
    assert str(first.peer.address) == str(park.federation.address("alice", "node-01"))
    assert first.peer_certificate == park.federation.credentials("alice", "node-01").certificate


@pytest.mark.parametrize("kind", list(ERROR_CODES))
async def test_errors_keep_their_kind(park, kind):
    """A handler's error is raised again at the caller: same kind, same words, same hint."""

    async def fail(caller: LaneCaller, head: bytes, body: memoryview) -> Answer:
        raise kind("it is broken: ä", "mend it")

    _, port = await park.serve({FAIL: fail})
    lane = await park.connect(port)
    with pytest.raises(kind) as raised:
        await lane.call(FAIL, b"", timeout_seconds=5)
    assert type(raised.value) is kind
    assert (raised.value.message, raised.value.hint) == ("it is broken: ä", "mend it")


async def test_an_unexpected_exception_tells_the_caller_nothing(park, recorder):
    """The caller learns that something broke inside; what, only the observer does."""

    async def fail(caller: LaneCaller, head: bytes, body: memoryview) -> Answer:
        raise ZeroDivisionError("secret detail")

    async def too_much(caller: LaneCaller, head: bytes, body: memoryview) -> Answer:
        return bytes(MAX_HEAD_BYTES + 1), []

    _, port = await park.serve({FAIL: fail, TOO_MUCH: too_much, ECHO: echo}, observer=recorder)
    lane = await park.connect(port)
    for method in (FAIL, TOO_MUCH):
        with pytest.raises(CollectiveError) as raised:
            await lane.call(method, b"", timeout_seconds=5)
        assert type(raised.value) is CollectiveError
        assert "internal error" in raised.value.message
        assert "secret" not in str(raised.value)
    assert "secret detail" in (await recorder.seen("lane.handler_failed"))["error"]
    assert (await lane.call(ECHO, b"on", timeout_seconds=5)).head == b"on"


async def test_unknown_methods_are_refused(park):
    """A method without a handler is refused, on either side."""
    _, port = await park.serve({})
    lane = await park.connect(port)
    with pytest.raises(Refused):
        await lane.call(999, b"", timeout_seconds=5)


async def test_oversized_calls_do_not_leave(park):
    """A caller that asks for too much is a bug at home, told as such."""
    _, port = await park.serve({ECHO: echo})
    lane = await park.connect(port)
    with pytest.raises(ValueError, match="limits"):
        await lane.call(ECHO, bytes(MAX_HEAD_BYTES + 1), timeout_seconds=5)
    with pytest.raises(ValueError, match="limits"):
        await lane.call(ECHO, b"", bytes(MAX_BODY_BYTES + 1), timeout_seconds=5)
    assert (await lane.call(ECHO, bytes(MAX_HEAD_BYTES), timeout_seconds=5)).head == bytes(MAX_HEAD_BYTES)


async def test_a_timeout_cancels_the_other_side(park):
    """The handler of a call that was given up is cancelled, and the lane goes on."""
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def wait(caller: LaneCaller, head: bytes, body: memoryview) -> Answer:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return b"", []

    _, port = await park.serve({WAIT: wait, ECHO: echo})
    lane = await park.connect(port)
    with pytest.raises(Unreachable, match="did not answer within"):
        await lane.call(WAIT, b"", timeout_seconds=0.05)
    await begun.wait()
    async with asyncio.timeout(5):
        await cancelled.wait()
    assert (await lane.call(ECHO, b"on", timeout_seconds=5)).head == b"on"


async def test_given_up_calls_free_their_slots(park):
    """A thousand calls that are given up leave room for the next ones: both ends count alike."""

    async def wait(caller: LaneCaller, head: bytes, body: memoryview) -> Answer:
        await asyncio.Event().wait()
        return b"", []

    _, port = await park.serve({WAIT: wait, ECHO: echo})
    lane = await park.connect(port)
    for _ in range(10):
        outcomes = await asyncio.gather(
            *(lane.call(WAIT, b"", bytes(100), timeout_seconds=0.02) for _ in range(100)), return_exceptions=True
        )
        assert {type(outcome) for outcome in outcomes} == {Unreachable}
    replies = await asyncio.gather(*(lane.call(ECHO, b"x", timeout_seconds=5) for _ in range(100)))
    assert len(replies) == 100


async def test_a_call_given_up_in_the_middle_of_its_body_touches_nothing_more(park):
    """After a cancellation mid-body the caller's memory stays as it is, and the lane stays in step."""
    _, port = await park.serve({BYTES: send_bytes, ECHO: echo})
    lane = await park.connect(port)
    for _ in range(20):
        memory = bytearray(8 * MIB)
        call = asyncio.create_task(lane.call(BYTES, str(8 * MIB).encode(), into=memoryview(memory), timeout_seconds=10))
        await until(lambda memory=memory: memory[100])
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        kept = bytes(memory)
        reply = await lane.call(ECHO, b"next", b"body", timeout_seconds=10)
        assert (reply.head, reply.body) == (b"next", b"body")
        assert memory == kept


async def test_a_request_given_up_in_the_middle_of_its_body_stays_in_step(park):
    """A request that had begun is completed from a copy; the caller may use its memory at once."""
    received: list[bool] = []

    async def check(caller: LaneCaller, head: bytes, body: memoryview) -> Answer:
        received.append(bytes(body) == b"\x11" * len(body))
        return b"", []

    _, port = await park.serve({COUNT: check, ECHO: echo})
    lane = await park.connect(port)
    for _ in range(5):
        body = bytearray(b"\x11" * (8 * MIB))
        calls = [asyncio.create_task(lane.call(COUNT, b"", body, timeout_seconds=10)) for _ in range(3)]
        await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        body[:] = b"\x22" * len(body)
        assert (await lane.call(ECHO, b"next", timeout_seconds=10)).head == b"next"
    assert all(received)


async def test_closing_fails_pending_calls_at_once(park):
    """Whoever waits for an answer hears of the end, on both sides; handlers are cancelled."""
    ended = asyncio.Event()

    async def wait(caller: LaneCaller, head: bytes, body: memoryview) -> Answer:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return b"", []

    _, port = await park.serve({WAIT: wait})
    lane = await park.connect(port)
    calls = [asyncio.create_task(lane.call(WAIT, b"", timeout_seconds=60)) for _ in range(100)]
    await asyncio.sleep(0)
    await lane.close()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(outcome, Unreachable) for outcome in outcomes)
    async with asyncio.timeout(5):
        await ended.wait()
    with pytest.raises(Unreachable):
        await lane.call(WAIT, b"", timeout_seconds=5)
    assert lane.is_closed


async def test_a_stopped_server_is_unreachable(park):
    """Stopping ends handlers and connections; nothing listens afterwards; the port can be used again."""

    async def wait(caller: LaneCaller, head: bytes, body: memoryview) -> Answer:
        await asyncio.Event().wait()
        raise NotFound("never")

    server, port = await park.serve({WAIT: wait})
    lane = await park.connect(port)
    call = asyncio.create_task(lane.call(WAIT, b"", timeout_seconds=60))
    await asyncio.sleep(0.01)
    await server.stop()
    with pytest.raises(Unreachable):
        await call
    assert server.connection_count == 0
    with pytest.raises(Unreachable, match="nothing listens"):
        await park.connect(port)


async def test_a_slow_reader_waits_alone(park):
    """One caller that does not read holds up neither others nor the server's memory."""
    _, port = await park.serve({BYTES: send_bytes, ECHO: echo})
    slow, quick = await park.connect(port), await park.connect(port)
    slow._transport.pause_reading()
    calls = [asyncio.create_task(slow.call(BYTES, str(MIB).encode(), timeout_seconds=60)) for _ in range(60)]
    for i in range(50):
        assert (await quick.call(ECHO, str(i).encode(), timeout_seconds=1)).head == str(i).encode()
    slow._transport.resume_reading()
    assert all(len(reply.body) == MIB for reply in await asyncio.gather(*calls))


async def test_a_lane_that_has_ended_weighs_little(park):
    """What refers to it may stay for long (it refers to itself): a mount whose coordinator died again and again held
    70 MB of such memory. Neither side keeps what it read into, nor the transport with what TLS reads into."""
    server, port = await park.serve({BYTES: send_bytes})
    kept = [await park.connect(port)]
    await kept[0].call(BYTES, b"100000", timeout_seconds=5)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(20):
            lane = await park.connect(port)
            await lane.call(BYTES, b"100000", timeout_seconds=5)
            await lane.close()
            kept.append(lane)
        await until(lambda: server.connection_count == 1)
        each = (tracemalloc.get_traced_memory()[0] - before) / 20
    finally:
        tracemalloc.stop()
    assert each < 64 * KIB, f"{each / KIB:.0f} KiB each"
