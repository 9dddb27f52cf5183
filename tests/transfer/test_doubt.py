"""Writing to one's own DataStores in doubt: staged and shown at once, signed in order when the doubt is over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.catalogs import TestFederation, put
from support.writing import FOLDER, World, WritingMember

from collective.core.errors import Unreachable
from collective.wire import feed_pb2, submit_pb2

PATIENCE_SECONDS = 20.0


@pytest.fixture
async def members(tmp_path: Path) -> AsyncIterator[World]:
    """alice on yesterday's database: bob and carol have her file `told`, which gave out numbers that she forgot."""
    federation = TestFederation(tmp_path)
    for name in ("alice", "bob", "carol"):
        federation.add(name)
    alice = federation.catalogs["alice"]
    alice.create_datastore(b"/media", 0, 0, {})
    alice.grant(b"/media", [feed_pb2.READ], "*@*.collective")
    federation.sync()
    yesterday = federation.saved_database("alice")
    alice = federation.catalogs["alice"]
    alice.lease_numbers(alice.datastores()[0].feed_id, "alice.media.collective", 1)
    put(alice, b"/media/told")
    federation.exchange("alice", "bob", "carol")
    federation.restart("alice", yesterday)
    made = World(federation)
    for name in ("alice", "bob", "carol"):
        made.add(name)
    try:
        yield made
    finally:
        await made.close()
        federation.close()


@pytest.fixture
def alice(members: World) -> WritingMember:
    return members.members["alice"]


@pytest.fixture
def media(alice: WritingMember) -> bytes:
    return alice.catalog.datastores()[0].feed_id


def words(reply: submit_pb2.SubmitReply) -> list[str]:
    return [submit_pb2.Outcome.Name(outcome.outcome) for outcome in reply.outcomes]


async def settled(member: WritingMember, store_id: bytes) -> None:
    """Until nothing staged waits; the forwarder goes on by itself."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while member.catalog.has_staged_work(store_id):
            await member.bell.wait_past(member.catalog.change_counter(), 0.05)


async def test_changes_in_doubt_are_kept_shown_and_signed_in_order(
    members: World, alice: WritingMember, media: bytes
) -> None:
    """A folder, files in it, a rename: alice sees them at once, bob when the doubt is over, under the same numbers."""
    folder = await alice.make(media, b"series", mode=FOLDER)
    number = folder.operation.create.inode
    files = [await alice.make(media, b"%03d" % n, b"x", parent=number) for n in range(300)]
    rename = alice.change(
        rename=feed_pb2.Rename(inode=number, from_parent=1, from_name=b"series", to_parent=1, to_name=b"shows")
    )
    heads = alice.catalog.heads()
    for batch in ([folder], files, [rename]):
        reply = await alice.submit.submit(media, batch, exact=False)
        assert set(words(reply)) == {"STAGED"}
        assert "--without bob.media.collective" in reply.outcomes[0].reason
    assert alice.names(b"/media") == [b"shows"]
    assert len(alice.catalog.pending()) == 302
    assert alice.catalog.heads() == heads, "nothing is signed"

    members.federation.exchange("alice", "bob", "carol")
    await settled(alice, media)
    members.flow()
    assert alice.catalog.pending() == []
    assert alice.names(b"/media") == members.members["bob"].names(b"/media") == [b"shows", b"told"]
    seen = members.members["bob"].catalog.resolve(b"/media/shows")
    assert seen.number == number, "what was shown in doubt keeps its number"
    assert len(members.members["bob"].names(b"/media/shows")) == 300


async def test_who_waits_for_the_answer_is_told_of_the_doubt(alice: WritingMember, media: bytes) -> None:
    """An exact change is done or not: in doubt it is not, whatever was staged before it."""
    film = await alice.make(media, b"film", b"x")
    with pytest.raises(Unreachable, match="doubt") as caught:
        await alice.submit.submit(media, [film], exact=True)
    assert "--without" in str(caught.value.hint)
    assert alice.catalog.pending() == []
    await alice.submit.submit(media, [film], exact=False)
    with pytest.raises(Unreachable, match="doubt"):
        await alice.submit.submit(media, [await alice.make(media, b"other")], exact=True)
    assert alice.names(b"/media") == [b"film"]


async def test_later_changes_queue_behind_what_waits(members: World, alice: WritingMember, media: bytes) -> None:
    """When the doubt is over and the staged file is not signed yet, its removal goes behind it, never before."""
    film = await alice.make(media, b"film", b"x")
    await alice.submit.submit(media, [film], exact=False)
    members.federation.exchange("alice", "bob", "carol")
    assert alice.catalog.doubts() == {}
    remove = alice.change(unlink=feed_pb2.Unlink(parent=1, name=b"film", inode=film.operation.create.inode))
    assert words(await alice.submit.submit(media, [remove], exact=True)) == ["APPLIED"]
    await settled(alice, media)
    assert alice.names(b"/media") == [b"told"]
    later = await alice.make(media, b"later", b"x")
    assert words(await alice.submit.submit(media, [later], exact=False)) == ["APPLIED"]


async def test_a_name_that_came_back_keeps_both(members: World, alice: WritingMember, media: bytes) -> None:
    """In doubt alice puts a name anew that the lost entries have: hers gets a conflict name, nothing is overwritten."""
    again = await alice.make(media, b"told", b"anew")
    await alice.submit.submit(media, [again], exact=False)
    members.federation.exchange("alice", "bob", "carol")
    await settled(alice, media)
    names = alice.names(b"/media")
    assert len(names) == 2
    assert b"told" in names
    assert any(name.startswith(b"told (conflict alice ") for name in names)


async def test_what_waits_survives_another_start(members: World, alice: WritingMember, media: bytes) -> None:
    """Staged is durable: the process that took it dies, the next one signs it."""
    film = await alice.make(media, b"film", b"x")
    await alice.submit.submit(media, [film], exact=False)
    await alice.close()
    members.federation.restart("alice")
    again = members.add("alice")
    assert again.names(b"/media") == [b"film"]
    members.federation.exchange("alice", "bob", "carol")
    await again.forwarder.tick()
    await settled(again, media)
    assert again.names(b"/media") == [b"film", b"told"]


async def test_numbers_of_a_doubt_are_nobody_elses(members: World, alice: WritingMember, media: bytes) -> None:
    """They lie in the gap that the new epoch leaves: apart from every lease there was and will be, leased when used."""
    catalog = alice.catalog
    first = await alice.numbers.take(media, 10)
    film = await alice.make(media, b"film", b"x")
    assert film.operation.create.inode not in first
    await alice.submit.submit(media, [film], exact=False)
    members.federation.exchange("alice", "bob", "carol")
    await settled(alice, media)
    leases = [range(a, a + n) for a, n in catalog._all("SELECT first, count FROM number_leases ORDER BY first")]  # type: ignore[operator, call-overload]
    assert any(film.operation.create.inode in lease for lease in leases)
    late = alice.change(create=feed_pb2.Create(parent=1, name=b"late", inode=first[0], mode=FOLDER))
    assert words(await alice.submit.submit(media, [late], exact=False)) == ["APPLIED"], "a mount that had it in hand"
    fresh = catalog.lease_numbers(media, "bob.media.collective", 1)
    assert all(fresh.start >= lease.stop for lease in leases)
    stolen = alice.change(create=feed_pb2.Create(parent=1, name=b"stolen", inode=fresh[0], mode=FOLDER))
    assert words(await alice.submit.submit(media, [stolen], exact=False)) == ["REFUSED"]
