"""Who is alive: SWIM's probes with suspicion, indirect probes and local-health awareness.

    state     hears it        nobody's probe answers    time is over      says LEAVE
    unknown   alive           unknown                   dead              left
    alive     alive           suspect                                     left
    suspect   alive           suspect                   dead              left
    dead      alive           dead                                        left
    left      alive (newer incarnation)

In every heartbeat a member probes the next one on the ring of names, so that everybody is probed by somebody, and
some more in shuffled turns. An unanswered probe is repeated through helpers; then the member is suspected, which is
told to all. A suspect answers by a statement of a higher incarnation. Nobody is declared dead on another's word:
each judges by its own clock and its own second looks. A member that gets neither answers nor refusals through its
helpers doubts itself and waits longer. The roster is apart from all that: the dead are dialled for ever.

Source: Das, Gupta, Motivala, "SWIM" (DSN 2002); Dadgar, Phillips, Currey, "Lifeguard" (DSN-W 2018).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random

from collective.gossip.dissemination import Place
from collective.gossip.messages import MAX_ACCUSERS, ReplayWindow
from collective.gossip.settings import GossipSettings

__all__ = ["REACHABLE", "Ask", "Changed", "Membership", "Nack", "Peer", "Ping", "State"]

DIALS_AT_ONCE = 16  # of those who are away, per second look


class State(StrEnum):
    """What one member thinks of another."""

    UNKNOWN = "unknown"
    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"
    LEFT = "left"


REACHABLE = (State.ALIVE, State.SUSPECT)


@dataclass
class Peer:
    """Another member as it looks from here. Times are monotonic seconds; `known` is how far each feed is there."""

    domain: str
    state: State = State.UNKNOWN
    incarnation: int = 0
    last_heard: float | None = None
    accusers: set[str] = field(default_factory=set)
    suspected_at: float = 0.0
    look_at: float = 0.0  # the next second look, or the next dialling
    backoff: float = 0.0
    window: ReplayWindow = field(default_factory=ReplayWindow)
    known: dict[bytes, Place] = field(default_factory=dict)
    compared: bool = False  # whether heads were ever compared with it


@dataclass(frozen=True)
class Ping:
    """Send a probe; `nonce` comes back."""

    target: str
    nonce: int


@dataclass(frozen=True)
class Ask:
    """Ask a helper to probe the target."""

    helper: str
    target: str
    nonce: int


@dataclass(frozen=True)
class Nack:
    """Tell who asked that the target does not answer here."""

    asker: str
    nonce: int


@dataclass(frozen=True)
class Changed:
    """A member's state is another one now."""

    domain: str
    old: State
    new: State


Action = Ping | Ask | Nack | Changed


@dataclass
class _Probe:
    target: str
    due: float
    counts: bool  # whether silence makes a suspect
    asked: bool = False  # helpers were asked
    helpers: int = 0
    answers: int = 0  # helpers that said they are there themselves
    asker: str = ""  # for whom this probe is made, and its nonce
    asker_nonce: int = 0


class Membership:
    """The roster and what is thought of everybody in it. Methods return what is to be done."""

    def __init__(self, own: str, settings: GossipSettings, random: Random) -> None:
        self.own = own
        self.peers: dict[str, Peer] = {}
        self.health = 0  # 0 good; what doubts this member has of itself
        self._settings = settings
        self._random = random
        self._probes: dict[int, _Probe] = {}
        self._turns: list[str] = []
        self._looked_at: set[str] = set()  # all but the alive: they are suspected or dialled
        self._next_heartbeat = math.inf
        self._probed_at = math.inf
        self._ring: list[str] | None = None

    # ------------------------------------------------------------ the roster

    def start(self, now: float) -> None:
        """Begin to probe, at a moment of one's own within the first heartbeat."""
        self._next_heartbeat = now + self._random.uniform(0.2, 1.0) * self._settings.heartbeat_seconds

    def set_roster(self, domains: Iterable[str], now: float) -> None:
        """These are the members; those not seen yet are dialled, those gone from it are forgotten."""
        wanted = set(domains) - {self.own}
        for domain in self.peers.keys() - wanted:
            del self.peers[domain]
            self._looked_at.discard(domain)
        for domain in sorted(wanted - self.peers.keys()):
            peer = self.peers[domain] = Peer(domain, suspected_at=now, look_at=now)
            peer.backoff = self._settings.first_backoff_seconds
            self._looked_at.add(domain)
        self._ring = None

    def live(self) -> list[str]:
        """Who can be expected to answer, in the order of the ring. Not to be changed by the caller."""
        if self._ring is None:
            self._ring = sorted(domain for domain, peer in self.peers.items() if peer.state in REACHABLE)
        return self._ring

    # ------------------------------------------------------------ what is heard

    def heard(self, domain: str, incarnation: int, now: float) -> list[Action]:
        """Something fresh came from the member itself."""
        peer = self.peers.get(domain)
        if peer is None:
            return []
        if peer.state is State.LEFT and incarnation <= peer.incarnation:
            return []
        peer.last_heard = now
        peer.incarnation = max(peer.incarnation, incarnation)
        peer.backoff = self._settings.first_backoff_seconds
        return self._become(peer, State.ALIVE, now)

    def vouched(self, domain: str, incarnation: int, now: float) -> list[Action]:
        """A statement of the member came through others; a newer one than the suspicion clears it."""
        peer = self.peers.get(domain)
        if peer is None or incarnation <= peer.incarnation:
            return []
        peer.incarnation = incarnation
        if peer.state is State.SUSPECT:
            return self._become(peer, State.ALIVE, now)
        if peer.state in (State.DEAD, State.LEFT, State.UNKNOWN):
            peer.look_at = now  # dial it now: it spoke to somebody
            if peer.state is State.LEFT:
                return self._become(peer, State.UNKNOWN, now)
        return []

    def left(self, domain: str, incarnation: int, now: float) -> list[Action]:
        """The member said that it goes."""
        peer = self.peers.get(domain)
        if peer is None or incarnation < peer.incarnation:
            return []
        peer.incarnation = incarnation
        return self._become(peer, State.LEFT, now)

    def accused(self, domain: str, incarnation: int, accusers: Iterable[str], now: float) -> tuple[bool, list[Action]]:
        """Others suspect a member. Whether that is news, and what follows."""
        peer = self.peers.get(domain)
        if peer is None or incarnation < peer.incarnation or peer.state not in REACHABLE:
            return False, []
        fresh = {name for name in accusers if name in self.peers or name == self.own} - peer.accusers
        if peer.state is State.SUSPECT:
            room = MAX_ACCUSERS - len(peer.accusers)
            peer.accusers.update(sorted(fresh)[:room])
            return False, []
        return True, self._suspect(peer, sorted(fresh)[:MAX_ACCUSERS], now)

    def answered(self, nonce: int, source: str) -> tuple[str, int] | None:
        """An ACK came from the target or from a helper; (asker, its nonce) when the probe was made for another."""
        probe = self._probes.get(nonce)
        if probe is None:
            return None
        del self._probes[nonce]
        if source == probe.target and self.health:
            self.health -= 1
            # as if it had thought so when it last probed
            self._next_heartbeat = min(self._next_heartbeat, self._probed_at + self._period())
        return (probe.asker, probe.asker_nonce) if probe.asker else None

    def not_answered(self, nonce: int) -> None:
        """A helper said that it is there itself, but the target is not."""
        if probe := self._probes.get(nonce):
            probe.answers += 1

    def refuted(self) -> None:
        """This member was suspected itself: perhaps it is slow."""
        self.health = min(self.health + 1, self._settings.most_health)

    def asked(self, target: str, asker: str, nonce: int, now: float) -> list[Action]:
        """Probe the target for another."""
        if target not in self.peers:
            return []
        return [self._probe(target, now, counts=False, asker=asker, asker_nonce=nonce)]

    def unreachable(self, domain: str, now: float) -> None:
        """A message could not be handed over: waiting longer for its answer is useless."""
        for probe in self._probes.values():
            if probe.target == domain and not probe.asked:
                probe.due = min(probe.due, now)

    # ------------------------------------------------------------ what time brings

    def due(self) -> float:
        """When `tick` has something to do next."""
        moments = [probe.due for probe in self._probes.values()]
        for domain in self._looked_at:
            peer = self.peers[domain]
            if peer.state is not State.LEFT:
                moments.append(peer.look_at)
            if peer.state in (State.SUSPECT, State.UNKNOWN):
                moments.append(self._deadline(peer))
        return min([self._next_heartbeat, *moments])

    def tick(self, now: float) -> list[Action]:
        """Probes that are due, silences that end, looks at suspects, dialling of those who are away."""
        actions: list[Action] = []
        if now >= self._next_heartbeat:
            self._probed_at, period = now, self._period()
            self._next_heartbeat = max(self._next_heartbeat + period, now + period / 2)
            actions += [self._probe(target, now, counts=True) for target in self._targets()]
        for nonce, probe in list(self._probes.items()):
            if now >= probe.due:
                actions += self._silent(nonce, probe, now)
        dials = 0
        for domain in self._random.sample(sorted(self._looked_at), len(self._looked_at)):
            peer = self.peers[domain]
            if peer.state in (State.SUSPECT, State.UNKNOWN) and now >= self._deadline(peer):
                actions += self._become(peer, State.DEAD, now)
            if peer.state is State.LEFT or now < peer.look_at or dials >= DIALS_AT_ONCE:
                continue
            dials += 1
            actions.append(self._probe(domain, now, counts=False))
            if peer.state is State.SUSPECT:
                peer.look_at = now + self._settings.second_look_seconds
            else:
                peer.look_at = now + peer.backoff * self._random.uniform(0.8, 1.0)
                peer.backoff = min(peer.backoff * 2, self._settings.last_backoff_seconds)
        return actions

    def _period(self) -> float:
        """Between two heartbeats: the longer the less this member trusts itself."""
        return self._settings.heartbeat_seconds * (1 + self.health)

    def _targets(self) -> list[str]:
        """The next on the ring, then some in shuffled turns, so that nobody waits for its turn for long."""
        ring = self.live()
        if not ring:
            return []
        following = next((domain for domain in ring if domain > self.own), ring[0])
        targets = [following]
        while len(targets) < min(self._settings.fanout, len(ring)):
            if not self._turns:
                self._turns = self._random.sample(ring, len(ring))
            drawn = self._turns.pop()
            if drawn not in targets and drawn in self.peers and self.peers[drawn].state in REACHABLE:
                targets.append(drawn)
        return targets

    def _probe(self, target: str, now: float, *, counts: bool, asker: str = "", asker_nonce: int = 0) -> Ping:
        nonce = self._random.getrandbits(63)
        due = now + self._settings.probe_seconds * (1 if asker else 1 + self.health)
        self._probes[nonce] = _Probe(target, due, counts, asker=asker, asker_nonce=asker_nonce)
        return Ping(target, nonce)

    def _silent(self, nonce: int, probe: _Probe, now: float) -> list[Action]:
        peer = self.peers.get(probe.target)
        if probe.asker:
            del self._probes[nonce]
            return [Nack(probe.asker, probe.asker_nonce)]
        if peer is None or not probe.counts or peer.state is not State.ALIVE:
            del self._probes[nonce]
            return []
        if not probe.asked:
            others = [domain for domain in self.live() if domain != probe.target]
            helpers = self._random.sample(others, min(self._settings.helpers, len(others)))
            probe.asked, probe.helpers = True, len(helpers)
            # helpers wait one probe themselves and then say so: their refusal must be here before time is over
            probe.due = now + self._settings.probe_seconds * (1 + self.health) * (1.2 if helpers else 0.5)
            return [self._probe(probe.target, now, counts=False), *(Ask(each, probe.target, nonce) for each in helpers)]
        del self._probes[nonce]
        if probe.helpers and not probe.answers:
            self.health = min(self.health + 1, self._settings.most_health)
        return self._suspect(peer, [self.own], now)

    def _suspect(self, peer: Peer, accusers: Iterable[str], now: float) -> list[Action]:
        peer.accusers = set(accusers)
        peer.suspected_at = now
        peer.look_at = now + self._settings.second_look_seconds
        return self._become(peer, State.SUSPECT, now)

    def _deadline(self, peer: Peer) -> float:
        """When a suspect's time is over: the sooner the more accuse it, the later the less this member trusts itself.

        Source: Lifeguard, section IV-B.
        """
        least, most = self._settings.suspicion_least_seconds, self._settings.suspicion_most_seconds
        confirmed = min(max(len(peer.accusers) - 1, 0), self._settings.accusers)
        share = math.log(confirmed + 1) / math.log(self._settings.accusers + 1)
        return peer.suspected_at + (most - (most - least) * share) * (1 + self.health)

    def _become(self, peer: Peer, state: State, now: float) -> list[Action]:
        if peer.state is state:
            return []
        old, peer.state = peer.state, state
        if state is State.ALIVE:
            peer.accusers.clear()
            self._looked_at.discard(peer.domain)
        else:
            self._looked_at.add(peer.domain)
        if state is State.DEAD:
            peer.look_at = now
        if state is State.UNKNOWN:
            peer.suspected_at = now
        self._ring = None
        return [Changed(peer.domain, old, state)]
