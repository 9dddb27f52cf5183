"""Trees made anew in slices: what shows stays until the new one is whole, others' changes go in between."""

from __future__ import annotations

import pytest
from support.catalogs import TestFederation, put, state_of, tree_of

from collective.catalog import Catalog, GoesBack, beside, folding
from collective.catalog.snapshot import TREE_TABLES
from collective.wire import feed_pb2


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "BLOCKS_PER_SLICE", 1)
    monkeypatch.setattr(beside, "BYTES_PER_SLICE", 1)
    monkeypatch.setattr(beside, "SWEPT_PER_SLICE", 1)
    monkeypatch.setattr(folding, "SWEPT_PER_SLICE", 1)


@pytest.fixture
def two(federation: TestFederation) -> tuple[TestFederation, bytes]:
    """alice's DataStore with a few files, followed by bob and carol; carol has one of her own."""
    federation.add("bob")
    federation.add("carol")
    alice = federation.catalogs["alice"]
    alice.create_datastore(b"/media", 0, 0, {})
    alice.grant(b"/media", [feed_pb2.READ], "*@*.collective")
    federation.catalogs["carol"].create_datastore(b"/own", 0, 0, {})
    for number in range(5):
        put(alice, b"/media/folder/%d" % number)
    federation.exchange("alice", "bob", "carol")
    return federation, alice.store(alice.datastores()[0].feed_id).feed_id


def left_over(catalog: Catalog) -> int:
    """Rows of trees that no feed shows."""
    return sum(
        int(str(catalog._all(
            f"SELECT count(*) FROM {table.table} WHERE {table.whose} NOT IN (SELECT tree FROM feeds)"
        )[0][0]))
        for table in TREE_TABLES
    )  # fmt: skip


def swept(catalog: Catalog) -> None:
    while catalog.sweep():
        continue


def kept_blocks(federation: TestFederation, name: str, store: bytes) -> int:
    """A snapshot of alice's store as it is, its blocks at another member; the base."""
    alice, other = federation.catalogs["alice"], federation.catalogs[name]
    base = alice.fold(store).seq
    for sealed in (False, True):
        other.keep_blocks(store, base, alice.snapshot_blocks(store, base, sealed=sealed), sealed=sealed)
    return base


def test_a_snapshot_shows_when_it_is_whole(two: tuple[TestFederation, bytes]) -> None:
    """carol is far behind: until the last slice she lists what she did, and writes in between; then everything."""
    federation, store = two
    alice, carol = federation.catalogs["alice"], federation.catalogs["carol"]
    for number in range(5, 10):
        put(alice, b"/media/folder/%d" % number)
    base = kept_blocks(federation, "carol", store)
    before = {path: node for path, node in tree_of(carol).items() if path.startswith(b"/media")}
    steps = folding.start_from(carol, store, alice.own_domain, base, with_sealed=True)
    taken = 0
    for taken, _ in enumerate(steps, 1):
        assert {path: node for path, node in tree_of(carol).items() if path.startswith(b"/media")} == before
        swept(carol)  # what is in the making is not left over
        put(carol, b"/own/%d" % taken)
    assert taken > len(TREE_TABLES) // 2, "in slices"
    assert {path for path in tree_of(carol) if path.startswith(b"/media")} == {
        path for path in tree_of(alice) if path.startswith(b"/media")
    }
    assert left_over(carol) > 0
    swept(carol)
    assert left_over(carol) == 0
    assert carol._all("SELECT * FROM loose_trees") == []


def test_what_is_interrupted_counts_for_nothing(two: tuple[TestFederation, bytes]) -> None:
    """A snapshot that was loaded in part is swept; every table is as before, and entries are followed as ever."""
    federation, store = two
    alice, carol = federation.catalogs["alice"], federation.catalogs["carol"]
    before = state_of(carol)
    put(alice, b"/media/later")
    base = kept_blocks(federation, "carol", store)
    steps = folding.start_from(carol, store, alice.own_domain, base, with_sealed=True)
    for _ in range(4):
        next(steps)
    assert left_over(carol) > 0
    steps.close()  # type: ignore[attr-defined]  # a generator
    swept(carol)
    assert left_over(carol) == 0
    assert state_of(carol) == before
    federation.exchange("alice", "carol")
    assert tree_of(carol)[b"/media/later"] == tree_of(alice)[b"/media/later"]


def test_going_back_in_slices(two: tuple[TestFederation, bytes]) -> None:
    """alice wakes up on an older database: bob makes the earlier tree beside, then takes her entry; both are level."""
    federation, store = two
    bob = federation.catalogs["bob"]
    old = federation.saved_database("alice")
    put(federation.catalogs["alice"], b"/media/lost-and-found")
    federation.exchange("alice", "bob")
    alice = federation.restart("alice", old, "bob", "carol")
    alice.tend(federation.clock.wall())
    (opening, *_) = alice.entries_beyond(store, bob.heads()[store])
    before = tree_of(bob)
    with pytest.raises(GoesBack) as told:
        bob.receive(opening, at_once=False)
    shown = [tree_of(bob) == before for _ in bob.go_back(told.value)]
    assert all(shown)
    assert len(shown) >= 5, "an entry each"
    assert bob.receive(opening, at_once=False)
    federation.exchange("alice", "bob")
    assert tree_of(bob) == tree_of(alice)
    assert b"/media/lost-and-found" in tree_of(bob)
    for name in ("inodes", "links", "operations", "refused", "epochs"):
        assert state_of(bob)[name] == state_of(alice)[name], name
    swept(bob)
    assert left_over(bob) == 0


def test_entries_whose_key_came_later_are_opened_in_slices(federation: TestFederation) -> None:
    """bob has the entries before the key: each round of care opens some, until all are open."""
    bob = federation.add("bob")
    alice = federation.catalogs["alice"]
    alice.create_datastore(b"/media", 0, 0, {})
    store = alice.datastores()[0].feed_id
    for number in range(4):
        put(alice, b"/media/%d" % number)
    federation.exchange("alice", "bob")  # bob hosts it, and cannot open it
    alice.grant(b"/media", [feed_pb2.READ], "*@bob.media.collective")
    alice.tend(federation.clock.wall())
    federation.pull(alice, bob)
    rounds = 0
    while bob.waits_to_be_opened(store) or not rounds:
        assert bob.tend(federation.clock.wall())
        rounds += 1
    assert rounds > 3
    federation.exchange("alice", "bob")
    assert tree_of(bob) == tree_of(alice)


def test_a_host_goes_back_without_a_tree(federation: TestFederation) -> None:
    """bob hosts what he cannot read, from a snapshot on: he takes entries back like anybody."""
    bob = federation.add("bob")
    alice = federation.catalogs["alice"]
    alice.create_datastore(b"/media", 0, 0, {})
    store = alice.datastores()[0].feed_id
    federation.exchange("alice", "bob")  # bob hosts it
    put(alice, b"/media/first")
    base = alice.fold(store).seq
    bob.keep_blocks(store, base, alice.snapshot_blocks(store, base, sealed=False), sealed=False)
    for _ in folding.start_from(bob, store, alice.own_domain, base, with_sealed=False):
        continue
    old = federation.saved_database("alice")
    put(federation.catalogs["alice"], b"/media/lost-and-found")
    federation.exchange("alice", "bob")
    alice = federation.restart("alice", old, "bob")
    alice.tend(federation.clock.wall())
    federation.exchange("alice", "bob")
    assert bob.heads()[store] == alice.heads()[store]
    assert b"/media/lost-and-found" in tree_of(alice)
    assert state_of(bob)["epochs"] == state_of(alice)["epochs"]
