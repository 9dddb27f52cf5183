"""What a store entry changes: layouts and placements from its public part, the tree from its sealed part."""

from __future__ import annotations

import sqlite3

from google.protobuf.message import DecodeError

from collective.catalog.entry import ParsedEntry
from collective.catalog.tree import MAX_NUMBER, ROOT_NUMBER, apply_operation, make_root
from collective.core.errors import Corrupt
from collective.wire import feed_pb2

__all__ = [
    "absorb",
    "apply_store_public",
    "apply_store_sealed",
    "forget_store",
    "open_numbers",
    "parse_store_public",
    "record_refusal",
]

NUMBER_GAP = 1 << 24  # far above what one lost tail can have given out; 65,536 such gaps fit


def parse_store_public(raw: bytes) -> feed_pb2.StorePublic:
    """Raises: Corrupt."""
    try:
        return feed_pb2.StorePublic.FromString(raw)
    except DecodeError as error:
        raise Corrupt("a store entry's public part cannot be decoded") from error


def absorb(connection: sqlite3.Connection, operation_id: feed_pb2.OperationId, feed: int, seq: int) -> bool:
    """Note an operation's id; False when it was applied before and must not apply again."""
    if not operation_id.random:
        return True
    cursor = connection.execute(
        "INSERT OR IGNORE INTO operations VALUES (?, ?, ?, ?)",
        (operation_id.writer, operation_id.random, feed, seq),
    )
    return cursor.rowcount == 1


def record_refusal(connection: sqlite3.Connection, feed: int, seq: int, number: int, reason: str) -> None:
    """Keep why an operation of a signed entry was skipped."""
    connection.execute("INSERT OR REPLACE INTO refused_operations VALUES (?, ?, ?, ?)", (feed, seq, number, reason))


def apply_store_public(connection: sqlite3.Connection, store_id: bytes, public: feed_pb2.StorePublic, seq: int) -> None:
    """Layouts, placements and releases; what hosts see."""
    for layout in public.layouts:
        connection.execute(
            "INSERT OR IGNORE INTO versions VALUES (?, ?, ?, ?, 0, ?)",
            (store_id, layout.version_id, seq, min(layout.size_bytes, (1 << 62) - 1), layout.SerializeToString()),
        )
        _place(connection, store_id, layout.version_id, list(layout.members))
    for placement in public.placements:
        _place(connection, store_id, placement.version_id, list(placement.members))
    for release in public.releases:
        connection.execute(
            "UPDATE versions SET released = 1 WHERE feed_id = ? AND version_id = ?", (store_id, release.version_id)
        )


def _place(connection: sqlite3.Connection, store_id: bytes, version_id: bytes, members: list[str]) -> None:
    connection.execute("DELETE FROM placements WHERE feed_id = ? AND version_id = ?", (store_id, version_id))
    connection.executemany(
        "INSERT OR IGNORE INTO placements VALUES (?, ?, ?, ?)",
        [(store_id, version_id, domain, rank) for rank, domain in enumerate(members)],
    )


def apply_store_sealed(connection: sqlite3.Connection, feed: int, entry: ParsedEntry, plain: bytes) -> None:
    """Tree operations in order, each once; what readers see."""
    try:
        sealed = feed_pb2.StoreSealed.FromString(plain)
    except DecodeError as error:
        raise Corrupt("a store entry's sealed part cannot be decoded") from error
    time_ns = min(entry.header.wall_milliseconds, (1 << 62) // 1_000_000) * 1_000_000
    seq = entry.header.seq
    root = connection.execute("SELECT 1 FROM inodes WHERE store = ? AND number = ?", (feed, ROOT_NUMBER)).fetchone()
    if root is None:
        make_root(connection, feed, time_ns)
    for number, operation in enumerate(sealed.operations):
        if not absorb(connection, operation.id, feed, seq):
            record_refusal(connection, feed, seq, number, "applied before")
            continue
        reason = apply_operation(connection, feed, operation, time_ns)
        if reason:
            record_refusal(connection, feed, seq, number, reason)
    if sealed.next_number:
        connection.execute(
            "UPDATE store_numbers SET next_number = max(next_number, ?) WHERE store = ?",
            (min(sealed.next_number, 1 << 40), feed),
        )


def open_numbers(connection: sqlite3.Connection, feed: int, entry: ParsedEntry) -> None:
    """A new epoch gives out inode numbers far above every one given before: those of lost creates are not known."""
    if connection.execute("SELECT 1 FROM store_numbers WHERE store = ?", (feed,)).fetchone() is None:
        make_root(connection, feed, entry.header.wall_milliseconds * 1_000_000)
    connection.execute(
        "UPDATE store_numbers SET next_number = min(next_number + ?, ?) WHERE store = ?", (NUMBER_GAP, MAX_NUMBER, feed)
    )


def forget_store(connection: sqlite3.Connection, feed: int, store_id: bytes) -> None:
    """Clear everything that derives from a store feed; its entries are applied anew afterwards."""
    for table in ("inodes", "links", "xattrs", "store_numbers"):
        connection.execute(f"DELETE FROM {table} WHERE store = ?", (feed,))
    for table in ("operations", "refused_operations"):
        connection.execute(f"DELETE FROM {table} WHERE feed = ?", (feed,))
    for table in ("versions", "placements"):
        connection.execute(f"DELETE FROM {table} WHERE feed_id = ?", (store_id,))
    connection.execute("UPDATE feeds SET opened_seq = 0 WHERE id = ?", (feed,))
