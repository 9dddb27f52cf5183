"""Gossip alone, of very many members: virtual time, one seed, the real engine, a network that loses and reorders.

A `World` moves messages between `Member`s. What a member knows lies behind the `Feeds` protocol, lists in memory here.
The members carry out effects as the coordinator's driver does; whole coordinators are in `homes.py`.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from blake3 import blake3

from collective.core.address import FederatedAddress
from collective.core.errors import CollectiveError, NotFound, Refused
from collective.gossip import (
    LAN,
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
    State,
    StateChanged,
    Versions,
)
from collective.gossip.dissemination import Place

PULL_TIMEOUT_SECONDS = 5.0
START = 1_700_000_000.0


class Feeds(Protocol):
    """What one member knows, as gossip sees it."""

    def heads(self) -> dict[bytes, Head]: ...

    def entries_after(self, feed: bytes, seq: int) -> list[tuple[int, bytes]]: ...

    def entries_beyond(self, feed: bytes, theirs: Head | None) -> list[bytes]:
        """What somebody with that head lacks."""
        ...

    def receive(self, feed: bytes, entries: Sequence[bytes]) -> int:
        """Apply what came; how many were new. Raises: CollectiveError."""
        ...

    def may_follow(self, member: str, feed: bytes) -> bool: ...

    def rights(self) -> int:
        """Grows when anybody's right to follow a feed may have changed."""
        ...

    def roster(self) -> list[str]: ...

    def in_order(self, feeds: Iterable[bytes]) -> list[bytes]: ...


@dataclass
class MemoryFeeds:
    """Feeds as lists; `secret` names the members that may follow a feed (others: everybody)."""

    members: Sequence[str]
    secret: Mapping[bytes, frozenset[str]] = field(default_factory=dict)
    feeds: dict[bytes, list[bytes]] = field(default_factory=dict)

    def append(self, feed: bytes, content: bytes) -> None:
        entries = self.feeds.setdefault(feed, [])
        entries.append(feed + len(entries).to_bytes(4, "big") + content)

    def heads(self) -> dict[bytes, Head]:
        return {
            feed: Head(1, b"e" * 16, len(entries), blake3(entries[-1]).digest())
            for feed, entries in self.feeds.items()
            if entries
        }

    def entries_after(self, feed: bytes, seq: int) -> list[tuple[int, bytes]]:
        return list(enumerate(self.feeds.get(feed, [])[seq:], seq + 1))

    def entries_beyond(self, feed: bytes, theirs: Head | None) -> list[bytes]:
        return self.feeds.get(feed, [])[theirs.seq if theirs else 0 :]

    def receive(self, feed: bytes, entries: Sequence[bytes]) -> int:
        new = 0
        for raw in entries:
            mine = self.feeds.get(feed, [])
            seq = int.from_bytes(raw[len(feed) : len(feed) + 4], "big")
            if seq > len(mine):
                raise NotFound("a gap")
            if seq == len(mine):
                self.feeds.setdefault(feed, []).append(raw)
                new += 1
        return new

    def may_follow(self, member: str, feed: bytes) -> bool:
        told = self.secret.get(feed)
        return told is None or member in told

    def rights(self) -> int:
        return 0

    def roster(self) -> list[str]:
        return list(self.members)

    def in_order(self, feeds: Iterable[bytes]) -> list[bytes]:
        return sorted(feeds)


@dataclass
class Network:
    """What happens to messages. `blocked` holds (from, to) pairs; a dead host refuses or swallows connections."""

    loss: float = 0.0
    duplication: float = 0.0
    least_delay: float = 0.0005
    most_delay: float = 0.002
    refuses: bool = True
    blocked: set[tuple[str, str]] = field(default_factory=set)
    messages: int = 0
    bytes: int = 0
    entry_bytes: int = 0

    def block(self, some: Iterable[str], others: Iterable[str], *, one_way: bool = False) -> None:
        for a, b in itertools.product(list(some), list(others)):
            self.blocked.add((a, b))
            if not one_way:
                self.blocked.add((b, a))

    def heal(self) -> None:
        self.blocked.clear()

    def mend(self) -> None:
        """Nothing happens to messages any more but delay."""
        self.heal()
        self.loss = self.duplication = 0.0

    # what a relay in between may do (relay.py); a network has none

    def passing(self, source: str, target: str, raw: bytes) -> Iterable[tuple[str, str, bytes]]:
        """What arrives instead of a message: (over whose connection, at whom, what)."""
        return [(source, target, raw)]

    def answering(self, answer: list[tuple[bytes, list[bytes]]]) -> list[tuple[bytes, list[bytes]]]:
        """What arrives instead of the entries, by feed, that answer a pull."""
        return answer


def stand_in_sign(domain: str) -> Callable[[bytes], bytes]:
    """Cheap and unforgeable within one process."""
    return lambda data: blake3(domain.encode() + b"\0" + data).digest(32)


def stand_in_verify(domain: str, data: bytes, signature: bytes, certificates: Sequence[bytes]) -> None:
    if blake3(domain.encode() + b"\0" + data).digest(32) != signature:
        raise Refused("the signature does not fit")


class World:
    """Virtual time and the network between members."""

    def __init__(self, seed: int, settings: GossipSettings = LAN, network: Network | None = None) -> None:
        self.random = Random(seed)
        self.settings = settings
        self.network = network or Network()
        self.now = 0.0
        self.members: dict[str, Member] = {}
        self.states: list[tuple[float, str, str, State]] = []  # (when, who thinks, of whom, what)
        self.engine_class: type[Engine] = Engine
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()

    def add(self, name: str, feeds: Feeds, *, skew: float = 0.0, saved: bytes = b"") -> Member:
        member = self.members[name] = Member(self, name, feeds, skew=skew, durable=saved)
        return member

    def at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (when, next(self._count), act))

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while self._queue and self._queue[0][0] <= end:
            self.now, _, act = heapq.heappop(self._queue)
            act()
        self.now = end

    def run_until(self, condition: Callable[[], bool], most_seconds: float, step: float = 0.1) -> float:
        """Let time pass until the condition holds; how long that took. Fails after `most_seconds`."""
        began = self.now
        while not condition():
            if self.now - began > most_seconds:
                raise AssertionError(f"not after {most_seconds} simulated seconds")
            self.run(step)
        return self.now - began

    def carry(self, source: str, target: str, size_bytes: int, arrive: Callable[[], None]) -> None:
        """One message on its way: lost, doubled, delayed."""
        network = self.network
        network.messages += 1
        network.bytes += size_bytes
        copies = 2 if network.duplication and self.random.random() < network.duplication else 1
        for _ in range(copies):
            if (source, target) in network.blocked or (network.loss and self.random.random() < network.loss):
                continue
            self.at(self.now + self.random.uniform(network.least_delay, network.most_delay), arrive)


class Member:
    """One virtual home: what it knows, its engine while it runs, and what it kept."""

    def __init__(self, world: World, name: str, feeds: Feeds, *, skew: float, durable: bytes) -> None:
        self.world = world
        self.name = name
        self.feeds = feeds
        self.skew = skew
        self.durable = durable  # what of gossip's state survives a crash
        self.engine: Engine | None = None
        self.versions = Versions()
        self.life = 0
        self.learned: dict[str, int] = {}
        self.refusals: list[str] = []
        self._offset = 0.0
        self._alarm = float("inf")
        self._seen: dict[bytes, Head] = {}
        self._rights = 0

    # ------------------------------------------------------------ a life

    def start(self) -> Member:
        world = self.world
        self.life += 1
        self._offset = world.random.uniform(0, 1e6)
        self._alarm = float("inf")
        heads = self.feeds.heads()
        self._seen = dict(heads)
        self.engine = world.engine_class(
            Self(FederatedAddress("coord", self.name), certificates=(b"certificate of " + self.name.encode(),)),
            world.settings,
            Random(world.random.getrandbits(64)),
            sign=stand_in_sign(self.name),
            verify=stand_in_verify,
            may_follow=lambda member, feed: self.feeds.may_follow(member, feed),
            wall=lambda: START + world.now + self.skew,
            versions=self.versions,
        )
        self._carry_out(self.engine.start(self.durable, self.feeds.roster(), heads, self._time()))
        return self

    def crash(self, *, durable: bytes | None = None) -> None:
        """Stop at once; what is on its way to this member is lost. `durable`: an older state comes back."""
        self.engine = None
        if durable is not None:
            self.durable = durable

    def _time(self) -> float:
        return self.world.now + self._offset

    # ------------------------------------------------------------ what happens to it

    def changed(self) -> None:
        """Something was appended or applied here: tell the engine of every feed that moved."""
        if self.engine is None:
            return
        moved = {feed: head for feed, head in self.feeds.heads().items() if head != self._seen.get(feed)}
        self._carry_out(self.engine.set_roster(self.feeds.roster(), self._time()))
        for feed in self.feeds.in_order(moved):
            before, head = self._seen.get(feed), moved[feed]
            same_epoch = before is None or before.epoch_id == head.epoch_id
            entries = self.feeds.entries_after(feed, before.seq if before else 0) if same_epoch else []
            self._seen[feed] = head
            self._carry_out(self.engine.advanced(feed, head, entries, self._time()))
        if self.feeds.rights() != self._rights:
            self._rights = self.feeds.rights()
            self._carry_out(self.engine.rights_changed(self._time()))

    def receive(self, sender: str, raw: bytes) -> None:
        if self.engine is None:
            return
        try:
            effects = self.engine.receive(sender, raw, self._time())
        except CollectiveError as error:
            self.refusals.append(error.message)
            return
        self._carry_out(effects)

    def thinks(self, name: str) -> State:
        assert self.engine is not None
        return next(view.state for view in self.engine.members() if view.domain == name)

    # ------------------------------------------------------------ effects

    def _carry_out(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Persist(state):
                    self.durable = state
                case Send(peer, raw):
                    self._send(peer, raw)
                case Deliver(peer, feed, entries, place):
                    self._deliver(peer, feed, entries, place)
                case Pull(peer, feeds):
                    self._pull(peer, feeds)
                case StateChanged(domain, _, new):
                    self.world.states.append((self.world.now, self.name, domain, new))
                case Learned(domain, _):
                    self.learned[domain] = self.learned.get(domain, 0) + 1
        self._set_alarm()

    def _send(self, peer: str, raw: bytes) -> None:
        world, life = self.world, self.life
        target = world.members.get(peer)
        if target is None:
            return
        if target.engine is None and world.network.refuses and (self.name, peer) not in world.network.blocked:
            world.at(world.now + world.network.most_delay, lambda: self._refused(peer, life))
            return
        name = self.name
        world.carry(name, peer, len(raw), lambda: target.receive(name, raw))

    def _refused(self, peer: str, life: int) -> None:
        if self.engine is not None and self.life == life:
            self._carry_out(self.engine.unreachable(peer, self._time()))

    def _deliver(self, peer: str, feed: bytes, entries: Sequence[bytes], place: Place) -> None:
        assert self.engine is not None
        with contextlib.suppress(CollectiveError):
            self.feeds.receive(feed, entries)
        self.changed()
        head = self.feeds.heads().get(feed)
        if head is None or head.place < place:
            self._carry_out(self.engine.refused(peer, feed, self._time()))

    def _pull(self, peer: str, feeds: Sequence[bytes]) -> None:
        """A request and its answer, each over the network; silence ends it."""
        world, life, asker, here = self.world, self.life, self, self.feeds.heads()
        source = world.members[peer]
        ended: list[bool] = []

        def finish(complete: bool, progress: bool) -> None:
            if not ended and self.engine is not None and self.life == life:
                ended.append(True)
                self._carry_out(self.engine.pulled(peer, complete, progress, self._time()))

        def answer() -> None:
            if source.engine is None:
                return
            allowed = [feed for feed in feeds if source.feeds.may_follow(asker.name, feed)]
            in_order = source.feeds.in_order(allowed)
            found = [(feed, source.feeds.entries_beyond(feed, here.get(feed))) for feed in in_order]
            size = sum(len(raw) for _, entries in found for raw in entries)
            world.network.entry_bytes += size
            world.carry(peer, asker.name, size + 200, lambda: arrive(found))

        def arrive(found: list[tuple[bytes, list[bytes]]]) -> None:
            if self.engine is None or self.life != life or ended:
                return
            new, complete = 0, True
            for feed, entries in found:
                try:
                    new += self.feeds.receive(feed, entries)
                except CollectiveError:
                    complete = False
            self.changed()
            finish(complete, new > 0)

        world.carry(self.name, peer, 100 * len(feeds), answer)
        world.at(world.now + PULL_TIMEOUT_SECONDS, lambda: finish(False, False))

    def _set_alarm(self) -> None:
        if self.engine is None:
            return
        due = max(self.engine.due() - self._offset, self.world.now)
        if due < self._alarm - 1e-9:
            self._alarm = due
            life = self.life
            self.world.at(due, lambda: self._ring(due, life))

    def _ring(self, due: float, life: int) -> None:
        if self.engine is None or self.life != life or due != self._alarm:
            return
        self._alarm = float("inf")
        self._carry_out(self.engine.tick(self._time() + 1e-9))


def memory_world(seed: int, count: int, settings: GossipSettings = LAN, network: Network | None = None) -> World:
    """Members with feeds in memory, each with a feed of its own name; not started yet."""
    world = World(seed, settings, network)
    names = [f"m{number:04d}.media.collective" for number in range(count)]
    for name in names:
        world.add(name, MemoryFeeds(names))
    return world


def acquainted(world: World) -> World:
    """Start everybody as if they had known each other for long: alive, and with each other's statements."""
    for member in world.members.values():
        member.start()
    for member in world.members.values():
        engine = member.engine
        assert engine is not None
        for name, other in world.members.items():
            if name != member.name:
                assert other.engine is not None
                statement = other.engine.statements.get(name)
                assert statement is not None
                engine.statements.keep(statement)
                engine.membership.heard(name, statement.message.incarnation, member._time())
    world._queue.clear()
    for member in world.members.values():
        member._alarm = float("inf")
        member._set_alarm()
    return world
