"""The engine's parts together, and what goes out: actions of the parts become messages and effects."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from random import Random

from collective.gossip.antientropy import AntiEntropy, MayFollow, feed_head
from collective.gossip.dissemination import NOWHERE, Dissemination, Head, Interval, Place
from collective.gossip.effects import Effect, Persist, Pull, Send, StateChanged
from collective.gossip.membership import REACHABLE, Ask, Changed, Membership, Nack, Peer, Ping, State
from collective.gossip.messages import Opened, Sign, Verify, Versions, seal
from collective.gossip.outbox import Outbox
from collective.gossip.settings import GossipSettings
from collective.gossip.statements import Self, Statements
from collective.wire.gossip_pb2 import GossipMessage, Notice, Probe, Push, SignedGossip, Suspicion

__all__ = ["Arriving", "Speaker"]

NO_HEAD = Head(0, b"", 0, b"")


@dataclass(frozen=True)
class Arriving:
    """Entries handed to the catalogue, or being `pulled` because of a push, and where to pass them on."""

    place: Place
    interval: Interval
    peer: str
    pulled: bool


class Speaker:
    """State of one member's gossip and its voice."""

    def __init__(
        self,
        own: Self,
        settings: GossipSettings,
        random: Random,
        *,
        sign: Sign,
        verify: Verify,
        may_follow: MayFollow,
        wall: Callable[[], float],
        versions: Versions = Versions(),  # noqa: B008 - frozen
    ) -> None:
        self.own = own.domain
        self.settings = settings
        self.membership = Membership(own.domain, settings, random)
        self.statements = Statements(own, sign, verify, versions, wall)
        self.dissemination = Dissemination(own.domain, settings, random)
        self.entropy = AntiEntropy(settings, may_follow, own.domain)
        self._random = random
        self._sign = sign
        self._verify = verify
        self._versions = versions
        self._may_follow = may_follow
        self._outbox = Outbox()
        self._effects: list[Effect] = []
        self._arriving: dict[bytes, Arriving] = {}
        self._asked: dict[bytes, list[float]] = {}  # when entries of a feed were last asked for by answering a notice
        self._introduce: set[str] = set()  # who needs this member's certificates with the next message
        self._shared: dict[str, frozenset[bytes]] = {}
        self._next_gossip = float("inf")

    # ------------------------------------------------------------ what goes out

    def _do(self, actions: Iterable[Ping | Ask | Nack | Changed], now: float) -> None:
        for action in actions:
            match action:
                case Ping(target, nonce):
                    self._probe(target, Probe.PING, nonce).summary = self._summary(target)
                case Ask(helper, target, nonce):
                    self._probe(helper, Probe.PING_REQUEST, nonce, target)
                case Nack(asker, nonce):
                    self._probe(asker, Probe.NACK, nonce)
                case Changed(domain, old, new):
                    self._effects.append(StateChanged(domain, old, new))
                    self._changed(self.membership.peers[domain], old, now)

    def _changed(self, peer: Peer, old: State, now: float) -> None:
        key = ("suspicion", peer.domain)
        self.dissemination.drop(key)
        if peer.state is State.SUSPECT:
            accusers = sorted(peer.accusers)
            suspicion = Suspicion(member=peer.domain, incarnation=peer.incarnation, accusers=accusers)
            self.dissemination.spread(key, suspicion, len(self.membership.peers), now)
        elif peer.state is State.ALIVE:
            # heard again: it may have missed much, and, away for long, may not know where this member is now
            if old is not State.SUSPECT:
                self.entropy.progressed(peer.domain)
                if (statement := self.statements.get(self.own)) is not None:
                    self._add_statement(peer.domain, statement)
            self.entropy.want(peer.domain, now)
        elif peer.state in (State.DEAD, State.LEFT):
            self.entropy.forget(peer.domain)

    def _tell(self, statement: Opened, now: float, had_it: Iterable[str] = ()) -> None:
        key = ("statement", statement.domain)
        self.dissemination.spread(key, statement, len(self.membership.peers), now, had_it)

    def _probe(self, peer: str, kind: Probe.Kind.ValueType, nonce: int, target: str = "") -> GossipMessage:
        message = self._outbox.to(peer, single="probe", answer=kind in (Probe.ACK, Probe.NACK))
        message.probe.kind, message.probe.nonce, message.probe.target = kind, nonce, target
        return message

    def _push(self, peer: str, feed: bytes, entries: Sequence[tuple[int, bytes]], interval: Interval) -> None:
        """Send entries, or the head alone where there are none, with the part of the ring to pass them on in."""
        push = Push(
            head=feed_head(feed, self.entropy.heads[feed]),
            first_seq=entries[0][0] if entries else 0,
            entries=[raw for _, raw in entries],
            after=interval.after,
            up_to=interval.up_to,
        )
        self._outbox.to(peer, push).pushes.append(push)

    def _notice(self, peer: str, feed: bytes, *, answer: bool = False) -> None:
        """Tell a peer how far a feed has got here, at 0 when there is nothing of it."""
        head = self.entropy.heads.get(feed, NO_HEAD)
        notice = Notice(head=feed_head(feed, head), first_seq=self.dissemination.first_seq(feed))
        self._outbox.to(peer, notice, answer=answer).notices.append(notice)

    def _add_rumour(self, peer: str, rumour: object) -> None:
        if isinstance(rumour, Opened):
            self._add_statement(peer, rumour)
        elif isinstance(rumour, Suspicion):
            self._outbox.to(peer, rumour).suspicions.append(rumour)

    def _add_statement(self, peer: str, statement: Opened) -> None:
        signed = SignedGossip.FromString(statement.raw)
        self._outbox.to(peer, signed).statements.append(signed)

    def _pull(self, peer: str, feeds: Collection[bytes], now: float) -> bool:
        free = self.entropy.begin_pull(peer, feeds, now) if feeds else []
        if free:
            self._effects.append(Pull(peer, tuple(free)))
        return bool(free)

    def _here(self, feed: bytes) -> Place:
        """How far a feed has got, what is on its way to the catalogue included; what is being pulled may never come."""
        head = self.entropy.heads.get(feed)
        handed = self._arriving[feed].place if self._is_handed(feed) else NOWHERE
        return max(head.place if head else NOWHERE, handed)

    def _is_handed(self, feed: bytes) -> bool:
        """Whether entries of a feed are on their way to the catalogue."""
        arriving = self._arriving.get(feed)
        return arriving is not None and not arriving.pulled

    def _is_live(self, peer: str) -> bool:
        known = self.membership.peers.get(peer)
        return known is not None and known.state in REACHABLE

    def _followers(self, feed: bytes) -> list[str]:
        return [domain for domain in self.membership.live() if self._may_follow(domain, feed)]

    def _summary(self, peer: str) -> bytes:
        return self.entropy.summary(peer, self.statements.sum())

    def _seal(self, peer: str, message: GossipMessage) -> bytes:
        thought = self.membership.peers.get(peer)
        if thought is not None and thought.state in (State.SUSPECT, State.DEAD) and thought.incarnation:
            # it is the first that should know what is thought of it
            message.suspicions.add(member=peer, incarnation=thought.incarnation, accusers=[self.own])
        if peer in self._introduce or not self._is_live(peer):
            message.certificates.extend(self.statements.own.certificates)
            self._introduce.discard(peer)
        return seal(self.statements.fill(message), self._sign)

    def _finish(self) -> list[Effect]:
        sends = [Send(peer, raw) for peer, raw in self._outbox.take(self._seal)]
        effects, self._effects = self._effects, []
        if self.statements.dirty:
            effects.insert(0, Persist(self.statements.saved()))
        return [*effects, *sends]
