"""Between members, when one woke up in doubt: who has answered, and the way back of what a new epoch left behind.

Answers are entries: a home in doubt asks every member for all that it may follow (`Follow` with `all_feeds`), and
whoever sent everything has answered. The way back is `HandBack`: whoever un-applied entries sends them to the one who
wrote them, again at every epoch that opens later, until its own database forgets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from collective.catalog import Catalog, Parcel
from collective.core.address import FederatedAddress
from collective.core.clock import Clock
from collective.core.errors import CollectiveError, Conflict, Refused
from collective.core.observe import Observer
from collective.identity import ComponentKind, Level
from collective.net.channels import Channels
from collective.net.rpc import Caller, Row
from collective.transfer.events import ChangeBell
from collective.transfer.peers import PeerBook
from collective.transfer.sync import EntryTaker
from collective.wire import control_pb2

__all__ = ["HandBackDesk", "HandOver", "Recall", "waking_rows"]

MAX_ENTRIES_PER_CALL = 256
CALL_TIMEOUT_SECONDS = 15.0
ASK_SECONDS = 1.0  # how often it is looked whom to ask
ASK_AGAIN_SECONDS = 3.0  # after a member that could not be asked, or did not send everything
PAUSE_SECONDS = 5.0  # after a call that failed: the owner is away, or in the middle of waking up
REST_SECONDS = 0.25  # between two looks
Write = Callable[[Callable[[], None]], Awaitable[None]]


async def _rounds(
    bell: ChangeBell, clock: Clock, observer: Observer, tick: Callable[[float], Awaitable[None]], idle_seconds: float
) -> None:
    """`tick` in rounds, with monotonic seconds; what our own database raises is told, and it is looked at again."""

    async def look() -> None:
        try:
            await tick(clock.monotonic())
        except CollectiveError as error:
            observer.event("waking.failed", reason=error.message)

    await bell.rounds(look, idle_seconds=idle_seconds, rest_seconds=REST_SECONDS)


@dataclass
class Recall:
    """In doubt: has everything back from everybody, and notes who has answered."""

    catalog: Catalog
    taker: EntryTaker
    book: PeerBook
    bell: ChangeBell
    clock: Clock
    observer: Observer
    _not_before: dict[str, float] = field(default_factory=dict)  # member -> monotonic seconds

    async def run(self) -> None:
        """When something changed and every second while in doubt. Ends by cancellation."""
        await _rounds(self.bell, self.clock, self.observer, self.tick, ASK_SECONDS)

    async def tick(self, now: float) -> None:
        """Ask whoever has not answered, `now` in monotonic seconds; before we know who is a member, everybody known."""
        if not self.catalog.doubts():
            return
        admitted = self.catalog.own_is_admitted()
        awaited = self.catalog.awaited() or self.catalog.unheard()  # the excused when nobody else is left to ask
        asked = awaited if admitted else self.book.domains(self.catalog.own_domain)
        due = [domain for domain in asked if self._not_before.get(domain, 0.0) <= now]
        await asyncio.gather(*(self._ask(domain, now) for domain in due))

    async def _ask(self, domain: str, now: float) -> None:
        self._not_before[domain] = now + ASK_AGAIN_SECONDS
        reasons = []
        for endpoint in self.book.endpoints(domain):
            try:
                pulled = await self.taker.pull(domain, endpoint.grpc)
            except CollectiveError as error:
                reasons.append(error.message)
                continue
            if pulled.complete and self.catalog.note_answer(domain):
                self.observer.event("waking.answered", member=domain)
            if pulled.progress:
                self._not_before.pop(domain, None)
            self.bell.ring()
            return
        self.observer.event("debug.waking.not_answered", member=domain, reason="; ".join(reasons))


@dataclass(frozen=True)
class HandBackDesk:
    """The owner's side."""

    catalog: Catalog
    bell: ChangeBell
    observer: Observer
    write: Write

    async def hand_back(self, caller: Caller, request: control_pb2.HandBackRequest) -> control_pb2.HandBackReply:
        """Keep entries of own feeds that came back; every one is verified as ours. Durable when it answers."""
        if len(request.entries) > MAX_ENTRIES_PER_CALL:
            raise Refused(f"{len(request.entries)} entries in one call", f"hand back up to {MAX_ENTRIES_PER_CALL}")

        def keep() -> None:
            for entry in request.entries:
                try:
                    self.catalog.take_handed_back(entry)
                except Conflict as error:  # two histories of ours: kept as evidence; the rest is taken all the same
                    self.observer.event("waking.conflict", feed=request.feed_id.hex(), reason=error.message)

        await self.write(keep)
        self.bell.ring()
        return control_pb2.HandBackReply()


@dataclass
class HandOver:
    """The other side: sends what was un-applied here to its owner, one parcel a feed and round."""

    catalog: Catalog
    book: PeerBook
    channels: Channels
    bell: ChangeBell
    clock: Clock
    observer: Observer
    write: Write
    _not_before: dict[str, float] = field(default_factory=dict)  # owner -> monotonic seconds

    async def run(self) -> None:
        """When something changed, and now and then for who was away. Ends by cancellation."""
        await _rounds(self.bell, self.clock, self.observer, self.tick, PAUSE_SECONDS)

    async def tick(self, now: float) -> None:
        """One round, `now` in monotonic seconds. A call that fails is made again later."""
        for parcel in self.catalog.parcels():
            if self._not_before.get(parcel.owner, 0.0) > now:
                continue
            try:
                await self._send(parcel)
            except CollectiveError as error:
                self._not_before[parcel.owner] = now + PAUSE_SECONDS
                self.observer.event("waking.hand_back_failed", owner=parcel.owner, reason=error.message)

    async def _send(self, parcel: Parcel) -> None:
        endpoints = self.book.endpoints(parcel.owner)
        if not endpoints:
            return
        await self.channels.unary(
            FederatedAddress("coord", parcel.owner),
            endpoints[0].grpc,
            "/collective.v1.Federation/HandBack",
            control_pb2.HandBackRequest(feed_id=parcel.feed_id, entries=parcel.entries),
            control_pb2.HandBackReply,
            CALL_TIMEOUT_SECONDS,
        )
        await self.write(lambda: self.catalog.note_handed_over(parcel))
        count = len(parcel.entries)
        self.observer.event("waking.handed_back", owner=parcel.owner, feed=parcel.feed_id.hex(), entries=count)


def waking_rows(desk: HandBackDesk) -> list[Row]:
    """The dispatch row of Federation that this module answers."""
    handler: Callable[[Caller, Any], Any] = desk.hand_back
    return [
        Row(
            method="/collective.v1.Federation/HandBack",
            kinds=frozenset({ComponentKind.COORDINATOR}),
            local=False,
            right="being a member; entries of the answering member's own feeds alone",
            level=Level.FEDERATED,
            handler=handler,
        )
    ]
