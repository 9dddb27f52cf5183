"""Snapshots in the life of a store feed: made by its owner, started from by who is far behind, instead of entries.

    due --blocks written--> folded --laid out as two versions, pointed to by an entry--> pointed
    pointed --both held at the copy target, every follower past the base--> entries up to the base may go
    far behind --blocks fetched--> the tables are what the base left --entries after it--> level

The blocks of the snapshot that stands for dropped entries stay in the database: un-applying later entries rebuilds the
tables from them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from blake3 import blake3

from collective.catalog import apply as applying
from collective.catalog import beside
from collective.catalog.abandoned import keep_abandoned
from collective.catalog.chain import epochs_of
from collective.catalog.database import open_for_reading
from collective.catalog.entry import ParsedEntry, parse_entry
from collective.catalog.facts import as_bytes, as_int
from collective.catalog.roster import cut_statements
from collective.catalog.snapshot import PUBLIC_TABLES, TREE_TABLES, blocks_of, load_blocks, read_head
from collective.core.errors import Conflict, Corrupt, NotFound
from collective.wire import feed_pb2

if TYPE_CHECKING:
    from collective.catalog.applier import Applier, Feed
    from collective.catalog.ledger import Ledger

__all__ = [
    "drop_entries",
    "due_for_snapshot",
    "fold",
    "keep_blocks",
    "load_public",
    "newest_snapshots",
    "open_base",
    "point_to",
    "public_snapshot_key",
    "start_from",
    "stored_blocks",
    "sweep_dropped",
]

BLOCKS_PER_CHANGE = 32  # a few megabytes: the writer thread is free in between
SWEPT_PER_SLICE = 64  # entries or blocks: some megabytes
_PUBLIC_KEY_CONTEXT = "collective 2026 public snapshot key 1"


def public_snapshot_key(feed_id: bytes) -> bytes:
    """What the public version's key pages are sealed under: no secret from whoever follows the feed."""
    return blake3(feed_id, derive_key_context=_PUBLIC_KEY_CONTEXT).digest()


# ---------------------------------------------------------------- making


def due_for_snapshot(ledger: Ledger, every: int) -> list[bytes]:
    """Own stores with `every` entries since their last snapshot's base, whose tree is all here."""
    rows = ledger._all(
        "SELECT f.feed_id FROM feeds f WHERE f.kind = 'store' AND f.owner = ? AND f.opened_seq = f.seq AND NOT f.forked"
        " AND f.seq - coalesce((SELECT max(s.base_seq) FROM snapshots s WHERE s.feed = f.id), 0) >= ?",
        ledger.own_domain, every,
    )  # fmt: skip
    return [as_bytes(feed) for (feed,) in rows if not ledger.is_in_doubt(as_bytes(feed))]


def fold(ledger: Ledger, store_id: bytes) -> feed_pb2.Position:
    """Write the blocks of both parts at the head as it is now; the base. Others may append meanwhile."""
    reading = open_for_reading(ledger.path)
    try:
        reading.execute("BEGIN")
        row = reading.execute(
            "SELECT id, tree, epoch_number, epoch_id, seq, hash, lamport FROM feeds"
            " WHERE feed_id = ? AND opened_seq = seq",
            (store_id,),
        ).fetchone()
        if row is None:
            raise NotFound("that DataStore's tree is not all here")
        number, tree, epoch, epoch_id, seq, hash_, lamport = row
        keys = {"feed": number, "feed_id": store_id, "store": tree, "tree": tree}
        base = feed_pb2.Position(epoch_number=epoch, epoch_id=epoch_id, seq=seq, hash=hash_)
        for sealed, tables in ((False, PUBLIC_TABLES), (True, TREE_TABLES)):
            head = feed_pb2.SnapshotHead(format=1, feed_id=store_id, base=base, base_lamport=lamport, sealed=sealed)
            keep_blocks(ledger, store_id, seq, blocks_of(reading, keys, tables, head), sealed=sealed)
        return base
    finally:
        reading.close()


def keep_blocks(ledger: Ledger, store_id: bytes, base_seq: int, blocks: Iterable[bytes], *, sealed: bool) -> None:
    """Store the blocks of one part, a few in each change, in place of any there."""
    with ledger.change() as connection:
        connection.execute(
            "DELETE FROM snapshot_blocks WHERE feed_id = ? AND base_seq = ? AND sealed = ?",
            (store_id, base_seq, sealed),
        )
    batch: list[tuple[bytes, int, int, int, bytes]] = []
    for number, block in enumerate(blocks):
        batch.append((store_id, base_seq, int(sealed), number, block))
        if len(batch) == BLOCKS_PER_CHANGE:
            _insert(ledger, batch)
    _insert(ledger, batch)


def _insert(ledger: Ledger, batch: list[tuple[bytes, int, int, int, bytes]]) -> None:
    with ledger.change() as connection:
        connection.executemany("INSERT INTO snapshot_blocks VALUES (?, ?, ?, ?, ?)", batch)
    batch.clear()


def stored_blocks(connection: sqlite3.Connection, store_id: bytes, base_seq: int, *, sealed: bool) -> Iterator[bytes]:
    """The blocks of one part, in order; none when they are not here."""
    for (block,) in connection.execute(
        "SELECT block FROM snapshot_blocks WHERE feed_id = ? AND base_seq = ? AND sealed = ? ORDER BY number",
        (store_id, base_seq, int(sealed)),
    ):
        yield block


def newest_snapshots(ledger: Ledger, store_id: bytes) -> list[tuple[int, int]]:
    """(base seq, seq of the entry that points to it), the newest first."""
    rows = ledger._all(
        "SELECT s.base_seq, s.seq FROM snapshots s JOIN feeds f ON f.id = s.feed WHERE f.feed_id = ?"
        " ORDER BY s.base_seq DESC",
        store_id,
    )
    return [(as_int(base), as_int(seq)) for base, seq in rows]


def point_to(
    ledger: Ledger, store_id: bytes, base: feed_pb2.Position, public: feed_pb2.Layout, sealed: feed_pb2.Layout
) -> None:
    """Append the entry that lays both versions out; those of the snapshot that falls out of the newest are released."""
    pointer = feed_pb2.SnapshotPointer(base=base, public_version=public.version_id, sealed_version=sealed.version_id)
    with ledger.change() as connection:
        stay = applying.SNAPSHOTS_KEPT - 1
        gone = connection.execute(
            "SELECT s.public_version, s.sealed_version FROM snapshots s JOIN feeds f ON f.id = s.feed"
            " WHERE f.feed_id = ? ORDER BY s.base_seq DESC LIMIT -1 OFFSET ?",
            (store_id, stay),
        ).fetchall()
        ledger.append_store(
            store_id,
            layouts=[public, sealed],
            releases=[feed_pb2.Release(version_id=version) for versions in gone for version in versions],
            snapshots=[pointer],
        )


# ---------------------------------------------------------------- starting from one


def start_from(ledger: Ledger, store_id: bytes, owner: str, base_seq: int, *, with_sealed: bool) -> Iterator[None]:
    """Make the feed here what its entries up to the base made, from the blocks that were kept; then entries follow.

    One slice at each step, each a change of its own; what shows changes at the last. What is here of the feed must end
    before the base; entries off its chain are kept as abandoned.
    Raises: NotFound, Corrupt, Conflict (the feed here is past the base already).
    """
    tree = beside.begin(ledger)
    try:
        if with_sealed:
            yield from beside.load_tree(ledger, store_id, base_seq, tree)
            yield
        with ledger.change() as connection:
            _start(ledger, connection, store_id, owner, base_seq, tree, base_seq if with_sealed else 0)
    finally:
        ledger.in_the_making.discard(tree)


def _start(
    ledger: Ledger,
    connection: sqlite3.Connection,
    store_id: bytes,
    owner: str,
    base_seq: int,
    tree: int,
    opened_seq: int,
) -> None:
    feed = ledger._feed(store_id)
    if feed is not None and feed.head.seq >= base_seq:
        raise Conflict("the feed is past that snapshot already")
    first = next(stored_blocks(connection, store_id, base_seq, sealed=False), None)
    if first is None:
        raise NotFound("that snapshot is not here")
    head = read_head(first, store_id, sealed=False)
    if head.base.seq != base_seq:
        raise Corrupt("a snapshot has another base than the entry that names it")
    before: list[ParsedEntry] = []
    if feed is None:
        number = as_int(
            connection.execute(
                "INSERT INTO feeds (feed_id, kind, owner, epoch_number, epoch_id, seq, hash, lamport, opened_seq, tree)"
                " VALUES (?, 'store', ?, 1, x'', 0, x'', 0, 0, ?)",
                (store_id, owner, tree),
            ).lastrowid
        )
    else:
        number = feed.id
        before = _newest_epoch(connection, feed)
        connection.execute("DELETE FROM entries WHERE feed = ?", (number,))
    connection.execute(
        "UPDATE feeds SET epoch_number = ?, epoch_id = ?, seq = ?, hash = ?, lamport = ?, opened_seq = ?,"
        " dropped_seq = ? WHERE id = ?",
        (
            head.base.epoch_number, head.base.epoch_id, base_seq, head.base.hash, head.base_lamport, opened_seq,
            base_seq, number,
        ),
    )  # fmt: skip
    load_public(ledger, connection, number, store_id, base_seq)
    beside.show(ledger, connection, number, tree)
    on_chain = {epoch.id: epoch.last_seq for epoch in epochs_of(ledger, store_id)}
    for entry in before:
        if entry.header.seq > on_chain.get(entry.header.epoch_id, 0):
            keep_abandoned(connection, entry)
    connection.execute("UPDATE meta SET value = max(value, ?) WHERE key = 'lamport'", (head.base_lamport,))
    connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'changes'")


def open_base(ledger: Ledger, store_id: bytes) -> Iterator[None]:
    """Load the tree of a feed that started from a snapshot without one, now that its blocks are here, in slices.

    Nothing happens when it is there already. Entries after it are opened next. Raises: NotFound, Corrupt.
    """
    feed = ledger._feed(store_id)
    if feed is None or feed.opened_seq >= feed.dropped_seq:
        return
    tree = beside.begin(ledger)
    try:
        yield from beside.load_tree(ledger, store_id, feed.dropped_seq, tree)
        yield
        with ledger.change() as connection:
            if ledger._feed(store_id) is None:
                return  # un-applied meanwhile
            beside.show(ledger, connection, feed.id, tree)
            connection.execute("UPDATE feeds SET opened_seq = ? WHERE id = ?", (feed.dropped_seq, feed.id))
            connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'changes'")
    finally:
        ledger.in_the_making.discard(tree)


def _newest_epoch(connection: sqlite3.Connection, feed: Feed) -> list[ParsedEntry]:
    """The entries here of the head's epoch: the only ones that can be off another chain without that being known."""
    rows = connection.execute(
        "SELECT entry FROM entries WHERE feed = ? AND seq >= (SELECT max(first_seq) FROM epochs WHERE feed = ?)",
        (feed.id, feed.id),
    ).fetchall()
    return [parse_entry(raw) for (raw,) in rows]


def load_public(applier: Applier, connection: sqlite3.Connection, number: int, store_id: bytes, base_seq: int) -> None:
    """What the public parts up to the base made, in place of what is there; inside a change."""
    applying.forget_public(connection, number, store_id)
    blocks = stored_blocks(connection, store_id, base_seq, sealed=False)
    next(blocks, None)
    load_blocks(connection, {"feed": number, "feed_id": store_id}, PUBLIC_TABLES, blocks)
    for epoch in epochs_of(applier, store_id)[1:]:
        cut_statements(connection, store_id, epoch.number, epoch.first_seq - 1)


# ---------------------------------------------------------------- dropping


def drop_entries(ledger: Ledger, store_id: bytes, base_seq: int) -> None:
    """Let a base whose blocks are here stand for the entries up to it; `sweep_dropped` removes them, and older blocks.

    The caller knows they may go. Raises: Conflict, NotFound.
    """
    with ledger.change() as connection:
        feed = ledger._feed(store_id)
        if feed is None or feed.head.seq < base_seq:
            raise Conflict("the feed has not reached that snapshot's base here")
        for sealed in (False, True):
            if sealed and not feed.opened_seq:
                continue  # a host that never opened anything needs the public part alone
            if next(stored_blocks(connection, store_id, base_seq, sealed=sealed), None) is None:
                raise NotFound("the snapshot that would stand for the entries is not here")
        connection.execute("UPDATE feeds SET dropped_seq = ? WHERE id = ?", (base_seq, feed.id))


def sweep_dropped(ledger: Ledger) -> bool:
    """Remove a slice of the entries and blocks that a snapshot here stands for; whether there may be more."""
    with ledger.change() as connection:
        for query in (
            "DELETE FROM entries WHERE rowid IN (SELECT e.rowid FROM feeds f CROSS JOIN entries e"
            " WHERE f.dropped_seq > 0 AND e.feed = f.id AND e.seq <= f.dropped_seq LIMIT ?)",
            "DELETE FROM snapshot_blocks WHERE rowid IN (SELECT b.rowid FROM feeds f CROSS JOIN snapshot_blocks b"
            " WHERE f.dropped_seq > 0 AND b.feed_id = f.feed_id AND b.base_seq < f.dropped_seq LIMIT ?)",
        ):
            if connection.execute(query, (SWEPT_PER_SLICE,)).rowcount:
                return True
    return False
