"""Changes on their way to their owner: seen at once, sent in order, gone when the entry is applied; never twice."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.catalogs import TestFederation, operation_id, put, state_of, tree_of

from collective.catalog import Catalog, DataStore, Inline, Reader
from collective.core.errors import NotFound, Refused, Unreachable
from collective.wire import control_pb2, feed_pb2, submit_pb2

BOB = "bob.media.collective"
ACTOR = "client@bob.media.collective"


@dataclass
class Away:
    """bob writes into alice's /media and she is not there; `deliver` is her coming back."""

    federation: TestFederation
    alice: Catalog
    bob: Catalog
    store: DataStore

    def now(self) -> float:
        return self.federation.clock.wall()

    def ask(self, change: object) -> list[int]:
        """bob asks by path; what was planned is staged."""
        plan = self.bob.plan(operation_id(BOB), change, ACTOR)  # type: ignore[arg-type]
        return self.bob.stage(plan.store.feed_id, plan.staged, now=self.now())

    def put(self, path: bytes, data: bytes) -> list[int]:
        standing = self.bob.find(path)
        return self.ask(
            control_pb2.PutFile(
                path=path, content=feed_pb2.Content(size_bytes=len(data), inline=data), make_parents=True,
                expected_inode=standing.number if standing else 0,
            )
        )  # fmt: skip

    def deliver(self, *, limit: int = 256, lose_answer: bool = False) -> list[str]:
        """One batch to alice, her answers noted; what she answered."""
        batch = self.bob.staged_batch(self.store.feed_id, limit)
        outcomes, _ = self.alice.commit_operations(
            self.store.feed_id, [row.staged for row in batch], actor_domain=BOB, now=self.now(), exact=False
        )
        if not lose_answer:
            self.bob.note_outcomes([row.number for row in batch], outcomes)
        return [submit_pb2.Outcome.Name(outcome.outcome) for outcome in outcomes]

    def read(self, path: bytes, reader: Reader | None = None) -> bytes:
        reader = reader or self.bob
        content = reader.content(reader.resolve(path))
        assert isinstance(content, Inline)
        return content.data


@pytest.fixture
def away(federation: TestFederation) -> Away:
    alice, bob = federation.catalogs["alice"], federation.add("bob")
    store = alice.create_datastore(b"/media", 0, 0, {})
    alice.grant(b"/media", [feed_pb2.READ, feed_pb2.WRITE, feed_pb2.DELETE], "bob@media.collective")
    put(alice, b"/media/hers/film", b"film")
    federation.sync()
    bob.add_numbers(store.feed_id, alice.lease_numbers(store.feed_id, BOB, 1000))
    federation.sync()
    return Away(federation, alice, bob, store)


def test_staged_changes_show_at_once_and_stay_the_same(away: Away, tmp_path: Path) -> None:
    """bob's readers, in every process, see what he did while alice is away; when it came back nothing moves."""
    beside = Reader.open(away.bob.path, BOB)
    counter = beside.change_counter()
    away.put(b"/media/mine/new", b"1")
    away.put(b"/media/mine/new", b"22")
    away.ask(control_pb2.MovePath(source=b"/media/hers/film", destination=b"/media/mine/film"))
    away.ask(control_pb2.MakeDirectory(path=b"/media/empty"))
    away.ask(control_pb2.CopyPath(source=b"/media/mine", destination=b"/media/copy", recursive=True))
    away.ask(control_pb2.RemovePath(path=b"/media/empty"))
    assert beside.change_counter() > counter
    shown = tree_of(away.bob)
    assert sorted(shown) == [
        b"/media", b"/media/copy", b"/media/copy/film", b"/media/copy/new", b"/media/hers", b"/media/mine",
        b"/media/mine/film", b"/media/mine/new",
    ]  # fmt: skip
    assert away.read(b"/media/copy/new", beside) == b"22"
    assert sorted(tree_of(away.alice)) == [b"/media", b"/media/hers", b"/media/hers/film"]
    beside.close()
    beside = Reader.open(away.bob.path, BOB)  # a mount that starts in between
    while away.bob.staged_batch(away.store.feed_id):
        assert set(away.deliver(limit=3)) == {"APPLIED"}
        assert tree_of(away.bob) == shown
        away.federation.sync()
        assert tree_of(away.bob) == shown == tree_of(beside)
    assert tree_of(away.alice) == shown
    assert away.bob._one("SELECT count(*) FROM staged") == (0,)
    assert away.bob.pending() == []
    assert len(away.bob._overlay) == 0
    beside.close()


def test_an_answer_that_got_lost_does_no_harm(away: Away) -> None:
    """The same batch is sent again and is absorbed; what is in the feed here is not even staged again."""
    numbers = away.put(b"/media/file", b"1")
    row = away.bob.staged_batch(away.store.feed_id)[0]
    assert away.bob.is_staged(row.staged.operation.id)
    assert not away.bob.is_staged(operation_id(BOB))
    assert away.deliver(lose_answer=True) == ["APPLIED"]
    after = state_of(away.alice)
    assert [waiting.number for waiting in away.bob.staged_batch(away.store.feed_id)] == numbers
    assert away.deliver() == ["APPLIED"]
    assert state_of(away.alice) == after
    assert away.bob.staged_batch(away.store.feed_id) == []
    assert away.bob.send_staged_again(away.store.feed_id) == 1
    assert away.deliver() == ["APPLIED"]
    assert away.bob.stage(away.store.feed_id, [row.staged], now=away.now()) == numbers
    away.federation.sync()
    assert away.bob.stage(away.store.feed_id, [row.staged], now=away.now()) == [0]
    assert away.read(b"/media/file") == b"1"


def test_refused_work_stays_readable_until_it_is_discarded(away: Away) -> None:
    """The grant is gone when alice is back: the file is kept and listed, a removal is shown as not done."""
    away.put(b"/media/kept", b"precious")
    away.ask(control_pb2.RemovePath(path=b"/media/hers/film"))
    assert away.bob.find(b"/media/hers/film") is None
    with away.alice.change() as connection:
        connection.execute("DELETE FROM grants")
    assert away.deliver() == ["REFUSED", "REFUSED"]
    assert away.read(b"/media/kept") == b"precious"
    assert away.read(b"/media/hers/film") == b"film"
    kept, removal = away.bob.pending()
    assert (kept.path, kept.change, kept.state, kept.owner) == (
        b"/media/kept", "create", "refused", "alice.media.collective"
    )  # fmt: skip
    assert "granted" in kept.reason
    assert removal.change == "remove"
    assert away.bob.staged_batch(away.store.feed_id) == []
    waiting = away.put(b"/media/waits", b"")
    assert away.bob.discard([kept.number, removal.number, *waiting]) == 2
    assert away.bob.find(b"/media/kept") is None
    assert [row.number for row in away.bob.pending()] == waiting


def test_a_conflict_at_the_owner_is_seen_here_under_its_name(away: Away) -> None:
    """Both made the name: after contact bob sees alice's file and his own beside it, whole."""
    away.put(b"/media/same", b"bob's")
    assert away.read(b"/media/same") == b"bob's"
    put(away.alice, b"/media/same", b"alice's")
    away.federation.sync()
    assert away.read(b"/media/same") == b"bob's"
    beside = Reader.open(away.bob.path, BOB)  # a process that never saw it otherwise
    foretold = next(path for path in tree_of(beside) if b"conflict bob" in path)
    assert away.read(foretold, beside) == b"bob's"
    assert away.read(b"/media/same", beside) == b"alice's"
    beside.close()
    assert away.deliver() == ["CONFLICT"]
    away.federation.sync()
    assert away.read(b"/media/same") == b"alice's"
    (name,) = [path for path in tree_of(away.bob) if b"conflict bob" in path]
    assert away.read(name) == b"bob's"
    assert name == foretold
    assert tree_of(away.bob) == tree_of(away.alice)


def test_a_staged_version_is_held_here(away: Away) -> None:
    """Layout, pages and holder of a version that is only staged are found, and travel complete."""
    layout = feed_pb2.Layout(
        version_id=b"v" * 16, size_bytes=9 << 20, chunk_size_bytes=8 << 20, pages=[b"p" * 32], key_pages=[b"k" * 32]
    )
    content = feed_pb2.Content(size_bytes=9 << 20, version_id=b"v" * 16, key_pages=[b"k" * 32], key_name=b"n")
    away.ask(
        control_pb2.PutFile(path=b"/media/big", content=content, layout=layout, pages=[b"page"], key_pages=[b"keys"])
    )
    store = away.store.feed_id
    assert away.bob.layout(store, b"v" * 16).size_bytes == 9 << 20
    assert away.bob.holders(store, b"v" * 16) == [BOB]
    assert away.bob.page(b"k" * 32) == b"keys"
    with pytest.raises(NotFound):
        away.alice.layout(store, b"v" * 16)
    (row,) = away.bob.staged_batch(store)
    assert (list(row.staged.pages), list(row.staged.key_pages)) == ([b"page"], [b"keys"])
    away.deliver()
    away.federation.sync()
    assert away.alice.holders(store, b"v" * 16) == away.bob.holders(store, b"v" * 16) == [BOB]
    assert (store, b"v" * 16, "alice.media.collective") in away.bob.copies_missing()
    assert away.alice.copies_missing() == []
    away.alice.hold(store, [b"v" * 16])
    away.federation.sync()
    assert away.bob.holders(store, b"v" * 16) == [BOB, "alice.media.collective"]
    assert away.bob.copies_missing() == []


def test_without_numbers_or_id_nothing_is_staged(away: Away) -> None:
    """A create needs a leased number, a change an id of this home."""
    with away.bob.change() as connection:
        connection.execute("DELETE FROM number_stock")
    with pytest.raises(Unreachable):
        away.put(b"/media/x", b"")
    foreign = feed_pb2.TreeOperation(id=feed_pb2.OperationId(writer="x.y", random=os.urandom(16)))
    with pytest.raises(Refused):
        away.bob.stage(away.store.feed_id, [submit_pb2.StagedOperation(operation=foreign)], now=away.now())


def test_versions_and_restore(away: Away) -> None:
    """Every content that somebody finished is there to come back: overwritten, replaced by rename, removed."""
    alice, clock = away.alice, away.federation.clock
    for data in (b"1", b"22", b"333"):
        put(alice, b"/media/d/notes", data)
        clock.advance(1)
    put(alice, b"/media/d/tmp", b"4444")
    alice.commit_path(operation_id(), control_pb2.MovePath(source=b"/media/d/tmp", destination=b"/media/d/notes"), "a")
    told = alice.versions(b"/media/d/notes")
    assert [version.size_bytes for version in told] == [4, 3, 2, 1]
    assert [version.current for version in told] == [True, False, False, False]
    assert told[1].removed
    assert len({version.seq for version in told}) == 4
    restore = control_pb2.RestoreVersion(path=b"/media/d/notes", seq=told[2].seq)
    alice.commit_path(operation_id(), restore, "a")
    assert away.read(b"/media/d/notes", alice) == b"22"
    alice.commit_path(operation_id(), control_pb2.RemovePath(path=b"/media/d", recursive=True), "a")
    assert [version.size_bytes for version in alice.versions(b"/media/d/notes")] == [2, 4, 3, 2, 1]
    away.federation.sync()
    plan = away.bob.plan(operation_id(BOB), control_pb2.RestoreVersion(path=b"/media/d/notes"), ACTOR)
    away.bob.stage(plan.store.feed_id, plan.staged, now=away.now())
    assert away.read(b"/media/d/notes") == b"22"
    assert set(away.deliver()) == {"APPLIED"}
    assert away.read(b"/media/d/notes", alice) == b"22"
    elsewhere = control_pb2.RestoreVersion(path=b"/media/d/notes", seq=told[3].seq, destination=b"/media/first")
    alice.commit_path(operation_id(), elsewhere, "a")
    assert away.read(b"/media/first", alice) == b"1"
    with pytest.raises(NotFound):
        alice.versions(b"/media/never")


def test_provisional_contents_leave_no_version(away: Away) -> None:
    """A file that is still being written, and one made empty before it was filled, are nothing to go back to."""
    alice = away.alice
    (number,) = alice.take_numbers(away.store.feed_id, 1) or ()
    operations = [feed_pb2.TreeOperation(id=operation_id(), create=feed_pb2.Create(
        parent=1, name=b"growing", inode=number, mode=0o100644))]  # fmt: skip
    for size, provisional in ((1, True), (2, True), (3, False), (4, False)):
        change = feed_pb2.SetContent(
            inode=number, content=feed_pb2.Content(size_bytes=size, inline=b"x" * size), provisional=provisional
        )
        operations.append(feed_pb2.TreeOperation(id=operation_id(), set_content=change))
    alice.append_store(away.store.feed_id, operations=operations)
    assert [version.size_bytes for version in alice.versions(b"/media/growing")] == [4, 3]


def test_what_was_rolled_back_was_never_seen(away: Away) -> None:
    """A change that fails leaves nothing in what is remembered between looks: DataStores, names, staged work."""
    before = tree_of(away.bob)
    stores = away.bob.datastores()

    def fail() -> None:
        with away.bob.change():
            away.bob.create_datastore(b"/never", 0, 0, {})
            away.put(b"/media/never", b"x")
            assert b"/never" in tree_of(away.bob)
            assert away.bob.find(b"/media/never") is not None
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert away.bob.datastores() == stores
    assert tree_of(away.bob) == before
    away.put(b"/media/after", b"y")
    assert away.read(b"/media/after") == b"y"
    assert away.bob.find(b"/media/never") is None


def test_readers_see_whole_changes_while_others_write(away: Away) -> None:
    """Threads that list while changes are staged and applied see each file with its content, never an error."""
    stop = threading.Event()

    def look() -> int:
        looks = 0
        while not stop.is_set() or not looks:
            for name, node in away.bob.list(away.bob.resolve(b"/media/all").ino):
                content = away.bob.content(node)
                assert isinstance(content, Inline)
                assert content.data == name
            looks += 1
        return looks

    away.put(b"/media/all/first", b"first")
    with ThreadPoolExecutor(2) as pool:
        looking = [pool.submit(look) for _ in range(2)]
        try:
            for number in range(40):
                away.put(b"/media/all/%d" % number, b"%d" % number)
                if number % 8 == 7:
                    away.deliver(limit=5)
                    away.federation.sync()
        finally:
            stop.set()
        assert all(looked.result(timeout=60) for looked in looking)
    while away.bob.staged_batch(away.store.feed_id):
        away.deliver()
    away.federation.sync()
    assert tree_of(away.bob) == tree_of(away.alice)


def test_what_was_staged_blindly_shows_when_the_key_comes(federation: TestFederation) -> None:
    """bob may write and not read: what he staged shows as soon as he may read too."""
    alice, bob = federation.catalogs["alice"], federation.add("bob")
    store = alice.create_datastore(b"/box", 0, 0, {})
    alice.grant(b"/box", [feed_pb2.WRITE], "bob@media.collective")
    federation.sync()
    (number, *_) = alice.lease_numbers(store.feed_id, BOB, 1)
    create = feed_pb2.Create(parent=1, name=b"gift", inode=number, mode=0o100644)
    staged = submit_pb2.StagedOperation(operation=feed_pb2.TreeOperation(id=operation_id(BOB), create=create))
    (row,) = bob.stage(store.feed_id, [staged], now=1e9)
    with pytest.raises(Refused):
        bob.list(bob.resolve(b"/box").ino)
    alice.grant(b"/box", [feed_pb2.READ], "bob@media.collective")
    federation.sync()
    assert [name for name, _ in bob.list(bob.resolve(b"/box").ino)] == [b"gift"]
    assert [one.number for one in bob.staged_batch(store.feed_id)] == [row]
