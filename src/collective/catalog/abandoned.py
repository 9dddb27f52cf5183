"""Entries that are not on the chain any more: kept as evidence, and for their owner to replay."""

from __future__ import annotations

import sqlite3

from collective.catalog.entry import ParsedEntry

__all__ = ["keep_abandoned"]


def keep_abandoned(connection: sqlite3.Connection, entry: ParsedEntry) -> bool:
    """Keep an entry that is not on the chain; whether it is new here."""
    header = entry.header
    cursor = connection.execute(
        "INSERT OR IGNORE INTO abandoned VALUES (?, ?, ?, ?, ?, ?, 0, 0)",
        (header.feed_id, header.epoch_number, header.epoch_id, header.seq, entry.hash, entry.raw),
    )
    return cursor.rowcount == 1
