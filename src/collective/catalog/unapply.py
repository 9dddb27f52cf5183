"""Taking entries back: a feed returned to what it was at an earlier entry, as if the later ones had never come.

The derived tables of that feed are made anew from its entries, in the transaction that takes the later ones away; so
what stands afterwards is what a rebuild would give (tested). The entries are kept, as evidence and for their owner.
"""

from __future__ import annotations

import sqlite3

from collective.catalog import apply as applying
from collective.catalog import folding
from collective.catalog.abandoned import keep_abandoned
from collective.catalog.applier import Applier, Feed
from collective.catalog.chain import note_entry
from collective.catalog.entry import parse_entry
from collective.catalog.facts import as_int
from collective.catalog.snapshot import read_head
from collective.core.errors import Conflict
from collective.wire import feed_pb2

__all__ = ["unapply"]


def unapply(applier: Applier, connection: sqlite3.Connection, feed: Feed, kept_seq: int) -> int:
    """Return a feed to its entry `kept_seq` (0: to nothing); how many entries were taken back. Inside a change.

    Raises: Conflict when the entry lies before what a snapshot stands for here: those cannot be told apart any more.
    """
    if kept_seq < feed.dropped_seq:
        raise Conflict(
            f"feed {feed.feed_id.hex()[:12]} would go back to entry {kept_seq}, before the snapshot at"
            f" {feed.dropped_seq} that stands for its entries here",
            "its owner started from a copy that is too old; the newest copy of its database mends it",
        )
    gone = [
        parse_entry(raw)
        for (raw,) in connection.execute(
            "SELECT entry FROM entries WHERE feed = ? AND seq > ? ORDER BY seq", (feed.id, kept_seq)
        ).fetchall()
    ]
    for entry in gone:
        keep_abandoned(connection, entry)
    connection.execute("DELETE FROM entries WHERE feed = ? AND seq > ?", (feed.id, kept_seq))
    _forget(connection, feed)
    if kept_seq:
        _rebuild(applier, connection, feed)
    else:
        connection.execute("DELETE FROM epochs WHERE feed = ?", (feed.id,))
        connection.execute("DELETE FROM feeds WHERE id = ?", (feed.id,))
    connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'changes'")
    applying.note_joined(connection)
    return len(gone)


def _forget(connection: sqlite3.Connection, feed: Feed) -> None:
    """Clear everything that derives from the feed and from no other."""
    if feed.kind == "store":
        applying.forget_store(connection, feed.id, feed.feed_id)
        connection.execute("UPDATE holdings SET seq = head_seq WHERE feed_id = ?", (feed.feed_id,))
        return
    for table in ("operations", "refused_operations"):
        connection.execute(f"DELETE FROM {table} WHERE feed = ?", (feed.id,))
    if feed.kind == "root":
        connection.execute("DELETE FROM members")
        return
    stores = "feed_id IN (SELECT feed_id FROM datastores WHERE owner = ?)"
    connection.execute(f"DELETE FROM wraps WHERE {stores}", (feed.owner,))
    for table in ("datastores", "grants"):
        connection.execute(f"DELETE FROM {table} WHERE owner = ?", (feed.owner,))
    for table in ("signing_keys", "cards", "holdings", "holding_exceptions"):
        connection.execute(f"DELETE FROM {table} WHERE domain = ?", (feed.owner,))


def _rebuild(applier: Applier, connection: sqlite3.Connection, feed: Feed) -> None:
    """Load the snapshot if entries were dropped, then apply the entries that stay, one by one: memory holds one."""
    header, hash_ = feed_pb2.Header(), b""
    if feed.dropped_seq:
        folding.load_base(applier, connection, feed.id, feed.feed_id, feed.dropped_seq, with_sealed=feed.opened_seq > 0)
        first = next(folding.stored_blocks(connection, feed.feed_id, feed.dropped_seq, sealed=False))
        head = read_head(first, feed.feed_id, sealed=False)
        header.epoch_number, header.epoch_id, header.seq = head.base.epoch_number, head.base.epoch_id, head.base.seq
        header.lamport, hash_ = head.base_lamport, head.base.hash
    else:
        connection.execute("DELETE FROM epochs WHERE feed = ?", (feed.id,))
    for (raw,) in connection.execute("SELECT entry FROM entries WHERE feed = ? ORDER BY seq", (feed.id,)):
        entry = parse_entry(raw)
        header, hash_ = entry.header, entry.hash
        note_entry(connection, feed.id, header)
        applier.change_tables(connection, entry, feed.kind, feed.owner, feed.id)
    opened = connection.execute("SELECT opened_seq FROM feeds WHERE id = ?", (feed.id,)).fetchone()
    connection.execute(
        "UPDATE feeds SET epoch_number = ?, epoch_id = ?, seq = ?, hash = ?, lamport = ?, opened_seq = ? WHERE id = ?",
        (
            header.epoch_number, header.epoch_id, header.seq, hash_, header.lamport,
            header.seq if feed.kind != "store" else as_int(opened[0]), feed.id,
        ),
    )  # fmt: skip
