"""What comes in: each part of a heartbeat, and what it does."""

from __future__ import annotations

from collective.core.errors import CollectiveError, Refused
from collective.gossip.antientropy import feed_head, head_of
from collective.gossip.dissemination import NOBODY, NOWHERE, Interval, divide
from collective.gossip.effects import Deliver, Effect, Learned
from collective.gossip.membership import Peer
from collective.gossip.messages import MAX_REPEATED, MOST_LEAP, Opened, open_heartbeat
from collective.gossip.speaking import Arriving, Speaker
from collective.wire.gossip_pb2 import (
    LEAVE,
    UPDATE,
    Digest,
    GossipMessage,
    Notice,
    Probe,
    Push,
    SignedGossip,
    Suspicion,
)

__all__ = ["Listener"]

ASKED_PER_ROUND = 2  # an answer may be lost; measured at 20 % loss, one alone takes a third longer


class Listener(Speaker):
    """The ears of one member's gossip."""

    def receive(self, sender: str, raw: bytes, now: float) -> list[Effect]:
        """A message from the member at the other end of a connection. Raises: Corrupt, Refused."""
        opened = open_heartbeat(raw, sender, self.own, self._verify, self._versions)
        message = opened.message
        if message.lamport > self.statements.lamport + MOST_LEAP:
            raise Refused(f"{sender} stamps its messages far beyond everybody's count")
        self.statements.saw_stamp(message.lamport)
        if sender not in self.membership.peers:
            # its admission has not arrived here yet, but its certificates lead to the root
            self.membership.set_roster([*self.membership.peers, sender], now)
        peer = self.membership.peers[sender]
        if not peer.window.take(message.lamport):
            self._say_how_far(peer, message)
            return self._finish()
        if message.certificates:
            self._introduce.add(sender)
        statement = self.statements.get(sender)
        if statement is not None and statement.message.incarnation > message.incarnation:
            self._add_statement(sender, statement)  # it lost its counters: they stand in there
        self._do(self.membership.heard(sender, message.incarnation, now), now)
        for signed in message.statements:
            self._take_statement(peer, signed, now)
        for suspicion in message.suspicions:
            self._take_suspicion(peer, suspicion, now)
        if message.HasField("probe"):
            self._take_probe(peer, message.probe, now)
        for push in message.pushes:
            self._take_push(peer, push, message.answer, now)
        for notice in message.notices:
            self._take_notice(peer, notice, message.answer, now)
        if message.HasField("digest"):
            self._take_digest(peer, message, now)
        if message.summary:
            self._take_summary(peer, message, now)
        return self._finish()

    def _say_how_far(self, peer: Peer, message: GossipMessage) -> None:
        """A stamp seen before: a repetition, or a member that lost its counters; the answer's stamp helps it on."""
        if message.answer:
            return
        self._outbox.to(peer.domain, answer=True)

    def _take_statement(self, peer: Peer, signed: SignedGossip, now: float) -> None:
        try:
            opened, newer = self.statements.take(signed)
        except CollectiveError:
            return  # its source is not known here yet, or somebody altered it; the next comparison brings it
        if not newer:
            self.dissemination.heard_again(("statement", opened.domain), peer.domain)
            return
        if opened.domain == self.own:
            # an earlier life of this member, whose counters were lost
            self._tell(self.statements.state_myself(UPDATE, opened.message.incarnation + 1), now)
            return
        if opened.domain not in self.membership.peers:
            self.membership.set_roster([*self.membership.peers, opened.domain], now)
        self.statements.keep(opened)
        self._believe(opened, now)
        self._tell(opened, now, had_it=(peer.domain, opened.domain))

    def _believe(self, opened: Opened, now: float) -> None:
        message = opened.message
        if message.type == LEAVE:
            self._do(self.membership.left(opened.domain, message.incarnation, now), now)
            return
        self._effects.append(Learned(opened.domain, tuple(message.endpoints)))
        self._do(self.membership.vouched(opened.domain, message.incarnation, now), now)

    def _take_suspicion(self, peer: Peer, suspicion: Suspicion, now: float) -> None:
        if suspicion.member == self.own:
            if suspicion.incarnation == self.statements.incarnation:  # a higher one was never this member's
                self.membership.refuted()
                self._tell(self.statements.state_myself(UPDATE, suspicion.incarnation + 1), now)
            return
        fresh, actions = self.membership.accused(suspicion.member, suspicion.incarnation, suspicion.accusers, now)
        if not fresh:
            self.dissemination.heard_again(("suspicion", suspicion.member), peer.domain)
        self._do(actions, now)

    def _take_probe(self, peer: Peer, probe: Probe, now: float) -> None:
        match probe.kind:
            case Probe.PING:
                answer = self._probe(peer.domain, Probe.ACK, probe.nonce)
                answer.summary = self._summary(peer.domain)
            case Probe.ACK:
                if asked_by := self.membership.answered(probe.nonce, peer.domain):
                    asker, nonce = asked_by
                    self._probe(asker, Probe.ACK, nonce, peer.domain)
            case Probe.PING_REQUEST:
                self._do(self.membership.asked(probe.target, peer.domain, probe.nonce, now), now)
            case Probe.NACK:
                self.membership.not_answered(probe.nonce)

    def _take_push(self, peer: Peer, push: Push, answer: bool, now: float) -> None:
        feed, head = push.head.feed_id, head_of(push.head)
        here = self._here(feed)
        epoch, seq = here
        if head.place <= here and feed in self.dissemination.feeds:
            self._pass_on(feed, Interval(push.after, push.up_to), peer.domain)  # it came another way before
        if head.place <= here or not self._may_follow(self.own, feed):
            self._take_notice(peer, Notice(head=push.head, first_seq=push.first_seq), answer, now)
            return
        peer.known[feed] = max(peer.known.get(feed, NOWHERE), head.place)
        follow = epoch in (0, head.epoch_number) and push.first_seq <= seq + 1  # a new epoch may not go on from here
        if push.entries and follow and push.first_seq + len(push.entries) == head.seq + 1:
            self._arriving[feed] = Arriving(head.place, Interval(push.after, push.up_to), peer.domain, pulled=False)
            fresh = tuple(push.entries[seq + 1 - push.first_seq :])
            self._effects.append(Deliver(peer.domain, feed, fresh, head.place))
        elif self._pull(peer.domain, [feed], now):
            self._arriving[feed] = Arriving(head.place, Interval(push.after, push.up_to), peer.domain, pulled=True)

    def _pass_on(self, feed: bytes, interval: Interval, source: str) -> None:
        """Serve a part of the ring with news that is here already."""
        has_it = self.dissemination.feeds[feed].has_it
        ring = [domain for domain in self._followers(feed) if domain not in has_it and domain != source]
        for part in divide(ring, interval, self.settings.fanout, self._random):
            self._push(part.target, feed, self.dissemination.feeds[feed].entries, part.interval)

    def _take_notice(self, peer: Peer, notice: Notice, answer: bool, now: float) -> None:
        """A peer says how far a feed is there: who is behind answers, who is asked sends."""
        feed, head = notice.head.feed_id, head_of(notice.head)
        if not self._may_follow(self.own, feed):
            self.entropy.want(peer.domain, now)  # what says that this member may follow it has not arrived
            return
        self.dissemination.told(peer.domain, feed, head, answer)
        peer.known[feed] = max(peer.known.get(feed, NOWHERE), head.place)
        here = self._here(feed)
        if head.place > here:
            follow = here[0] in (0, head.epoch_number) and 0 < notice.first_seq <= here[1] + 1
            if not follow or answer:
                self._pull(peer.domain, [feed], now)
            elif not self.entropy.is_pulled(feed) and self._may_ask(feed, now):
                self._notice(peer.domain, feed, answer=True)
        elif feed in self.entropy.heads and self._may_follow(peer.domain, feed):
            if not answer:
                self._notice(peer.domain, feed, answer=True)
            elif head.epoch_number not in (0, self.entropy.heads[feed].epoch_number):
                self._push(peer.domain, feed, (), NOBODY)  # its chain may end elsewhere than ours goes on: it pulls
            elif entries := self.dissemination.entries_after(feed, head.seq):
                self._push(peer.domain, feed, entries, NOBODY)

    def _may_ask(self, feed: bytes, now: float) -> bool:
        """Whether to ask one more for the same entries: not all who tell of them, but not one alone either."""
        asked = [when for when in self._asked.get(feed, ()) if now - when < self.settings.round_seconds]
        if len(asked) >= ASKED_PER_ROUND:
            return False
        self._asked[feed] = [*asked, now]
        return True

    def _take_summary(self, peer: Peer, message: GossipMessage, now: float) -> None:
        ours = self._summary(peer.domain)
        second_look = message.answer and not message.HasField("probe")
        if not self.entropy.differs(peer.domain, ours, message.summary, now, again=second_look):
            peer.known = self.entropy.known_all(peer.domain)
            peer.compared = True
            if message.compare:
                self._outbox.to(peer.domain, answer=True).summary = ours
        elif message.compare:
            for number, digest in enumerate(self.entropy.digests(peer.domain)):
                if number == 0:
                    digest.stamps.extend(self.statements.stamps())
                self._outbox.to(peer.domain, digest, single="digest").digest.CopyFrom(digest)
        elif not message.answer:
            self.entropy.look_again(peer.domain, now)

    def _take_digest(self, peer: Peer, message: GossipMessage, now: float) -> None:
        digest, complete = message.digest, not message.answer
        for told in digest.heads:
            peer.known[told.feed_id] = head_of(told).place
        peer.compared = True
        difference = self.entropy.compare(peer.domain, digest, complete)
        self.entropy.answered(peer.domain)
        self._pull(peer.domain, [feed for feed in difference.missing_here if not self._is_handed(feed)], now)
        newer, older = self.statements.differing(digest.stamps, complete and not digest.from_feed.strip(b"\0"))
        for domain in sorted({*newer, *digest.wanted}):
            if (statement := self.statements.get(domain)) is not None:
                self._add_statement(peer.domain, statement)
        if complete and (difference.missing_there or older):
            heads = [feed_head(feed, head) for feed, head in difference.missing_there[:MAX_REPEATED]]
            reply = Digest(heads=heads, wanted=older[:MAX_REPEATED])
            self._outbox.to(peer.domain, reply, single="digest", answer=True).digest.CopyFrom(reply)
