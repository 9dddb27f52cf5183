"""Snapshots: starting from one is as good as every entry, dropping entries changes nothing that is seen."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.catalogs import TestFederation, operation_id, put, state_of, tree_of

from collective.catalog import Catalog, Gap
from collective.catalog.folding import (
    drop_entries,
    due_for_snapshot,
    fold,
    keep_blocks,
    newest_snapshots,
    point_to,
    start_from,
    stored_blocks,
)
from collective.catalog.snapshot import parse_block
from collective.core.errors import CollectiveError, Conflict, Corrupt, Misconfigured, NotFound
from collective.wire import control_pb2, feed_pb2

SLOW = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def change(catalog: Catalog, rng: random.Random) -> None:
    """One change with everything that a snapshot carries: folders, links that go, earlier contents, layouts."""
    name = b"/media/%d/%d" % (rng.randrange(3), rng.randrange(4))
    try:
        match rng.randrange(4):
            case 0 | 1:
                put(catalog, name, rng.randbytes(rng.randrange(100)))
            case 2:
                catalog.remove_path(operation_id(), control_pb2.RemovePath(path=name), "test")
            case 3:
                layout = feed_pb2.Layout(version_id=rng.randbytes(16), size_bytes=9, members=["alice.media.collective"])
                catalog.append_store(catalog.datastores()[0].feed_id, layouts=[layout])
    except (NotFound, Conflict):
        return


def point(alice: Catalog, store: bytes) -> int:
    """Fold the store as it is and point to it; the base's seq. The versions' bytes play no part here."""
    base = fold(alice, store)
    layouts = [feed_pb2.Layout(version_id=operation_id().random, size_bytes=1) for _ in range(2)]
    point_to(alice, store, base, *layouts)
    return base.seq


def copy_blocks(source: Catalog, target: Catalog, store: bytes, base: int, *, sealed: bool) -> None:
    with source.change() as connection:
        blocks = list(stored_blocks(connection, store, base, sealed=sealed))
    keep_blocks(target, store, base, blocks, sealed=sealed)


def start(alice: Catalog, target: Catalog, store: bytes, base: int, *, with_sealed: bool = True) -> None:
    for sealed in (False, True)[: 1 + with_sealed]:
        copy_blocks(alice, target, store, base, sealed=sealed)
    for _ in start_from(target, store, "alice.media.collective", base, with_sealed=with_sealed):
        continue


def pull_all(federation: TestFederation, source: Catalog, target: Catalog) -> None:
    while federation.pull(source, target) or target.tend(federation.clock.wall()):
        continue


@SLOW
@given(seed=st.integers(0, 2**32))
def test_started_from_a_snapshot_equals_every_entry(seed: int) -> None:
    """bob read every entry, carol started from the snapshot: the same in every table; so is who dropped entries."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        federation = TestFederation(Path(folder))
        alice, bob, carol = (federation.add(name) for name in ("alice", "bob", "carol"))
        alice.create_datastore(b"/media", 0, 0, {})
        alice.grant(b"/media", [feed_pb2.READ], "*@*.collective")
        store = alice.datastores()[0].feed_id
        federation.exchange("alice", "bob", "carol")
        put(alice, b"/media/first")
        for _ in range(rng.randint(1, 15)):
            change(alice, rng)
        base = point(alice, store)
        for _ in range(rng.randint(0, 8)):
            change(alice, rng)
        pull_all(federation, alice, bob)
        start(alice, carol, store, base)
        pull_all(federation, alice, carol)
        for name, rows in state_of(bob).items():
            if name in ("datastores", "wraps", "holdings", "holding_exceptions"):
                continue  # of member feeds
            expected = [row for row in rows if store in row]
            assert [row for row in state_of(carol)[name] if store in row] == expected, name
        assert tree_of(carol) == tree_of(bob) == tree_of(alice)
        before = state_of(alice)
        drop_entries(alice, store, base)
        while alice.sweep():
            continue
        assert alice._all(
            "SELECT min(e.seq) FROM entries e JOIN feeds f ON f.id = e.feed WHERE f.feed_id = ?", store
        ) == [(base + 1,)]
        assert state_of(alice) == before
        federation.close()


@pytest.fixture
def folded(federation: TestFederation) -> tuple[TestFederation, bytes, int]:
    """alice with entries before and after a snapshot's base; bob and carol have none of them."""
    federation.add("bob")
    federation.add("carol")
    alice = federation.catalogs["alice"]
    alice.create_datastore(b"/media", 0, 0, {})
    alice.grant(b"/media", [feed_pb2.READ], "*@*.collective")
    store = alice.datastores()[0].feed_id
    federation.exchange("alice", "bob", "carol")
    for number in range(5):
        put(alice, b"/media/folder/%d" % number)
    base = point(alice, store)
    put(alice, b"/media/after")
    return federation, store, base


def test_due_after_so_many_entries(folded: tuple[TestFederation, bytes, int]) -> None:
    """A snapshot is due when its setting's count of entries came after the last base."""
    federation, store, base = folded
    alice = federation.catalogs["alice"]
    ahead = alice.heads()[store].seq - base
    assert due_for_snapshot(alice, ahead) == [store]
    assert due_for_snapshot(alice, ahead + 1) == []
    assert newest_snapshots(alice, store) == [(base, base + 1)]


def test_the_newest_two_stay(folded: tuple[TestFederation, bytes, int]) -> None:
    """A third snapshot releases the versions of the first, in the entry that points to it."""
    federation, store, base = folded
    alice = federation.catalogs["alice"]
    first = [version for (version,) in alice._all("SELECT version_id FROM versions")]
    bases = [base]
    for number in range(2):
        put(alice, b"/media/more-%d" % number)
        bases.append(point(alice, store))
    assert [told for told, _ in newest_snapshots(alice, store)] == bases[:0:-1]
    released = [version for (version,) in alice._all("SELECT version_id FROM versions WHERE released")]
    assert sorted(released) == sorted(first)


def test_dropped_entries_are_not_served(folded: tuple[TestFederation, bytes, int]) -> None:
    """Who is behind the base gets nothing but the word to start from the snapshot; who is past it follows on."""
    federation, store, base = folded
    alice, bob = federation.catalogs["alice"], federation.catalogs["bob"]
    old = alice.entries_beyond(store, bob.heads()[store])
    start(alice, bob, store, base)
    drop_entries(alice, store, base)
    assert alice.entries_beyond(store, federation.catalogs["carol"].heads()[store]) == []
    assert alice.entries_beyond(store, None) == []
    for raw in old:
        assert alice.receive(raw) is False, "an entry that was folded away is known, not foreign"
    pull_all(federation, alice, bob)
    assert tree_of(bob) == tree_of(alice)
    assert alice.doubts() == {}


def test_unapplying_after_dropping_rebuilds_from_the_snapshot(folded: tuple[TestFederation, bytes, int]) -> None:
    """bob started from the snapshot; alice wakes up on an older database: his later entries are taken back."""
    federation, store, base = folded
    bob = federation.catalogs["bob"]
    old = federation.saved_database("alice")
    alice = federation.catalogs["alice"]
    start(alice, bob, store, base)
    put(alice, b"/media/lost-and-found")
    federation.exchange("alice", "bob")
    alice = federation.restart("alice", old, "bob", "carol")
    alice.tend(federation.clock.wall())
    put(alice, b"/media/meanwhile")
    federation.exchange("alice", "bob")
    assert tree_of(bob) == tree_of(alice)
    assert {b"/media/meanwhile", b"/media/lost-and-found"} <= set(tree_of(bob))
    for name in ("inodes", "links", "operations", "versions", "epochs"):
        assert state_of(bob)[name] == state_of(alice)[name], name


def test_an_epoch_based_before_the_snapshot_is_refused(folded: tuple[TestFederation, bytes, int]) -> None:
    """What a snapshot stands for cannot be taken apart: the feed is taken no further, and what is here stays."""
    federation, store, base = folded
    bob = federation.catalogs["bob"]
    alice = federation.catalogs["alice"]
    with alice.change() as connection:
        (first,) = [raw for (raw,) in connection.execute(
            "SELECT entry FROM entries e JOIN feeds f ON f.id = e.feed WHERE f.feed_id = ? AND e.seq = 2", (store,)
        )]  # fmt: skip
    start(alice, bob, store, base)
    pull_all(federation, alice, bob)
    before = tree_of(bob)
    from collective.catalog import position_in
    from collective.catalog.entry import build_entry

    position = position_in(first)
    lost = build_entry(
        alice.own.signing_key,
        feed_pb2.Position(epoch_number=5, epoch_id=b"e" * 16, seq=position.seq, hash=position.hash),
        feed_id=store,
        lamport=10_000,
        wall_milliseconds=0,
        public_part=feed_pb2.StorePublic(epoch_start=feed_pb2.EpochStart(base=position)).SerializeToString(),
    )
    with pytest.raises(Conflict, match="snapshot"):
        bob.receive(lost.raw)
    assert tree_of(bob) == before


def test_a_host_starts_without_the_tree(folded: tuple[TestFederation, bytes, int]) -> None:
    """Public part alone: layouts are there, entries follow, the tree comes when its blocks do."""
    federation, store, base = folded
    alice, bob = federation.catalogs["alice"], federation.catalogs["bob"]
    start(alice, bob, store, base, with_sealed=False)
    pull_all(federation, alice, bob)
    assert bob.heads()[store] == alice.heads()[store]
    assert state_of(bob)["versions"] == state_of(alice)["versions"]
    assert state_of(bob)["inodes"] == []
    copy_blocks(alice, bob, store, base, sealed=True)
    for _ in bob.open_base(store):
        continue
    while bob.tend(federation.clock.wall()):
        continue
    assert tree_of(bob) == tree_of(alice)


@pytest.mark.parametrize("sealed", [False, True])
def test_broken_snapshots_change_nothing(folded: tuple[TestFederation, bytes, int], sealed: bool) -> None:
    """Blocks cut, of another feed, of unknown tables or with names that lead nowhere: refused, in one transaction."""
    federation, store, base = folded
    alice, bob = federation.catalogs["alice"], federation.catalogs["bob"]
    with alice.change() as connection:
        good = list(stored_blocks(connection, store, base, sealed=sealed))
    other = feed_pb2.SnapshotBlock.FromString(good[0])
    other.head.feed_id = b"o" * 32
    unknown = feed_pb2.SnapshotBlock(table="keys", row_count=0)
    later = feed_pb2.SnapshotBlock.FromString(good[0])
    later.head.format = 2
    short = parse_block(good[-1])
    short.row_count += 1
    bad = [
        [other.SerializeToString(), *good[1:]],
        [later.SerializeToString(), *good[1:]],
        [*good, unknown.SerializeToString()],
        [*good[:-1], short.SerializeToString()],
        [*good, good[-1]],
        [good[0], good[1][:-3]],
    ]
    if sealed:
        bad.append([block for block in good if parse_block(block).table != "inodes"])
    before = state_of(bob)
    for blocks in bad:
        copy_blocks(alice, bob, store, base, sealed=not sealed)
        keep_blocks(bob, store, base, blocks, sealed=sealed)
        with pytest.raises((Corrupt, Misconfigured)):
            list(start_from(bob, store, "alice.media.collective", base, with_sealed=True))
        while bob.sweep():
            continue
        assert state_of(bob) == before


def test_a_snapshot_does_not_take_back_what_is_here(folded: tuple[TestFederation, bytes, int]) -> None:
    """Who is past the base keeps following entries."""
    federation, store, base = folded
    bob = federation.catalogs["bob"]
    federation.exchange("alice", "bob")
    copy_blocks(federation.catalogs["alice"], bob, store, base, sealed=False)
    with pytest.raises(CollectiveError, match="past"):
        list(start_from(bob, store, "alice.media.collective", base, with_sealed=False))
    with pytest.raises(Gap):
        federation.catalogs["carol"].receive(bob.entries_after(store, base)[0])
