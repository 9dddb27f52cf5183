"""Changes to another member's DataStore: staged while it is away, sent in order, never dropped, never done twice."""

from __future__ import annotations

import asyncio
import errno

import pytest
from support.writing import FOLDER, World, WritingMember

from collective.catalog import DataStore
from collective.core.errors import Unreachable
from collective.transfer import forward
from collective.wire import feed_pb2, submit_pb2

PATIENCE_SECONDS = 20.0


def words(reply: submit_pb2.SubmitReply) -> list[str]:
    return [submit_pb2.Outcome.Name(outcome.outcome) for outcome in reply.outcomes]


async def settled(members: World, member: WritingMember) -> None:
    """Until nothing of it waits and everything has come back by the feed."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while member.catalog.stores_with_staged_work():
            await member.bell.wait_past(member.catalog.change_counter(), 0.05)
    members.flow()


@pytest.fixture
def media(members: World) -> DataStore:
    """alice's, in which bob may read and write."""
    alice = members.members["alice"].catalog
    store = alice.create_datastore(b"/media", 0, 0, {})
    alice.grant(b"/media", [feed_pb2.READ, feed_pb2.WRITE], "bob@media.collective")
    members.flow()
    return store


@pytest.fixture
async def bob(members: World, media: DataStore) -> WritingMember:
    """bob, with numbers in stock."""
    made = members.members["bob"]
    await made.numbers.tick()
    return made


async def test_an_owner_who_is_there_answers(members: World, media: DataStore, bob: WritingMember) -> None:
    """APPLIED is the owner's word; alice, bob and everybody see the same names."""
    operations = [await bob.make(media.feed_id, b"%d" % number, b"x") for number in range(5)]
    assert words(await bob.submit.submit(media.feed_id, operations, exact=False)) == ["APPLIED"] * 5
    assert bob.names(b"/media") == members.members["alice"].names(b"/media") == [b"%d" % n for n in range(5)]
    assert bob.catalog.pending() == []


async def test_an_owner_who_is_away_gets_everything_later_in_order(
    members: World, media: DataStore, bob: WritingMember
) -> None:
    """Folders, files in them, renames, removals: visible at bob's at once, at alice's when she is back."""
    members.away.add("alice")
    folder = await bob.make(media.feed_id, b"series", mode=FOLDER)
    number = folder.operation.create.inode
    files = [await bob.make(media.feed_id, b"%03d" % n, b"x", parent=number) for n in range(300)]
    rename = bob.change(
        rename=feed_pb2.Rename(inode=number, from_parent=1, from_name=b"series", to_parent=1, to_name=b"shows")
    )
    remove = bob.change(unlink=feed_pb2.Unlink(parent=number, name=b"000", inode=files[0].operation.create.inode))
    for batch in ([folder], files, [rename, remove]):
        assert set(words(await bob.submit.submit(media.feed_id, batch, exact=False))) == {"STAGED"}
    assert bob.names(b"/media") == [b"shows"]
    assert len(bob.names(b"/media/shows")) == 299
    assert members.members["alice"].names(b"/media") == []
    assert len(bob.catalog.pending()) == 303
    members.away.clear()
    await settled(members, bob)
    alice = members.members["alice"]
    assert alice.names(b"/media/shows") == bob.names(b"/media/shows") == [b"%03d" % n for n in range(1, 300)]
    assert bob.catalog.pending() == []
    sent = [request for method, request in alice.calls if method == "Submit"]
    assert all(len(request.operations) <= 256 for request in sent)  # type: ignore[attr-defined]


async def test_an_answer_that_was_lost_does_nothing_twice(
    members: World, media: DataStore, bob: WritingMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    """alice has committed it and bob did not hear: sent again, it is one file, and no conflict."""
    monkeypatch.setattr(forward, "ANSWER_SECONDS", 0.1)
    alice = members.members["alice"]
    alice.answer_lost = True
    film = await bob.make(media.feed_id, b"film", b"content")
    assert words(await bob.submit.submit(media.feed_id, [film], exact=False)) == ["STAGED"]
    async with asyncio.timeout(PATIENCE_SECONDS):
        while sum(method == "Submit" for method, _ in alice.calls) < 2:
            await asyncio.sleep(0.01)
    alice.answer_lost = False
    await settled(members, bob)
    assert alice.names(b"/media") == bob.names(b"/media") == [b"film"]


async def test_a_name_that_alice_took_meanwhile_is_a_conflict_and_told(
    members: World, media: DataStore, bob: WritingMember
) -> None:
    """Both files are there; bob's coordinator says which name his got."""
    alice = members.members["alice"]
    members.away.add("alice")
    mine = await bob.make(media.feed_id, b"film.mkv", b"bob's")
    assert words(await bob.submit.submit(media.feed_id, [mine], exact=False)) == ["STAGED"]
    hers = await alice.make(media.feed_id, b"film.mkv", b"alice's")
    await alice.submit.submit(media.feed_id, [hers], exact=True)
    members.away.clear()
    await settled(members, bob)
    names = alice.names(b"/media")
    assert names == bob.names(b"/media")
    assert len(names) == 2
    assert b"film.mkv" in names
    assert any(name.startswith(b"film (conflict bob ") for name in names)
    assert len(bob.events.named("forward.conflict")) == len(alice.events.named("submit.conflict")) == 1


async def test_what_is_refused_is_kept_until_it_is_discarded(
    members: World, media: DataStore, bob: WritingMember
) -> None:
    """The right was taken back meanwhile: listed with its reason, readable, later work goes on behind it."""
    members.away.add("alice")
    hers = await members.members["alice"].make(media.feed_id, b"hers", b"x")
    await members.members["alice"].submit.submit(media.feed_id, [hers], exact=True)
    members.flow()
    remove = bob.change(unlink=feed_pb2.Unlink(parent=1, name=b"hers", inode=hers.operation.create.inode))
    later = await bob.make(media.feed_id, b"later", b"x")
    await bob.submit.submit(media.feed_id, [remove, later], exact=False)
    members.away.clear()
    await settled(members, bob)
    (refused,) = bob.catalog.pending()
    assert (refused.state, refused.change) == ("refused", "remove")
    assert "DELETE" in refused.reason
    assert members.members["alice"].names(b"/media") == [b"hers", b"later"]
    assert bob.catalog.discard([refused.number]) == 1
    assert bob.names(b"/media") == [b"hers", b"later"]


async def test_an_exact_change_is_asked_of_the_owner(members: World, media: DataStore, bob: WritingMember) -> None:
    """EEXIST from the owner; nothing is staged; away is Unreachable, at once the second time."""
    first, second = [await bob.make(media.feed_id, b"film", b"x") for _ in range(2)]
    assert words(await bob.submit.submit(media.feed_id, [first], exact=True)) == ["APPLIED"]
    assert bob.names(b"/media") == [b"film"]
    missed = await bob.submit.submit(media.feed_id, [second], exact=True)
    assert (words(missed), missed.outcomes[0].errno) == (["MISSED"], errno.EEXIST)
    members.away.add("alice")
    for _ in range(2):
        with pytest.raises(Unreachable):
            await bob.submit.submit(media.feed_id, [second], exact=True)
    assert bob.catalog.pending() == []


async def test_an_exact_change_goes_behind_what_waits(members: World, media: DataStore, bob: WritingMember) -> None:
    """The folder is staged; the exact creation in it finds it there when the owner is back."""
    members.away.add("alice")
    folder = await bob.make(media.feed_id, b"new", mode=FOLDER)
    await bob.submit.submit(media.feed_id, [folder], exact=False)
    inside = await bob.make(media.feed_id, b"film", b"x", parent=folder.operation.create.inode)
    members.away.clear()
    assert words(await bob.submit.submit(media.feed_id, [inside], exact=True)) == ["APPLIED"]
    members.flow()
    assert members.members["alice"].names(b"/media/new") == [b"film"]


async def test_an_exact_change_shows_here_before_its_entry_comes(
    members: World, media: DataStore, bob: WritingMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The feed is slow: the change is shown all the same, and is one file when the entry is here."""
    monkeypatch.setattr(forward, "ANSWER_SECONDS", 0.05)
    members.flows = False
    film = await bob.make(media.feed_id, b"film", b"x")
    assert words(await bob.submit.submit(media.feed_id, [film], exact=True)) == ["APPLIED"]
    assert bob.names(b"/media") == [b"film"]
    members.flows = True
    await settled(members, bob)
    assert bob.names(b"/media") == members.members["alice"].names(b"/media") == [b"film"]


async def test_staged_work_outlives_the_process(members: World, media: DataStore, bob: WritingMember) -> None:
    """A coordinator that starts anew sends what the last one left."""
    members.away.add("alice")
    film = await bob.make(media.feed_id, b"film", b"x")
    await bob.submit.submit(media.feed_id, [film], exact=False)
    await bob.close()
    again = members.add("bob")
    members.away.clear()
    await again.forwarder.tick()
    await settled(members, again)
    assert members.members["alice"].names(b"/media") == [b"film"]


async def test_numbers_are_in_stock_before_they_are_needed(
    members: World, media: DataStore, bob: WritingMember
) -> None:
    """A tick leases a block; with the owner away thousands of files can be made; without stock it says so."""
    assert bob.catalog.stock_count(media.feed_id) >= 4096
    members.away.add("alice")
    assert len(await bob.numbers.take(media.feed_id, 5000)) == 5000
    members.members["alice"].catalog.grant(b"/media", [feed_pb2.READ, feed_pb2.WRITE], "carol@media.collective")
    members.flow()
    with pytest.raises(Unreachable):
        await members.members["carol"].numbers.take(media.feed_id, 1)
    members.away.clear()
    assert await members.members["carol"].numbers.take(media.feed_id, 1)
