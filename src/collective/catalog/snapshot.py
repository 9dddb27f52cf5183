"""A store feed folded: everything its entries up to a base made, as a run of blocks of rows.

The public snapshot holds what hosts derive (versions, placements, epochs), the sealed one what readers derive besides
(the tree, what was, ids absorbed, numbers). Written from one read transaction, block by block; loaded the same way: of
a store of any size a few thousand rows are in memory. Law (tested): a catalogue that starts from a snapshot equals one
that applied every entry. A snapshot is its owner's word like the entries it stands for; what no entries could have
made (names that lead nowhere, folders in a circle) is refused.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from collective.catalog.tree import MAX_NUMBER, ROOT_NUMBER
from collective.core.errors import Corrupt, Misconfigured
from collective.wire import feed_pb2

__all__ = ["PUBLIC_TABLES", "SEALED_TABLES", "Table", "blocks_of", "load_blocks", "parse_block", "read_head"]

FORMAT = 1
ROWS_PER_BLOCK = 1024
MAX_BLOCK_BYTES = 8 << 20  # 1,024 rows of 4 KiB inline content, twice


@dataclass(frozen=True)
class Table:
    """A table's part in a snapshot: `key` is its column that says which store, and columns with their kind.

    Kinds: i integer, b bytes, t text. `key` "store" and "feed" hold the feed's number here, "feed_id" its id.
    """

    name: str
    key: str
    columns: tuple[tuple[str, str], ...]


def _table(name: str, key: str, columns: str) -> Table:
    return Table(name, key, tuple((word[2:], word[0]) for word in columns.split()))


PUBLIC_TABLES = (
    _table("epochs", "feed", "i:number b:epoch_id i:first_seq"),
    _table("versions", "feed_id", "b:version_id i:seq i:size_bytes i:released b:layout t:writer"),
    _table("placements", "feed_id", "b:version_id t:domain i:rank"),
    _table("snapshots", "feed", "i:base_seq i:seq b:public_version b:sealed_version"),
)
SEALED_TABLES = (
    _table("store_numbers", "store", "i:next_number"),
    _table(
        "inodes",
        "store",
        "i:number i:mode i:uid i:gid i:rdev i:link_count i:size_bytes i:mtime_ns i:ctime_ns i:atime_ns"
        " b:symlink_target b:version_id b:content t:creator i:content_change t:content_actor i:provisional",
    ),
    _table("links", "store", "i:parent b:name i:inode"),
    _table("xattrs", "store", "i:inode b:name b:value"),
    _table(
        "history",
        "store",
        "i:inode i:change b:content b:version_id i:size_bytes i:mtime_ns t:actor i:replaced_change i:replaced_ns"
        " i:removed",
    ),
    _table("gone", "store", "i:inode i:parent b:name i:change"),
    _table("number_leases", "store", "i:first i:count t:domain"),
    _table("operations", "feed", "t:writer b:random i:seq"),
    _table("refused_operations", "feed", "i:seq i:number t:reason"),
)


def blocks_of(
    connection: sqlite3.Connection, feed: int, feed_id: bytes, tables: Sequence[Table], head: feed_pb2.SnapshotHead
) -> Iterator[bytes]:
    """The blocks of one part, read on a connection whose transaction keeps them of one moment."""
    yield feed_pb2.SnapshotBlock(head=head).SerializeToString()
    for table in tables:
        names = ", ".join(name for name, _ in table.columns)
        key = feed_id if table.key == "feed_id" else feed
        cursor = connection.execute(f"SELECT {names} FROM {table.name} WHERE {table.key} = ? ORDER BY {names}", (key,))
        while rows := cursor.fetchmany(ROWS_PER_BLOCK):
            yield _block(table, rows).SerializeToString()


def _block(table: Table, rows: Sequence[tuple[object, ...]]) -> feed_pb2.SnapshotBlock:
    block = feed_pb2.SnapshotBlock(table=table.name, row_count=len(rows))
    for (name, kind), values in zip(table.columns, zip(*rows, strict=True), strict=True):
        column = block.columns.add(name=name)
        column.absent.extend(index for index, value in enumerate(values) if value is None)
        if kind == "i":
            column.integers.extend(value or 0 for value in values)
        elif kind == "b":
            column.strings.extend(value or b"" for value in values)
        else:
            column.strings.extend(str(value or "").encode() for value in values)
    return block


def parse_block(raw: bytes) -> feed_pb2.SnapshotBlock:
    """Raises: Corrupt."""
    if len(raw) > MAX_BLOCK_BYTES:
        raise Corrupt(f"a snapshot block of {len(raw)} bytes is larger than any can be")
    try:
        return feed_pb2.SnapshotBlock.FromString(raw)
    except DecodeError as error:
        raise Corrupt("a snapshot block cannot be decoded") from error


def read_head(raw: bytes, feed_id: bytes, *, sealed: bool) -> feed_pb2.SnapshotHead:
    """The head in a part's first block. Raises: Corrupt, Misconfigured (a form of a later version)."""
    head = parse_block(raw).head
    if head.format != FORMAT:
        raise Misconfigured(f"a snapshot has form {head.format}, this version reads form {FORMAT}", "update Collective")
    if head.feed_id != feed_id or head.sealed != sealed or len(head.base.hash) != 32 or head.base.seq < 1:
        raise Corrupt("a snapshot is of another feed than the entry that names it")
    return head


def load_blocks(
    connection: sqlite3.Connection, feed: int, feed_id: bytes, tables: Sequence[Table], blocks: Iterable[bytes]
) -> int:
    """Insert the rows of one part, without its first block, into tables that hold nothing of the feed; how many.

    Inside a transaction. Raises: Corrupt.
    """
    known = {table.name: table for table in tables}
    count = 0
    for raw in blocks:
        block = parse_block(raw)
        table = known.get(block.table)
        if table is None:
            raise Corrupt(f"a snapshot has rows of an unknown table {block.table[:32]!r}")
        names = ", ".join([table.key, *(name for name, _ in table.columns)])
        marks = ", ".join("?" * (len(table.columns) + 1))
        try:
            rows = _rows(table, block, feed_id if table.key == "feed_id" else feed)
            connection.executemany(f"INSERT INTO {table.name} ({names}) VALUES ({marks})", rows)
        except (sqlite3.IntegrityError, UnicodeDecodeError, OverflowError) as error:
            raise Corrupt(f"a snapshot's {table.name} are not what entries can make: {error}") from error
        count += block.row_count
    if "inodes" in known:
        _check_tree(connection, feed)
    return count


def _rows(table: Table, block: feed_pb2.SnapshotBlock, key: bytes | int) -> Iterator[tuple[object, ...]]:
    if [column.name for column in block.columns] != [name for name, _ in table.columns]:
        raise Corrupt(f"a snapshot's {table.name} have other columns than this form")
    values: list[list[object]] = []
    for (_, kind), column in zip(table.columns, block.columns, strict=True):
        listed: list[object] = (
            list(column.integers)
            if kind == "i"
            else list(column.strings)
            if kind == "b"
            else [text.decode() for text in column.strings]
        )
        if len(listed) != block.row_count or any(index >= block.row_count for index in column.absent):
            raise Corrupt(f"a snapshot's {table.name} have columns of different lengths")
        for index in column.absent:
            listed[index] = None
        values.append(listed)
    return zip([key] * block.row_count, *values, strict=True)


def _check_tree(connection: sqlite3.Connection, feed: int) -> None:
    """Names lead to inodes, numbers are in range, and every folder hangs below the root. Raises: Corrupt."""
    (bad,) = connection.execute(
        "SELECT (SELECT count(*) FROM inodes WHERE store = :s AND (number < :first OR number >= :end))"
        " + (SELECT count(*) FROM links l LEFT JOIN inodes i ON i.store = l.store AND i.number = l.inode"
        " WHERE l.store = :s AND i.number IS NULL)",
        {"s": feed, "first": ROOT_NUMBER, "end": MAX_NUMBER},
    ).fetchone()
    (folders, reached) = connection.execute(
        # CROSS JOIN keeps SQLite to this order: a look at every name once, not at every inode for each folder
        "WITH RECURSIVE below(number) AS (SELECT :root UNION SELECT l.inode FROM below b"
        " CROSS JOIN links l ON l.store = :s AND l.parent = b.number"
        " CROSS JOIN inodes i ON i.store = :s AND i.number = l.inode WHERE (i.mode & 61440) = 16384)"
        " SELECT (SELECT count(*) FROM inodes WHERE store = :s AND (mode & 61440) = 16384), count(*) FROM below",
        {"s": feed, "root": ROOT_NUMBER},
    ).fetchone()
    if bad or (folders and folders != reached):
        raise Corrupt("a snapshot's tree has names that lead nowhere, or folders in a circle")
