"""Bugs planted into the test's process, by name: each must be found by the stories' checkers. Never in the product.

Each patches the product's own code, in the place where somebody could have written it so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from collective.catalog import staged as staging_rows
from collective.catalog.applier import Applier
from collective.catalog.feed import FeedState, Gap
from collective.catalog.ledger import Ledger
from collective.catalog.overlay import Overlay
from collective.catalog.receiving import Receiver
from collective.catalog.rights import WritersRights
from collective.catalog.staging import Batch
from collective.gossip.antientropy import AntiEntropy
from collective.gossip.listening import Listener
from collective.gossip.membership import Membership, State
from collective.gossip.statements import Statements
from collective.transfer.gossip_view import View
from collective.transfer.sync import EntryServer, EntryTaker

__all__ = ["BUGS", "FOUND_BY"]

Plant = Callable[[pytest.MonkeyPatch], None]
CATALOG = "collective.catalog"

# ---------------------------------------------------------------- gossip


def _differences_are_not_compared(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(AntiEntropy, "want", lambda self, peer, now: None)


def _pulls_are_never_over(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(AntiEntropy, "end_pull", lambda self, peer, now: frozenset())


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


# ---------------------------------------------------------------- who may follow and write


def _everybody_may_follow(patch: pytest.MonkeyPatch) -> None:
    """News are pushed without asking who may have them."""
    patch.setattr(View, "may_follow", lambda self, member, feed: True)


def _rights_are_read_once(patch: pytest.MonkeyPatch) -> None:
    """Who may follow what is what it was when the coordinator started."""
    from collective.transfer import gossiping

    original, first = gossiping.read_view, {}

    def read_view(catalog: Any, now: float) -> View:
        from dataclasses import replace

        view = original(catalog, now)
        return replace(view, rights=first.setdefault(id(catalog), (catalog, view))[1].rights)

    patch.setattr(gossiping, "read_view", read_view)


def _pulls_are_answered_to_anybody(patch: pytest.MonkeyPatch) -> None:
    """A right to follow is checked when feeds are listed, and not where entries leave."""
    patch.setattr(EntryServer, "_may_follow", lambda self, member: set(self._catalog.heads()))


def _a_lost_reader_keeps_the_key(patch: pytest.MonkeyPatch) -> None:
    """No new key begins when somebody loses READ."""
    patch.setattr(f"{CATALOG}.datastores._somebody_lost_read", lambda ledger, store, now: False)


def _writing_is_not_checked_by_the_owner(patch: pytest.MonkeyPatch) -> None:
    """The writer's home has checked it, hasn't it?"""
    patch.setattr(WritersRights, "check", lambda self, operation: "")


def _numbers_need_no_lease(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Batch, "not_allowed", lambda self, operation, *, numbered_by_writer: self._rights.check(operation))


# ---------------------------------------------------------------- entries


def _signatures_are_not_verified(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("simulation.chance.verify_signature", lambda entry, key: None)


def _pushed_entries_get_lost(patch: pytest.MonkeyPatch) -> None:
    """What was handed over counts as applied."""
    original = EntryTaker.take

    async def take(self: EntryTaker, domain: str, feed: bytes, entries: Sequence[bytes]) -> int:
        await original(self, domain, feed, list(entries)[:-1])
        return len(entries)

    patch.setattr(EntryTaker, "take", take)


def _gaps_are_overlooked(patch: pytest.MonkeyPatch) -> None:
    """An entry is applied although one before it is missing."""
    import collective.catalog.applier as applier
    import collective.catalog.feed as feed

    original = feed.check_follows

    def check_follows(head: FeedState, entry: Any, epoch_start: Any) -> None:
        try:
            original(head, entry, epoch_start)
        except Gap:
            if entry.header.seq <= head.seq or epoch_start is not None:
                raise

    patch.setattr(feed, "check_follows", check_follows)
    patch.setattr(applier, "check_follows", check_follows)


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


def _a_fork_is_passed_over(patch: pytest.MonkeyPatch) -> None:
    """The second history is refused, and nobody is told."""
    patch.setattr(Receiver, "_keep_fork", lambda self, entry: None)


# ---------------------------------------------------------------- waking up


def _an_old_database_is_not_noticed(patch: pytest.MonkeyPatch) -> None:
    """A number of the feed is used again."""
    patch.setattr(f"{CATALOG}.waking.find_doubt", lambda ledger: None)


def _heads_are_not_kept(patch: pytest.MonkeyPatch) -> None:
    """The entry leaves, and nothing beside the database tells that it was there."""

    def committed(self: Ledger) -> None:
        for feed, position in self._unannounced.items():
            self._announced[feed] = position.seq
        self._unannounced = {}

    patch.setattr(Ledger, "_committed", committed)


def _an_epoch_counts_from_the_head(patch: pytest.MonkeyPatch) -> None:
    """Its number is above the head's, not above every one that was ever told."""
    import os

    from collective.catalog import waking
    from collective.wire import feed_pb2

    def open_epoch(ledger: Ledger, feed_id: bytes) -> None:
        feed = ledger._feed(feed_id)
        head = feed.head if feed else FeedState()
        ledger.append_opening(
            feed_id,
            feed_pb2.Position(
                epoch_number=head.epoch_number + 1, epoch_id=os.urandom(16), seq=head.seq, hash=head.hash
            ),
            feed_pb2.EpochStart(base=head.position()),
        )

    patch.setattr(waking, "_open_epoch", open_epoch)


def _what_is_handed_back_is_not_replayed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(f"{CATALOG}.catalog.replay", lambda ledger, now: False)


def _what_was_taken_back_is_not_handed_over(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(f"{CATALOG}.handing.parcels", lambda ledger: [])


def _numbers_go_on_from_the_old_copy(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(f"{CATALOG}.apply.NUMBER_GAP", 1)


# ---------------------------------------------------------------- staging


def _expectations_are_not_checked(patch: pytest.MonkeyPatch) -> None:
    """The last writer wins over what it never saw."""
    patch.setattr(f"{CATALOG}.obstacles._unexpected", lambda view, operation: None)


def _sent_twice_is_applied_twice(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(f"{CATALOG}.staging.committed_at", lambda ledger, id_: None)


def _refused_work_is_dropped(patch: pytest.MonkeyPatch) -> None:
    original = staging_rows.note_outcomes

    def note_outcomes(ledger: Any, numbers: Sequence[int], outcomes: Any) -> None:
        original(ledger, numbers, outcomes)
        with ledger.change() as connection:
            connection.execute("DELETE FROM staged WHERE state = 'refused'")

    patch.setattr(staging_rows, "note_outcomes", note_outcomes)


def _an_answer_ends_the_staging(patch: pytest.MonkeyPatch) -> None:
    """The row goes when the owner says that it is done, not when its entry came back."""
    original = staging_rows.note_outcomes

    def note_outcomes(ledger: Any, numbers: Sequence[int], outcomes: Any) -> None:
        original(ledger, numbers, outcomes)
        with ledger.change() as connection:
            connection.execute("DELETE FROM staged WHERE state = 'done'")
        staging_rows._note_staged(ledger)

    patch.setattr(staging_rows, "note_outcomes", note_outcomes)


def _what_was_done_is_never_sent_again(patch: pytest.MonkeyPatch) -> None:
    """An owner that was set back is believed for ever."""
    patch.setattr(staging_rows, "send_again", lambda ledger, store_id: 0)


def _the_overlay_is_not_settled(patch: pytest.MonkeyPatch) -> None:
    """What was staged is shown over what its owner made of it."""
    patch.setattr(Overlay, "settle", lambda self, seqs: None)
    patch.setattr("collective.catalog.reader.Reader._look_at_staged", _without_a_fresh_overlay())


def _without_a_fresh_overlay() -> Callable[..., None]:
    from collective.catalog import reader

    original = reader.Reader._look_at_staged

    def look(self: Any, counters: Any) -> None:
        overlay = self._overlay
        original(self, counters)
        if self._overlay is not overlay and len(overlay):
            self._overlay = overlay
            self._staged_prefixes = frozenset(ino >> 40 for ino in overlay._nodes)

    return look


def _a_number_is_handed_out_twice(patch: pytest.MonkeyPatch) -> None:
    """The stock is read and not diminished."""
    from collective.catalog import numbers

    original = numbers.take_numbers

    def take_numbers(ledger: Any, store_id: bytes, count: int) -> range | None:
        taken = original(ledger, store_id, count)
        if taken is not None and taken.start % 8 == 0:
            numbers.add_numbers(ledger, store_id, range(taken.start, taken.start + 1))
        return taken

    patch.setattr(numbers, "take_numbers", take_numbers)


BUGS: dict[str, Plant] = {
    plant.__name__.strip("_"): plant
    for plant in (
        _differences_are_not_compared,
        _pulls_are_never_over,
        _the_summary_forgets_the_feeds,
        _new_feeds_are_overlooked,
        _the_dead_are_not_dialled,
        _suspects_are_dead_at_once,
        _who_left_stays_away,
        _older_statements_win,
        _incarnations_are_not_raised,
        _heads_are_believed,
        _everybody_may_follow,
        _rights_are_read_once,
        _pulls_are_answered_to_anybody,
        _a_lost_reader_keeps_the_key,
        _writing_is_not_checked_by_the_owner,
        _numbers_need_no_lease,
        _signatures_are_not_verified,
        _pushed_entries_get_lost,
        _gaps_are_overlooked,
        _late_keys_open_nothing,
        _a_fork_is_passed_over,
        _an_old_database_is_not_noticed,
        _heads_are_not_kept,
        _an_epoch_counts_from_the_head,
        _what_is_handed_back_is_not_replayed,
        _what_was_taken_back_is_not_handed_over,
        _numbers_go_on_from_the_old_copy,
        _expectations_are_not_checked,
        _sent_twice_is_applied_twice,
        _refused_work_is_dropped,
        _an_answer_ends_the_staging,
        _what_was_done_is_never_sent_again,
        _the_overlay_is_not_settled,
        _a_number_is_handed_out_twice,
    )
}

# A seed that finds it, mostly the first that does (`test_bugs` hunts them all by hand).
FOUND_BY: dict[str, int] = {
    "differences_are_not_compared": 0,
    "pulls_are_never_over": 2,
    "the_summary_forgets_the_feeds": 4,
    "new_feeds_are_overlooked": 1,
    "the_dead_are_not_dialled": 0,
    "suspects_are_dead_at_once": 0,
    "who_left_stays_away": 2,
    "older_statements_win": 5,
    "incarnations_are_not_raised": 1,
    "heads_are_believed": 0,
    "everybody_may_follow": 0,
    "rights_are_read_once": 0,
    "pulls_are_answered_to_anybody": 3,
    "a_lost_reader_keeps_the_key": 3,
    "writing_is_not_checked_by_the_owner": 14,
    "numbers_need_no_lease": 48,
    "signatures_are_not_verified": 31,
    "pushed_entries_get_lost": 0,
    "gaps_are_overlooked": 35,
    "late_keys_open_nothing": 0,
    "a_fork_is_passed_over": 8,
    "an_old_database_is_not_noticed": 3,
    "heads_are_not_kept": 0,
    "an_epoch_counts_from_the_head": 317,
    "what_is_handed_back_is_not_replayed": 3,
    "what_was_taken_back_is_not_handed_over": 488,
    "numbers_go_on_from_the_old_copy": 183,
    "expectations_are_not_checked": 7,
    "sent_twice_is_applied_twice": 12,
    "refused_work_is_dropped": 14,
    "an_answer_ends_the_staging": 5,
    "what_was_done_is_never_sent_again": 12,
    "the_overlay_is_not_settled": 5,
    "a_number_is_handed_out_twice": 2,
}
