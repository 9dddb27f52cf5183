"""Members whose coordinators hand changes to each other, in one process: real catalogues, real desks, no network."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass, field

from google.protobuf.message import Message
from support.catalogs import FEDERATION, TestFederation

from collective.catalog import Catalog
from collective.core.address import FederatedAddress
from collective.core.clock import Clock
from collective.core.errors import Unreachable
from collective.daemon.runtime import SystemClock
from collective.transfer.events import ChangeBell
from collective.transfer.forward import Forwarder
from collective.transfer.numbers import NumberStock
from collective.transfer.serve_leases import LeaseDesk
from collective.transfer.submit import SubmitDesk
from collective.wire import feed_pb2, submit_pb2

FILE, FOLDER = 0o100644, 0o040755
SYSTEM = SystemClock()


class Events:
    """Keeps what was observed."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, object]]] = []

    def event(self, name: str, **fields: object) -> None:
        self.seen.append((name, fields))

    def named(self, name: str) -> list[dict[str, object]]:
        return [fields for seen, fields in self.seen if seen == name]


@dataclass
class World:
    """Members by name; whoever is in `away` answers nobody. Entries flow when `flow` is called, or at once."""

    federation: TestFederation
    members: dict[str, WritingMember] = field(default_factory=dict)
    away: set[str] = field(default_factory=set)
    flows: bool = True

    def add(self, name: str) -> WritingMember:
        catalog = self.federation.catalogs.get(name) or self.federation.add(name)
        self.members[name] = WritingMember(self, name, catalog)
        return self.members[name]

    def flow(self) -> None:
        """Everybody gets everybody's entries."""
        self.federation.sync()
        for member in self.members.values():
            member.bell.ring()

    async def close(self) -> None:
        for member in self.members.values():
            await member.close()


@dataclass
class WritingMember:
    """One member's writing half. `calls` are (method, request) as they arrived here."""

    world: World
    name: str
    catalog: Catalog
    calls: list[tuple[str, Message]] = field(default_factory=list)
    answer_lost: bool = False  # what is asked here is done, and the answer does not arrive

    def __post_init__(self) -> None:
        self.domain = f"{self.name}.{FEDERATION}"
        self.events = Events()
        self.bell = ChangeBell(self.catalog.change_counter)
        clock: Clock = SYSTEM
        self.leases = LeaseDesk(
            clock, self.events, out_before=False, mark=lambda out: None, space=lambda: (0, 0), journals=dict
        )
        self.forwarder = Forwarder(
            self.catalog,
            self,
            self.bell,
            clock,
            self.events,
            self._reachable,
            self.write,  # type: ignore[arg-type]
        )
        self.submit = SubmitDesk(
            self.catalog,
            self.leases,
            self.forwarder,
            lambda store, version, size, writer: [writer, store.owner],
            self.bell,
            clock,
            self.events,
            self.domain,
            self.write,
        )
        self.numbers = NumberStock(
            self.catalog,
            self,
            self.bell,
            clock,
            self.events,
            FederatedAddress("coord", self.domain),
            self._reachable,
            self.write,  # type: ignore[arg-type]
        )

    async def write(self, change: Callable[[], None]) -> None:
        change()

    def _reachable(self, domain: str) -> bool:
        return domain.split(".")[0] not in self.world.away

    # what `Coordinators` does

    async def call(
        self, domain: str, method: str, request: Message, reply_type: type[Message], timeout_seconds: float
    ) -> Message:
        """Ask the other member's desk directly, in its own words."""
        other = self.world.members[domain.split(".")[0]]
        await asyncio.sleep(0)
        if other.name in self.world.away or self.name in self.world.away:
            raise Unreachable(f"{domain} is away")
        other.calls.append((method, request))
        if isinstance(request, submit_pb2.SubmitRequest):
            reply: Message = await other.submit.receive(self.domain, request)
        else:
            assert isinstance(request, submit_pb2.LeaseNumbersRequest)
            reply = await other.numbers.lease(self.domain, request)
        if other.answer_lost:
            raise Unreachable(f"{domain} did not answer")
        if self.world.flows:
            self.world.flow()
        return reply

    # changes

    def change(self, **change: object) -> submit_pb2.StagedOperation:
        operation = feed_pb2.TreeOperation(
            id=feed_pb2.OperationId(writer=self.domain, random=os.urandom(16)),
            actor=f"client@{self.domain}",
            time_nanoseconds=int(SYSTEM.wall() * 1e9),
            **change,  # type: ignore[arg-type]
        )
        return submit_pb2.StagedOperation(operation=operation)

    async def make(
        self, store_id: bytes, name: bytes, data: bytes = b"", *, parent: int = 1, mode: int = FILE
    ) -> submit_pb2.StagedOperation:
        """A creation under a number of this member's own."""
        number = (await self.numbers.take(store_id, 1)).start
        create = feed_pb2.Create(parent=parent, name=name, inode=number, mode=mode)
        if data:
            create.content.CopyFrom(feed_pb2.Content(size_bytes=len(data), inline=data))
        expected = feed_pb2.Expectation(link=feed_pb2.ExpectedLink(parent=parent, name=name))
        return self.change(create=create, expectations=[expected])

    def names(self, path: bytes) -> list[bytes]:
        return [name for name, _ in self.catalog.list(self.catalog.resolve(path).ino)]

    async def close(self) -> None:
        await self.leases.close()
        await self.forwarder.close()
        await self.submit.close()
