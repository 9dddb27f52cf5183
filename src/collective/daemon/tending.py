"""What a running coordinator does unasked: copies, key wraps, statements, its card, the configured DataStores."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from collective.admission import Household
from collective.catalog import Catalog
from collective.core.clock import Clock
from collective.core.errors import CollectiveError
from collective.core.observe import Observer
from collective.daemon.config import DataStoreConfig
from collective.daemon.runtime import Writer
from collective.transfer.events import ChangeBell
from collective.transfer.node_heads import compare_heads
from collective.transfer.nodes import NodeDirectory
from collective.transfer.placing import ChooseMembers, place_again
from collective.transfer.refetch import Refetcher
from collective.transfer.repair import CopyMaker
from collective.wire import feed_pb2

__all__ = ["Tending", "guarded", "pledge"]

TICK_SECONDS = 0.25  # copies, wraps and statements are looked after this often, and when something changed …
REST_SECONDS = 0.1  # … with so much between two rounds: a stream of changes is looked at in portions
STATEMENT_SECONDS = 1.0  # between two statements of a host: each is an entry here and a commit everywhere
NODE_STATUS_SECONDS = 10.0
OPENED_SECONDS = 1.0  # how often others hear of entries that are being opened
FORGET_NODES_SECONDS = 86400.0  # of running without a node that the card names


async def guarded(observer: Observer, what: str, work: Callable[[], Awaitable[None]]) -> None:
    """A failed round of background work is told and tried again; it does not end the coordinator."""
    try:
        await work()
    except CollectiveError as error:
        observer.event("background.failed", what=what, reason=error.message)
    except Exception as error:
        observer.event("background.unexpected", what=what, error=f"{type(error).__name__}: {error}")


def pledge(nodes: NodeDirectory, told_bytes: int) -> int:
    """What this home hosts for others at most: what was said, or what its separate nodes may hold."""
    return told_bytes or sum(node.capacity_bytes for node in nodes.all())


@dataclass(frozen=True)
class Tending:
    """The rounds of background work. `storage_bytes` is what was told at the start; 0: no embedded node."""

    catalog: Catalog
    household: Household
    nodes: NodeDirectory
    copies: CopyMaker
    refetch: Refetcher
    choose_members: ChooseMembers
    endpoints: list[feed_pb2.Endpoint]
    writer: Writer
    bell: ChangeBell
    clock: Clock
    observer: Observer
    storage_bytes: int
    _due: dict[str, float] = field(default_factory=dict)  # monotonic seconds

    async def begin(self, configured: Iterable[DataStoreConfig]) -> None:
        """What is done once, before the rounds. In doubt nothing can be written, but reading goes on."""
        await guarded(self.observer, "datastores", lambda: self.make_datastores(configured))
        await guarded(self.observer, "card", self.update_card)

    async def every_change(self) -> None:
        """Each room's tick, when something changed and at least every tick. Ends by cancellation."""
        started = self.clock.monotonic()
        status_due, known_nodes = 0.0, 0

        async def look() -> None:
            nonlocal status_due, known_nodes
            now = self.clock.monotonic()
            if now >= status_due or len(self.nodes.all()) != known_nodes:
                status_due, known_nodes = now + NODE_STATUS_SECONDS, len(self.nodes.all())
                keeps_absent = now - started < FORGET_NODES_SECONDS
                await guarded(self.observer, "nodes", self.nodes.refresh)
                await guarded(self.observer, "heads", self._compare_heads)
                await guarded(self.observer, "card", lambda: self.update_card(keeps_absent))
            await guarded(self.observer, "tend", self._tend)

        await self.bell.rounds(look, idle_seconds=TICK_SECONDS, rest_seconds=REST_SECONDS)

    async def make_copies(self) -> None:
        """Copies in a loop of their own: a large one takes hours and must not hold up keys and grants."""
        await self._at_every_change("copies", self.copies.tick)

    async def make_whole(self) -> None:
        """What own nodes lost, in a loop of its own for the same reason."""
        await self._at_every_change("refetch", self.refetch.tick)

    async def _at_every_change(self, what: str, tick: Callable[[float], Awaitable[None]]) -> None:
        async def look() -> None:
            await guarded(self.observer, what, lambda: tick(self.clock.monotonic()))

        await self.bell.rounds(look, idle_seconds=TICK_SECONDS, rest_seconds=REST_SECONDS)

    async def _compare_heads(self) -> None:
        await compare_heads(self.catalog, self.nodes, self.observer, self.writer)

    async def _open_what_waits(self) -> None:
        """Entries whose key came after them, in turns of the writer thread; who waits for news hears now and then."""
        steps = self.catalog.open_what_waits()
        told = self.clock.monotonic()
        opened = False
        while await self.writer(lambda: next(steps, False) is None):
            opened = True
            if self.clock.monotonic() - told >= OPENED_SECONDS:
                told = self.clock.monotonic()
                self.bell.ring()
        if opened:
            self.bell.ring()

    async def _tend(self) -> None:
        await self._open_what_waits()

        def care() -> bool:
            changed = self.catalog.care(self.clock.wall())
            now = self.clock.monotonic()
            if self.catalog.restate(lazily=now < self._due.get("statement", 0.0)):
                self._due["statement"] = now + STATEMENT_SECONDS
                changed = True
            return place_again(self.catalog, self.choose_members) or changed

        if await self.writer(care):
            self.bell.ring()

    async def update_card(self, keeps_absent: bool = True) -> None:
        """Say in the member feed who our nodes are and where we can be reached, when that changed.

        Separate nodes that have not registered since the start stay on it while `keeps_absent`: a coordinator that was
        started a moment ago does not know better, and looks for the heads they keep where the card says they are.
        """
        if self.catalog.is_doubtful():
            return  # nothing is signed now; it is said when the doubt is over
        own = next(m for m in self.catalog.members() if m.domain == self.household.member_domain)
        cards = self.nodes.cards()
        if own.card is not None and keeps_absent:
            present = {card.address for card in cards}
            cards += [card for card in own.card.nodes if card.address not in present]
        card = feed_pb2.Card(
            wrapping_key=self.household.keys.wrapping_key.public_key().public_bytes_raw(),
            endpoints=self.endpoints,
            nodes=sorted(cards, key=lambda card: card.address),
            pledge_bytes=self.storage_bytes or sum(card.capacity_bytes for card in cards),
        )
        if own.card is not None and _nearly_equal(own.card, card):
            return
        id_ = feed_pb2.OperationId(writer=self.household.member_domain, random=os.urandom(16))
        operation = feed_pb2.MemberOperation(id=id_, card=card)
        await self.writer(lambda: self.catalog.append_member([operation]))
        self.bell.ring()

    async def make_datastores(self, configured: Iterable[DataStoreConfig]) -> None:
        """Make the DataStores of the configuration that are not there yet; in doubt that is left to the next start."""
        if self.catalog.is_doubtful():
            return
        own = self.household.member_domain
        existing = {store.path for store in self.catalog.datastores() if store.owner == own}
        for wanted in configured:
            if wanted.path.encode() in existing:
                continue
            strategy = feed_pb2.Strategy.Value(wanted.strategy.upper()) if wanted.strategy else 0

            def make(
                path: bytes = wanted.path.encode(), strategy: int = strategy, copies: int = wanted.replicas
            ) -> None:
                self.catalog.create_datastore(path, strategy, copies, {})

            await self.writer(make)
        self.bell.ring()


def _nearly_equal(one: feed_pb2.Card, other: feed_pb2.Card) -> bool:
    """Whether two cards say the same; a disk's capacity may differ by a twentieth, since other files lie on it too."""
    if len(one.nodes) != len(other.nodes):
        return False
    copy = feed_pb2.Card()
    copy.CopyFrom(other)
    for told, now in zip(one.nodes, copy.nodes, strict=True):
        if abs(told.capacity_bytes - now.capacity_bytes) * 20 <= told.capacity_bytes:
            now.capacity_bytes = told.capacity_bytes
    return one == copy
