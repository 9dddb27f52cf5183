"""The way back of entries that an epoch left behind, as the wire sees it: what is kept, what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.catalogs import FEDERATION, TestFederation, put

from collective.core.errors import CollectiveError, Conflict, Corrupt, Refused
from collective.core.observe import SILENT
from collective.net.rpc import Caller
from collective.transfer.events import ChangeBell
from collective.transfer.sync import EntryServer
from collective.transfer.waking import HandBackDesk
from collective.wire import control_pb2, feed_pb2


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[TestFederation]:
    made = TestFederation(tmp_path)
    alice = made.add("alice")
    made.add("bob")
    alice.create_datastore(b"/media", 0, 0, {})
    alice.grant(b"/media", [feed_pb2.READ], "*@*.collective")
    put(alice, b"/media/before")
    made.exchange("alice", "bob")
    yield made
    made.close()


def desk(federation: TestFederation) -> HandBackDesk:
    alice = federation.catalogs["alice"]

    async def write(change: Callable[[], None]) -> None:
        change()

    return HandBackDesk(alice, ChangeBell(alice.change_counter), SILENT, write)


def hand_back(federation: TestFederation, *entries: bytes) -> None:
    request = control_pb2.HandBackRequest(entries=entries)
    caller = Caller(identity=None)
    asyncio.run(desk(federation).hand_back(caller, request))


def kept(federation: TestFederation) -> int:
    (row,) = federation.catalogs["alice"]._all("SELECT count(*) FROM abandoned")
    assert isinstance(row[0], int)
    return row[0]


def lost_tail(federation: TestFederation) -> bytes:
    """The entry that bob alone has, after alice went on without him."""
    old = federation.saved_database("alice")
    put(federation.catalogs["alice"], b"/media/lost")
    federation.pull(federation.catalogs["alice"], federation.catalogs["bob"])
    store = federation.catalogs["alice"].datastores()[0].feed_id
    alice = federation.restart("alice", old, "bob")
    alice.tend(federation.clock.wall())
    return federation.catalogs["bob"].entries_after(store, alice.heads()[store].seq - 1)[0]


def test_what_comes_back_is_kept_once_and_replayed(federation: TestFederation) -> None:
    """Handed back twice it is kept once; the next round of care signs its operations anew."""
    entry = lost_tail(federation)
    alice = federation.catalogs["alice"]
    hand_back(federation, entry)
    hand_back(federation, entry, entry)
    assert kept(federation) == 1
    alice.tend(federation.clock.wall())
    assert alice.find(b"/media/lost") is not None
    assert not alice.tend(federation.clock.wall())


def test_what_is_on_the_chain_is_nothing_new(federation: TestFederation) -> None:
    """Entries that the owner has are not kept aside."""
    alice = federation.catalogs["alice"]
    hand_back(federation, *alice.entries_after(alice.datastores()[0].feed_id, 0))
    assert kept(federation) == 0
    assert alice.doubts() == {}


def test_only_own_signed_entries_are_kept(federation: TestFederation) -> None:
    """Another's entry, a broken one, too many: refused, and nothing is kept."""
    alice, bob = federation.catalogs["alice"], federation.catalogs["bob"]
    entry = lost_tail(federation)
    foreign = bob.entries_after(bob.own_member_feed(), 0)[0]
    hand_back(federation, foreign)  # told and skipped, the rest would be taken
    assert kept(federation) == 0
    broken = bytearray(entry)
    broken[-1] ^= 1
    with pytest.raises(CollectiveError) as caught:
        hand_back(federation, bytes(broken))
    assert isinstance(caught.value, Corrupt)
    with pytest.raises(Refused):
        hand_back(federation, *[entry] * 257)
    assert kept(federation) == 0
    assert federation.catalogs["alice"].doubts() == {}
    assert alice is not federation.catalogs["alice"]


def test_a_second_writers_entry_is_evidence(federation: TestFederation, tmp_path: Path) -> None:
    """One place, two entries: handed back it is a fork, kept, and alice signs no more on that feed."""
    from support.catalogs import rebuild

    alice = federation.catalogs["alice"]
    store = alice.datastores()[0].feed_id
    twin = rebuild(federation, alice, tmp_path / "twin")
    head = alice.heads()[store].seq
    put(alice, b"/media/one")
    put(twin, b"/media/other")
    hand_back(federation, twin.entries_after(store, head)[0])
    assert alice.forked_feeds() == [store]
    with pytest.raises((Conflict, CollectiveError)):
        put(alice, b"/media/two")
    twin.close()


def test_a_stream_follows_its_servers_chain(federation: TestFederation) -> None:
    """Whoever is ahead on a chain that its server left is sent the new epoch from where the chains meet."""
    bob = federation.catalogs["bob"]
    store = federation.catalogs["alice"].datastores()[0].feed_id
    old = federation.saved_database("alice")
    put(federation.catalogs["alice"], b"/media/lost")
    federation.pull(federation.catalogs["alice"], bob)
    heads = [feed_pb2.FeedHead(feed_id=feed, head=head) for feed, head in bob.heads().items()]
    server = EntryServer(bob, federation.clock)

    async def follow() -> list[bytes]:
        stream = server.follow(f"alice.{FEDERATION}", control_pb2.FollowRequest(heads=heads))
        return [entry async for message in stream if message.feed_id == store for entry in message.entries]

    assert asyncio.run(follow()) == []
    alice = federation.restart("alice", old, "bob")
    alice.tend(federation.clock.wall())
    federation.pull(alice, bob)
    sent = asyncio.run(follow())
    assert sent, "the opening of the epoch comes although its seq was passed before"
    start = feed_pb2.StorePublic.FromString(feed_pb2.Entry.FromString(sent[0]).public_part)
    assert start.HasField("epoch_start")
