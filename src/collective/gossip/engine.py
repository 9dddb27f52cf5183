"""Gossip without I/O: what came in, what time it is, and what is to be done about it.

Every call takes `now` (monotonic seconds) and returns effects in the order they are to be carried out. The driver
sends, delivers entries to the catalogue, pulls ranges, keeps the state, and reports back: `advanced` for every feed
that moved here, however it did, `refused` for what did not fit, `pulled`, `unreachable`. It calls `tick` at `due()`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from collective.gossip.dissemination import MAX_PUSH_BYTES, NOWHERE, Head, Interval, Place
from collective.gossip.effects import Effect, MemberView
from collective.gossip.listening import Listener
from collective.wire.feed_pb2 import Endpoint
from collective.wire.gossip_pb2 import JOIN, LEAVE, UPDATE

__all__ = ["Engine"]


class Engine(Listener):
    """One member's gossip: what its driver calls."""

    def start(self, saved: bytes, roster: Iterable[str], heads: Mapping[bytes, Head], now: float) -> list[Effect]:
        """Begin: `saved` is what an earlier run persisted (b"" for none). Raises: Misconfigured when it is broken."""
        known = self.statements.load(saved)
        self.entropy.heads = dict(heads)
        self.membership.set_roster(roster, now)
        self.statements.retain(self.membership.peers)
        for domain in self.membership.peers:
            if (statement := self.statements.get(domain)) is not None:
                self._believe(statement, now)
        # whoever lost its counters begins above them, if its clock did not go back; else others tell it what they were
        first = self.statements.incarnation + 1 if known else max(1, int(self.statements.wall()))
        self.statements.state_myself(UPDATE if known else JOIN, first)
        self.membership.start(now)
        self._next_gossip = now + self._random.uniform(0.5, 1.0) * self.settings.gossip_seconds
        return self._finish()

    def set_roster(self, domains: Iterable[str], now: float) -> list[Effect]:
        """Who is a member now."""
        before = set(self.membership.peers)
        self.membership.set_roster(domains, now)
        for domain in before - self.membership.peers.keys():
            self.entropy.forget(domain)
            self._shared.pop(domain, None)
        self.statements.retain(self.membership.peers)
        return self._finish()

    def describe(self, endpoints: Sequence[Endpoint], datastores: Sequence[bytes], now: float) -> list[Effect]:
        """Where this member can be reached and what it has; told to all when it changed."""
        own = self.statements.own
        if list(endpoints) != list(own.endpoints) or list(datastores) != list(own.datastores):
            self.statements.own = replace(own, endpoints=tuple(endpoints), datastores=tuple(datastores))
            self._tell(self.statements.state_myself(UPDATE, self.statements.incarnation), now)
        return self._finish()

    def leave(self, now: float) -> list[Effect]:
        """Say to everybody that this member goes on purpose."""
        statement = self.statements.state_myself(LEAVE, self.statements.incarnation + 1)
        for peer in self.membership.live():
            self._add_statement(peer, statement)
        return self._finish()

    def advanced(self, feed: bytes, head: Head, entries: Sequence[tuple[int, bytes]], now: float) -> list[Effect]:
        """A feed has got to `head` here, by its writer here or by what came. `entries` (seq, bytes) lead up to it."""
        before = self.entropy.heads.get(feed)
        self.entropy.heads[feed] = head
        if before is not None and head.place <= before.place:
            return self._finish()  # un-applied here: what takes its place is no news yet
        arriving = self._arriving.get(feed)
        if arriving is not None and head.place >= arriving.place:
            del self._arriving[feed]
        if sum(len(raw) for _, raw in entries) > MAX_PUSH_BYTES or not entries or entries[-1][0] != head.seq:
            entries = ()
        peers = self.membership.peers
        had_it = {name for name in self.membership.live() if peers[name].known.get(feed, NOWHERE) >= head.place}
        interval = arriving.interval if arriving else Interval(self.own, self.own)
        parts = self.dissemination.advanced(feed, head, entries, self._followers(feed), interval, had_it, now)
        if head.place < arriving.place if arriving else self.entropy.is_pulled(feed):
            parts = []  # catching up with what is news to nobody but this member: rounds are enough
        for part in parts:
            self._push(part.target, feed, entries, part.interval)
        if before is None:
            for follower in self._followers(feed):
                if follower in self._shared:
                    self._shared[follower] |= {feed}
        return self._finish()

    def rights_changed(self, now: float) -> list[Effect]:
        """`may_follow` answers otherwise for somebody: tell whom of the feeds it may follow from now on."""
        for peer in self.membership.live():
            shared = frozenset(self.entropy.known_all(peer))
            for feed in sorted(shared - self._shared.get(peer, shared)):
                self._notice(peer, feed)
            self._shared[peer] = shared
        return self._finish()

    def refused(self, peer: str, feed: bytes, now: float) -> list[Effect]:
        """What came of a feed did not fit, mostly because something before it is missing, or was not what the peer
        said: compare with it.
        """
        self._arriving.pop(feed, None)
        self.entropy.want(peer, now)
        return self._finish()

    def pulled(self, peer: str, complete: bool, progress: bool, now: float) -> list[Effect]:
        """A pull ended: with everything, and with anything that was new."""
        for feed in self.entropy.end_pull(peer, now):
            if (arriving := self._arriving.get(feed)) and arriving.peer == peer and arriving.pulled:
                del self._arriving[feed]
        if progress:
            self.entropy.progressed(peer)
        if complete or self._is_live(peer):
            self.entropy.want(peer, now)
        return self._finish()

    def unreachable(self, peer: str, now: float) -> list[Effect]:
        """A message could not be handed over."""
        self.membership.unreachable(peer, now)
        return self._finish()

    def due(self) -> float:
        """When `tick` is to be called next."""
        return min(self.membership.due(), self.dissemination.next_round, self.entropy.due(), self._next_gossip)

    def tick(self, now: float) -> list[Effect]:
        """What time brings: probes, rounds, comparisons."""
        self._do(self.membership.tick(now), now)
        if now >= self._next_gossip:
            self._next_gossip = now + self.settings.gossip_seconds
            if live := self.membership.live():
                self.entropy.want(self._random.choice(live), now)
        for peer in self.entropy.take_looks(now):
            if peer in self.membership.peers:
                self._outbox.to(peer, answer=True).summary = self._summary(peer)
        for peer in self.entropy.take_due(now):
            if peer in self.membership.peers:
                message = self._outbox.to(peer)
                message.summary, message.compare = self._summary(peer), True
        if now >= self.dissemination.next_round:
            heads, payloads = self.dissemination.round(self.membership.live(), self._followers, now)
            for peer, told in heads.items():
                for feed in told:
                    self._notice(peer, feed)
            for peer, rumours in payloads.items():
                for rumour in rumours:
                    self._add_rumour(peer, rumour)
        return self._finish()

    def known(self) -> dict[str, Mapping[bytes, Place]]:
        """How far every other member's feeds are, as it told itself."""
        return {domain: peer.known for domain, peer in self.membership.peers.items() if peer.compared}

    def members(self) -> list[MemberView]:
        """Everybody, in order of names."""
        views = []
        for domain, peer in sorted(self.membership.peers.items()):
            behind, ahead = self.entropy.behind(domain, peer.known) if peer.compared else (None, None)
            views.append(MemberView(domain, peer.state, peer.last_heard, peer.incarnation, behind, ahead))
        return views
