"""How a command reaches its home: the running coordinator's Unix socket, or the home itself under its lock.

A feed is written by one process. When a coordinator runs, it is the writer and the command speaks to its socket;
when none runs, the command takes the home's lock and the very same handlers run in its own process.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Protocol, TypeVar

from google.protobuf.message import Message

from collective.core.clock import Clock
from collective.core.errors import Unreachable
from collective.core.observe import SILENT
from collective.daemon.foundation import open_foundation
from collective.daemon.home import Home
from collective.daemon.parts import Parts, assemble
from collective.net.channels import LocalChannel
from collective.net.rpc import Caller, Row

__all__ = ["Control", "open_control"]

Reply = TypeVar("Reply", bound=Message)
CALL_TIMEOUT_SECONDS = 60.0
_SERVICE = "/collective.v1.Control/"


class Control(Protocol):
    """Calls of the Control service by their short name."""

    running: bool

    async def call(
        self, name: str, request: Message, reply_type: type[Reply], timeout_seconds: float = CALL_TIMEOUT_SECONDS
    ) -> Reply: ...

    def stream(self, name: str, request: Message, reply_type: type[Reply]) -> AsyncIterator[Reply]: ...


class _Remote:
    """The coordinator's socket."""

    running = True

    def __init__(self, channel: LocalChannel) -> None:
        self._channel = channel

    async def call(
        self, name: str, request: Message, reply_type: type[Reply], timeout_seconds: float = CALL_TIMEOUT_SECONDS
    ) -> Reply:
        return await self._channel.unary(_SERVICE + name, request, reply_type, timeout_seconds)

    def stream(self, name: str, request: Message, reply_type: type[Reply]) -> AsyncIterator[Reply]:
        return self._channel.stream(_SERVICE + name, request, reply_type)


class _Local:
    """The handlers in this process, over the locked home."""

    running = False

    def __init__(self, parts: Parts) -> None:
        self._rows: dict[str, Row] = {row.method: row for row in parts.rows()}
        self._caller = Caller(identity=None)

    async def call(
        self, name: str, request: Message, reply_type: type[Reply], timeout_seconds: float = CALL_TIMEOUT_SECONDS
    ) -> Reply:
        reply = await self._rows[_SERVICE + name].handler(self._caller, request)
        assert isinstance(reply, reply_type)
        return reply

    async def stream(self, name: str, request: Message, reply_type: type[Reply]) -> AsyncIterator[Reply]:
        async for reply in self._rows[_SERVICE + name].handler(self._caller, request):
            assert isinstance(reply, reply_type)
            yield reply


@contextlib.asynccontextmanager
async def open_control(home: Home, clock: Clock, *, need_running: bool = False) -> AsyncIterator[Control]:
    """The way to this home. Raises: Misconfigured (no home), Unreachable (`need_running` and none runs)."""
    home.check()
    if home.socket.exists():
        channel = LocalChannel(home.socket)
        try:
            if await channel.ready(timeout_seconds=3.0):
                yield _Remote(channel)
                return
        finally:
            await channel.close()
    if need_running:
        raise Unreachable(f"no coordinator is running for the home {home.path}", f"start it: {home.start_line}")
    with home.locked():
        ground = open_foundation(home, clock, SILENT)
        parts = assemble(ground)
        try:
            await ground.hear_separate_nodes()
            yield _Local(parts)
        finally:
            await parts.close()
