"""What a store entry changes: layouts and placements from its public part, the tree from its sealed part."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from google.protobuf.message import DecodeError

from collective.catalog.entry import ParsedEntry
from collective.catalog.inodes import InodeTables, make_root
from collective.catalog.permissions import path_covers
from collective.catalog.tree import MAX_NUMBER, ROOT_NUMBER
from collective.core.errors import Corrupt
from collective.wire import feed_pb2

__all__ = [
    "absorb",
    "apply_store_public",
    "apply_store_sealed",
    "forget_public",
    "note_joined",
    "open_numbers",
    "parse_store_public",
    "record_refusal",
]

SNAPSHOTS_KEPT = 2  # the one before the newest is held by more members than the newest
NUMBER_GAP = 1 << 24  # far above what one lost tail can have given out; 65,536 such gaps fit


def parse_store_public(raw: bytes) -> feed_pb2.StorePublic:
    """Raises: Corrupt."""
    try:
        return feed_pb2.StorePublic.FromString(raw)
    except DecodeError as error:
        raise Corrupt("a store entry's public part cannot be decoded") from error


def absorb(connection: sqlite3.Connection, operation_id: feed_pb2.OperationId, tree: int, seq: int) -> bool:
    """Note an operation's id; False when it was applied to this tree before and must not apply again."""
    if not operation_id.random:
        return True
    cursor = connection.execute(
        "INSERT OR IGNORE INTO absorbed VALUES (?, ?, ?, ?)",
        (operation_id.writer, operation_id.random, tree, seq),
    )
    return cursor.rowcount == 1


def record_refusal(connection: sqlite3.Connection, tree: int, seq: int, number: int, reason: str) -> None:
    """Keep why an operation of a signed entry was skipped."""
    connection.execute("INSERT OR REPLACE INTO refused VALUES (?, ?, ?, ?)", (tree, seq, number, reason))


def apply_store_public(connection: sqlite3.Connection, store_id: bytes, public: feed_pb2.StorePublic, seq: int) -> None:
    """Layouts, placements and releases; what hosts see."""
    for layout in public.layouts:
        connection.execute(
            "INSERT OR IGNORE INTO versions VALUES (?, ?, ?, ?, 0, ?, ?)",
            (
                store_id, layout.version_id, seq, min(layout.size_bytes, (1 << 62) - 1), layout.SerializeToString(),
                layout.members[0] if layout.members else "",
            ),
        )  # fmt: skip
        _place(connection, store_id, layout.version_id, list(layout.members))
    for placement in public.placements:
        _place(connection, store_id, placement.version_id, list(placement.members))
    for pointer in public.snapshots:
        if 0 < pointer.base.seq < seq:
            connection.execute(
                "INSERT OR REPLACE INTO snapshots SELECT id, ?, ?, ?, ? FROM feeds WHERE feed_id = ?",
                (pointer.base.seq, seq, pointer.public_version, pointer.sealed_version, store_id),
            )
            connection.execute(
                "DELETE FROM snapshots WHERE feed = (SELECT id FROM feeds WHERE feed_id = :f) AND base_seq NOT IN"
                " (SELECT s.base_seq FROM snapshots s JOIN feeds f ON f.id = s.feed WHERE f.feed_id = :f"
                " ORDER BY s.base_seq DESC LIMIT :kept)",
                {"f": store_id, "kept": SNAPSHOTS_KEPT},
            )
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


def apply_store_sealed(connection: sqlite3.Connection, tree: int, entry: ParsedEntry, plain: bytes) -> None:
    """Tree operations in order, each once; what readers see."""
    try:
        sealed = feed_pb2.StoreSealed.FromString(plain)
    except DecodeError as error:
        raise Corrupt("a store entry's sealed part cannot be decoded") from error
    time_ns = min(entry.header.wall_milliseconds, (1 << 62) // 1_000_000) * 1_000_000
    seq = entry.header.seq
    root = connection.execute("SELECT 1 FROM inodes WHERE store = ? AND number = ?", (tree, ROOT_NUMBER)).fetchone()
    if root is None:
        make_root(connection, tree, time_ns)
    tables = InodeTables(connection, tree, seq, time_ns)
    for index, operation in enumerate(sealed.operations):
        if not absorb(connection, operation.id, tree, seq):
            record_refusal(connection, tree, seq, index, "applied before")
            continue
        reason = tables.apply(operation, index)
        if reason:
            record_refusal(connection, tree, seq, index, reason)
    tables.write()
    next_number = sealed.next_number
    for lease in sealed.leases:
        if 0 < lease.first < MAX_NUMBER and 0 < lease.count <= MAX_NUMBER - lease.first:
            connection.execute(
                "INSERT OR IGNORE INTO number_leases VALUES (?, ?, ?, ?)",
                (tree, lease.first, lease.count, lease.member_domain),
            )
            next_number = max(next_number, lease.first + lease.count)
    if next_number:
        connection.execute(
            "UPDATE store_numbers SET next_number = max(next_number, ?) WHERE store = ?",
            (min(next_number, MAX_NUMBER), tree),
        )
    _drop_staged(connection, sealed.operations)
    if any(operation.WhichOneof("change") in _MOVING for operation in sealed.operations):
        _note_moved_folders(connection, entry.header.feed_id)


# changes that may move the folders on the way to a nested DataStore
_MOVING = frozenset({"create", "unlink", "rename"})


def _drop_staged(connection: sqlite3.Connection, operations: Sequence[feed_pb2.TreeOperation]) -> None:
    """What came back in an entry is not staged any more."""
    dropped = 0
    if connection.execute("SELECT 1 FROM staged LIMIT 1").fetchone() is None:
        return
    for operation in operations:
        dropped += connection.execute(
            "DELETE FROM staged WHERE writer = ? AND random = ?", (operation.id.writer, operation.id.random)
        ).rowcount
    if dropped:
        connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'staged'")


def _note_moved_folders(connection: sqlite3.Connection, store_id: bytes) -> None:
    """Let the joined tree be laid out anew when another DataStore stands inside this one."""
    paths = dict(connection.execute("SELECT feed_id, path FROM datastores").fetchall())
    own = paths.get(store_id)
    if own is not None and any(feed != store_id and path_covers(own, path) for feed, path in paths.items()):
        note_joined(connection)


def note_joined(connection: sqlite3.Connection) -> None:
    """What the joined tree is made of changed: definitions, keys, the roster, folders on the way."""
    connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'joined'")


def open_numbers(
    connection: sqlite3.Connection, tree: int, entry: ParsedEntry, epoch_start: feed_pb2.EpochStart
) -> None:
    """A new epoch gives out inode numbers far above every one given before: those of lost creates are not known.

    One gap for each epoch number since the base's: an epoch that was left between the two had gaps of its own.
    """
    if connection.execute("SELECT 1 FROM store_numbers WHERE store = ?", (tree,)).fetchone() is None:
        make_root(connection, tree, entry.header.wall_milliseconds * 1_000_000)
    epochs = min(entry.header.epoch_number - epoch_start.base.epoch_number, MAX_NUMBER // NUMBER_GAP)
    connection.execute(
        "UPDATE store_numbers SET next_number = min(next_number + ?, ?) WHERE store = ?",
        (NUMBER_GAP * epochs, MAX_NUMBER, tree),
    )


def forget_public(connection: sqlite3.Connection, feed: int, store_id: bytes) -> None:
    """Clear what derives from the public parts of a store feed; they are applied anew afterwards."""
    for table in ("epochs", "snapshots"):
        connection.execute(f"DELETE FROM {table} WHERE feed = ?", (feed,))
    for table in ("versions", "placements"):
        connection.execute(f"DELETE FROM {table} WHERE feed_id = ?", (store_id,))
