"""A small federation of certificates, and the loop that daemons use."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvloop

from collective.core.address import FederatedAddress
from collective.core.observe import Observer
from collective.identity import (
    ComponentKind,
    Credentials,
    Level,
    MemberAuthority,
    RootAuthority,
    TrustStore,
    generate_leaf_key,
)
from collective.net.lane import LaneConnection, LaneHandler, LaneLimits, LaneServer, connect_lane

LIMITS = LaneLimits()
CLIENT = "client"
NODE = "node-01"
COORDINATOR = "coord"
KINDS = {CLIENT: ComponentKind.CLIENT, NODE: ComponentKind.NODE, COORDINATOR: ComponentKind.COORDINATOR}


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, Any]:
    """Daemons run on uvloop, and so do these tests."""
    return {"uvloop": uvloop.new_event_loop}


class WallClock:
    """TLS libraries judge dates by the machine's clock, so these tests do too; `ahead` moves only our own judgement."""

    ahead_seconds = 0.0

    def wall(self) -> float:
        return time.time() + self.ahead_seconds

    def monotonic(self) -> float:
        return time.monotonic()


class Recorder:
    """An observer that remembers; `seen` waits until an event has come."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._more = asyncio.Event()

    def event(self, name: str, **fields: Any) -> None:
        self.events.append((name, fields))
        self._more.set()

    async def seen(self, name: str) -> dict[str, Any]:
        async with asyncio.timeout(10):
            while True:
                for event, fields in self.events:
                    if event == name:
                        return fields
                self._more.clear()
                await self._more.wait()


class Federation:
    """Members by their first label, each with its CA; credentials of their components are made when asked for."""

    def __init__(self, domain: str = "media.collective", members: tuple[str, ...] = ("alice", "bob")) -> None:
        now = time.time()
        self.root = RootAuthority.create(domain, now)
        self.authorities: dict[str, MemberAuthority] = {}
        self._made: dict[tuple[str, str], Credentials] = {}
        for name in members:
            member_domain = f"{name}.{domain}"
            key, request = MemberAuthority.create_request(member_domain)
            certificate = self.root.sign_member(member_domain, request, now)
            self.authorities[name] = MemberAuthority(certificate, key, self.root.certificate)

    def make(
        self, member: str, part: str, *, lifetime_seconds: float = 86400.0, now: float | None = None
    ) -> Credentials:
        authority, key = self.authorities[member], generate_leaf_key()
        certificate = authority.issue(
            KINDS[part], part, key.public_key(), now or time.time(), lifetime_seconds=lifetime_seconds
        )
        return Credentials(certificate, key, authority.certificate, self.root.certificate)

    def credentials(self, member: str, part: str) -> Credentials:
        if (member, part) not in self._made:
            self._made[member, part] = self.make(member, part)
        return self._made[member, part]

    def trust(self, member: str) -> TrustStore:
        """A member's trust store: it has met everybody and peers with all."""
        store = TrustStore(self.root.certificate, self.authorities[member].member_domain)
        for authority in self.authorities.values():
            store.add_member(authority.certificate)
        store.set_peers([authority.member_domain for authority in self.authorities.values()])
        return store

    def address(self, member: str, part: str) -> FederatedAddress:
        return self.credentials(member, part).identity.address


@pytest.fixture(scope="session")
def federation() -> Federation:
    return Federation()


@pytest.fixture(scope="session")
def strange_federation() -> Federation:
    """Another federation with the same names: only its root differs."""
    return Federation()


@pytest.fixture
def clock() -> WallClock:
    return WallClock()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@dataclass
class LanePark:
    """Lane servers (alice's node) and connections (bob's client) of one test, all closed at its end."""

    federation: Federation
    clock: WallClock
    _closers: list[Callable[[], Awaitable[None]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.server_trust = self.federation.trust("alice")
        self.client_trust = self.federation.trust("bob")

    async def serve(
        self,
        handlers: Mapping[int, LaneHandler],
        *,
        limits: LaneLimits = LIMITS,
        observer: Observer | None = None,
        level: Level = Level.FEDERATED,
        kinds: frozenset[ComponentKind] | None = None,
    ) -> tuple[LaneServer, int]:
        server = LaneServer(
            self.federation.credentials("alice", NODE),
            self.server_trust,
            handlers,
            clock=self.clock,
            level=level,
            kinds=kinds,
            limits=limits,
            observer=observer or Recorder(),
        )
        port = await server.start("127.0.0.1", 0)
        self._closers.append(server.stop)
        return server, port

    async def connect(
        self,
        port: int,
        *,
        credentials: Credentials | None = None,
        expected: FederatedAddress | None = None,
        handlers: Mapping[int, LaneHandler] | None = None,
        limits: LaneLimits = LIMITS,
        timeout_seconds: float = 5.0,
    ) -> LaneConnection:
        connection = await connect_lane(
            "127.0.0.1",
            port,
            credentials=credentials or self.federation.credentials("bob", CLIENT),
            trust=self.client_trust,
            clock=self.clock,
            expected=expected or self.federation.address("alice", NODE),
            handlers=handlers,
            limits=limits,
            timeout_seconds=timeout_seconds,
        )
        self._closers.insert(0, connection.close)
        return connection

    async def close(self) -> None:
        for closer in self._closers:
            await closer()


@pytest.fixture
async def park(federation: Federation, clock: WallClock) -> AsyncIterator[LanePark]:
    lanes = LanePark(federation, clock)
    yield lanes
    await lanes.close()
