"""The answering half of a lane: questions of the peer, each with exactly one answer.

    admitted (window counted) --body here--> handler runs --> answer queued --written--> over
                                               +--CANCEL--> answered with an error --written--> over

Handlers run as tasks this half owns; they are cancelled when the connection ends.
"""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import DecodeError
from typing_extensions import Buffer

from collective.core.errors import CollectiveError, Corrupt, Refused, Unreachable
from collective.core.memory import BufferPool
from collective.core.observe import Observer
from collective.core.sizes import MIB
from collective.identity import PeerIdentity
from collective.net.lane_asking import Asker, Send
from collective.net.lane_frames import MAX_BODY_BYTES, MAX_HEAD_BYTES, FrameHeader, FrameKind
from collective.net.lane_outbox import Outbox, as_views
from collective.net.lane_window import CALLS_IN_FLIGHT, REQUEST_BYTES_IN_FLIGHT
from collective.wire import lane_pb2

__all__ = ["AnsweringHalf", "LaneCaller", "LaneHandler", "error_head"]

REPLY_BACKLOG_BYTES = 16 * MIB  # while more waits to be sent, nothing more takes memory: a slow reader waits alone
ERROR_TEXT_CHARACTERS = 4096


@dataclass
class LaneCaller:
    """Who asks, what handlers remember of this connection, and the connection itself, to ask back.

    `memory`: a handler awaits so many bytes for a large answer, once, and answers with them or a part of them; they
    begin at a page's edge, hold what they last held, and are used again when the answer is written.
    """

    peer: PeerIdentity
    connection: Asker
    memory: Callable[[int], Awaitable[memoryview]]
    state: dict[str, Any] = field(default_factory=dict)


# The body is the handler's own; what it returns (head, body parts) must not change any more.
LaneHandler = Callable[[LaneCaller, bytes, memoryview], Awaitable[tuple[bytes, Sequence[Buffer]]]]


class _Question:
    """A question from its arrival until its answer is written."""

    __slots__ = ("size_bytes", "task")

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.task: asyncio.Task[None] | None = None


class AnsweringHalf:
    """Questions by id, counted against the lane's window."""

    def __init__(
        self,
        handlers: Mapping[int, LaneHandler],
        send: Send,
        outbox: Outbox,
        memory: BufferPool,
        observer: Observer,
    ) -> None:
        self._handlers = handlers
        self._send = send
        self._outbox = outbox
        self._memory = memory
        self._observer = observer
        self._questions: dict[int, _Question] = {}
        self._question_bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._lent: dict[asyncio.Task[None], mmap.mmap] = {}  # memory of running handlers
        self._backlog_fell = asyncio.Event()
        self._closed = False

    @property
    def is_idle(self) -> bool:
        return not self._questions

    def admit(self, header: FrameHeader) -> None:
        """Count a question in before its body takes memory. Raises: Corrupt when the peer oversteps the window."""
        if not header.call_id or header.call_id in self._questions:
            raise Corrupt("a call id is used twice")
        if self._question_bytes + header.body_bytes > REQUEST_BYTES_IN_FLIGHT:
            raise Corrupt("more bytes are on the way than the lane allows")
        if len(self._questions) >= CALLS_IN_FLIGHT:
            raise Corrupt("more calls are on the way than the lane allows")
        self._questions[header.call_id] = _Question(header.body_bytes)
        self._question_bytes += header.body_bytes

    def serve(self, caller: LaneCaller, header: FrameHeader, head: bytes, body: memoryview) -> None:
        """Start the handler of an admitted question that is here whole."""
        question = self._questions[header.call_id]
        task = asyncio.get_running_loop().create_task(self._answer(caller, header, head, body))
        question.task = task
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._handler_ended(done, header))

    def cancel(self, call_id: int) -> None:
        """The peer wants this answer no more. It gets one all the same, so that both count alike."""
        question = self._questions.get(call_id)
        if question is not None and question.task is not None and not question.task.done():
            question.task.cancel()

    async def memory(self, size_bytes: int) -> memoryview:
        """Wait until the handler we are called from may take memory for an answer; kept for it until it ends."""
        task = asyncio.current_task()
        assert task is not None
        while True:
            taken = sum(map(len, self._lent.values())) + self._outbox.backlog_bytes
            if not taken or taken + size_bytes <= REPLY_BACKLOG_BYTES:
                break
            self._backlog_fell.clear()
            await self._backlog_fell.wait()
        buffer = self._lent[task] = self._memory.take(size_bytes)
        return memoryview(buffer)[:size_bytes]

    def close(self) -> None:
        """Cancel every handler."""
        self._closed = True
        for task in self._tasks:
            task.cancel()

    async def ended(self) -> None:
        """Wait for all handlers but the one we are called from."""
        if others := [task for task in self._tasks if task is not asyncio.current_task()]:
            await asyncio.wait(others)

    async def _answer(self, caller: LaneCaller, header: FrameHeader, head: bytes, body: memoryview) -> None:
        try:
            reply_head, views = await self._handle(caller, header, head, body)
        except CollectiveError as error:
            self._fail(header, error)
        except DecodeError:
            self._fail(header, Corrupt("the call cannot be decoded"))
        except Exception as error:
            self._observer.event("lane.handler_failed", method=header.method, error=f"{type(error).__name__}: {error}")
            self._fail(header, CollectiveError("internal error at the other side"))
        else:
            task = asyncio.current_task()
            self._reply(FrameKind.REPLY, header, reply_head, views, self._lent.get(task) if task else None)

    async def _handle(
        self, caller: LaneCaller, header: FrameHeader, head: bytes, body: memoryview
    ) -> tuple[bytes, list[memoryview]]:
        handler = self._handlers.get(header.method)
        if handler is None:
            raise Refused("this component does not answer that call")
        while self._outbox.backlog_bytes > REPLY_BACKLOG_BYTES:
            self._backlog_fell.clear()
            await self._backlog_fell.wait()
        reply_head, bodies = await handler(caller, head, body)
        views = as_views(bodies)
        if len(reply_head) > MAX_HEAD_BYTES or sum(map(len, views)) > MAX_BODY_BYTES:
            raise ValueError(f"the answer to method {header.method} is over the lane's limits")
        return reply_head, views

    def _handler_ended(self, task: asyncio.Task[None], header: FrameHeader) -> None:
        """Answer also when the handler was cancelled, perhaps before its first step."""
        self._tasks.discard(task)
        if self._lent.pop(task, None) is not None:
            self._backlog_fell.set()
        if task.cancelled():
            self._fail(header, Unreachable("the call was given up"))

    def _fail(self, header: FrameHeader, error: CollectiveError) -> None:
        self._reply(FrameKind.ERROR, header, error_head(error), [])

    def _reply(
        self,
        kind: FrameKind,
        header: FrameHeader,
        head: bytes,
        views: list[memoryview],
        buffer: mmap.mmap | None = None,
    ) -> None:
        """`buffer`: memory of the answer that is free once it is written. (That of a handler that failed may still be
        written to by a thread of its.)"""
        if not self._closed:
            self._send(kind, header.method, header.call_id, head, views, lambda: self._dismiss(header.call_id, buffer))

    def _dismiss(self, call_id: int, buffer: mmap.mmap | None) -> None:
        """The answer is written: the question is over."""
        self._question_bytes -= self._questions.pop(call_id).size_bytes
        if buffer is not None:
            self._memory.give_back(buffer)
        if self._outbox.backlog_bytes <= REPLY_BACKLOG_BYTES:
            self._backlog_fell.set()


def error_head(error: CollectiveError) -> bytes:
    """The head of an ERROR frame."""
    return lane_pb2.LaneError(
        kind=type(error).__name__,
        message=error.message[:ERROR_TEXT_CHARACTERS],
        hint=error.hint[:ERROR_TEXT_CHARACTERS],
    ).SerializeToString()
