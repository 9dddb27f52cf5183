"""A store's tree made anew beside the one that shows, a slice in each change, then shown in its place by one more.

    begun (loose) --slices: a snapshot's blocks, then entries--> whole --shown--> the feed's; the earlier one is loose
    loose, and not in the making --swept, a slice in each change--> gone

Whoever reads sees the earlier tree until the new one is whole, and a change that somebody waits for gets its turn
between two slices. What is interrupted is swept; nothing of it counted. A store's tree is what stands under one
number in `TREE_TABLES`: ids absorbed and what was refused belong to it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from collective.catalog import apply as applying
from collective.catalog.facts import as_bytes, as_int
from collective.catalog.snapshot import TREE_TABLES, check_tree, load_blocks, read_head
from collective.core.errors import Corrupt, NotFound

if TYPE_CHECKING:
    from collective.catalog.applier import Applier, Feed

__all__ = ["Made", "begin", "forget", "load_tree", "show", "sweep", "tree_up_to"]

BLOCKS_PER_SLICE = 8  # of 1,024 rows: 0.1 s
BYTES_PER_SLICE = 256 * 1024  # of entries: some 3,000 operations, 0.15 s
SWEPT_PER_SLICE = 8192
FIRST_NUMBER = 1 << 32  # far above the ids of feeds, under which their first trees stand


@dataclass(frozen=True)
class Made:
    """A whole tree that waits to be shown: a feed's as its entries up to `kept_seq` made it, opened to `opened_seq`."""

    tree: int
    kept_seq: int
    opened_seq: int
    dropped_seq: int


def begin(applier: Applier) -> int:
    """The number of a new tree; it stays loose until it is shown."""
    with applier.change() as connection:
        (highest,) = connection.execute(
            "SELECT max((SELECT coalesce(max(tree), 0) FROM feeds), (SELECT coalesce(max(number), 0) FROM loose_trees))"
        ).fetchone()
        number = max(FIRST_NUMBER, as_int(highest) + 1)
        connection.execute("INSERT INTO loose_trees VALUES (?)", (number,))
    applier.in_the_making.add(number)
    return number


def load_tree(applier: Applier, store_id: bytes, base_seq: int, tree: int) -> Iterator[None]:
    """The tree as a snapshot's base left it, from the blocks that are here. Raises: NotFound, Corrupt."""
    number = 0
    while True:
        with applier.change() as connection:
            blocks = [
                as_bytes(block)
                for (block,) in connection.execute(
                    "SELECT block FROM snapshot_blocks WHERE feed_id = ? AND base_seq = ? AND sealed = 1"
                    " AND number >= ? ORDER BY number LIMIT ?",
                    (store_id, base_seq, number, BLOCKS_PER_SLICE),
                )
            ]
            if not number:
                if not blocks:
                    raise NotFound("the tree of that snapshot is not here")
                if read_head(blocks[0], store_id, sealed=True).base.seq != base_seq:
                    raise Corrupt("a sealed snapshot has another base than the public one")
            load_blocks(connection, {"store": tree, "tree": tree}, TREE_TABLES, blocks[0 if number else 1 :])
        number += len(blocks)
        if len(blocks) < BLOCKS_PER_SLICE:
            break
        yield
    yield from check_tree(applier._sql, tree)


def tree_up_to(applier: Applier, feed: Feed, kept_seq: int, tree: int) -> Iterator[None]:
    """The tree as the entries up to `kept_seq` made it, as far as they were opened here."""
    seq = feed.dropped_seq
    if seq and feed.opened_seq:  # else a host, to whom the tree is nothing
        yield from load_tree(applier, feed.feed_id, seq, tree)
    last = min(kept_seq, feed.opened_seq)
    while seq < last:
        with applier.change() as connection:
            done = 0
            for number, raw in connection.execute(
                "SELECT seq, entry FROM entries WHERE feed = ? AND seq > ? AND seq <= ? ORDER BY seq",
                (feed.id, seq, last),
            ):
                applier.open_entry(connection, tree, as_bytes(raw))
                seq, done = as_int(number), done + len(raw)
                if done >= BYTES_PER_SLICE:
                    break
            if not done:
                raise Corrupt(f"entries up to {last} of feed {feed.feed_id.hex()[:12]} are missing here")
        yield


def show(applier: Applier, connection: sqlite3.Connection, feed: int, tree: int) -> None:
    """Let a feed show this tree; the one it showed is loose. Inside a change."""
    (earlier,) = connection.execute("SELECT tree FROM feeds WHERE id = ?", (feed,)).fetchone()
    connection.execute("UPDATE feeds SET tree = ? WHERE id = ?", (tree, feed))
    connection.execute("DELETE FROM loose_trees WHERE number = ?", (tree,))
    if earlier != tree:
        connection.execute("INSERT INTO loose_trees VALUES (?)", (earlier,))
    applier.in_the_making.discard(tree)
    applying.note_joined(connection)


def forget(connection: sqlite3.Connection, tree: int) -> None:
    """Clear a tree of which nothing stays, at once. Inside a change."""
    for table in TREE_TABLES:
        connection.execute(f"DELETE FROM {table.table} WHERE {table.whose} = ?", (tree,))


def sweep(applier: Applier) -> bool:
    """Remove a slice of the trees that nothing shows; whether there may be more."""
    with applier.change() as connection:
        for (tree,) in connection.execute("SELECT number FROM loose_trees").fetchall():
            if tree in applier.in_the_making:
                continue
            for table in TREE_TABLES:
                key = ", ".join([table.whose, *table.primary])
                count = connection.execute(
                    f"DELETE FROM {table.table} WHERE ({key}) IN"
                    f" (SELECT {key} FROM {table.table} WHERE {table.whose} = ? LIMIT ?)",
                    (tree, SWEPT_PER_SLICE),
                ).rowcount
                if count:
                    return True
            connection.execute("DELETE FROM loose_trees WHERE number = ?", (tree,))
            return True
    return False
