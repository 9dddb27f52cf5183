"""The laws of feeds and tree: rebuilt equals live, prefixes, no operation twice, nothing broken taken."""

from __future__ import annotations

import random
import tempfile
import unittest.mock
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.catalogs import TestFederation, operation_id, put, rebuild, state_of, tree_of
from support.operations import check_tree, random_operation

from collective.catalog import Catalog, Gap
from collective.core.errors import CollectiveError, Conflict, Corrupt, Misconfigured, NotFound, Refused
from collective.wire import control_pb2, feed_pb2

SLOW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NAMES = [b"a", b"b", b"c", b"d"]


def random_change(catalog: Catalog, rng: random.Random) -> None:
    """One change that a person might ask for; what makes no sense is refused."""
    path = b"/media/" + b"/".join(rng.choice(NAMES) for _ in range(rng.randint(1, 3)))
    other = b"/media/" + b"/".join(rng.choice(NAMES) for _ in range(rng.randint(1, 3)))
    kind = rng.randrange(5)
    try:
        if kind <= 1:
            put(catalog, path, rng.randbytes(rng.randint(0, 200)))
        elif kind == 2:
            request = control_pb2.RemovePath(path=path, recursive=rng.random() < 0.5)
            catalog.remove_path(operation_id(), request, "test")
        elif kind == 3:
            catalog.move_path(operation_id(), control_pb2.MovePath(source=path, destination=other), "test")
        else:
            request_directory = control_pb2.MakeDirectory(path=path, mode=0o755, parents=True)
            catalog.make_directory(operation_id(), request_directory, "test")
    except (Conflict, NotFound, Refused):
        return


@SLOW
@given(seed=st.integers(0, 2**32))
def test_rebuilt_equals_live(seed: int) -> None:
    """The tables rebuilt from the entries are the live ones, at the owner and at a reader."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        federation = TestFederation(Path(folder))
        alice, bob = federation.add("alice"), federation.add("bob")
        alice.create_datastore(b"/media", 0, 0, {})
        for _ in range(rng.randint(1, 25)):
            random_change(alice, rng)
            federation.clock.advance(rng.random())
        alice.grant(b"/media", [feed_pb2.READ], "bob@media.collective")
        federation.sync()
        check_tree(alice)
        assert tree_of(alice) == tree_of(bob)
        for name, catalog in (("alice", alice), ("bob", bob)):
            fresh = rebuild(federation, catalog, Path(folder) / f"{name}-rebuilt")
            assert state_of(fresh) == state_of(catalog)
            fresh.close()
        federation.close()


@SLOW
@given(seed=st.integers(0, 2**32))
def test_applying_is_total_and_alike(seed: int) -> None:
    """Whatever an owner signs, nobody stumbles: what makes no sense is skipped, everywhere alike."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        federation = TestFederation(Path(folder))
        alice, bob = federation.add("alice"), federation.add("bob")
        store = alice.create_datastore(b"/media", 0, 0, {})
        alice.grant(b"/media", [feed_pb2.READ], "bob@media.collective")
        for _ in range(6):
            alice.append_store(store.feed_id, operations=[random_operation(rng) for _ in range(rng.randint(1, 12))])
        federation.sync()
        check_tree(alice)
        assert state_of(alice)["inodes"] == state_of(bob)["inodes"]
        assert state_of(alice)["links"] == state_of(bob)["links"]
        assert state_of(alice)["refused"] == state_of(bob)["refused"]
        federation.close()


@SLOW
@given(seed=st.integers(0, 2**32))
def test_any_delivery_leaves_a_prefix(seed: int) -> None:
    """Entries in any order, some twice: gaps are refused, what is applied is a prefix, and in the end all of it."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        federation = TestFederation(Path(folder))
        alice, bob = federation.add("alice"), federation.add("bob")
        alice.create_datastore(b"/media", 0, 0, {})
        alice.grant(b"/media", [feed_pb2.READ], "bob@media.collective")
        federation.sync()
        store = alice.datastores()[0].feed_id
        start = bob.heads()[store].seq
        for number in range(8):
            put(alice, b"/media/%d" % number)
        entries = alice.entries_after(store, start)
        deliveries = [*range(len(entries)), *range(len(entries))]
        rng.shuffle(deliveries)
        for index in deliveries:
            before = bob.heads()[store].seq
            try:
                bob.receive(entries[index])
            except Gap:
                assert start + index + 1 > before + 1
                assert bob.heads()[store].seq == before
            else:
                assert bob.heads()[store].seq in (before, before + 1)
        for entry in entries:
            bob.receive(entry)
        assert tree_of(alice) == tree_of(bob)
        federation.close()


def test_no_flipped_byte_is_taken(federation: TestFederation) -> None:
    """Every single byte of an entry, flipped, is refused and changes nothing."""
    alice, bob = federation.catalogs["alice"], federation.add("bob")
    alice.create_datastore(b"/media", 0, 0, {})
    federation.sync()
    store = alice.datastores()[0].feed_id
    put(alice, b"/media/film")
    (entry,) = alice.entries_after(store, bob.heads()[store].seq)
    before = state_of(bob)
    for position in range(len(entry)):
        broken = bytearray(entry)
        broken[position] ^= 1 << (position % 8)
        with pytest.raises(CollectiveError) as caught:
            bob.receive(bytes(broken))
        assert isinstance(caught.value, Corrupt | NotFound | Misconfigured | Conflict), position
    assert state_of(bob) == before
    assert bob.receive(entry)


def test_a_request_repeated_is_the_same_entry(federation: TestFederation) -> None:
    """An id that was applied once applies no second time, and answers the same position."""
    alice = federation.catalogs["alice"]
    alice.create_datastore(b"/media", 0, 0, {})
    id_ = operation_id()
    request = control_pb2.PutFile(path=b"/media/a/file", make_parents=True, content=feed_pb2.Content())
    first = alice.put_file(id_, request, "test")
    before = state_of(alice)
    assert alice.put_file(id_, request, "test") == first
    assert state_of(alice) == before


def test_what_was_expected_is_checked(federation: TestFederation) -> None:
    """A file changed meanwhile is not overwritten."""
    alice = federation.catalogs["alice"]
    alice.create_datastore(b"/media", 0, 0, {})
    put(alice, b"/media/file")
    request = control_pb2.PutFile(path=b"/media/file", content=feed_pb2.Content())
    with pytest.raises(Conflict):
        alice.put_file(operation_id(), request, "expects nothing there")
    request.expected_inode = alice.resolve(b"/media/file").number
    request.expected_version_id = b"another version!"
    with pytest.raises(Conflict):
        alice.put_file(operation_id(), request, "expects another version")


def test_a_fork_is_kept_and_stops_the_feed(federation: TestFederation, tmp_path: Path) -> None:
    """Two entries signed for one place: the first stays, the second is evidence, nothing more is taken."""
    alice, bob = federation.catalogs["alice"], federation.add("bob")
    alice.create_datastore(b"/media", 0, 0, {})
    federation.sync()
    store = alice.datastores()[0].feed_id
    position = bob.heads()[store].seq
    twin = rebuild(federation, alice, tmp_path / "twin")
    put(alice, b"/media/first")
    put(twin, b"/media/second")
    (first,) = alice.entries_after(store, position)
    second = twin.entries_after(store, position)[0]  # its lease of new numbers, for the twin has none in stock
    bob.receive(first)
    with pytest.raises(Conflict):
        bob.receive(second)
    assert bob._all("SELECT seq FROM forks") == [(position + 1,)]
    put(alice, b"/media/third")
    (third,) = alice.entries_after(store, position + 1)
    with pytest.raises(Conflict):
        bob.receive(third)
    with pytest.raises(Conflict):
        alice.receive(second)  # a foreign entry of an own feed …
    with pytest.raises(Misconfigured):
        put(alice, b"/media/fourth")  # … and nothing more is signed
    twin.close()


def test_a_database_behind_its_heads_signs_nothing(federation: TestFederation) -> None:
    """A database rolled back to an older day is read and not written."""
    alice = federation.catalogs["alice"]
    alice.create_datastore(b"/media", 0, 0, {})
    alice.close()
    folder = federation.folder("alice")
    saved = {path.name: path.read_bytes() for path in folder.glob("catalog.db*")}
    alice = federation.open("alice")
    put(alice, b"/media/told")
    alice.close()
    for path in folder.glob("catalog.db*"):
        path.unlink()
    for name, content in saved.items():
        (folder / name).write_bytes(content)
    alice = federation.catalogs["alice"] = federation.open("alice")
    assert len(alice.doubtful_feeds()) == 1
    with pytest.raises(Misconfigured, match="older"):
        put(alice, b"/media/other")
    assert alice.list(alice.resolve(b"/media").ino) == []


def test_a_crash_between_commit_and_head_is_no_doubt(federation: TestFederation) -> None:
    """A head file one entry behind the database is a clean start."""
    alice = federation.catalogs["alice"]
    alice.create_datastore(b"/media", 0, 0, {})
    put(alice, b"/media/first")
    heads = {path: path.read_bytes() for path in (federation.folder("alice") / "heads").iterdir()}
    put(alice, b"/media/second")
    alice.close()
    for path, content in heads.items():
        path.write_bytes(content)
    alice = federation.catalogs["alice"] = federation.open("alice")
    assert alice.doubtful_feeds() == []
    put(alice, b"/media/third")


def test_an_entry_is_not_served_before_its_head_is_kept(federation: TestFederation) -> None:
    """Committed, and its head not kept: by a crash, or a full disk. Others get it when the next change kept it."""
    alice, bob = federation.catalogs["alice"], federation.add("bob")
    alice.create_datastore(b"/media", 0, 0, {})
    federation.sync()
    store = alice.datastores()[0].feed_id
    head = federation.folder("alice") / "heads" / store.hex()
    kept, before = head.read_bytes(), bob.heads()[store]
    put(alice, b"/media/first")
    alice.close()
    head.write_bytes(kept)
    alice = federation.catalogs["alice"] = federation.open("alice")
    assert alice.entries_after(store, before.seq) == []
    alice.tend(federation.clock.wall())
    assert alice.heads_kept.newest(store) == alice.heads()[store]
    assert len(alice.entries_after(store, before.seq)) == 1
    keep = alice.heads_kept.keep

    def full(feed_id: bytes, position: feed_pb2.Position) -> None:
        raise Misconfigured("no space left")

    with unittest.mock.patch.object(alice.heads_kept, "keep", full):
        with pytest.raises(Misconfigured, match="space"):
            put(alice, b"/media/second")
        alice.tend(federation.clock.wall())  # tells, and goes on
        assert len(alice.entries_after(store, before.seq)) == 1
    assert alice.heads_kept.keep == keep
    alice.tend(federation.clock.wall())
    assert len(alice.entries_after(store, before.seq)) == 2
    assert alice.heads_kept.newest(store) == alice.heads()[store]


def test_a_broken_stored_entry_is_not_served(federation: TestFederation) -> None:
    """Bit rot in the database is noticed before it is handed on."""
    alice = federation.catalogs["alice"]
    alice.create_datastore(b"/media", 0, 0, {})
    store = alice.datastores()[0].feed_id
    put(alice, b"/media/film")
    with alice.change() as connection:
        ((raw,),) = connection.execute("SELECT entry FROM entries ORDER BY rowid DESC LIMIT 1").fetchall()
        broken = raw[:50] + bytes([raw[50] ^ 4]) + raw[51:]
        connection.execute("UPDATE entries SET entry = ? WHERE entry = ?", (broken, raw))
    with pytest.raises(Corrupt, match="broken"):
        alice.entries_after(store, 1)
