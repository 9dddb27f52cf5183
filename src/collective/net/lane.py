"""Opening lanes and answering them: `connect_lane` and `LaneServer`.

A server counts a connection in when it is accepted, before any cryptography, and judges its certificate after the
handshake. Both ends judge again whenever the trust store changes, and now and then because certificates expire.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from functools import lru_cache

from cryptography import x509

from collective.core.address import FederatedAddress
from collective.core.clock import Clock
from collective.core.errors import Refused, Unreachable
from collective.core.memory import BufferPool
from collective.core.observe import SILENT, Observer
from collective.core.sizes import MIB
from collective.identity import ComponentKind, Credentials, Level, PeerIdentity, TrustStore
from collective.net.endpoints import open_listeners
from collective.net.lane_answering import LaneCaller, LaneHandler
from collective.net.lane_asking import LaneReply
from collective.net.lane_connection import LaneConnection, LaneLimits
from collective.net.tls import client_context, handshake_error, server_context

__all__ = ["LaneCaller", "LaneConnection", "LaneHandler", "LaneLimits", "LaneReply", "LaneServer", "connect_lane"]

CONNECT_SECONDS = 5.0
DEFAULT_LIMITS = LaneLimits()
SPARE_BYTES = 32 * MIB  # memory of answers, kept by a server for all its connections while it is used
ACCEPT_PAUSE_SECONDS = 0.1
SHUTDOWN_SECONDS = 1.0  # for the closing words of TLS
CONTEXTS_KEPT = 4  # a process dials as one component, and as another after a renewal


_context_of = lru_cache(CONTEXTS_KEPT)(client_context)  # made anew for each dial it was most of the dial's work


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
    limits: LaneLimits = DEFAULT_LIMITS,
    observer: Observer = SILENT,
    timeout_seconds: float = CONNECT_SECONDS,
) -> LaneConnection:
    """Open a lane to the component `expected`. Raises: Unreachable, Refused (it is somebody else, or not trusted)."""

    def judge(leaf: x509.Certificate, intermediates: Sequence[x509.Certificate]) -> PeerIdentity:
        identity = trust.verify(leaf, intermediates, level=level, now=clock.wall())
        if identity.address != expected:
            raise Refused(f"{host}:{port} is {identity.address}, not {expected}")
        return identity

    loop = asyncio.get_running_loop()

    def trust_changed() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(connection.rejudge)

    def ended(_: LaneConnection) -> None:
        trust.unsubscribe(trust_changed)
        memory.clear()

    memory = BufferPool(SPARE_BYTES)
    connection = LaneConnection(
        judge, handlers or {}, limits, observer, on_closed=ended, memory=memory, closes_when_idle=False
    )
    who = f"{expected} at {host}:{port}"
    trust.subscribe(trust_changed)
    try:
        async with asyncio.timeout(timeout_seconds):
            await loop.create_connection(
                lambda: connection,
                host,
                port,
                ssl=_context_of(credentials),
                ssl_handshake_timeout=timeout_seconds,
                ssl_shutdown_timeout=SHUTDOWN_SECONDS,
            )
            await connection.greeted()
    except BaseException as error:
        trust.unsubscribe(trust_changed)
        connection.abort(Unreachable(f"{who} was given up"))
        if isinstance(error, (OSError, ssl.SSLError, TimeoutError)):
            raise handshake_error(error, who) from error
        raise
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
        limits: LaneLimits = DEFAULT_LIMITS,
        observer: Observer = SILENT,
    ) -> None:
        self._context = server_context(credentials)
        self._trust = trust
        self._handlers = handlers
        self._clock = clock
        self._level = level
        self._kinds = kinds
        self._limits = limits
        self._observer = observer
        self._listeners: list[socket.socket] = []
        self._accepted: Counter[str] = Counter()
        self._open: set[LaneConnection] = set()
        self._memory = BufferPool(SPARE_BYTES)
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def connection_count(self) -> int:
        """Connections now, those in the middle of their handshake included."""
        return self._accepted.total()

    async def start(self, host: str, port: int) -> int:
        """Listen; the port bound. Raises: Misconfigured (in use, not ours)."""
        self._loop = asyncio.get_running_loop()
        self._listeners = open_listeners(host, port)
        for listener in self._listeners:
            self._own(self._accept_from(listener))
        self._trust.subscribe(self._trust_changed)
        bound: int = self._listeners[0].getsockname()[1]
        return bound

    async def stop(self) -> None:
        """Stop listening, cut every connection, end every handler. Doing so twice is fine."""
        self._trust.unsubscribe(self._trust_changed)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        while self._listeners:
            self._listeners.pop().close()
        connections = list(self._open)
        for connection in connections:
            connection.abort(Unreachable("the server stops"))
        for connection in connections:
            await connection.ended()

    def _own(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept_from(self, listener: socket.socket) -> None:
        """Take every connection that comes, or drop it at once when there are too many."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                arrived, peer = await loop.sock_accept(listener)
            except OSError as error:  # out of descriptors, or the caller left while it waited
                self._observer.event("lane.accept_failed", error=str(error))
                await asyncio.sleep(ACCEPT_PAUSE_SECONDS)
                continue
            address = str(peer[0])
            if self.connection_count >= self._limits.max_connections:
                self._observer.event("lane.refused", reason="too many connections", address=address)
                arrived.close()
            elif self._accepted[address] >= self._limits.max_connections_per_address:
                self._observer.event("lane.refused", reason="too many connections from there", address=address)
                arrived.close()
            else:
                self._accepted[address] += 1
                self._own(self._greet(arrived, address))

    async def _greet(self, arrived: socket.socket, address: str) -> None:
        """Handshake; the connection counts itself out when it ends."""

        def left(connection: LaneConnection) -> None:
            self._open.discard(connection)
            self._leave(address)

        connection = LaneConnection(
            self._judge,
            self._handlers,
            self._limits,
            self._observer,
            left,
            memory=self._memory,
            closes_when_idle=True,
        )
        self._open.add(connection)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection,
                arrived,
                ssl=self._context,
                ssl_handshake_timeout=self._limits.greeting_seconds,
                ssl_shutdown_timeout=SHUTDOWN_SECONDS,
            )
        except (OSError, ssl.SSLError, TimeoutError) as error:
            self._observer.event("lane.refused", reason=f"handshake: {error or type(error).__name__}", address=address)
        finally:
            if not connection.is_made:
                connection.connection_lost(None)

    def _leave(self, address: str) -> None:
        self._accepted[address] -= 1
        if not self._accepted[address]:
            del self._accepted[address]

    def _judge(self, leaf: x509.Certificate, intermediates: Sequence[x509.Certificate]) -> PeerIdentity:
        return self._trust.verify(leaf, intermediates, level=self._level, now=self._clock.wall(), kinds=self._kinds)

    def _trust_changed(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._rejudge_all)

    def _rejudge_all(self) -> None:
        for connection in list(self._open):
            connection.rejudge()
