"""The laws of writing: nothing that was acknowledged is lost, nothing happens twice, old databases come along."""

from __future__ import annotations

import random
import sqlite3
import tempfile
from importlib import resources
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.catalogs import TestFederation, operation_id, put, rebuild, state_of, tree_of
from support.operations import check_tree, likely_operation, random_operation

from collective.catalog import Catalog, DataStore, Inline, Node, Reader
from collective.catalog.entry import open_sealed, parse_entry
from collective.catalog.inodes import CHANGES_PER_SEQ
from collective.catalog.obstacles import token_of
from collective.catalog.overlay import located
from collective.core.errors import Unreachable
from collective.wire import control_pb2, feed_pb2, submit_pb2

SLOW = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NAMES = [b"a", b"b", b"c"]


class Writer:
    """One member that changes a DataStore as a mount does: from what it sees, each change saying what it expected."""

    def __init__(self, catalog: Catalog, store: DataStore, rng: random.Random) -> None:
        self.catalog, self.store, self.rng = catalog, store, rng
        self.written: set[bytes] = set()  # contents that were acknowledged
        self.count = 0

    def seen(self) -> list[tuple[int, bytes, Node]]:
        found: list[tuple[int, bytes, Node]] = []
        waiting = [1]
        while waiting:
            parent = waiting.pop()
            for name, node in self.catalog.list(located(self.store, parent)):
                found.append((parent, name, node))
                if node.is_directory:
                    waiting.append(node.number)
        return found

    def content(self) -> feed_pb2.Content:
        self.count += 1
        data = f"{self.catalog.own_domain} {self.count}".encode()
        self.written.add(data)
        return feed_pb2.Content(size_bytes=len(data), inline=data)

    def number(self) -> int:
        taken = self.catalog.take_numbers(self.store.feed_id, 1)
        if taken is None:
            raise Unreachable("no numbers")
        return taken.start

    def change(self) -> submit_pb2.StagedOperation | None:
        """Something that makes sense in the tree as this member sees it."""
        rng, seen = self.rng, self.seen()
        folders = [1, *(node.number for _, _, node in seen if node.is_directory)]
        files = [(parent, name, node) for parent, name, node in seen if not node.is_directory]
        parent, name = rng.choice(folders), rng.choice(NAMES)
        standing = {(at, called): node for at, called, node in seen}.get((parent, name))
        operation = feed_pb2.TreeOperation(
            id=operation_id(self.catalog.own_domain), time_nanoseconds=rng.randrange(1, 1 << 60)
        )
        kind = rng.randrange(10)
        if kind <= 3 and standing is None:
            mode = rng.choice([0o100644, 0o100644, 0o040755])
            create = feed_pb2.Create(parent=parent, name=name, inode=self.number(), mode=mode)
            if mode == 0o100644:
                create.content.CopyFrom(self.content())
            operation.create.CopyFrom(create)
            operation.expectations.add().link.CopyFrom(feed_pb2.ExpectedLink(parent=parent, name=name))
        elif kind <= 6 and files:
            _, _, node = rng.choice(files)
            before = self.catalog.content(node)
            assert isinstance(before, Inline)
            expected = feed_pb2.ExpectedContent(
                inode=node.number, inline_hash=token_of(feed_pb2.Content(inline=before.data))
            )
            operation.set_content.CopyFrom(feed_pb2.SetContent(inode=node.number, content=self.content()))
            operation.expectations.add().content.CopyFrom(expected)
        elif kind == 7 and seen:
            at, called, node = rng.choice(seen)
            operation.unlink.CopyFrom(feed_pb2.Unlink(parent=at, name=called, inode=node.number))
        elif seen:
            at, called, node = rng.choice(seen)
            operation.rename.CopyFrom(
                feed_pb2.Rename(
                    inode=node.number, from_parent=at, from_name=called, to_parent=parent, to_name=name,
                    replaced_inode=standing.number if standing is not None else 0,
                )
            )  # fmt: skip
        else:
            return None
        return submit_pb2.StagedOperation(operation=operation)


def may_be_refused(change: submit_pb2.StagedOperation) -> bool:
    """Removals and moves of what is not there any more (or not empty), never contents."""
    return change.operation.WhichOneof("change") in ("unlink", "rename")


def everything(catalog: Catalog) -> set[bytes]:
    """Every content that is current or in history."""
    rows = catalog._all("SELECT content FROM inodes") + catalog._all("SELECT content FROM history")
    return {feed_pb2.Content.FromString(row[0]).inline for row in rows if isinstance(row[0], bytes)}


def check_nothing_overwritten(catalog: Catalog, store: DataStore) -> None:
    """Every content that was replaced was replaced by somebody who said that he had seen it (or wrote the same)."""
    operations: dict[int, feed_pb2.TreeOperation] = {}
    for raw in catalog.entries_after(store.feed_id, 0, max_bytes=1 << 30, max_entries=10_000):
        entry = parse_entry(raw)
        key = catalog.store_key(entry.header.key_name)
        if not entry.sealed_part or key is None:
            continue
        sealed = feed_pb2.StoreSealed.FromString(open_sealed(entry, key))
        operations |= {
            entry.header.seq * CHANGES_PER_SEQ + index: operation for index, operation in enumerate(sealed.operations)
        }
    for content, change, removed in catalog._all("SELECT content, replaced_change, removed FROM history"):
        operation = operations[change]  # type: ignore[index]  # an integer
        if removed:
            assert operation.HasField("unlink") or operation.rename.replaced_inode
            continue
        replaced = token_of(feed_pb2.Content.FromString(content or b""))  # type: ignore[arg-type]  # bytes
        seen = [one.content.inline_hash for one in operation.expectations if one.HasField("content")]
        assert replaced in [*seen, token_of(operation.set_content.content)]


@SLOW
@given(seed=st.integers(0, 2**32))
def test_no_acknowledged_content_is_ever_lost(seed: int) -> None:
    """Two writers in any interleaving, batches lost, repeated and late: every content that was acknowledged is current,
    in history or under a conflict name; nothing is applied twice; both see one tree, and the feed makes it anew."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        federation = TestFederation(Path(folder))
        alice, bob = federation.add("alice"), federation.add("bob")
        store = alice.create_datastore(b"/media", 0, 0, {})
        alice.grant(b"/media", [feed_pb2.READ, feed_pb2.WRITE, feed_pb2.DELETE], "bob@media.collective")
        federation.sync()
        bob.add_numbers(store.feed_id, alice.lease_numbers(store.feed_id, bob.own_domain, 1))
        federation.sync()
        hers, his = Writer(alice, store, rng), Writer(bob, bob.store(store.feed_id), rng)

        def commit(writer: str, staged: list[submit_pb2.StagedOperation]) -> list[submit_pb2.OperationOutcome]:
            return alice.commit_operations(
                store.feed_id, staged, actor_domain=writer, now=federation.clock.wall(), exact=False
            )[0]

        def deliver() -> None:
            batch = bob.staged_batch(store.feed_id, rng.randint(1, 5))
            outcomes = commit(bob.own_domain, [row.staged for row in batch])
            if rng.random() < 0.7:  # else the answer is lost and all is sent again
                bob.note_outcomes([row.number for row in batch], outcomes)

        for _ in range(rng.randint(5, 40)):
            match rng.randrange(6):
                case 0 | 1:
                    change = hers.change()
                    if change is not None:
                        (outcome,) = commit(alice.own_domain, [change])
                        assert outcome.outcome == submit_pb2.APPLIED or may_be_refused(change)
                case 2 | 3 | 4:
                    change = his.change()
                    if change is not None:
                        bob.stage(store.feed_id, [change], now=federation.clock.wall())
                case _:
                    deliver()
                    if rng.random() < 0.5:
                        federation.sync()
        while bob.staged_batch(store.feed_id):
            deliver()
        federation.sync()
        refused = {
            submit_pb2.StagedOperation.FromString(raw).operation.WhichOneof("change")
            for (raw,) in bob._all("SELECT operation FROM staged")
        }
        assert refused <= {"unlink", "rename"}, "content is never refused to who may write"
        assert hers.written | his.written <= everything(alice)
        assert everything(alice) == everything(bob)
        bob.discard([row.number for row in bob.pending()])
        assert tree_of(alice) == tree_of(bob)
        assert state_of(alice)["refused"] == [], "what was committed is what is applied"
        check_nothing_overwritten(alice, store)
        fresh = rebuild(federation, alice, Path(folder) / "rebuilt")
        assert state_of(fresh) == state_of(alice)
        fresh.close()
        federation.close()


@SLOW
@given(seed=st.integers(0, 2**32))
def test_committing_again_changes_nothing(seed: int) -> None:
    """Any batch, split in any way, again and again: the state is that of committing it once."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        federation = TestFederation(Path(folder))
        alice = federation.add("alice")
        writer = Writer(alice, alice.create_datastore(b"/media", 0, 0, {}), rng)
        done: list[submit_pb2.StagedOperation] = []

        def commit(staged: list[submit_pb2.StagedOperation]) -> list[submit_pb2.OperationOutcome]:
            return alice.commit_operations(
                writer.store.feed_id, staged, actor_domain=alice.own_domain, now=1e9, exact=False
            )[0]

        for _ in range(20):
            change = writer.change()
            if change is not None and commit([change])[0].outcome in (submit_pb2.APPLIED, submit_pb2.CONFLICT):
                done.append(change)
        before = state_of(alice)
        start = rng.randrange(len(done) + 1)
        for part in (done[:start], done[start:], done + done):
            outcomes = commit(part)
            assert all(outcome.outcome in (submit_pb2.APPLIED, submit_pb2.CONFLICT) for outcome in outcomes)
        assert state_of(alice) == before
        federation.close()


@SLOW
@given(seed=st.integers(0, 2**32), exact=st.booleans())
def test_whatever_a_member_sends_is_answered(seed: int, exact: bool) -> None:
    """Nonsense and malice from one who may write: each change is answered, the tree stays whole, and what was answered
    with yes is what the entry did."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        federation = TestFederation(Path(folder))
        alice, bob = federation.add("alice"), federation.add("bob")
        store = alice.create_datastore(b"/media", 0, 0, {})
        alice.grant(b"/media", [feed_pb2.READ, feed_pb2.WRITE, feed_pb2.DELETE], "bob@media.collective")
        first = alice.lease_numbers(store.feed_id, bob.own_domain, 1).start
        with alice.change() as connection:  # as if the first block, which generated changes draw from, were bob's
            connection.execute("UPDATE number_leases SET domain = ? WHERE first < ?", (bob.own_domain, first))
        absorbed = 0
        for _ in range(5):
            changes = []
            for _ in range(rng.randint(1, 20)):
                operation = random_operation(rng) if rng.random() < 0.3 else likely_operation(rng, 5)
                operation.id.writer = bob.own_domain
                if rng.random() < 0.3:
                    operation.expectations.add().content.CopyFrom(
                        feed_pb2.ExpectedContent(inode=rng.randrange(12), inline_hash=rng.choice([b"", b"h" * 32]))
                    )
                if rng.random() < 0.3:
                    operation.expectations.add().link.CopyFrom(
                        feed_pb2.ExpectedLink(parent=rng.randrange(4), name=rng.choice(NAMES), inode=rng.randrange(6))
                    )
                changes.append(submit_pb2.StagedOperation(operation=operation))
            outcomes, _ = alice.commit_operations(
                store.feed_id, changes, actor_domain=bob.own_domain, now=1e9, exact=exact
            )
            for outcome in outcomes:
                assert bool(outcome.errno) == (outcome.outcome in (submit_pb2.REFUSED, submit_pb2.MISSED))
                assert not exact or outcome.outcome != submit_pb2.CONFLICT
                absorbed += outcome.outcome in (submit_pb2.APPLIED, submit_pb2.CONFLICT)
            check_tree(alice)
        assert state_of(alice)["refused"] == []
        rows = alice._one(
            "SELECT count(*) FROM operations o JOIN feeds f ON f.id = o.feed WHERE f.feed_id = ? AND o.writer = ?",
            store.feed_id, bob.own_domain,
        )  # fmt: skip
        assert rows == (absorbed,)
        federation.close()


def as_version_1(catalog: Catalog, path: Path) -> None:
    """Write a database of the first version with what a catalogue has: its tables and columns, no others."""
    old = sqlite3.connect(path)
    old.executescript(resources.files("collective.catalog").joinpath("schema.sql").read_text())
    old.execute("DELETE FROM meta")
    old.execute("ATTACH ? AS new", (str(catalog.path),))
    for (table,) in old.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'").fetchall():
        columns = ", ".join(row[1] for row in old.execute(f"PRAGMA main.table_info({table})"))
        where = "WHERE key IN ('changes', 'lamport')" if table == "meta" else ""
        old.execute(f"INSERT INTO main.{table} SELECT {columns} FROM new.{table} {where}")
    old.execute("PRAGMA user_version = 1")
    old.commit()
    old.close()


def test_a_database_of_version_1_comes_along(federation: TestFederation) -> None:
    """Opened by this version it has the same tree, and what it never kept is worked out from the entries."""
    alice, bob = federation.catalogs["alice"], federation.add("bob")
    alice.create_datastore(b"/media", 0, 0, {})
    alice.grant(b"/media", [feed_pb2.READ], "bob@media.collective")
    for data in (b"1", b"22", b"333"):
        put(alice, b"/media/d/file", data)
    alice.remove_path(operation_id(), control_pb2.RemovePath(path=b"/media/d", recursive=True), "a")
    put(alice, b"/media/other")
    federation.sync()
    for name, catalog in (("alice", alice), ("bob", bob)):
        expected, shown = state_of(catalog), tree_of(catalog)
        old = federation.folder(name) / "old.db"
        as_version_1(catalog, old)
        catalog.close()
        for left in federation.folder(name).glob("catalog.db*"):
            left.unlink()
        old.rename(federation.folder(name) / "catalog.db")
        again = federation.catalogs[name] = federation.open(name)
        assert state_of(again) == expected
        assert tree_of(again) == shown
        assert again._one("SELECT value FROM meta WHERE key = 'rederive'") == (0,)
        assert [version.size_bytes for version in again.versions(b"/media/d/file")] == [3, 2, 1]
        reader = Reader.open(again.path, again.own_domain)
        assert tree_of(again) == shown  # through a reading connection
        reader.close()
    put(federation.catalogs["alice"], b"/media/goes-on")
    federation.sync()
    assert tree_of(federation.catalogs["bob"]) == tree_of(federation.catalogs["alice"])
