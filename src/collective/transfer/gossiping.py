"""Gossip over the control wire: carries out what the engine decides, and tells it what happened here.

    catalogue moved  --bell-->  what moved is read on the writer's thread  -->  engine.advanced
    message came     ------->   engine.receive  -->  answers to the caller go back with the reply
    time             ------->   engine.tick

A message to a peer waits in a short queue of its own; a peer that cannot be reached costs nobody else anything, and
hears nothing old when it is back. What the engine says about one call is carried out in order, its state first.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

from collective.catalog import Catalog
from collective.core.clock import Clock
from collective.core.errors import CollectiveError, Misconfigured, Unreachable
from collective.core.observe import Observer
from collective.gossip import (
    REACHABLE,
    Deliver,
    Effect,
    Engine,
    GossipSettings,
    Head,
    Learned,
    Persist,
    Pull,
    Self,
    Send,
    StateChanged,
)
from collective.net.channels import Channels
from collective.transfer.events import ChangeBell
from collective.transfer.finding import Finder
from collective.transfer.gossip_dial import GossipDial
from collective.transfer.gossip_view import (
    RIGHTS_SECONDS,
    MemberKeys,
    Moved,
    PeerState,
    View,
    read_heads,
    read_moved,
    read_view,
)
from collective.transfer.peers import PeerBook
from collective.transfer.sync import EntryTaker, Pulled
from collective.wire import control_pb2
from collective.wire.feed_pb2 import FeedHead, Position
from collective.wire.gossip_pb2 import GossipMessage, GossipType, SignedGossip

__all__ = ["GossipParts", "Gossiping"]

REST_SECONDS = 0.05  # after news was told: what follows soon goes out together, a call costs each side about 1 ms
LEAVE_SECONDS = 5.0  # for a last message to everybody
QUEUE_LENGTH = 64  # messages waiting for one peer; what is older than that is stale anyway
DELIVERIES_WAITING = 256  # pushes of up to 64 KiB; what comes beyond is asked for later
PULLS_AT_ONCE = 4
FIRST_PART = 8  # the fields of GossipMessage from there on say what it carries


@dataclass(frozen=True)
class GossipParts:
    """What the driver needs. `only`: the members it keeps to (None: all). `load` and `save` keep the engine's state."""

    catalog: Catalog
    bell: ChangeBell
    book: PeerBook
    finder: Finder
    channels: Channels
    clock: Clock
    observer: Observer
    own: Self
    sign: Callable[[bytes], bytes]
    keys: MemberKeys
    settings: GossipSettings
    bootstrap: Sequence[str]
    only: frozenset[str] | None
    load: Callable[[], bytes]
    save: Callable[[bytes], None]
    taker: EntryTaker
    read: Callable[[Callable[[], tuple[View | None, list[Moved]]]], Awaitable[tuple[View | None, list[Moved]]]]


class Gossiping:
    """One coordinator's gossip. `run` once; belongs to its event loop."""

    def __init__(self, parts: GossipParts, random: Random) -> None:
        self._parts = parts
        self._view = View()
        self._engine = Engine(
            parts.own,
            parts.settings,
            random,
            sign=parts.sign,
            verify=parts.keys.verify,
            may_follow=lambda member, feed: self._view.may_follow(member, feed),
            wall=parts.clock.wall,
        )
        self._running: asyncio.TaskGroup | None = None
        self._alarm = asyncio.Event()
        self._looking = asyncio.Lock()
        self._seen: dict[bytes, Head] = {}
        self._view_due = 0.0
        self._queues: dict[str, deque[bytes]] = {}
        self._deliveries: asyncio.Queue[Deliver] = asyncio.Queue(DELIVERIES_WAITING)
        self._pulls = asyncio.Semaphore(PULLS_AT_ONCE)
        self._dial = GossipDial(parts.channels, parts.book, parts.finder, parts.observer)
        self._reasons: dict[str, str] = {}
        self._left = False
        self._drained = asyncio.Event()

    def states(self) -> dict[str, PeerState]:
        """Every other member as it looks from here."""
        now = self._parts.clock.monotonic()
        return {
            view.domain: PeerState(
                state=view.state,
                endpoint=self._dial.used(view.domain),
                heard_seconds_ago=None if view.last_heard is None else max(0.0, now - view.last_heard),
                behind=view.behind,
                ahead=view.ahead,
                reason=self._reasons.get(view.domain, ""),
            )
            for view in self._engine.members()
        }

    def life(self, domain: str) -> int:
        """A number that is another one at each start of a member, 0 while it cannot be reached."""
        peer = self._engine.membership.peers.get(domain)
        return peer.incarnation if peer is not None and peer.state in REACHABLE else 0

    async def leave(self) -> tuple[list[str], list[str]]:
        """Say to everybody that this member goes on purpose, and nothing after it: (who was told, who could not be).

        Raises: Unreachable while it does not run.
        """
        if self._running is None:
            raise Unreachable("this coordinator is starting or stopping", "try again in a moment")
        peers = list(self._engine.membership.peers)
        live = self._engine.membership.live()
        self._left = True
        self._carry_out(self._engine.leave(self._parts.clock.monotonic()))
        try:
            async with asyncio.timeout(LEAVE_SECONDS):
                while self._queues:
                    self._drained.clear()
                    await self._drained.wait()
        except TimeoutError:
            self._parts.observer.event("gossip.leave_unfinished", waiting=", ".join(self._queues))
        told = [peer for peer in live if peer not in self._reasons and peer not in self._queues]
        return told, sorted(set(peers) - set(told))

    # ------------------------------------------------------------ running

    async def run(self) -> None:
        """Gossip until cancelled."""
        parts = self._parts
        async with asyncio.TaskGroup() as group:
            self._running = group
            try:
                self._seen = read_heads(parts.catalog)
                self._take_view(read_view(parts.catalog, parts.clock.wall()))
                self._start()
                group.create_task(self._deliver_for_ever(), name="gossip deliveries")
                group.create_task(self._keep_time(), name="gossip time")
                await self._watch()
            finally:
                self._running = None

    def _start(self) -> None:
        parts, engine = self._parts, self._engine
        now = parts.clock.monotonic()
        heads = read_heads(parts.catalog)
        try:
            effects = engine.start(parts.load(), self._roster(), heads, now)
        except Misconfigured as error:
            # nothing is lost with it but a round of questions: others know this member's incarnation
            parts.observer.event("gossip.state_broken", reason=error.message)
            effects = engine.start(b"", self._roster(), heads, now)
        self._carry_out(effects)
        self._carry_out(engine.describe(engine.statements.own.endpoints, self._view.datastores, now))

    async def _watch(self) -> None:
        """Tell the engine of everything that moves in the catalogue."""
        parts = self._parts
        counter = -1
        while True:
            counter = await parts.bell.wait_past(counter, RIGHTS_SECONDS)
            try:
                await self._report()
            except CollectiveError as error:
                parts.observer.event("gossip.unreadable", reason=error.message)
                await asyncio.sleep(parts.settings.first_backoff_seconds)
            await asyncio.sleep(REST_SECONDS)

    async def _report(self) -> None:
        """Look once, and tell the engine what was seen."""
        if self._left:
            return  # a word more, and this member would count as here again
        parts = self._parts
        async with self._looking:
            view, moved = await parts.read(self._look)
            now = parts.clock.monotonic()
            if view is not None:
                self._take_view(view)
                self._carry_out(self._engine.set_roster(self._roster(), now))
                self._carry_out(self._engine.describe(parts.own.endpoints, view.datastores, now))
            for news in moved:
                self._seen[news.feed] = news.head
                self._carry_out(self._engine.advanced(news.feed, news.head, news.entries, now))
            if view is not None:
                self._carry_out(self._engine.rights_changed(now))

    def _look(self) -> tuple[View | None, list[Moved]]:
        """On the writer's thread: what moved, and rights and keys when they may have changed."""
        catalog, clock = self._parts.catalog, self._parts.clock
        moved = read_moved(catalog, self._seen)
        stores = {store.feed_id for store in catalog.datastores()} if moved else set()
        view = None
        if clock.monotonic() >= self._view_due or any(news.feed not in stores for news in moved):
            view = read_view(catalog, clock.wall())
        return view, moved

    def _take_view(self, view: View) -> None:
        for domain, places in self._engine.known().items():
            heads = [FeedHead(feed_id=feed, head=Position(seq=seq)) for feed, (_, seq) in places.items()]
            self._parts.catalog.note_heads(domain, heads)  # entries are dropped when everybody is past them
        self._view = self._parts.keys.view = view
        self._view_due = self._parts.clock.monotonic() + RIGHTS_SECONDS
        self._dial.forget()

    def _roster(self) -> set[str]:
        """Members, and who is known from earlier: a home that lost its database has no others."""
        parts = self._parts
        earlier = parts.book.domains(parts.own.domain)
        known = {*self._view.roster, *parts.bootstrap, *earlier} - self._view.removed
        only = parts.only
        return set(known) if only is None else {each for each in known if each in only or self._is_known(each)}

    def _is_known(self, domain: str) -> bool:
        return domain in self._engine.membership.peers

    async def _keep_time(self) -> None:
        clock = self._parts.clock
        while not self._left:
            self._alarm.clear()
            wait = self._engine.due() - clock.monotonic()
            if wait > 0:
                try:
                    async with asyncio.timeout(wait):
                        await self._alarm.wait()
                except TimeoutError:
                    pass  # that is what was waited for
                continue
            self._carry_out(self._engine.tick(clock.monotonic()))
            await asyncio.sleep(0)

    # ------------------------------------------------------------ messages

    async def handle(self, sender: str, message: SignedGossip) -> control_pb2.GossipReply:
        """A message came over a connection that is `sender`'s. Raises: Refused, Corrupt, Unreachable (starting)."""
        if self._running is None or self._left:
            raise Unreachable("this coordinator is starting or stopping", "try again in a moment")
        raw = message.SerializeToString()
        replies: list[bytes] = []
        try:
            effects = self._engine.receive(sender, raw, self._parts.clock.monotonic())
        except CollectiveError as error:
            self._parts.observer.event("gossip.refused", peer=sender, reason=error.message)
            raise
        self._told("debug.gossip.received", sender, raw)
        self._carry_out(effects, replies, sender)
        return control_pb2.GossipReply(messages=[SignedGossip.FromString(reply) for reply in replies])

    def _carry_out(self, effects: Iterable[Effect], replies: list[bytes] | None = None, caller: str = "") -> None:
        """Do what the engine decided; messages to the caller, if there is one, become replies."""
        parts = self._parts
        for effect in effects:
            match effect:
                case Persist(state):
                    parts.save(state)
                case Send(peer, raw) if replies is not None and peer == caller:
                    self._told("debug.gossip.sent", peer, raw)
                    replies.append(raw)
                case Send(peer, raw):
                    self._queue(peer, raw)
                case Deliver(peer, feed):
                    try:
                        self._deliveries.put_nowait(effect)
                    except asyncio.QueueFull:
                        self._carry_out(self._engine.refused(peer, feed, parts.clock.monotonic()))
                case Pull(peer, feeds):
                    self._spawn(partial(self._pull, peer, feeds), f"pull from {peer}")
                case Learned(domain, endpoints):
                    parts.book.learn(domain, endpoints)
                    self._dial.forget(domain)
                case StateChanged(domain, old, new):
                    self._dial.heard(domain)
                    parts.observer.event("gossip.member", member=domain, was=str(old), now=str(new))
        self._alarm.set()

    def _spawn(self, work: Callable[[], Coroutine[object, object, None]], name: str) -> None:
        async def guarded() -> None:
            try:
                await work()
            except Exception as error:
                # what one peer sends must never end the coordinator; it is told loudly
                self._parts.observer.event("gossip.unexpected", what=name, error=f"{type(error).__name__}: {error}")

        if self._running is not None:  # else stopping
            self._running.create_task(guarded(), name=name)

    def _queue(self, peer: str, raw: bytes) -> None:
        waiting = self._queues.get(peer)
        if waiting is not None:
            if len(waiting) >= QUEUE_LENGTH:
                waiting.popleft()
            waiting.append(raw)
            return
        self._queues[peer] = deque([raw])
        self._spawn(partial(self._send_all, peer), f"gossip to {peer}")

    async def _send_all(self, peer: str) -> None:
        waiting = self._queues[peer]
        try:
            while waiting:
                await self._send(peer, waiting.popleft())
        finally:
            del self._queues[peer]
            self._drained.set()

    async def _send(self, peer: str, raw: bytes) -> None:
        clock = self._parts.clock
        self._told("debug.gossip.sent", peer, raw)
        try:
            reply = await self._dial.call(peer, raw)
        except CollectiveError as error:
            self._reasons[peer] = error.message
            waiting = self._queues[peer]
            while isinstance(error, Unreachable) and len(waiting) > 1:
                waiting.popleft()  # old by now, suspicions long answered among it: the newest alone is tried again
            self._carry_out(self._engine.unreachable(peer, clock.monotonic()))
            return
        self._reasons.pop(peer, None)
        for message in () if self._left else reply.messages:
            answer = message.SerializeToString()
            try:
                effects = self._engine.receive(peer, answer, clock.monotonic())
                self._told("debug.gossip.received", peer, answer)
                self._carry_out(effects)
            except CollectiveError as error:
                self._parts.observer.event("gossip.refused", peer=peer, reason=error.message)

    def _told(self, event: str, peer: str, raw: bytes) -> None:
        """Of a message made here, or one that the engine took: others may be no message at all."""
        message = GossipMessage.FromString(SignedGossip.FromString(raw).message)
        parts = ",".join(name.name for name, _ in message.ListFields() if name.number >= FIRST_PART)
        self._parts.observer.event(
            event, peer=peer, type=GossipType.Name(message.type), source=message.source, lamport=message.lamport,
            bytes=len(raw), carries=parts,
        )  # fmt: skip

    # ------------------------------------------------------------ entries

    async def _deliver_for_ever(self) -> None:
        """Pushed entries, one batch after the other, in the order they came."""
        while True:
            batch = await self._deliveries.get()
            try:
                await self._parts.taker.take(batch.peer, batch.feed, batch.entries)
                epoch_number, seq = batch.place
                if self._parts.catalog.has_reached(batch.feed, Position(epoch_number=epoch_number, seq=seq)):
                    continue  # else they were known before, and said to be new
            except Exception as error:
                if not isinstance(error, CollectiveError):
                    told = f"{type(error).__name__}: {error}"
                    self._parts.observer.event("gossip.unexpected", what="deliver", error=told)
            self._carry_out(self._engine.refused(batch.peer, batch.feed, self._parts.clock.monotonic()))

    async def _pull(self, peer: str, feeds: Sequence[bytes]) -> None:
        pulled = Pulled(progress=False, complete=False)
        try:
            async with self._pulls:
                pulled = await self._parts.taker.pull(peer, await self._dial.first_place(peer), feeds)
                await self._report()  # the next comparison must see what came
        except CollectiveError as error:
            self._parts.observer.event("sync.broken", peer=peer, reason=error.message)
        finally:
            now = self._parts.clock.monotonic()
            self._carry_out(self._engine.pulled(peer, pulled.complete, pulled.progress, now))
