"""One lane: calls over one TLS connection, and either side may ask.

    connecting --TLS done--> greeting --peer judged, HELLO heard--> open --close, error, lost trust--> closed

A call is a REQUEST with an id of the asker's; its answer is a REPLY or an ERROR with the same id, always exactly one.
A reply's body lands straight in the memory the asker named (`into`). A call that is given up (timeout, cancellation)
sends CANCEL; what still comes for it is let fall and never touches the asker's memory, and its slot in the window is
free again when the answer has come. Before the peer said hello nothing but a HELLO or an ERROR is taken from it.

Frames are not interleaved: a small call waits behind a large body as long as the wire needs for it (8 MiB: 67 ms at
1 Gbit/s). Whoever needs better opens a second lane.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from cryptography import x509
from google.protobuf.message import DecodeError
from typing_extensions import Buffer

from collective.core.errors import CollectiveError, Corrupt, Refused, Unreachable
from collective.core.memory import BufferPool
from collective.core.observe import Observer
from collective.core.sizes import KIB
from collective.identity import PeerIdentity
from collective.net.lane_answering import AnsweringHalf, LaneCaller, LaneHandler, error_head
from collective.net.lane_asking import AskingHalf, LaneReply, told_error
from collective.net.lane_frames import (
    MAX_BODY_BYTES,
    MAX_HEAD_BYTES,
    Destination,
    FrameHeader,
    FrameKind,
    FrameReader,
    pack_header,
)
from collective.net.lane_outbox import Outbox, OutgoingFrame, as_views
from collective.net.tls import keep_alive, peer_chain
from collective.net.versions import LANE
from collective.wire import lane_pb2

__all__ = ["Judge", "LaneConnection", "LaneLimits"]

WRITE_BUFFER_BYTES = 512 * KIB  # encrypted and not yet taken by the kernel
GOODBYE_SECONDS = 1.0  # for a peer to take in why it is cut

Judge = Callable[[x509.Certificate, Sequence[x509.Certificate]], PeerIdentity]


@dataclass(frozen=True)
class LaneLimits:
    """What a peer may use up, and for how long it may be silent (the windows are the protocol's, see lane_window).

    max_connections: of one server, handshakes included; an idle one costs about 130 KiB.
    max_connections_per_address: of one server; a home behind one address has a few tens of processes.
    greeting_seconds: for the handshake, and again for the hello.
    stall_seconds: a frame begun, either way, must get on within this time.
    idle_seconds: a server closes a connection on which nothing happened for so long.
    """

    max_connections: int = 1024
    max_connections_per_address: int = 256
    greeting_seconds: float = 5.0
    stall_seconds: float = 30.0
    idle_seconds: float = 900.0


class LaneConnection(asyncio.BufferedProtocol):
    """One open lane. Made by `connect_lane` or by a `LaneServer`; `closed` is set when it has ended."""

    def __init__(
        self,
        judge: Judge,
        handlers: Mapping[int, LaneHandler],
        limits: LaneLimits,
        observer: Observer,
        on_closed: Callable[[LaneConnection], None],
        *,
        memory: BufferPool,
        closes_when_idle: bool,
    ) -> None:
        self._judge = judge
        self._limits = limits
        self._observer = observer
        self._on_closed = on_closed
        self._closes_when_idle = closes_when_idle
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader(self)
        self._outbox = Outbox()
        self._memory = memory
        self._asking = AskingHalf(self._send, self._outbox, self._who, self._failure)
        self._answering = AnsweringHalf(handlers, self._send, self._outbox, memory, observer)
        self._made = False
        self._transport: asyncio.Transport | None = None  # from the handshake until it has ended
        self._hello: asyncio.Future[None] = self._loop.create_future()
        self._hello.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._reason: CollectiveError | None = None
        self._chain: tuple[x509.Certificate, Sequence[x509.Certificate]] | None = None
        self._caller: LaneCaller | None = None
        self._last_read = self._last_written = self._loop.time()
        self._seen_slices = 0
        self._timer: asyncio.TimerHandle | None = None
        self._closed_by_peer = False
        self._closed = asyncio.Event()

    # ------------------------------------------------------------ for those who ask

    @property
    def peer(self) -> PeerIdentity:
        """Who is at the other end. Raises: Unreachable before the handshake."""
        if self._caller is None:
            raise Unreachable("the connection is not open")
        return self._caller.peer

    @property
    def peer_certificate(self) -> x509.Certificate:
        """The leaf the other end showed. Raises: Unreachable before the handshake."""
        if self._chain is None:
            raise Unreachable("the connection is not open")
        return self._chain[0]

    @property
    def is_made(self) -> bool:
        """Whether its TLS handshake is behind it."""
        return self._made

    @property
    def is_closed(self) -> bool:
        """Whether it has ended or is ending: no further call will succeed."""
        return self._reason is not None

    @property
    def closed(self) -> asyncio.Event:
        """Set when it has ended."""
        return self._closed

    @property
    def was_closed_by_peer(self) -> bool:
        """Whether it has ended, and by the other side's doing: over there it is known."""
        return self._closed_by_peer

    async def call(
        self,
        method: int,
        head: bytes,
        body: Buffer | Sequence[Buffer] = b"",
        *,
        into: memoryview | None = None,
        timeout_seconds: float,
    ) -> LaneReply:
        """Ask and wait for the answer. With `into` the reply's body lands there; it must be large enough.

        When this returns or raises, neither `into` nor `body` is touched any more.
        Raises: what the other side raised, Unreachable (closed, or no answer in time), Corrupt (answer too large).
        """
        views = as_views(body)
        if len(head) > MAX_HEAD_BYTES or sum(map(len, views)) > MAX_BODY_BYTES:
            raise ValueError(f"a call of {len(head)} + {sum(map(len, views))} bytes is over the lane's limits")
        return await self._asking.call(method, head, views, into, timeout_seconds)

    async def close(self) -> None:
        """Close and wait until everything about it has ended; calls on the way fail with Unreachable at once."""
        reason = Unreachable(f"the connection to {self._who()} was closed")
        self._fail(reason)
        if self._transport is not None and not self._closed.is_set():
            self._transport.close()
            try:
                async with asyncio.timeout(GOODBYE_SECONDS):
                    await self._closed.wait()
            except TimeoutError:
                self.abort(reason)
                await self._closed.wait()
        await self._answering.ended()

    def abort(self, reason: CollectiveError) -> None:
        """End at once; calls on the way fail with the reason."""
        self._fail(reason)
        if self._transport is not None:
            self._transport.abort()

    def refuse(self, reason: CollectiveError) -> None:
        """Tell the peer why, then end; if it does not take that in soon, end anyway."""
        if self._transport is None or self._transport.is_closing():
            self._fail(reason)
            return
        self._send(FrameKind.ERROR, 0, 0, error_head(reason), [])
        self._fail(reason)
        self._transport.close()
        self._restart_timer(GOODBYE_SECONDS, self._transport.abort)

    async def ended(self) -> None:
        """Wait until the connection and its handlers have ended."""
        await self._closed.wait()
        await self._answering.ended()

    async def greeted(self) -> None:
        """Wait for the other side's hello. Raises: Refused, Unreachable."""
        await asyncio.shield(self._hello)

    def rejudge(self) -> None:
        """Cut the connection when the peer is no longer trusted."""
        if self._chain is None or self._reason is not None:
            return
        try:
            self._judge(*self._chain)
        except CollectiveError as error:
            self._observer.event("lane.cut", peer=self._who(), reason=error.message)
            self.refuse(error)

    # ------------------------------------------------------------ the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._made = True
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        keep_alive(self._transport)
        self._outbox.attach(self._transport.write)
        self._restart_timer(self._limits.greeting_seconds, self._greeting_late)
        try:
            self._chain = peer_chain(cast(ssl.SSLObject, transport.get_extra_info("ssl_object")))
            if self._chain is None:
                raise Refused("no certificate was shown")
            self._caller = LaneCaller(self._judge(*self._chain), self, self._answering.memory)
        except CollectiveError as error:
            self._observer.event("lane.refused", reason=error.message)
            self.refuse(error)
            return
        if self._reason is not None:
            self.refuse(self._reason)  # its hello was heard before we could answer, and was wrong
            return
        hello = lane_pb2.LaneHello(version=LANE.newest, oldest_version=LANE.oldest, software="collective")
        self._send(FrameKind.HELLO, 0, 0, hello.SerializeToString(), [])

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        self._last_read = self._loop.time()
        if self._reason is not None:
            return  # ending: whatever still comes falls
        try:
            self._reader.buffer_updated(nbytes)
        except CollectiveError as error:
            self._observer.event("lane.broken", peer=self._who(), reason=error.message)
            self.refuse(error)

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._outbox.pause()

    def resume_writing(self) -> None:
        self._outbox.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        # a timeout of TCP or a broken record also comes here, as another error
        self._closed_by_peer = self._reason is None and (exc is None or isinstance(exc, ConnectionError))
        self._fail(Unreachable(f"the connection to {self._who()} was lost"))
        self._transport = None  # with what TLS reads into: 256 KiB
        self._reader.let_go()
        self._outbox.detach()
        self._answering.close()
        if self._timer is not None:
            self._timer.cancel()
        self._closed.set()
        self._on_closed(self)

    def _fail(self, reason: CollectiveError) -> None:
        """From now on it has ended; everybody who waits is told at once."""
        if self._reason is not None:
            return
        self._reason = reason
        if not self._hello.done():
            self._hello.set_exception(_copy(reason))
        self._asking.fail_all(lambda: _copy(reason))

    def _failure(self) -> CollectiveError | None:
        return None if self._reason is None else _copy(self._reason)

    # ------------------------------------------------------------ time

    def _restart_timer(self, seconds: float, action: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, action)

    def _greeting_late(self) -> None:
        self.abort(Unreachable(f"{self._who()} did not greet in time"))

    def _check(self) -> None:
        """Now and then: is the peer still trusted (certificates expire), does it still take and send?"""
        self.rejudge()
        if self._reason is not None:
            return
        now = self._loop.time()
        if self._outbox.written_slices != self._seen_slices or not self._outbox.backlog_bytes:
            self._seen_slices, self._last_written = self._outbox.written_slices, now
        silent_seconds = now - self._last_read
        stalled = now - self._last_written > self._limits.stall_seconds
        if stalled or (self._reader.in_frame and silent_seconds > self._limits.stall_seconds):
            self._observer.event("lane.stalled", peer=self._who(), backlog_bytes=self._outbox.backlog_bytes)
            self.abort(Unreachable(f"{self._who()} does not take or send bytes any more"))
            return
        idle = self._asking.is_idle and self._answering.is_idle
        if idle:
            self._memory.rest()
        if self._closes_when_idle and idle and silent_seconds > self._limits.idle_seconds:
            self.refuse(Unreachable("closed because nothing was asked for long"))
            return
        self._restart_timer(min(self._limits.stall_seconds, self._limits.idle_seconds) / 4, self._check)

    # ------------------------------------------------------------ frames

    def body_destination(self, header: FrameHeader, head: bytes) -> Destination:
        """Where a body goes: the asker's memory, fresh memory for a request, nowhere for what nobody wants."""
        if header.kind == FrameKind.REPLY:
            return self._asking.body_destination(header)
        if header.kind != FrameKind.REQUEST:
            raise Corrupt("a body where none belongs")
        self._answering.admit(header)
        return Destination(memoryview(bytearray(header.body_bytes)))

    def frame_received(self, header: FrameHeader, head: bytes, body: memoryview | None) -> None:
        if self._reason is not None:
            return
        kind = header.kind
        if kind == FrameKind.HELLO:
            self._greet(head)
        elif kind == FrameKind.ERROR and not header.call_id:
            self.abort(told_error(head))
        elif not self._hello.done() or self._caller is None:
            raise Corrupt("the peer did not greet first")
        elif kind == FrameKind.REQUEST:
            if not header.body_bytes:
                self._answering.admit(header)
            self._answering.serve(self._caller, header, head, memoryview(b"") if body is None else body)
        elif kind == FrameKind.CANCEL:
            self._answering.cancel(header.call_id)
        else:
            self._asking.answered(header, head, body)

    def _greet(self, head: bytes) -> None:
        try:
            hello = lane_pb2.LaneHello.FromString(head)
        except DecodeError as error:
            raise Corrupt("the greeting cannot be decoded") from error
        if self._hello.done():
            raise Corrupt("a second greeting")
        try:
            LANE.check(hello.version, hello.oldest_version)
        except Refused as refusal:
            self._observer.event("lane.refused", reason=refusal.message)
            self.refuse(refusal)
            return
        self._reader.open_wide()
        self._hello.set_result(None)
        self._restart_timer(0.0, self._check)

    def _send(
        self,
        kind: FrameKind,
        method: int,
        call_id: int,
        head: bytes,
        views: list[memoryview],
        sent: Callable[[], None] | None = None,
    ) -> OutgoingFrame:
        header = pack_header(kind, LANE.newest, method, call_id, len(head), sum(map(len, views)))
        return self._outbox.put(OutgoingFrame(header + head, views, sent))

    def _who(self) -> str:
        return str(self._caller.peer.address) if self._caller is not None else "the peer"


def _copy(error: CollectiveError) -> CollectiveError:
    """A fresh exception object for each that is told."""
    return type(error)(error.message, error.hint)
