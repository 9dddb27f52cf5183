"""Waking up in doubt: which own feeds may be older than what was told to others, and how work goes on on them.

    clean --database behind a kept head, missing, recovered--> doubt --everybody answered, or was excused--> new epoch
    clean --a foreign entry of an own feed--> stopped --the coordinator starts again--> doubt

In doubt, entries of own feeds are taken from the others like anybody's; nothing is signed. An epoch opens on what
came together: {number above every one heard, random id, base}. Whoever holds more takes it back and hands it over
(`Receiver.take_handed_back`); `replay` signs its operations anew, in order, each once.

Source: the rule was found by a model; with anything less acknowledged writes were lost.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

from collective.catalog.facts import as_bytes
from collective.catalog.feed import FeedState
from collective.core.address import member_identity
from collective.core.errors import Misconfigured
from collective.wire import feed_pb2

if TYPE_CHECKING:
    from collective.catalog.ledger import Ledger

__all__ = [
    "ALL_FEEDS",
    "Hearing",
    "awaited",
    "find_doubt",
    "hear_head",
    "mend",
    "note_doubt",
    "open_epochs",
    "refusal",
    "unheard",
]

ALL_FEEDS = b""  # in the table `doubts`: every own feed, also those that are not known here any more
BEHIND = "the database is older than what was already told to others"
RECOVERED = "the database was had back from others"


class Hearing:
    """Who was heard in this process's life. What must outlive it stands in the table `doubts`."""

    def __init__(self) -> None:
        self.answered: set[str] = set()
        self.excused: set[str] = set()
        self.heads: dict[tuple[str, bytes], int] = {}  # (member, feed) -> the highest seq they told
        self.stopped: set[bytes] = set()  # feeds of which foreign entries came: not mended while this process runs
        self.lost: set[bytes] = set()  # feeds of which heads are kept and nothing is known anywhere


def find_doubt(ledger: Ledger) -> None:
    """Note own feeds that may be behind what was told; each stays noted until its new epoch opens."""
    if ledger.heads_kept.recovered():
        note_doubt(ledger, ALL_FEEDS, RECOVERED)
    for feed_id in ledger.heads_kept.feeds():
        if (kept := ledger.heads_kept.newest(feed_id)) is not None:
            hear_head(ledger, feed_id, kept)


def hear_head(ledger: Ledger, feed_id: bytes, kept: feed_pb2.Position) -> bool:
    """Compare what was kept as the head of an own feed with what is here; whether it puts the feed in doubt."""
    with ledger._lock:
        feed = ledger._feed(feed_id)
        here = feed.head if feed else FeedState()
        ahead = (kept.epoch_number, kept.seq) > (here.epoch_number, here.seq)
        other = (kept.epoch_number, kept.seq) == (here.epoch_number, here.seq) and kept.hash != here.hash
        if feed_id in ledger.hearing.lost or not (ahead or other):
            return False
        if feed_id not in ledger.doubts():
            ledger.observer.event("catalog.doubt", feed=feed_id.hex(), here=here.seq, kept=kept.seq)
            note_doubt(ledger, feed_id, BEHIND)
        return True


def note_doubt(ledger: Ledger, feed_id: bytes, reason: str) -> None:
    """Durably: nothing is signed on the feed until its new epoch opens. What was answered before is no answer."""
    ledger.hearing.answered.clear()
    with ledger.change() as connection:
        connection.execute("INSERT OR REPLACE INTO doubts VALUES (?, ?)", (feed_id, reason))
        # numbers in stock may have been handed out in what is lost; other owners lease fresh ones meanwhile
        connection.execute("DELETE FROM number_stock")
        connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'changes'")


def awaited(ledger: Ledger) -> list[str]:
    """Members that have not told yet what they have of the feeds in doubt, and were not excused."""
    return sorted(_others(ledger) - ledger.hearing.answered - _excused(ledger))


def unheard(ledger: Ledger) -> list[str]:
    """Members that have not told yet, the excused too: a feed that nobody told of is given up when all have."""
    return sorted(_others(ledger) - ledger.hearing.answered)


def _others(ledger: Ledger) -> set[str]:
    return {member.domain for member in ledger.members() if not member.removed} - {ledger.own_domain}


def _excused(ledger: Ledger) -> set[str]:
    """Members named by whoever started this home: by domain, identity, or a first label that one member alone has."""
    words = ledger.hearing.excused
    others = _others(ledger)
    labels = Counter(domain.split(".", 1)[0] for domain in others)
    return {
        domain
        for domain in others
        if words & {domain, member_identity(domain)}
        or (domain.split(".", 1)[0] in words and labels[domain.split(".", 1)[0]] == 1)
    }


def refusal(ledger: Ledger, feed_id: bytes) -> Misconfigured:
    """Why nothing is signed on a feed in doubt, and what mends it."""
    doubts = ledger.doubts()
    return Misconfigured(
        f"{doubts.get(feed_id) or doubts.get(ALL_FEEDS, BEHIND)}; nothing is signed on top of it", mend(ledger)
    )


def mend(ledger: Ledger) -> str:
    """What a person does about the doubt."""
    if ledger.hearing.stopped:
        return "find the second copy of this home and stop it, then start this coordinator again"
    if not ledger.own_is_admitted():
        return "start the coordinator; its feeds come back as soon as another member is reached"
    waiting = awaited(ledger)
    if not waiting:
        return "start the coordinator; it goes on by itself in a moment"
    without = " ".join(f"--without {domain}" for domain in waiting)
    return f"waiting for {', '.join(waiting)}; to go on without: collective coordinator {without}"


def open_epochs(ledger: Ledger) -> bool:
    """Open a new epoch on every own feed in doubt once everybody answered or was excused; whether any was opened."""
    if not ledger.doubts() or not ledger.own_is_admitted() or awaited(ledger):
        return False
    own = _own_feed_ids(ledger)
    if any(ledger.waits_to_be_opened(feed_id) for feed_id in own):
        return False  # a change would be judged by a tree that is not all there
    with ledger.change() as connection:
        doubts = ledger.doubts()
        opening = [feed for feed in own if (ALL_FEEDS in doubts or feed in doubts) and not _is_stuck(ledger, feed)]
        connection.executemany("DELETE FROM doubts WHERE feed_id = ?", [(feed,) for feed in (ALL_FEEDS, *opening)])
        connection.execute("UPDATE meta SET value = 1 WHERE key = 'pages_wanted'")
        for feed_id in opening:
            _open_epoch(ledger, feed_id)
        if not _excused(ledger) - ledger.hearing.answered:
            for feed_id in set(ledger.doubts()) - set(own):
                # everybody was heard and nobody knows what it was: it never left this home
                connection.execute("DELETE FROM doubts WHERE feed_id = ?", (feed_id,))
                ledger.hearing.lost.add(feed_id)
                ledger.observer.event("catalog.feed_lost", feed=feed_id.hex())
    if not ledger.doubts():
        ledger.heads_kept.settle()
    return bool(opening)


def _own_feed_ids(ledger: Ledger) -> list[bytes]:
    """Root feed where its key is, member feed, store feeds: what others judge by comes first."""
    feeds = [ledger.root_feed_id] if ledger.own.root_key is not None else []
    stores = ledger._all("SELECT feed_id FROM datastores WHERE owner = ? ORDER BY lamport, feed_id", ledger.own_domain)
    return [*feeds, ledger.own_member_feed(), *(as_bytes(store) for (store,) in stores)]


def _is_stuck(ledger: Ledger, feed_id: bytes) -> bool:
    feed = ledger._feed(feed_id)
    return feed_id in ledger.hearing.stopped or (feed is not None and feed.forked)


def _open_epoch(ledger: Ledger, feed_id: bytes) -> None:
    feed = ledger._feed(feed_id)
    head = feed.head if feed else FeedState()
    kept = ledger.heads_kept.newest(feed_id)
    row = ledger._one("SELECT max(epoch_number) FROM abandoned WHERE feed_id = ?", feed_id)
    left = row[0] if row and isinstance(row[0], int) else 0
    number = max(1, head.epoch_number, kept.epoch_number if kept else 0, left) + 1
    ledger.append_opening(
        feed_id,
        feed_pb2.Position(epoch_number=number, epoch_id=os.urandom(16), seq=head.seq, hash=head.hash),
        feed_pb2.EpochStart(base=head.position()),
    )
    ledger.observer.event("catalog.epoch_opened", feed=feed_id.hex(), epoch=number, base=head.seq)
