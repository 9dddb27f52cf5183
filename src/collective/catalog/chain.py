"""Where two chains of one feed meet: the epochs on the chain that stands here, and what is beyond another's head."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from collective.catalog.facts import Facts, as_bytes, as_int
from collective.wire import feed_pb2

__all__ = ["Epoch", "entry_standing_at", "epochs_of", "is_folded", "last_kept_seq", "meeting_seq", "note_entry"]


@dataclass(frozen=True)
class Epoch:
    """One epoch on the chain; `last_seq` the head's in the newest."""

    number: int
    id: bytes
    first_seq: int
    last_seq: int


def note_entry(connection: sqlite3.Connection, feed: int, header: feed_pb2.Header) -> None:
    """An entry came to the chain: its epoch stands there from its first entry on."""
    connection.execute(
        "INSERT OR IGNORE INTO epochs VALUES (?, ?, ?, ?)", (feed, header.epoch_number, header.epoch_id, header.seq)
    )


def epochs_of(facts: Facts, feed_id: bytes) -> list[Epoch]:
    """The epochs on the chain, oldest first; empty when nothing of the feed is here."""
    rows = facts._all(
        "SELECT e.number, e.epoch_id, e.first_seq, f.seq FROM epochs e JOIN feeds f ON f.id = e.feed"
        " WHERE f.feed_id = ? ORDER BY e.number",
        feed_id,
    )
    firsts = [as_int(row[2]) for row in rows]
    lasts = [first - 1 for first in firsts[1:]] + [as_int(row[3]) for row in rows[-1:]]
    return [
        Epoch(as_int(number), as_bytes(id_), as_int(first), last)
        for (number, id_, first, _), last in zip(rows, lasts, strict=True)
    ]


def entry_standing_at(facts: Facts, feed_id: bytes, epoch_id: bytes, seq: int) -> bytes | None:
    """The hash of the entry here with that epoch id and seq, None when there is none (or it was dropped)."""
    for epoch in epochs_of(facts, feed_id):
        if epoch.id == epoch_id and epoch.first_seq <= seq <= epoch.last_seq:
            row = facts._one(
                "SELECT e.hash FROM entries e JOIN feeds f ON f.id = e.feed WHERE f.feed_id = ? AND e.seq = ?",
                feed_id, seq,
            )  # fmt: skip
            return as_bytes(row[0]) if row else None
    return None


def is_folded(facts: Facts, header: feed_pb2.Header) -> bool:
    """Whether a snapshot stands here for the place that an entry claims: what stood there was checked when it came."""
    row = facts._one("SELECT dropped_seq FROM feeds WHERE feed_id = ?", header.feed_id)
    if row is None or header.seq > as_int(row[0]):
        return False
    return any(
        epoch.id == header.epoch_id and epoch.first_seq <= header.seq <= epoch.last_seq
        for epoch in epochs_of(facts, header.feed_id)
    )


def last_kept_seq(facts: Facts, feed_id: bytes, base: feed_pb2.Position) -> int:
    """The last seq here that an epoch with this base does not leave behind, as far as that can be told from here."""
    kept = 0
    for epoch in epochs_of(facts, feed_id):
        if epoch.number < base.epoch_number:
            kept = epoch.last_seq
        elif epoch.id == base.epoch_id:
            kept = min(epoch.last_seq, base.seq)
    return kept


def meeting_seq(facts: Facts, feed_id: bytes, theirs: feed_pb2.Position | None) -> int:
    """The seq after which our chain has news for somebody whose head is `theirs`.

    Their head on our chain: right after it. Their epoch here, their head past its end: after the end, where the next
    epoch opens and tells them its base. Another entry of theirs where we have one: ours goes to them, as evidence.
    Their epoch unknown here: from the first of ours that is not older; they hold what we lack when there is none.
    """
    if theirs is None or not theirs.seq:
        return 0
    epochs = epochs_of(facts, feed_id)
    for epoch in epochs:
        if epoch.id != theirs.epoch_id:
            continue
        if theirs.seq > epoch.last_seq:
            return epoch.last_seq
        standing = entry_standing_at(facts, feed_id, theirs.epoch_id, theirs.seq)
        return theirs.seq if standing in (None, theirs.hash) else theirs.seq - 1
    for epoch in epochs:
        if epoch.number >= theirs.epoch_number:
            return epoch.first_seq - 1
    return epochs[-1].last_seq if epochs else 0
