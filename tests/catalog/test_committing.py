"""Where the owner commits: expectations, rights, numbers, conflicts, and nothing twice."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

import pytest
from support.catalogs import TestFederation

from collective.catalog import Catalog, DataStore
from collective.catalog.naming import conflict_name
from collective.catalog.numbers import BLOCK_COUNT
from collective.catalog.obstacles import NUMBER_FIELDS, token_of
from collective.core.errors import Full, Refused
from collective.wire import feed_pb2, submit_pb2

BOB, ALICE = "bob.media.collective", "alice.media.collective"
DAY_NS = 1_795_392_000 * 1_000_000_000  # 2026-11-23
FILE, FOLDER = 0o100644, 0o040755


@dataclass
class Bench:
    """alice's DataStore /media and the changes of bob and alice that reach it."""

    federation: TestFederation
    alice: Catalog
    store: DataStore

    def __post_init__(self) -> None:
        self.numbers = {
            BOB: iter(self.alice.lease_numbers(self.store.feed_id, BOB, 1)),
            ALICE: iter(self.alice.take_numbers(self.store.feed_id, 1000) or ()),
        }

    def number(self, writer: str = BOB) -> int:
        return next(self.numbers[writer])

    def change(self, writer: str = BOB, **change: object) -> feed_pb2.TreeOperation:
        id_ = feed_pb2.OperationId(writer=writer, random=os.urandom(16))
        return feed_pb2.TreeOperation(id=id_, time_nanoseconds=DAY_NS, **change)  # type: ignore[arg-type]

    def commit(
        self, *operations: feed_pb2.TreeOperation, writer: str = BOB, exact: bool = False
    ) -> list[submit_pb2.OperationOutcome]:
        staged = [submit_pb2.StagedOperation(operation=operation) for operation in operations]
        outcomes, self.position = self.alice.commit_operations(
            self.store.feed_id, staged, actor_domain=writer, now=self.federation.clock.wall(), exact=exact
        )
        assert len(outcomes) == len(operations)
        return outcomes

    def make(
        self, name: bytes, parent: int = 1, *, writer: str = BOB, mode: int = FILE, data: bytes = b""
    ) -> feed_pb2.TreeOperation:
        create = feed_pb2.Create(parent=parent, name=name, inode=self.number(writer), mode=mode)
        if data:
            create.content.CopyFrom(inline(data))
        expected = feed_pb2.Expectation(link=feed_pb2.ExpectedLink(parent=parent, name=name))
        return self.change(writer, create=create, expectations=[expected])

    def write(self, inode: int, before: bytes, data: bytes, *, writer: str = BOB) -> feed_pb2.TreeOperation:
        content = feed_pb2.ExpectedContent(inode=inode, inline_hash=token_of(inline(before)))
        return self.change(
            writer,
            set_content=feed_pb2.SetContent(inode=inode, content=inline(data)),
            expectations=[feed_pb2.Expectation(content=content)],
        )

    def remove(self, parent: int, name: bytes, inode: int, *, writer: str = BOB) -> feed_pb2.TreeOperation:
        return self.change(writer, unlink=feed_pb2.Unlink(parent=parent, name=name, inode=inode))

    def move(
        self, inode: int, place: tuple[int, bytes], to: tuple[int, bytes], *, writer: str = BOB, **more: int
    ) -> feed_pb2.TreeOperation:
        rename = feed_pb2.Rename(
            inode=inode, from_parent=place[0], from_name=place[1], to_parent=to[0], to_name=to[1], **more
        )
        return self.change(writer, rename=rename)

    def tree(self) -> dict[bytes, bytes]:
        """Path -> content of every file, b"/" of every folder."""
        found: dict[bytes, bytes] = {}
        waiting = [(b"", self.alice.resolve(b"/media").ino)]
        while waiting:
            path, ino = waiting.pop()
            for name, node in self.alice.list(ino):
                if node.is_directory:
                    waiting.append((path + name + b"/", node.ino))
                    found[path + name] = b"/"
                else:
                    content = self.alice.content(node)
                    found[path + name] = content.data if hasattr(content, "data") else b"?"
        return found


def inline(data: bytes) -> feed_pb2.Content:
    return feed_pb2.Content(size_bytes=len(data), inline=data)


def words(outcomes: list[submit_pb2.OperationOutcome]) -> list[str]:
    return [submit_pb2.Outcome.Name(outcome.outcome) for outcome in outcomes]


@pytest.fixture
def bench(federation: TestFederation) -> Bench:
    alice = federation.catalogs["alice"]
    federation.add("bob")
    federation.add("carol")
    store = alice.create_datastore(b"/media", 0, 0, {})
    alice.grant(b"/media", [feed_pb2.READ, feed_pb2.WRITE, feed_pb2.DELETE], "bob@media.collective")
    return Bench(federation, alice, store)


def test_a_batch_is_one_entry_and_repeating_it_changes_nothing(bench: Bench) -> None:
    """256 creates are one entry; sent again, every one of them is APPLIED and the feed does not move."""
    before = bench.alice.heads()[bench.store.feed_id].seq
    operations = [bench.make(b"%d" % number, data=b"x") for number in range(256)]
    assert words(bench.commit(*operations)) == ["APPLIED"] * 256
    assert bench.position is not None
    assert bench.position.seq == before + 1
    tree = bench.tree()
    first = bench.position
    assert words(bench.commit(*operations)) == ["APPLIED"] * 256
    assert bench.position == first
    assert bench.alice.heads()[bench.store.feed_id].seq == before + 1
    assert bench.tree() == tree
    mixed = [operations[0], bench.make(b"new"), operations[1]]
    assert words(bench.commit(*mixed)) == ["APPLIED"] * 3
    assert bench.alice.heads()[bench.store.feed_id].seq == before + 2


def test_a_batch_beyond_an_entry_becomes_several(bench: Bench) -> None:
    """More than a mebibyte of small contents still is one call and one transaction."""
    operations = [bench.make(b"%d" % number, data=b"x" * 4096) for number in range(600)]
    before = bench.alice.heads()[bench.store.feed_id].seq
    assert set(words(bench.commit(*operations))) == {"APPLIED"}
    assert len(bench.tree()) == 600
    assert bench.alice.heads()[bench.store.feed_id].seq > before + 2


def test_a_taken_name_gives_a_conflict_name(bench: Bench) -> None:
    """bob's new file stands beside alice's; what bob does to it afterwards by the old name finds it."""
    bench.commit(bench.make(b"film.mkv", writer=ALICE, data=b"hers"), writer=ALICE)
    mine = bench.make(b"film.mkv", data=b"his")
    (outcome,) = bench.commit(mine)
    kept = conflict_name(b"film.mkv", BOB, DAY_NS, mine.id.random)
    assert (outcome.outcome, outcome.name) == (submit_pb2.CONFLICT, kept)
    assert kept.startswith(b"film (conflict bob 2026-11-23 ")
    assert kept.endswith(b").mkv")
    assert bench.tree() == {b"film.mkv": b"hers", kept: b"his"}
    assert bench.commit(mine)[0].name == kept, "told again when the first answer was lost"
    number = mine.create.inode
    assert words(bench.commit(bench.write(number, b"his", b"his too"))) == ["APPLIED"]
    assert words(bench.commit(bench.move(number, (1, b"film.mkv"), (1, b"other.mkv")))) == ["APPLIED"]
    assert bench.tree() == {b"film.mkv": b"hers", b"other.mkv": b"his too"}
    (told,) = bench.alice.conflicts()
    assert (told.writer, told.wanted, told.kept) == (BOB, b"film.mkv", kept)


def test_a_folder_under_a_conflict_name_keeps_its_children(bench: Bench) -> None:
    """Both make the folder; what bob puts into his goes there, and he can remove it by the name he knows."""
    bench.commit(bench.make(b"photos", writer=ALICE, mode=FOLDER), writer=ALICE)
    folder = bench.make(b"photos", mode=FOLDER)
    child = bench.make(b"one.jpg", folder.create.inode, data=b"1")
    assert words(bench.commit(folder, child)) == ["CONFLICT", "APPLIED"]
    kept = conflict_name(b"photos", BOB, DAY_NS, folder.id.random)
    assert bench.tree() == {b"photos": b"/", kept: b"/", kept + b"/one.jpg": b"1"}
    gone = [
        bench.remove(folder.create.inode, b"one.jpg", child.create.inode),
        bench.remove(1, b"photos", folder.create.inode),
    ]
    assert words(bench.commit(*gone)) == ["APPLIED", "APPLIED"]
    assert bench.tree() == {b"photos": b"/"}


def test_a_changed_file_is_not_overwritten(bench: Bench) -> None:
    """The new content becomes a file beside it, and bob's further writes to it go there; the same content is fine."""
    made = bench.make(b"notes.txt", data=b"0")
    bench.commit(made)
    number = made.create.inode
    bench.commit(bench.write(number, b"0", b"alice", writer=ALICE), writer=ALICE)
    first = bench.write(number, b"0", b"bob 1")
    assert words(bench.commit(first, bench.write(number, b"bob 1", b"bob 2"))) == ["CONFLICT", "APPLIED"]
    assert words(bench.commit(bench.write(number, b"bob 2", b"bob 3"))) == ["APPLIED"]
    kept = conflict_name(b"notes.txt", BOB, DAY_NS, first.id.random)
    assert bench.tree() == {b"notes.txt": b"alice", kept: b"bob 3"}
    assert words(bench.commit(bench.write(number, b"0", b"alice"))) == ["APPLIED"]
    assert bench.tree() == {b"notes.txt": b"alice", kept: b"bob 3"}


def test_a_file_that_is_gone_comes_back_under_a_conflict_name(bench: Bench) -> None:
    """bob wrote what alice removed meanwhile, folder and all: it stands at the nearest folder that lives."""
    top = bench.make(b"a", mode=FOLDER)
    inner = bench.make(b"b", top.create.inode, mode=FOLDER)
    made = bench.make(b"file", inner.create.inode, data=b"0")
    bench.commit(top, inner, made)
    number = made.create.inode
    removals = [
        bench.remove(inner.create.inode, b"file", number, writer=ALICE),
        bench.remove(top.create.inode, b"b", inner.create.inode, writer=ALICE),
    ]
    assert words(bench.commit(*removals, writer=ALICE)) == ["APPLIED"] * 2
    late = bench.write(number, b"0", b"late")
    later = bench.write(number, b"late", b"later")
    mode = bench.change(set_attributes=feed_pb2.SetAttributes(inode=number, mode=0o600))
    lost = bench.make(b"new", inner.create.inode, data=b"n")
    assert words(bench.commit(late, later, mode, lost)) == ["CONFLICT", "APPLIED", "APPLIED", "CONFLICT"]
    assert bench.tree() == {
        b"a": b"/",
        b"a/" + conflict_name(b"file", BOB, DAY_NS, late.id.random): b"later",
        b"a/" + conflict_name(b"new", BOB, DAY_NS, lost.id.random): b"n",
    }
    assert bench.alice.conflicts()[0].wanted == b"a/b/new"


def test_within_one_batch_the_earlier_changes_count(bench: Bench) -> None:
    """A folder removed by the same batch is gone for what follows; a name freed by it is free."""
    folder = bench.make(b"d", mode=FOLDER)
    again = bench.make(b"d", data=b"file now")
    inside = bench.make(b"x", folder.create.inode, data=b"x")
    outcomes = bench.commit(folder, bench.remove(1, b"d", folder.create.inode), again, inside)
    assert words(outcomes) == ["APPLIED", "APPLIED", "APPLIED", "CONFLICT"]
    assert bench.tree() == {b"d": b"file now", conflict_name(b"x", BOB, DAY_NS, inside.id.random): b"x"}


def test_stale_removals_and_moves_are_refused(bench: Bench) -> None:
    """Nobody removes or moves what is not any more what he saw."""
    made, other = bench.make(b"one", data=b"1"), bench.make(b"two", mode=FOLDER)
    bench.commit(made, other)
    number, folder = made.create.inode, other.create.inode
    bench.commit(bench.move(number, (1, b"one"), (folder, b"uno"), writer=ALICE), writer=ALICE)
    changed = bench.remove(folder, b"uno", number)
    changed.expectations.add().content.CopyFrom(
        feed_pb2.ExpectedContent(inode=number, inline_hash=token_of(inline(b"0")))
    )
    refused = [
        bench.remove(1, b"one", number),
        bench.move(number, (1, b"one"), (1, b"elsewhere")),
        bench.remove(1, b"two", folder),
        bench.move(folder, (1, b"two"), (folder, b"inside itself")),
        changed,
        bench.change(set_attributes=feed_pb2.SetAttributes(inode=1 << 30, mode=0o600)),
        bench.change(set_xattr=feed_pb2.SetXattr(inode=1 << 30, name=b"user.x")),
        bench.change(link=feed_pb2.Link(inode=1 << 30, parent=1, name=b"hard")),
    ]
    outcomes = bench.commit(*refused)
    assert words(outcomes) == ["REFUSED"] * len(refused)
    assert all(outcome.reason and outcome.errno for outcome in outcomes)
    assert outcomes[2].errno == errno.ENOTEMPTY
    assert outcomes[3].errno == errno.EINVAL
    assert bench.position is None
    assert bench.tree() == {b"two": b"/", b"two/uno": b"1"}


def test_a_rename_does_not_replace_what_its_writer_never_saw(bench: Bench) -> None:
    """The target was taken, or changed since: the moved file gets the conflict name."""
    a, b = bench.make(b"a", data=b"A"), bench.make(b"b", data=b"B")
    bench.commit(a, b)
    over = bench.move(a.create.inode, (1, b"a"), (1, b"b"))
    (outcome,) = bench.commit(over)
    kept = conflict_name(b"b", BOB, DAY_NS, over.id.random)
    assert (outcome.outcome, outcome.name) == (submit_pb2.CONFLICT, kept)
    assert bench.tree() == {b"b": b"B", kept: b"A"}
    bench.commit(bench.write(b.create.inode, b"B", b"B2", writer=ALICE), writer=ALICE)
    save = bench.move(a.create.inode, (1, kept), (1, b"b"), replaced_inode=b.create.inode)
    save.expectations.add().content.CopyFrom(
        feed_pb2.ExpectedContent(inode=b.create.inode, inline_hash=token_of(inline(b"B")))
    )
    assert words(bench.commit(save)) == ["CONFLICT"]
    assert sorted(bench.tree().values()) == [b"A", b"B2"]
    fine = bench.make(b"tmp", data=b"new")
    replace = bench.move(fine.create.inode, (1, b"tmp"), (1, b"b"), replaced_inode=b.create.inode)
    assert words(bench.commit(fine, replace)) == ["APPLIED"] * 2
    assert bench.tree()[b"b"] == b"new"


def test_exact_changes_are_told_and_not_done(bench: Bench) -> None:
    """Each with the error number that a file system gives, and the tree as it was."""
    made, folder = bench.make(b"there", data=b"1"), bench.make(b"folder", mode=FOLDER)
    inside = bench.make(b"x", folder.create.inode)
    assert words(bench.commit(made, folder, inside, exact=True)) == ["APPLIED"] * 3
    before = bench.tree()
    number = made.create.inode
    missed = {
        errno.EEXIST: bench.make(b"there"),
        errno.ENOENT: bench.make(b"x", 1 << 30),
        errno.ENOTEMPTY: bench.remove(1, b"folder", folder.create.inode),
        errno.ESTALE: bench.write(number, b"0", b"2"),
        errno.ENOTDIR: bench.make(b"x", number),
        errno.EINVAL: bench.move(folder.create.inode, (1, b"folder"), (folder.create.inode, b"y")),
    }
    outcomes = bench.commit(*missed.values(), exact=True)
    assert words(outcomes) == ["MISSED"] * len(missed)
    assert [outcome.errno for outcome in outcomes] == list(missed)
    assert bench.tree() == before
    assert bench.alice.conflicts() == []


def test_rights_are_judged_where_it_is_committed(bench: Bench) -> None:
    """Without DELETE bob may remove his own and not alice's; without WRITE nothing; a stranger's ids are refused."""
    alice = bench.alice
    carol = "carol.media.collective"
    bench.numbers[carol] = iter(alice.lease_numbers(bench.store.feed_id, carol, 1))
    hers = bench.make(b"hers", writer=ALICE, data=b"a")
    bench.commit(hers, writer=ALICE)
    outcomes = bench.commit(bench.make(b"no", writer=carol), writer=carol)
    assert (words(outcomes), outcomes[0].errno) == (["REFUSED"], errno.EACCES)
    alice.grant(b"/media", [feed_pb2.WRITE], "carol@media.collective")
    own = bench.make(b"own", writer=carol)
    assert words(bench.commit(own, writer=carol)) == ["APPLIED"]
    number = hers.create.inode
    outcomes = bench.commit(
        bench.write(number, b"a", b"b", writer=carol),
        bench.remove(1, b"hers", number, writer=carol),
        bench.move(number, (1, b"hers"), (1, b"away"), writer=carol),
        bench.move(own.create.inode, (1, b"own"), (1, b"hers"), writer=carol, replaced_inode=number),
        bench.move(own.create.inode, (1, b"own"), (1, b"mine"), writer=carol),
        bench.remove(1, b"mine", own.create.inode, writer=carol),
        writer=carol,
    )
    assert words(outcomes) == ["APPLIED", "REFUSED", "REFUSED", "REFUSED", "APPLIED", "APPLIED"]
    assert bench.tree() == {b"hers": b"b"}
    assert words(bench.commit(bench.make(b"x"), writer=carol)) == ["REFUSED"]


def test_rights_in_a_folder_end_at_the_folder(bench: Bench) -> None:
    """A grant on a folder inside counts there and below, and follows the folder's path, not its inode."""
    carol = "carol.media.collective"
    bench.numbers[carol] = iter(bench.alice.lease_numbers(bench.store.feed_id, carol, 1))
    kids = bench.make(b"kids", writer=ALICE, mode=FOLDER)
    bench.commit(kids, writer=ALICE)
    with pytest.raises(Refused):
        bench.alice.grant(b"/media/kids", [feed_pb2.READ], "carol@media.collective")
    grant = bench.alice.grant(b"/media/kids", [feed_pb2.WRITE], "carol@media.collective")
    assert grant.path == b"/media/kids"
    stored = feed_pb2.Grant.FromString(bench.alice._all("SELECT grant_ FROM grants WHERE id = ?", grant.id)[0][0])  # type: ignore[arg-type]
    assert stored.path == b"/media", "the public feed tells no folder"
    folder = kids.create.inode
    deep = bench.make(b"deep", folder, writer=carol, mode=FOLDER)
    outcomes = bench.commit(
        bench.make(b"outside", writer=carol),
        deep,
        bench.make(b"inside", deep.create.inode, writer=carol),
        bench.move(deep.create.inode, (folder, b"deep"), (1, b"out"), writer=carol),
        writer=carol,
    )
    assert words(outcomes) == ["REFUSED", "APPLIED", "APPLIED", "REFUSED"]
    bench.commit(bench.move(folder, (1, b"kids"), (1, b"grown-ups"), writer=ALICE), writer=ALICE)
    assert words(bench.commit(bench.make(b"late", folder, writer=carol), writer=carol)) == ["REFUSED"]


def test_numbers_belong_to_whom_they_were_leased(bench: Bench) -> None:
    """bob cannot create under alice's number, nor under one never leased; leases never overlap and end somewhere."""
    stolen = bench.make(b"x")
    stolen.create.inode = bench.number(ALICE)
    wild = bench.make(b"y")
    wild.create.inode = 1 << 39
    assert words(bench.commit(stolen, wild)) == ["REFUSED"] * 2
    one, two = (bench.alice.lease_numbers(bench.store.feed_id, BOB, 1) for _ in range(2))
    assert len(one) == len(two) == BLOCK_COUNT
    assert not set(one) & set(two)
    for _ in range(61):  # with the bench's own block 64, and nothing made in any
        bench.alice.lease_numbers(bench.store.feed_id, BOB, 1)
    with pytest.raises(Full):
        bench.alice.lease_numbers(bench.store.feed_id, BOB, 1)


def test_versions_come_with_their_layouts(bench: Bench) -> None:
    """A content in chunks is refused without its layout; with it, the writer holds it by the entry."""
    made = bench.make(b"film")
    made.create.content.CopyFrom(feed_pb2.Content(size_bytes=9_000_000, version_id=b"v" * 16))
    assert words(bench.commit(made)) == ["REFUSED"]
    layout = feed_pb2.Layout(
        version_id=b"v" * 16, size_bytes=9_000_000, chunk_size_bytes=1 << 23, pages=[b"p" * 32], key_pages=[b"k" * 32],
        members=["mallory.media.collective"],
    )  # fmt: skip
    staged = submit_pb2.StagedOperation(operation=made, layout=layout, pages=[b"page"], key_pages=[b"key page"])
    outcomes, _ = bench.alice.commit_operations(
        bench.store.feed_id, [staged], actor_domain=BOB, now=bench.federation.clock.wall(), exact=False
    )
    assert words(outcomes) == ["APPLIED"]
    assert bench.alice.placed_members(bench.store.feed_id, b"v" * 16) == [BOB, ALICE]
    assert bench.alice.holders(bench.store.feed_id, b"v" * 16) == [BOB]
    assert bench.alice.page(b"k" * 32) == b"key page"
    bench.alice.hold(bench.store.feed_id, [b"v" * 16])
    assert bench.alice.holders(bench.store.feed_id, b"v" * 16) == [BOB, ALICE]
    copied = bench.make(b"copy")
    copied.create.content.CopyFrom(made.create.content)
    assert words(bench.commit(copied)) == ["APPLIED"]


@pytest.mark.parametrize("name", [b"a", b"a.tar.gz", b".hidden", b"x" * 255, "ö".encode() * 127, b"n." + b"e" * 250])
def test_conflict_names_fit(name: bytes) -> None:
    """At most 255 bytes, the extension kept, no character cut in two."""
    made = conflict_name(name, BOB, DAY_NS, b"\x1f\x3a" * 8)
    assert b" (conflict bob 2026-11-23 1f3a)" in made
    assert len(made) <= 255
    made.decode()


def test_every_number_that_a_change_names_is_judged() -> None:
    """Each field of a change or an expectation that holds an inode number."""
    change = feed_pb2.TreeOperation.DESCRIPTOR.oneofs_by_name["change"]
    kinds = [field.message_type for field in change.fields]
    kinds += [feed_pb2.ExpectedLink.DESCRIPTOR, feed_pb2.ExpectedContent.DESCRIPTOR]
    found = {
        type_._concrete_class: {name for name in type_.fields_by_name if "inode" in name or "parent" in name}
        for type_ in kinds
    }
    assert {kind: set(names) for kind, names in NUMBER_FIELDS.items()} == found
