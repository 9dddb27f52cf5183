"""Taking entries back: a feed returned to what it was at an earlier entry, as if the later ones had never come.

The derived tables of that feed are made anew from its entries, in the transaction that takes the later ones away; so
what stands afterwards is what a rebuild would give (tested). The entries are kept, as evidence and for their owner.
"""

from __future__ import annotations

import sqlite3

from collective.catalog import apply as applying
from collective.catalog.applier import Applier, Feed
from collective.catalog.entry import ParsedEntry, parse_entry
from collective.catalog.facts import as_int

__all__ = ["keep_abandoned", "unapply"]


def unapply(applier: Applier, connection: sqlite3.Connection, feed: Feed, kept_seq: int) -> int:
    """Return a feed to its entry `kept_seq` (0: to nothing); how many entries were taken back. Inside a change."""
    gone = [
        parse_entry(raw)
        for (raw,) in connection.execute(
            "SELECT entry FROM entries WHERE feed = ? AND seq > ? ORDER BY seq", (feed.id, kept_seq)
        ).fetchall()
    ]
    for entry in gone:
        keep_abandoned(connection, entry)
    connection.execute("DELETE FROM entries WHERE feed = ? AND seq > ?", (feed.id, kept_seq))
    connection.execute("DELETE FROM epochs WHERE feed = ? AND first_seq > ?", (feed.id, kept_seq))
    _forget(connection, feed)
    if kept_seq:
        _rebuild(applier, connection, feed, kept_seq)
    else:
        connection.execute("DELETE FROM feeds WHERE id = ?", (feed.id,))
    connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'changes'")
    applying.note_joined(connection)
    return len(gone)


def keep_abandoned(connection: sqlite3.Connection, entry: ParsedEntry) -> bool:
    """Keep an entry that is not on the chain; whether it is new here."""
    header = entry.header
    cursor = connection.execute(
        "INSERT OR IGNORE INTO abandoned VALUES (?, ?, ?, ?, ?, ?, 0, 0)",
        (header.feed_id, header.epoch_number, header.epoch_id, header.seq, entry.hash, entry.raw),
    )
    return cursor.rowcount == 1


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


def _rebuild(applier: Applier, connection: sqlite3.Connection, feed: Feed, kept_seq: int) -> None:
    """Apply the entries that stay, one by one as they lie in the database: memory holds one."""
    rows = connection.cursor().execute(
        "SELECT entry FROM entries WHERE feed = ? AND seq <= ? ORDER BY seq", (feed.id, kept_seq)
    )
    last: ParsedEntry | None = None
    for (raw,) in rows:
        last = parse_entry(raw)
        applier.change_tables(connection, last, feed.kind, feed.owner, feed.id)
    assert last is not None, "a chain that goes on has its last entry here"
    header = last.header
    opened = connection.execute("SELECT opened_seq FROM feeds WHERE id = ?", (feed.id,)).fetchone()
    connection.execute(
        "UPDATE feeds SET epoch_number = ?, epoch_id = ?, seq = ?, hash = ?, lamport = ?, opened_seq = ? WHERE id = ?",
        (
            header.epoch_number, header.epoch_id, header.seq, last.hash, header.lamport,
            header.seq if feed.kind != "store" else as_int(opened[0]), feed.id,
        ),
    )  # fmt: skip
