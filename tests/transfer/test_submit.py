"""Handing changes in at one's own coordinator: sound or not, one entry for who waits together, nothing twice."""

from __future__ import annotations

import asyncio

import pytest
from support.writing import World, WritingMember

from collective.catalog import DataStore, Inline
from collective.core.errors import CollectiveError, Full, NotFound, Refused
from collective.transfer.submissions import touched_directories
from collective.wire import feed_pb2, submit_pb2


def words(reply: submit_pb2.SubmitReply) -> list[str]:
    return [submit_pb2.Outcome.Name(outcome.outcome) for outcome in reply.outcomes]


@pytest.fixture
def media(members: World) -> DataStore:
    alice = members.members["alice"].catalog
    store = alice.create_datastore(b"/media", 0, 0, {})
    alice.grant(b"/media", [feed_pb2.READ, feed_pb2.WRITE], "bob@media.collective")
    members.flow()
    return store


@pytest.fixture
def alice(members: World) -> WritingMember:
    return members.members["alice"]


async def test_batches_that_wait_together_share_an_entry(alice: WritingMember, media: DataStore) -> None:
    """Eight mounts at once: one entry, and everybody gets its own outcomes."""
    operations = [await alice.make(media.feed_id, b"%d" % number, b"x") for number in range(24)]
    before = alice.catalog.heads()[media.feed_id].seq
    replies = await asyncio.gather(
        *(alice.submit.submit(media.feed_id, operations[at : at + 3], exact=False) for at in range(0, 24, 3))
    )
    assert [words(reply) for reply in replies] == [["APPLIED"] * 3] * 8
    assert alice.catalog.heads()[media.feed_id].seq == before + 1
    assert len(alice.names(b"/media")) == 24
    again = await alice.submit.submit(media.feed_id, operations, exact=True)
    assert words(again) == ["APPLIED"] * 24
    assert alice.catalog.heads()[media.feed_id].seq == before + 1


async def test_an_exact_change_that_does_not_fit_is_not_done(alice: WritingMember, media: DataStore) -> None:
    """EEXIST for whoever waits; a conflict name for what was promised already, and it is told."""
    first, second, third = [await alice.make(media.feed_id, b"film", bytes([n])) for n in range(3)]
    assert words(await alice.submit.submit(media.feed_id, [first], exact=True)) == ["APPLIED"]
    missed = await alice.submit.submit(media.feed_id, [second], exact=True)
    assert (words(missed), missed.outcomes[0].errno, missed.position.seq) == (["MISSED"], 17, 0)
    kept = await alice.submit.submit(media.feed_id, [third], exact=False)
    assert words(kept) == ["CONFLICT"]
    assert alice.names(b"/media") == sorted([b"film", kept.outcomes[0].name])
    assert len(alice.events.named("submit.conflict")) == 1


async def test_what_is_not_whole_is_refused_and_the_rest_goes_on(alice: WritingMember, media: DataStore) -> None:
    """A stolen writer, a short id, a wrong size, a foreign actor, no change at all; each in its place."""
    good = await alice.make(media.feed_id, b"good", b"content")
    bad = []
    for spoil in ("writer", "random", "size", "actor", "layout"):
        staged = await alice.make(media.feed_id, spoil.encode(), b"content")
        if spoil == "writer":
            staged.operation.id.writer = "bob.media.collective"
        elif spoil == "random":
            staged.operation.id.random = b"short"
        elif spoil == "size":
            staged.operation.create.content.size_bytes = 9
        elif spoil == "actor":
            staged.operation.actor = "client@bob.media.collective"
        else:
            staged.layout.size_bytes = 5
        bad.append(staged)
    bad.append(alice.change())
    reply = await alice.submit.submit(media.feed_id, [*bad[:3], good, *bad[3:]], exact=False)
    assert words(reply) == ["REFUSED"] * 3 + ["APPLIED"] + ["REFUSED"] * 3
    assert all(outcome.reason and outcome.errno for outcome in reply.outcomes if outcome.outcome == submit_pb2.REFUSED)
    assert alice.names(b"/media") == [b"good"]
    with pytest.raises(Refused, match="1025 operations"):
        await alice.submit.submit(media.feed_id, [good] * 1025, exact=False)
    with pytest.raises(NotFound):
        await alice.submit.submit(b"x" * 32, [good], exact=False)


async def test_pages_are_the_ones_the_layout_names(alice: WritingMember, media: DataStore) -> None:
    """Another page, another size, another hash: nothing of it reaches the feed."""
    from collective.chunks import compute_layout_hash, page_name
    from collective.core.layout import ChunkReference, encode_page

    page, key_page = encode_page([ChunkReference(b"i" * 32, 5000)]), b"sealed keys"
    layout = feed_pb2.Layout(
        version_id=b"v" * 16, size_bytes=5000, chunk_size_bytes=8 << 20, coding=feed_pb2.Coding(k=1, m=0),
        pages=[page_name(page)], key_pages=[page_name(key_page)],
    )  # fmt: skip
    layout.layout_hash = compute_layout_hash(layout)

    async def staged(name: bytes) -> submit_pb2.StagedOperation:
        made = await alice.make(media.feed_id, name)
        content = made.operation.create.content
        content.size_bytes, content.version_id = 5000, b"v" * 16
        content.key_pages.append(page_name(key_page))
        made.layout.CopyFrom(layout)
        made.pages.append(page)
        made.key_pages.append(key_page)
        return made

    bad = [await staged(b"%d" % number) for number in range(7)]
    bad[0].pages[0] = encode_page([ChunkReference(b"j" * 32, 5000)])
    bad[1].key_pages[0] = b"other keys"
    bad[2].layout.layout_hash = bytes(32)
    bad[3].operation.create.content.size_bytes = 4999
    bad[4].layout.chunk_size_bytes = 1024
    bad[4].layout.layout_hash = compute_layout_hash(bad[4].layout)
    bad[5].layout.chunk_size_bytes = 0
    for size in (bad[6].layout, bad[6].operation.create.content):
        size.size_bytes = 1 << 62
    bad[6].layout.chunk_size_bytes = 1
    for made_up in bad[5:]:
        made_up.layout.layout_hash = compute_layout_hash(made_up.layout)
    reply = await alice.submit.submit(media.feed_id, [*bad, await staged(b"good")], exact=False)
    assert words(reply) == ["REFUSED"] * 7 + ["APPLIED"]
    assert alice.catalog.page(page_name(page)) == page
    assert list(alice.catalog.layout(media.feed_id, b"v" * 16).members) == [alice.domain]


async def test_a_batch_that_cannot_be_written_spoils_no_other(
    alice: WritingMember, media: DataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database refuses what is about `bad`: its sender is told, the batch beside it is committed."""
    real = type(alice.catalog).commit_operations

    def commit(catalog: object, store_id: bytes, staged: list[submit_pb2.StagedOperation], **more: object) -> object:
        if any(one.operation.create.name == b"bad" for one in staged):
            raise Full("the disk is full")
        return real(catalog, store_id, staged, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(type(alice.catalog), "commit_operations", commit)
    good, bad = await alice.make(media.feed_id, b"good"), await alice.make(media.feed_id, b"bad")
    outcomes = await asyncio.gather(
        alice.submit.submit(media.feed_id, [good], exact=False),
        alice.submit.submit(media.feed_id, [bad], exact=False),
        return_exceptions=True,
    )
    assert isinstance(outcomes[0], submit_pb2.SubmitReply)
    assert isinstance(outcomes[1], Full)
    assert alice.names(b"/media") == [b"good"]


async def test_a_caller_that_leaves_takes_nothing_along(alice: WritingMember, media: DataStore) -> None:
    """Its change is committed all the same; whoever waits beside it is served."""
    first, second = await alice.make(media.feed_id, b"first"), await alice.make(media.feed_id, b"second")
    leaving = asyncio.create_task(alice.submit.submit(media.feed_id, [first], exact=False))
    staying = asyncio.create_task(alice.submit.submit(media.feed_id, [second], exact=False))
    await asyncio.sleep(0)
    leaving.cancel()
    assert words(await staying) == ["APPLIED"]
    await alice.submit.close()
    assert b"second" in alice.names(b"/media")


async def test_members_hand_in_for_themselves_alone(members: World, media: DataStore) -> None:
    """bob's coordinator cannot pass on what alice is said to have done, nor write where alice does not own."""
    alice, bob = members.members["alice"], members.members["bob"]
    hers = await alice.make(media.feed_id, b"hers")
    reply = await alice.submit.receive(bob.domain, submit_pb2.SubmitRequest(store_id=media.feed_id, operations=[hers]))
    assert words(reply) == ["REFUSED"]
    with pytest.raises(CollectiveError, match="does not own"):
        await bob.submit.receive(alice.domain, submit_pb2.SubmitRequest(store_id=media.feed_id, operations=[hers]))
    carol = members.members["carol"]
    with pytest.raises(Refused, match="nobody granted WRITE"):
        await carol.make(media.feed_id, b"hers")
    stolen = submit_pb2.LeaseNumbersRequest(store_id=media.feed_id, count=1)
    with pytest.raises(Refused):
        await alice.numbers.lease(carol.domain, stolen)


def test_every_directory_that_a_change_needs_is_named() -> None:
    """Those whose names change, and those that must be empty."""
    operations = [
        submit_pb2.StagedOperation(operation=feed_pb2.TreeOperation(**change))  # type: ignore[arg-type]
        for change in (
            {"create": feed_pb2.Create(parent=1, inode=9)},
            {"link": feed_pb2.Link(parent=2, inode=9)},
            {"unlink": feed_pb2.Unlink(parent=3, inode=4)},
            {"rename": feed_pb2.Rename(inode=9, from_parent=5, to_parent=6, replaced_inode=7)},
            {"rename": feed_pb2.Rename(inode=9, from_parent=5, to_parent=6)},
            {"set_content": feed_pb2.SetContent(inode=9)},
            {"set_attributes": feed_pb2.SetAttributes(inode=9)},
        )
    ]
    assert touched_directories(b"s", operations) == {(b"s", number) for number in range(1, 8)}


def spoiled(alice: WritingMember, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """From now on the catalogue meets `error` at every change that makes a name that begins with `bad`."""
    real = type(alice.catalog).commit_operations

    def commit(catalog: object, store_id: bytes, staged: list[submit_pb2.StagedOperation], **more: object) -> object:
        if any(one.operation.create.name.startswith(b"bad") for one in staged):
            raise error
        return real(catalog, store_id, staged, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(type(alice.catalog), "commit_operations", commit)


@pytest.mark.parametrize("error", [Refused("not like this"), OverflowError("too large for the database")])
async def test_a_change_that_can_never_be_committed_is_found_and_kept(
    alice: WritingMember, media: DataStore, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Two of twenty changes spoil every entry they are in: the others are committed, these are refused, once, and stay
    readable and listed until they are discarded."""
    names = [b"bad %d" % n if n in (3, 11) else b"%02d" % n for n in range(20)]
    changes = [await alice.make(media.feed_id, name, name) for name in names]
    spoiled(alice, monkeypatch, error)
    reply = await alice.submit.submit(media.feed_id, changes, exact=False)
    assert words(reply) == ["REFUSED" if name.startswith(b"bad") else "APPLIED" for name in names]
    assert words(await alice.submit.submit(media.feed_id, changes, exact=False)) == words(reply), (
        "a second time: the same"
    )
    assert alice.names(b"/media") == sorted(names)
    rows = alice.catalog.pending()
    assert [(row.path, row.state, row.owner) for row in rows] == [
        (b"/media/bad 3", "refused", alice.domain),
        (b"/media/bad 11", "refused", alice.domain),
    ]
    assert all(str(error) in row.reason for row in rows)
    kept = alice.catalog.content(alice.catalog.resolve(b"/media/bad 3"))
    assert isinstance(kept, Inline)
    assert kept.data == b"bad 3"
    assert alice.catalog.discard([row.number for row in rows]) == 2
    assert len(alice.names(b"/media")) == 18


async def test_whoever_waits_for_a_change_is_told_why_it_is_not_done(
    alice: WritingMember, media: DataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of an exact change is kept; what may pass refuses nothing."""
    bad = await alice.make(media.feed_id, b"bad", b"content")
    spoiled(alice, monkeypatch, Refused("not like this"))
    with pytest.raises(Refused, match="not like this"):
        await alice.submit.submit(media.feed_id, [bad], exact=True)
    spoiled(alice, monkeypatch, OSError("the disk fails"))
    with pytest.raises(OSError, match="the disk fails"):
        await alice.submit.submit(media.feed_id, [bad], exact=False)
    assert alice.catalog.pending() == []
