"""Operations of one entry are gathered on their way to the tables: nobody can tell."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.operations import likely_operation, random_operation

from collective.catalog.database import open_for_writing
from collective.catalog.inodes import InodeTables, make_root
from collective.catalog.snapshot import TREE_TABLES
from collective.wire import feed_pb2

TOGETHER, APART = 1, 2
NOW_NS = 1_700_000_000_000_000_000


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    made = open_for_writing(tmp_path / "catalog.db")
    yield made
    made.close()


def tables(connection: sqlite3.Connection, tree: int) -> dict[str, list[tuple[object, ...]]]:
    """Every row of a tree, without the tree's number."""
    found = {}
    for table in TREE_TABLES:
        cursor = connection.execute(f"SELECT * FROM {table.table} WHERE {table.whose} = ?", (tree,))
        whose = [column[0] for column in cursor.description].index(table.whose)
        found[table.table] = sorted(repr((*row[:whose], *row[whose + 1 :])) for row in cursor)
    return found


@pytest.mark.parametrize("seed", range(40))
def test_together_is_as_apart(connection: sqlite3.Connection, seed: int) -> None:
    """An entry's operations, gathered, leave the rows and reasons that each leaves when it is written at once."""
    rng = random.Random(seed)
    connection.execute("BEGIN")
    applied = 0
    for tree in (TOGETHER, APART):
        make_root(connection, tree, NOW_NS)
    for seq in range(1, 12):
        make = (lambda: likely_operation(rng, NOW_NS)) if rng.random() < 0.8 else (lambda: random_operation(rng))
        operations = [make() for _ in range(rng.choice([1, 40, 40]))]
        together = InodeTables(connection, TOGETHER, seq, NOW_NS + seq)
        reasons = [together.apply(operation, index) for index, operation in enumerate(operations)]
        together.write()
        for index, operation in enumerate(operations):
            apart = InodeTables(connection, APART, seq, NOW_NS + seq)
            assert apart.apply(operation, index) == reasons[index], operation
            apart.write()
        applied += reasons.count("")
        assert tables(connection, TOGETHER) == tables(connection, APART)
    assert applied


def test_a_new_folder_is_not_moved_below_itself(connection: sqlite3.Connection) -> None:
    """The way up is looked at also where it was made in the same entry."""
    connection.execute("BEGIN")
    make_root(connection, TOGETHER, NOW_NS)
    gathered = InodeTables(connection, TOGETHER, 1, NOW_NS)
    for index, (parent, number) in enumerate([(1, 2), (2, 3), (3, 4)]):
        create = feed_pb2.Create(parent=parent, name=b"folder", inode=number, mode=0o040755)
        assert gathered.apply(feed_pb2.TreeOperation(create=create), index) == ""
    below = feed_pb2.Rename(inode=2, from_parent=1, from_name=b"folder", to_parent=4, to_name=b"loop")
    assert "below itself" in gathered.apply(feed_pb2.TreeOperation(rename=below), 3)


def test_a_folder_filled_is_touched_once(connection: sqlite3.Connection) -> None:
    """A thousand files in one folder change the folder's row once, and ask for its row once."""
    connection.execute("BEGIN")
    make_root(connection, TOGETHER, NOW_NS)
    said: list[str] = []
    connection.set_trace_callback(said.append)
    gathered = InodeTables(connection, TOGETHER, 1, NOW_NS)
    for number in range(2, 1002):
        create = feed_pb2.Create(parent=1, name=b"file %d" % number, inode=number, mode=0o100644)
        assert gathered.apply(feed_pb2.TreeOperation(create=create), number) == ""
    gathered.write()
    connection.set_trace_callback(None)
    assert sum(line.startswith("UPDATE inodes") for line in said) == 1
    assert sum("FROM inodes" in line for line in said) == 2
    assert connection.execute("SELECT count(*) FROM links WHERE store = ?", (TOGETHER,)).fetchone() == (1000,)
