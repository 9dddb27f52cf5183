"""Taking entries back: a feed returned to what it was at an earlier entry, as if the later ones had never come.

What derives from that feed is made anew from its entries, in the transaction that takes the later ones away; so what
stands afterwards is what a rebuild would give (tested). A store's tree may have been made before, beside the one that
shows (`go_back`): then that transaction is short. The entries are kept, as evidence and for their owner.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from collective.catalog import apply as applying
from collective.catalog import beside, folding
from collective.catalog.abandoned import keep_abandoned
from collective.catalog.applier import Applier, Feed
from collective.catalog.chain import note_entry
from collective.catalog.entry import parse_entry
from collective.catalog.facts import as_int
from collective.catalog.snapshot import read_head
from collective.core.errors import Conflict
from collective.wire import feed_pb2

__all__ = ["go_back", "is_made", "unapply"]


def go_back(applier: Applier, feed_id: bytes, kept_seq: int) -> Iterator[None]:
    """Make a store's tree as it was at its entry `kept_seq`, for `unapply` to show; one slice at each step."""
    feed = applier._feed(feed_id)
    if feed is None or feed.kind != "store" or not feed.dropped_seq <= kept_seq < feed.head.seq:
        return
    tree = beside.begin(applier)
    try:
        yield from beside.tree_up_to(applier, feed, kept_seq, tree)
    except BaseException:
        applier.in_the_making.discard(tree)
        raise
    earlier = applier.made_beside.get(feed_id)
    if earlier is not None:
        applier.in_the_making.discard(earlier.tree)
    opened = min(kept_seq, feed.opened_seq)
    applier.made_beside[feed_id] = beside.Made(tree, kept_seq, opened, feed.dropped_seq)


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
    if kept_seq and feed.kind == "store":
        _show_earlier(applier, connection, feed, kept_seq)
        _rebuild(applier, connection, feed)
    elif kept_seq:
        _rebuild(applier, connection, feed)
    else:
        beside.forget(connection, feed.tree)
        connection.execute("DELETE FROM epochs WHERE feed = ?", (feed.id,))
        connection.execute("DELETE FROM feeds WHERE id = ?", (feed.id,))
    connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'changes'")
    applying.note_joined(connection)
    return len(gone)


def _forget(connection: sqlite3.Connection, feed: Feed) -> None:
    """Clear everything that derives from the feed and from no other."""
    if feed.kind == "store":
        applying.forget_public(connection, feed.id, feed.feed_id)
        connection.execute("UPDATE holdings SET seq = head_seq WHERE feed_id = ?", (feed.feed_id,))
        return
    beside.forget(connection, feed.tree)
    if feed.kind == "root":
        connection.execute("DELETE FROM members")
        return
    stores = "feed_id IN (SELECT feed_id FROM datastores WHERE owner = ?)"
    connection.execute(f"DELETE FROM wraps WHERE {stores}", (feed.owner,))
    for table in ("datastores", "grants"):
        connection.execute(f"DELETE FROM {table} WHERE owner = ?", (feed.owner,))
    for table in ("signing_keys", "cards", "holdings", "holding_exceptions"):
        connection.execute(f"DELETE FROM {table} WHERE domain = ?", (feed.owner,))


def is_made(applier: Applier, feed: Feed, kept_seq: int) -> bool:
    """Whether a store's tree as it was at that entry waits to be shown."""
    made = applier.made_beside.get(feed.feed_id)
    wanted = (kept_seq, min(kept_seq, feed.opened_seq), feed.dropped_seq)
    return made is not None and (made.kept_seq, made.opened_seq, made.dropped_seq) == wanted


def _show_earlier(applier: Applier, connection: sqlite3.Connection, feed: Feed, kept_seq: int) -> None:
    if not is_made(applier, feed, kept_seq):
        for _ in go_back(applier, feed.feed_id, kept_seq):
            continue
    made = applier.made_beside.pop(feed.feed_id)
    beside.show(applier, connection, feed.id, made.tree)
    connection.execute("UPDATE feeds SET opened_seq = ? WHERE id = ?", (made.opened_seq, feed.id))


def _rebuild(applier: Applier, connection: sqlite3.Connection, feed: Feed) -> None:
    """Load the snapshot if entries were dropped, then apply the entries that stay, one by one: memory holds one.

    Of a store what its public parts say; its tree stands already.
    """
    header, hash_ = feed_pb2.Header(), b""
    if feed.dropped_seq:
        folding.load_public(applier, connection, feed.id, feed.feed_id, feed.dropped_seq)
        first = next(folding.stored_blocks(connection, feed.feed_id, feed.dropped_seq, sealed=False))
        head = read_head(first, feed.feed_id, sealed=False)
        header.epoch_number, header.epoch_id, header.seq = head.base.epoch_number, head.base.epoch_id, head.base.seq
        header.lamport, hash_ = head.base_lamport, head.base.hash
    else:
        connection.execute("DELETE FROM epochs WHERE feed = ?", (feed.id,))
    for (raw,) in connection.execute(
        "SELECT entry FROM entries WHERE feed = ? AND seq > ? ORDER BY seq", (feed.id, feed.dropped_seq)
    ):
        entry = parse_entry(raw)
        header, hash_ = entry.header, entry.hash
        note_entry(connection, feed.id, header)
        if feed.kind == "store":
            applier.change_by_public_part(connection, entry, feed.owner)
        else:
            applier.change_tables(connection, entry, feed.kind, feed.owner, feed.id)
    opened = connection.execute("SELECT opened_seq FROM feeds WHERE id = ?", (feed.id,)).fetchone()
    connection.execute(
        "UPDATE feeds SET epoch_number = ?, epoch_id = ?, seq = ?, hash = ?, lamport = ?, opened_seq = ? WHERE id = ?",
        (
            header.epoch_number, header.epoch_id, header.seq, hash_, header.lamport,
            header.seq if feed.kind != "store" else as_int(opened[0]), feed.id,
        ),
    )  # fmt: skip
