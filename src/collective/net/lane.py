"""The lane: one TLS connection with calls and byte ranges, and either side may ask.

    connecting --TLS, certificate judged--> greeting --HELLO both ways--> open --close, error, lost trust--> closed

A call is a REQUEST frame with an id of the asker's; its answer is a REPLY or an ERROR with the same id. A reply's body
lands straight in the memory the asker named (`into`). Flow control is a count: at most `max_calls` are on the way per
direction; the answering side stops reading beyond that. A frame is never interleaved with another, so a small call
waits behind a large body for as long as the wire needs for it (8 MiB: 67 ms at 1 Gbit/s). A call that is given up
(timeout, cancellation) sends CANCEL; what still comes for it is let fall and never touches the asker's memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from cryptography import x509
from google.protobuf.message import DecodeError
from typing_extensions import Buffer

from collective.core.address import FederatedAddress
from collective.core.clock import Clock
from collective.core.errors import CollectiveError, Corrupt, Refused, Unreachable, error_named
from collective.core.observe import SILENT, Observer
from collective.identity import ComponentKind, Credentials, Level, PeerIdentity, TrustStore
from collective.net.endpoints import listen_error
from collective.net.lane_frames import (
    MAX_BODY_BYTES,
    MAX_HEAD_BYTES,
    Destination,
    FrameHeader,
    FrameKind,
    FrameReader,
    pack_header,
)
from collective.net.tls import client_context, handshake_error, peer_chain, server_context
from collective.wire import lane_pb2

__all__ = ["LaneCaller", "LaneConnection", "LaneHandler", "LaneLimits", "LaneReply", "LaneServer", "connect_lane"]

VERSION = 1
OLDEST_VERSION = 1
WRITE_BUFFER_BYTES = 2 << 20  # above this a sender waits; two ranges keep a wire busy
HANDSHAKE_SECONDS = 5.0
GREETING_SECONDS = 5.0


@dataclass(frozen=True)
class LaneLimits:
    """Calls on the way per connection and direction; connections in all and from one address."""

    max_calls: int = 64
    max_connections: int = 1024
    max_connections_per_address: int = 256


@dataclass(frozen=True)
class LaneReply:
    """The answer's head and body; the body is the caller's own memory when it gave some."""

    head: bytes
    body: memoryview


@dataclass
class LaneCaller:
    """Who asks, and what handlers remember of this connection."""

    peer: PeerIdentity
    state: dict[str, Any] = field(default_factory=dict)


LaneHandler = Callable[[LaneCaller, bytes, memoryview], Awaitable[tuple[bytes, Sequence[Buffer]]]]


class _Call:
    __slots__ = ("destination", "future", "into")

    def __init__(self, future: asyncio.Future[LaneReply], into: memoryview | None) -> None:
        self.future = future
        self.into = into
        self.destination: Destination | None = None


class LaneConnection(asyncio.BufferedProtocol):
    """One open lane. Made by `connect_lane` or by a server."""

    def __init__(
        self,
        judge: Callable[[x509.Certificate, Sequence[x509.Certificate]], PeerIdentity],
        handlers: Mapping[int, LaneHandler],
        limits: LaneLimits,
        observer: Observer,
        on_closed: Callable[[LaneConnection], None] = lambda connection: None,
    ) -> None:
        self._judge = judge
        self._handlers = handlers
        self._limits = limits
        self._observer = observer
        self._on_closed = on_closed
        self._reader = FrameReader(self)
        self._transport: asyncio.Transport | None = None
        self._ids = itertools.count(1)
        self._calls: dict[int, _Call] = {}
        self._gate = asyncio.Semaphore(limits.max_calls)
        self._serving: dict[int, asyncio.Task[None]] = {}
        self._writable = asyncio.Event()
        self._writable.set()
        self._greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._greeted.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._reason: CollectiveError | None = None
        self._chain: tuple[x509.Certificate, Sequence[x509.Certificate]] | None = None
        self._caller: LaneCaller | None = None
        self._paused_reading = False
        self.closed = asyncio.Event()

    # ------------------------------------------------------------ asking

    @property
    def peer(self) -> PeerIdentity:
        """Who is at the other end. Raises: Unreachable before the handshake."""
        if self._caller is None:
            raise Unreachable("the connection is not open")
        return self._caller.peer

    @property
    def is_closed(self) -> bool:
        return self.closed.is_set()

    async def call(
        self,
        method: int,
        head: bytes,
        body: Buffer | Sequence[Buffer] = b"",
        *,
        into: memoryview | None = None,
        timeout_seconds: float,
    ) -> LaneReply:
        """Ask and wait for the answer. With `into` the reply's body lands there (it must be large enough).

        Raises: what the other side raised, Unreachable (closed, or no answer in time), Corrupt (answer too large).
        """
        bodies = list(body) if isinstance(body, list | tuple) else [cast(Buffer, body)]
        try:
            async with asyncio.timeout(timeout_seconds), self._gate:
                return await self._ask(method, head, bodies, into)
        except TimeoutError:
            raise Unreachable(f"{self._who()} did not answer within {timeout_seconds:g} s") from None

    async def _ask(self, method: int, head: bytes, bodies: list[Buffer], into: memoryview | None) -> LaneReply:
        await self._writable.wait()
        if self.closed.is_set():
            raise self._closed_error()
        call_id = next(self._ids) & 0xFFFFFFFF or next(self._ids)
        call = self._calls[call_id] = _Call(asyncio.get_running_loop().create_future(), into)
        try:
            self._send(FrameKind.REQUEST, method, call_id, head, bodies)
            return await call.future
        except asyncio.CancelledError:
            if call_id in self._calls and not self.closed.is_set():
                self._send(FrameKind.CANCEL, method, call_id, b"", [])
            raise
        finally:
            self._calls.pop(call_id, None)
            if call.destination is not None:
                call.destination.view = None  # bytes that still come fall beside the asker's memory

    async def close(self) -> None:
        """Close and wait until it is closed."""
        if self._transport is not None and not self.closed.is_set():
            self._transport.close()
            try:
                async with asyncio.timeout(1.0):
                    await self.closed.wait()
            except TimeoutError:
                self._transport.abort()
                await self.closed.wait()

    def abort(self, reason: CollectiveError) -> None:
        """End at once; calls on the way fail with the reason."""
        if self._reason is None:
            self._reason = reason
        if self._transport is not None:
            self._transport.abort()

    async def greeted(self) -> None:
        """Wait for the other side's hello. Raises: Refused, Unreachable."""
        await asyncio.shield(self._greeted)

    def rejudge(self) -> None:
        """Cut the connection when the peer is no longer trusted."""
        if self._chain is None or self.closed.is_set():
            return
        try:
            self._judge(*self._chain)
        except CollectiveError as error:
            self._observer.event("lane.cut", peer=self._who(), reason=error.message)
            self.abort(error)

    # ------------------------------------------------------------ the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        try:
            tls = cast(ssl.SSLObject, transport.get_extra_info("ssl_object"))
            self._chain = peer_chain(tls)
            if self._chain is None:
                raise Refused("the caller showed no certificate")
            self._caller = LaneCaller(self._judge(*self._chain))
        except CollectiveError as error:
            self._observer.event("lane.refused", reason=error.message)
            self._send_error(0, 0, error)
            self._fail(error)
            self._transport.close()
            return
        hello = lane_pb2.LaneHello(version=VERSION, oldest_version=OLDEST_VERSION, software="collective")
        self._send(FrameKind.HELLO, 0, 0, hello.SerializeToString(), [])

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            self._reader.buffer_updated(nbytes)
        except CollectiveError as error:
            self._observer.event("lane.broken", peer=self._who(), reason=error.message)
            self.abort(error)

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()
        self._writable.set()
        for task in self._serving.values():
            task.cancel()
        self._fail(self._reason or Unreachable(f"the connection to {self._who()} was lost"))
        self._on_closed(self)

    def _fail(self, reason: CollectiveError) -> None:
        """Let everybody who waits know."""
        if self._reason is None:
            self._reason = reason
        if not self._greeted.done():
            self._greeted.set_exception(self._closed_error())
        for call in list(self._calls.values()):
            if call.destination is not None:
                call.destination.view = None
            if not call.future.done():
                call.future.set_exception(self._closed_error())

    def _closed_error(self) -> CollectiveError:
        """A fresh exception object for each that is told."""
        reason = self._reason or Unreachable(f"the connection to {self._who()} is closed")
        return type(reason)(reason.message, reason.hint)

    # ------------------------------------------------------------ frames

    def body_destination(self, header: FrameHeader, head: bytes) -> Destination:
        """Where a body goes: the asker's memory, fresh memory for a request, nowhere for what nobody wants."""
        if header.kind == FrameKind.REQUEST:
            return Destination(memoryview(bytearray(header.body_bytes)))
        call = self._calls.get(header.call_id)
        if header.kind != FrameKind.REPLY or call is None or call.future.done():
            return Destination(None)
        if call.into is None:
            view = memoryview(bytearray(header.body_bytes))
        elif header.body_bytes <= len(call.into):
            view = call.into[: header.body_bytes]
        else:
            call.future.set_exception(Corrupt(f"{self._who()} answered with more than was asked for"))
            return Destination(None)
        call.destination = Destination(view)
        return call.destination

    def frame_received(self, header: FrameHeader, head: bytes, body: memoryview | None) -> None:
        if header.kind == FrameKind.HELLO:
            self._hello(head)
        elif header.kind == FrameKind.REQUEST:
            self._serve(header, head, body if body is not None else memoryview(b""))
        elif header.kind == FrameKind.CANCEL:
            if (task := self._serving.get(header.call_id)) is not None:
                task.cancel()
        elif header.kind == FrameKind.ERROR and header.call_id == 0:
            self.abort(_told(head))
        elif (call := self._calls.get(header.call_id)) is not None and not call.future.done():
            if header.kind == FrameKind.ERROR:
                call.future.set_exception(_told(head))
            else:
                call.future.set_result(LaneReply(head, body if body is not None else memoryview(b"")))

    def _hello(self, head: bytes) -> None:
        try:
            hello = lane_pb2.LaneHello.FromString(head)
        except DecodeError as error:
            raise Corrupt("the greeting cannot be decoded") from error
        if hello.version < OLDEST_VERSION or hello.oldest_version > VERSION:
            refusal = Refused(
                f"{self._who()} speaks lane versions {hello.oldest_version}-{hello.version}, this is {VERSION}",
                "update the older of the two",
            )
            self._send_error(0, 0, refusal)
            self.abort(refusal)
            return
        self._reader.open_wide()
        if not self._greeted.done():
            self._greeted.set_result(None)

    def _serve(self, header: FrameHeader, head: bytes, body: memoryview) -> None:
        if header.call_id in self._serving or not header.call_id:
            raise Corrupt("a call id is used twice")
        task = asyncio.get_running_loop().create_task(self._answer(header, head, body))
        self._serving[header.call_id] = task
        task.add_done_callback(lambda done: self._answered(header.call_id))
        if len(self._serving) >= self._limits.max_calls and not self._paused_reading and self._transport is not None:
            self._paused_reading = True
            self._transport.pause_reading()

    def _answered(self, call_id: int) -> None:
        self._serving.pop(call_id, None)
        if self._paused_reading and not self.closed.is_set() and self._transport is not None:
            self._paused_reading = False
            self._transport.resume_reading()

    async def _answer(self, header: FrameHeader, head: bytes, body: memoryview) -> None:
        assert self._caller is not None
        handler = self._handlers.get(header.method)
        try:
            if handler is None:
                raise Refused("this component does not answer that call")
            reply_head, bodies = await handler(self._caller, head, body)
        except CollectiveError as error:
            await self._writable.wait()
            self._send_error(header.method, header.call_id, error)
        except DecodeError:
            self._send_error(header.method, header.call_id, Corrupt("the call cannot be decoded"))
        except Exception as error:
            self._observer.event("lane.handler_failed", method=header.method, error=f"{type(error).__name__}: {error}")
            self._send_error(header.method, header.call_id, CollectiveError("internal error at the other side"))
        else:
            await self._writable.wait()
            self._send(FrameKind.REPLY, header.method, header.call_id, reply_head, bodies)

    def _send_error(self, method: int, call_id: int, error: CollectiveError) -> None:
        told = lane_pb2.LaneError(kind=type(error).__name__, message=error.message[:4096], hint=error.hint[:1024])
        self._send(FrameKind.ERROR, method, call_id, told.SerializeToString(), [])

    def _send(self, kind: FrameKind, method: int, call_id: int, head: bytes, bodies: Sequence[Buffer]) -> None:
        if self._transport is None or self.closed.is_set() or self._transport.is_closing():
            return
        views = [view for view in (memoryview(body).cast("B") for body in bodies) if view]
        size = sum(len(view) for view in views)
        if len(head) > MAX_HEAD_BYTES or size > MAX_BODY_BYTES:
            raise Corrupt(f"a frame of {len(head)} + {size} bytes is over the lane's limits")
        header = pack_header(kind, VERSION, method, call_id, len(head), size)
        self._transport.writelines([header + head, *views])

    def _who(self) -> str:
        return str(self._caller.peer.address) if self._caller is not None else "the other side"


def _told(head: bytes) -> CollectiveError:
    try:
        error = lane_pb2.LaneError.FromString(head)
    except DecodeError:
        return Corrupt("an error cannot be decoded")
    return error_named(error.kind, error.message, error.hint)


async def connect_lane(
    host: str,
    port: int,
    *,
    credentials: Credentials,
    trust: TrustStore,
    clock: Clock,
    expected: FederatedAddress,
    level: Level = Level.FEDERATED,
    handlers: Mapping[int, LaneHandler] | None = None,
    limits: LaneLimits = LaneLimits(),
    observer: Observer = SILENT,
    timeout_seconds: float = HANDSHAKE_SECONDS,
) -> LaneConnection:
    """Open a lane to the component `expected`. Raises: Unreachable, Refused (it is somebody else, or not trusted)."""

    def judge(leaf: x509.Certificate, intermediates: Sequence[x509.Certificate]) -> PeerIdentity:
        identity = trust.verify(leaf, intermediates, level=level, now=clock.wall())
        if identity.address != expected:
            raise Refused(f"{host}:{port} is {identity.address}, not {expected}")
        return identity

    connection = LaneConnection(
        judge, handlers or {}, limits, observer, on_closed=lambda closed: trust.unsubscribe(closed.rejudge)
    )
    loop = asyncio.get_running_loop()
    who = f"{expected} at {host}:{port}"
    try:
        async with asyncio.timeout(timeout_seconds):
            await loop.create_connection(lambda: connection, host, port, ssl=client_context(credentials))
            await connection.greeted()
    except CollectiveError:
        raise
    except (OSError, ssl.SSLError, TimeoutError) as error:
        connection.abort(Unreachable(f"{who} was given up"))
        raise handshake_error(error, who) from error
    except asyncio.CancelledError:
        connection.abort(Unreachable(f"{who} was given up"))
        raise
    trust.subscribe(connection.rejudge)
    connection.rejudge()  # trust may have changed since the handshake
    return connection


class LaneServer:
    """Listens, judges who calls by certificate, and answers with the handlers."""

    def __init__(
        self,
        credentials: Credentials,
        trust: TrustStore,
        handlers: Mapping[int, LaneHandler],
        *,
        clock: Clock,
        level: Level = Level.FEDERATED,
        kinds: frozenset[ComponentKind] | None = None,
        limits: LaneLimits = LaneLimits(),
        observer: Observer = SILENT,
    ) -> None:
        self._credentials = credentials
        self._trust = trust
        self._handlers = handlers
        self._clock = clock
        self._level = level
        self._kinds = kinds
        self._limits = limits
        self._observer = observer
        self._server: asyncio.Server | None = None
        self._open: dict[LaneConnection, str] = {}
        self._by_address: Counter[str] = Counter()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; the port bound. Raises: Misconfigured (in use, not ours)."""
        self._loop = asyncio.get_running_loop()
        try:
            self._server = await self._loop.create_server(
                self._accept,
                host,
                port,
                ssl=server_context(self._credentials),
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
                backlog=256,
            )
        except OSError as error:
            raise listen_error(error, host, port) from error
        self._trust.subscribe(self._trust_changed)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    def _accept(self) -> LaneConnection:
        return _ServedConnection(self)

    async def stop(self) -> None:
        """Stop listening and cut every connection."""
        self._trust.unsubscribe(self._trust_changed)
        if self._server is not None:
            self._server.close()
        for connection in list(self._open):
            connection.abort(Unreachable("the server stops"))
        for connection in list(self._open):
            await connection.closed.wait()
        if self._server is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._server.wait_closed()
            self._server = None

    def _trust_changed(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._rejudge_all)

    def _rejudge_all(self) -> None:
        for connection in list(self._open):
            connection.rejudge()

    def judge(self, leaf: x509.Certificate, intermediates: Sequence[x509.Certificate]) -> PeerIdentity:
        """Whether a caller may come in."""
        return self._trust.verify(leaf, intermediates, level=self._level, now=self._clock.wall(), kinds=self._kinds)

    def enter(self, connection: LaneConnection, address: str) -> None:
        """Count a connection in. Raises: Refused when there are too many."""
        if len(self._open) >= self._limits.max_connections:
            raise Refused("too many connections", "try again later")
        if self._by_address[address] >= self._limits.max_connections_per_address:
            raise Refused(f"too many connections from {address}", "try again later")
        self._open[connection] = address
        self._by_address[address] += 1

    def leave(self, connection: LaneConnection) -> None:
        """Count it out."""
        address = self._open.pop(connection, None)
        if address is not None:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]


class _ServedConnection(LaneConnection):
    """A connection that somebody opened to us; it must greet in time."""

    def __init__(self, server: LaneServer) -> None:
        super().__init__(server.judge, server._handlers, server._limits, server._observer, on_closed=server.leave)
        self._lane_server = server
        self._greeting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        address = str((transport.get_extra_info("peername") or ("?",))[0])
        try:
            self._lane_server.enter(self, address)
        except Refused as error:
            self._observer.event("lane.refused", reason=error.message, address=address)
            cast(asyncio.Transport, transport).abort()
            return
        loop = asyncio.get_running_loop()
        self._greeting = loop.call_later(GREETING_SECONDS, self._late)
        super().connection_made(transport)

    def _late(self) -> None:
        if not self._greeted.done():
            self.abort(Unreachable("the caller did not greet in time"))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._greeting is not None:
            self._greeting.cancel()
        super().connection_lost(exc)
