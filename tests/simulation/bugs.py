"""Bugs planted into the test's process, by name: each must be found by the stories' checkers. Never in the product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from simulation.ledgers import LedgerFeeds

from collective.catalog.applier import Applier
from collective.gossip.antientropy import AntiEntropy
from collective.gossip.listening import Listener
from collective.gossip.membership import Membership, State
from collective.gossip.statements import Statements

__all__ = ["BUGS"]

Plant = Callable[[pytest.MonkeyPatch], None]


def _everybody_may_follow(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LedgerFeeds, "may_follow", lambda self, member, feed: True)


def _differences_are_not_compared(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(AntiEntropy, "want", lambda self, peer, now: None)


def _pulls_are_never_over(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(AntiEntropy, "end_pull", lambda self, peer, now: None)


def _the_summary_forgets_the_feeds(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(AntiEntropy, "summary", lambda self, peer, statements: statements)


def _new_feeds_are_overlooked(patch: pytest.MonkeyPatch) -> None:
    """A digest shows a feed that is not here at all, and nobody asks for it."""
    original = AntiEntropy._newer
    patch.setattr(AntiEntropy, "_newer", staticmethod(lambda head, mine: mine is not None and original(head, mine)))


def _the_dead_are_not_dialled(patch: pytest.MonkeyPatch) -> None:
    original = Membership._become

    def become(self: Membership, peer: Any, state: State, now: float) -> Any:
        actions = original(self, peer, state, now)
        if state is State.DEAD:
            peer.look_at = float("inf")
        return actions

    patch.setattr(Membership, "_become", become)
    patch.setattr(Membership, "heard", _only_when_not_dead(Membership.heard))


def _only_when_not_dead(original: Callable[..., Any]) -> Callable[..., Any]:
    def heard(self: Membership, domain: str, incarnation: int, now: float) -> Any:
        peer = self.peers.get(domain)
        return [] if peer is not None and peer.state is State.DEAD else original(self, domain, incarnation, now)

    return heard


def _suspects_are_dead_at_once(patch: pytest.MonkeyPatch) -> None:
    """Another's word is enough, and a statement does not bring anybody back."""
    patch.setattr(Membership, "_deadline", lambda self, peer: peer.suspected_at)
    patch.setattr(Membership, "heard", _only_when_not_dead(Membership.heard))


def _who_left_stays_away(patch: pytest.MonkeyPatch) -> None:
    original = Membership.heard

    def heard(self: Membership, domain: str, incarnation: int, now: float) -> Any:
        peer = self.peers.get(domain)
        return [] if peer is not None and peer.state is State.LEFT else original(self, domain, incarnation, now)

    patch.setattr(Membership, "heard", heard)
    patch.setattr(Membership, "vouched", lambda self, domain, incarnation, now: [])


def _older_statements_win(patch: pytest.MonkeyPatch) -> None:
    original = Statements.differing

    def differing(self: Statements, stamps: Any, complete: bool) -> Any:
        newer, older = original(self, stamps, complete)
        return older, newer

    patch.setattr(Statements, "differing", differing)
    patch.setattr(Listener, "_believe", lambda self, opened, now: None)


def _incarnations_are_not_raised(patch: pytest.MonkeyPatch) -> None:
    """A new life uses the stamps of the old one."""
    original = Statements.load

    def load(self: Statements, saved: bytes) -> bool:
        known = original(self, saved)
        if known:
            self.incarnation -= 1
            self.lamport = 0
        return known

    patch.setattr(Statements, "load", load)


def _pushed_entries_get_lost(patch: pytest.MonkeyPatch) -> None:
    """What was handed over counts as applied."""
    original = LedgerFeeds.receive

    def receive(self: LedgerFeeds, feed: bytes, entries: Any) -> int:
        original(self, feed, list(entries)[:-1])
        return len(entries)

    patch.setattr(LedgerFeeds, "receive", receive)


def _late_keys_open_nothing(patch: pytest.MonkeyPatch) -> None:
    """Sealed parts that came before their key are never applied."""
    original = Applier.open_waiting

    def open_waiting(self: Applier, connection: Any, store_id: bytes) -> int:
        feed = self._feed(store_id)
        if feed is not None and feed.head.seq - feed.opened_seq > 1:
            connection.execute("UPDATE feeds SET opened_seq = seq WHERE id = ?", (feed.id,))
            return 0
        return original(self, connection, store_id)

    patch.setattr(Applier, "open_waiting", open_waiting)


def _heads_are_believed(patch: pytest.MonkeyPatch) -> None:
    """A head that was only told is taken for one that is here."""
    original = Listener._take_notice

    def take(self: Listener, peer: Any, notice: Any, answer: bool, now: float) -> None:
        original(self, peer, notice, answer, now)
        feed = notice.head.feed_id
        if feed in self.entropy.heads and notice.head.head.seq > self.entropy.heads[feed].seq:
            self.entropy.heads[feed] = self.entropy.heads[feed]._replace(
                seq=notice.head.head.seq, hash=notice.head.head.hash
            )

    patch.setattr(Listener, "_take_notice", take)


def _rights_are_asked_once(patch: pytest.MonkeyPatch) -> None:
    """Who may follow what is read when the first feed is there and never again."""
    original = LedgerFeeds.may_follow

    def may_follow(self: LedgerFeeds, member: str, feed: bytes) -> bool:
        if not hasattr(self, "frozen"):
            self.frozen = {}
        if (member, feed) not in self.frozen:
            self.frozen[member, feed] = original(self, member, feed)
        return self.frozen[member, feed]

    patch.setattr(LedgerFeeds, "may_follow", may_follow)


BUGS: dict[str, Plant] = {
    plant.__name__.strip("_"): plant
    for plant in (
        _everybody_may_follow,
        _differences_are_not_compared,
        _pulls_are_never_over,
        _the_summary_forgets_the_feeds,
        _new_feeds_are_overlooked,
        _the_dead_are_not_dialled,
        _suspects_are_dead_at_once,
        _who_left_stays_away,
        _older_statements_win,
        _incarnations_are_not_raised,
        _pushed_entries_get_lost,
        _late_keys_open_nothing,
        _heads_are_believed,
        _rights_are_asked_once,
    )
}
