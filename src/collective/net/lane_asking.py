"""The asking half of a lane: calls of ours that wait for their answers.

waiting for the window --slot--> asked --answer--> over
                                   +--timeout, cancellation--> given up --answer (it falls)--> over
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.message import DecodeError
from typing_extensions import Buffer

from collective.core.errors import CollectiveError, Corrupt, Unreachable, error_named
from collective.net.lane_frames import Destination, FrameHeader, FrameKind
from collective.net.lane_outbox import Outbox, OutgoingFrame
from collective.net.lane_window import Window
from collective.wire import lane_pb2

__all__ = ["Asker", "AskingHalf", "LaneReply", "Send", "told_error"]


class Asker(Protocol):
    """A lane as far as a handler needs it, to ask back and to know when it ends; see LaneConnection."""

    async def call(
        self,
        method: int,
        head: bytes,
        body: Buffer | Sequence[Buffer] = b"",
        *,
        into: memoryview | None = None,
        timeout_seconds: float,
    ) -> LaneReply: ...

    def refuse(self, reason: CollectiveError) -> None: ...

    @property
    def closed(self) -> asyncio.Event: ...

    @property
    def was_closed_by_peer(self) -> bool: ...


class Send(Protocol):
    """Puts a frame into the connection's outbox; `sent` is called when the last byte of it was written."""

    def __call__(
        self,
        kind: FrameKind,
        method: int,
        call_id: int,
        head: bytes,
        views: list[memoryview],
        sent: Callable[[], None] | None = None,
    ) -> OutgoingFrame: ...


@dataclass(frozen=True)
class LaneReply:
    """The answer's head and body; the body is the caller's own memory when it gave some."""

    head: bytes
    body: memoryview


class _Call:
    """One call. `destination` is set once the reply's body begins to arrive."""

    __slots__ = ("destination", "future", "into", "size_bytes")

    def __init__(self, future: asyncio.Future[LaneReply], into: memoryview | None, size_bytes: int) -> None:
        self.future = future
        self.into = into
        self.size_bytes = size_bytes
        self.destination: Destination | None = None

    def fail(self, error: CollectiveError) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def let_go(self) -> None:
        """The asker's memory is its own again: what still comes falls."""
        self.into = None
        if self.destination is not None:
            self.destination.view = None


class AskingHalf:
    """Calls by id. `failure` makes the error of a connection that has ended, None while it is open."""

    def __init__(
        self, send: Send, outbox: Outbox, who: Callable[[], str], failure: Callable[[], CollectiveError | None]
    ) -> None:
        self._send = send
        self._outbox = outbox
        self._who = who
        self._failure = failure
        self._loop = asyncio.get_running_loop()
        self._ids = itertools.count(1)
        self._window = Window()
        self._asked: dict[int, _Call] = {}
        self._given_up: dict[int, _Call] = {}

    @property
    def is_idle(self) -> bool:
        return not self._asked and not self._given_up

    async def call(
        self, method: int, head: bytes, views: list[memoryview], into: memoryview | None, timeout_seconds: float
    ) -> LaneReply:
        """See LaneConnection.call."""
        size = sum(map(len, views))
        deadline = self._loop.time() + timeout_seconds
        if not self._window.try_enter(size):
            try:
                async with asyncio.timeout_at(deadline):
                    await self._window.enter(size)
            except TimeoutError:
                raise self._late(timeout_seconds) from None
        if (failure := self._failure()) is not None:
            self._window.leave(size)
            raise failure
        call_id = self._next_id()
        call = self._asked[call_id] = _Call(self._loop.create_future(), into, size)
        frame = self._send(FrameKind.REQUEST, method, call_id, head, views)
        timer = self._loop.call_at(deadline, lambda: call.fail(self._late(timeout_seconds)))
        try:
            return await call.future
        finally:
            timer.cancel()
            call.let_go()
            if self._asked.pop(call_id, None) is not None:
                self._give_up(call_id, call, frame)

    def _give_up(self, call_id: int, call: _Call, frame: OutgoingFrame) -> None:
        if self._outbox.give_up(frame) or self._failure() is not None:
            self._window.leave(call.size_bytes)
            return
        self._given_up[call_id] = call
        self._send(FrameKind.CANCEL, 0, call_id, b"", [])

    def _next_id(self) -> int:
        while True:
            call_id = next(self._ids) & 0xFFFFFFFF
            if call_id and call_id not in self._asked and call_id not in self._given_up:
                return call_id

    def body_destination(self, header: FrameHeader) -> Destination:
        """Where the body of a reply goes: the asker's memory, fresh memory, nowhere when nobody wants it."""
        call = self._asked.get(header.call_id)
        if call is None or call.future.done():
            return Destination(None)
        if call.into is None:
            view = memoryview(bytearray(header.body_bytes))
        elif header.body_bytes <= len(call.into):
            view = call.into[: header.body_bytes]
        else:
            call.fail(Corrupt(f"{self._who()} answered with more than was asked for"))
            return Destination(None)
        call.destination = Destination(view)
        return call.destination

    def answered(self, header: FrameHeader, head: bytes, body: memoryview | None) -> None:
        """A REPLY or ERROR has come whole. Raises: Corrupt when nothing was asked under its id."""
        call = self._asked.pop(header.call_id, None) or self._given_up.pop(header.call_id, None)
        if call is None:
            raise Corrupt("an answer to nothing that was asked")
        self._window.leave(call.size_bytes)
        if header.kind == FrameKind.ERROR:
            call.fail(told_error(head))
        elif not call.future.done():
            call.future.set_result(LaneReply(head, memoryview(b"") if body is None else body))

    def fail_all(self, error: Callable[[], CollectiveError]) -> None:
        """The connection has ended: everybody who waits is told, also who waits for the window."""
        for call in (*self._asked.values(), *self._given_up.values()):
            call.let_go()
            call.fail(error())
        self._given_up.clear()
        self._window.open_wide()

    def _late(self, timeout_seconds: float) -> Unreachable:
        return Unreachable(f"{self._who()} did not answer within {timeout_seconds:g} s")


def told_error(head: bytes) -> CollectiveError:
    """The error in an ERROR frame's head."""
    try:
        error = lane_pb2.LaneError.FromString(head)
    except DecodeError:
        return Corrupt("an error cannot be decoded")
    return error_named(error.kind, error.message[:4096], error.hint[:4096])
