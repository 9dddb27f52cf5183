"""A store feed folded: everything its entries up to a base made, as a run of blocks of rows.

The public snapshot holds what hosts derive (versions, placements, epochs), the sealed one what readers derive besides
(the tree, what was, ids absorbed, numbers). Written from one read transaction, block by block; loaded the same way: of
a store of any size a few thousand rows are in memory. Law (tested): a catalogue that starts from a snapshot equals one
that applied every entry. A snapshot is its owner's word like the entries it stands for; what no entries could have
made (names that lead nowhere, folders in a circle) is refused.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from collective.catalog.tree import MAX_NUMBER, ROOT_NUMBER
from collective.core.errors import Corrupt, Misconfigured
from collective.wire import feed_pb2

__all__ = [
    "PUBLIC_TABLES",
    "TREE_TABLES",
    "Table",
    "blocks_of",
    "check_tree",
    "load_blocks",
    "parse_block",
    "read_head",
]

FORMAT = 1
ROWS_PER_BLOCK = 1024
NAMES_PER_SLICE = 50_000
MAX_BLOCK_BYTES = 8 << 20  # 1,024 rows of 4 KiB inline content, twice


@dataclass(frozen=True)
class Table:
    """A table's part in a snapshot: the column that says whose rows they are, the rest of its key, columns with kinds.

    Kinds: i integer, b bytes, t text. `whose` "feed" holds the feed's number here, "feed_id" its id, "store" and "tree"
    the number of its tree. `name` is what blocks call it.
    """

    name: str
    table: str
    whose: str
    primary: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]


def _table(name: str, whose: str, primary: str, columns: str, table: str = "") -> Table:
    described = tuple((word[2:], word[0]) for word in columns.split())
    return Table(name, table or name, whose, tuple(primary.split()), described)


PUBLIC_TABLES = (
    _table("epochs", "feed", "number", "i:number b:epoch_id i:first_seq"),
    _table("versions", "feed_id", "version_id", "b:version_id i:seq i:size_bytes i:released b:layout t:writer"),
    _table("placements", "feed_id", "version_id domain", "b:version_id t:domain i:rank"),
    _table("snapshots", "feed", "base_seq", "i:base_seq i:seq b:public_version b:sealed_version"),
)
# all that belongs to a tree
TREE_TABLES = (
    _table("store_numbers", "store", "", "i:next_number"),
    _table(
        "inodes",
        "store",
        "number",
        "i:number i:mode i:uid i:gid i:rdev i:link_count i:size_bytes i:mtime_ns i:ctime_ns i:atime_ns"
        " b:symlink_target b:version_id b:content t:creator i:content_change t:content_actor i:provisional",
    ),
    _table("links", "store", "parent name", "i:parent b:name i:inode"),
    _table("xattrs", "store", "inode name", "i:inode b:name b:value"),
    _table(
        "history",
        "store",
        "inode change",
        "i:inode i:change b:content b:version_id i:size_bytes i:mtime_ns t:actor i:replaced_change i:replaced_ns"
        " i:removed",
    ),
    _table("gone", "store", "inode", "i:inode i:parent b:name i:change"),
    _table("number_leases", "store", "first", "i:first i:count t:domain"),
    _table("operations", "tree", "writer random", "t:writer b:random i:seq", "absorbed"),
    _table("refused_operations", "tree", "seq number", "i:seq i:number t:reason", "refused"),
)
Keys = Mapping[str, int | bytes]  # by `whose`


def blocks_of(
    connection: sqlite3.Connection, keys: Keys, tables: Sequence[Table], head: feed_pb2.SnapshotHead
) -> Iterator[bytes]:
    """The blocks of one part, read on a connection whose transaction keeps them of one moment."""
    yield feed_pb2.SnapshotBlock(head=head).SerializeToString()
    for table in tables:
        names = ", ".join(name for name, _ in table.columns)
        cursor = connection.execute(
            f"SELECT {names} FROM {table.table} WHERE {table.whose} = ? ORDER BY {names}", (keys[table.whose],)
        )
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


def load_blocks(connection: sqlite3.Connection, keys: Keys, tables: Sequence[Table], blocks: Iterable[bytes]) -> None:
    """Insert the rows of some blocks, none the first of its part, into tables that hold nothing under these keys.

    Inside a transaction. Raises: Corrupt.
    """
    known = {table.name: table for table in tables}
    for raw in blocks:
        block = parse_block(raw)
        table = known.get(block.table)
        if table is None:
            raise Corrupt(f"a snapshot has rows of an unknown table {block.table[:32]!r}")
        names = ", ".join([table.whose, *(name for name, _ in table.columns)])
        marks = ", ".join("?" * (len(table.columns) + 1))
        try:
            rows = _rows(table, block, keys[table.whose])
            connection.executemany(f"INSERT INTO {table.table} ({names}) VALUES ({marks})", rows)
        except (sqlite3.IntegrityError, UnicodeDecodeError, OverflowError) as error:
            raise Corrupt(f"a snapshot's {table.name} are not what entries can make: {error}") from error


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


def check_tree(sql: Callable[[], sqlite3.Connection], tree: int) -> Iterator[None]:
    """Numbers are in range, and every name leads somewhere and is reached from the root; a slice at a time.

    Raises: Corrupt.
    """
    least, highest = sql().execute("SELECT min(number), max(number) FROM inodes WHERE store = ?", (tree,)).fetchone()
    if least is not None and (least < ROOT_NUMBER or highest >= MAX_NUMBER):
        raise Corrupt("a snapshot's tree has numbers that no inode can have")
    (left,) = sql().execute("SELECT count(*) FROM links WHERE store = ?", (tree,)).fetchone()
    waiting, seen, looked = [ROOT_NUMBER], {ROOT_NUMBER}, 0
    while waiting:
        # CROSS JOIN keeps SQLite to this order: a look at every name once, not at every inode for each folder
        key = {"tree": tree, "parent": waiting.pop()}
        children = " FROM links l CROSS JOIN inodes i ON i.store = l.store AND i.number = l.inode"
        here = " WHERE l.store = :tree AND l.parent = :parent"
        (count,) = sql().execute(f"SELECT count(*){children}{here}", key).fetchone()
        folders = sql().execute(f"SELECT l.inode{children}{here} AND (i.mode & 61440) = 16384", key).fetchall()
        fresh = {number for (number,) in folders} - seen
        waiting.extend(fresh)
        seen |= fresh
        left -= count
        looked += count + 1
        if looked >= NAMES_PER_SLICE:
            looked = 0
            yield
    if left:
        raise Corrupt("a snapshot's tree has names that lead nowhere, or folders in a circle")
