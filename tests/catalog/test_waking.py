"""Waking up: clean or in doubt, what comes back from the others, what is un-applied, handed back and replayed."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.catalogs import FEDERATION, TestFederation, operation_id, put, rebuild, state_of, tree_of

from collective.catalog import Catalog
from collective.catalog.entry import build_entry
from collective.core.errors import Conflict, Corrupt, Misconfigured
from collective.wire import control_pb2, feed_pb2


@pytest.fixture
def three(federation: TestFederation) -> TestFederation:
    """alice's /media, which bob and carol host and read."""
    federation.add("bob")
    federation.add("carol")
    alice = federation.catalogs["alice"]
    alice.create_datastore(b"/media", 0, 0, {})
    alice.grant(b"/media", [feed_pb2.READ], "*@*.collective")
    put(alice, b"/media/before")
    federation.exchange("alice", "bob", "carol")
    return federation


def names(catalog: Catalog) -> set[bytes]:
    return {path.removeprefix(b"/media/") for path in tree_of(catalog)} - {b"/media"}


def domain(name: str) -> str:
    return f"{name}.{FEDERATION}"


def assert_level(federation: TestFederation, *who: str) -> None:
    """All have every feed alike, and what stands is what the entries say."""
    homes = [federation.catalogs[name] for name in who]
    for home in homes[1:]:
        assert {f: p.hash for f, p in home.heads().items()} == {f: p.hash for f, p in homes[0].heads().items()}
        assert tree_of(home) == tree_of(homes[0])
    for number, name in enumerate(who):
        folder = federation.root / f"rebuilt-{name}-{number}-{len(list(federation.root.iterdir()))}"
        fresh = rebuild(federation, federation.catalogs[name], folder)
        assert state_of(fresh) == state_of(federation.catalogs[name])
        fresh.close()


def test_a_clean_start_asks_nobody(three: TestFederation) -> None:
    """Database and heads agree: writing goes on at once, with everybody else away or rebooting too."""
    for name in ("alice", "bob", "carol"):
        catalog = three.restart(name)
        assert catalog.doubts() == {}
    put(three.catalogs["alice"], b"/media/after")


def test_numbers_in_stock_are_not_handed_out_again(three: TestFederation) -> None:
    """An older database's stock of inode numbers was handed out since, in own DataStores and in others'."""
    alice, bob = three.catalogs["alice"], three.catalogs["bob"]
    alice.grant(b"/media", [feed_pb2.READ, feed_pb2.WRITE], "bob@media.collective")
    store = alice.datastores()[0].feed_id
    bob.add_numbers(store, alice.lease_numbers(store, domain("bob"), 1))
    bob.create_datastore(b"/bob", 0, 0, {})
    own = next(one.feed_id for one in bob.datastores() if one.path == b"/bob")
    assert bob.stock_count(own)
    three.exchange("alice", "bob", "carol")
    old = three.saved_database("bob")
    bob = three.catalogs["bob"]
    taken = [bob.take_numbers(store, 5), bob.take_numbers(own, 5)]
    put(bob, b"/bob/told")
    bob = three.restart("bob", old)
    assert bob.doubts()
    assert bob.take_numbers(store, 1) is None, "its owner is asked for others"
    again = bob.take_numbers(own, 1)
    assert again is not None
    assert taken[1] is not None
    assert again.start > taken[1].start + (1 << 23), "far above whatever may be lost"


def test_an_answer_before_the_doubt_is_none(three: TestFederation) -> None:
    """A disk of alice's own tells of a newer head while she runs: everybody is asked, also who told all before."""
    alice = three.catalogs["alice"]
    store = alice.datastores()[0].feed_id
    for name in ("bob", "carol"):
        alice.note_answer(domain(name))
    head = alice.heads()[store]
    kept = feed_pb2.Position(epoch_number=1, epoch_id=head.epoch_id, seq=head.seq + 1, hash=b"h" * 32)
    assert alice.hear_head(store, kept)
    assert alice.own_heads().keys() == {alice.root_feed(), alice.own_member_feed()}
    assert alice.awaited() == [domain("bob"), domain("carol")]
    assert not alice.tend(three.clock.wall())
    for name in ("bob", "carol"):
        assert alice.note_answer(domain(name))
    assert alice.tend(three.clock.wall())
    assert alice.doubts() == {}
    assert not alice.hear_head(store, kept), "the new epoch is above it"


def test_yesterdays_database_gets_everything_back(three: TestFederation) -> None:
    """alice on an older copy signs nothing, takes her entries back from both, opens an epoch and writes on."""
    old = three.saved_database("alice")
    put(three.catalogs["alice"], b"/media/told")
    three.exchange("alice", "bob", "carol")
    alice = three.restart("alice", old)
    assert alice.doubts()
    with pytest.raises(Misconfigured, match="older") as caught:
        put(alice, b"/media/other")
    assert "--without bob.media.collective --without carol.media.collective" in str(caught.value.hint)
    three.exchange("alice", "bob")
    assert b"told" in names(alice)
    with pytest.raises(Misconfigured, match="older") as caught:
        put(alice, b"/media/other")
    assert "bob" not in str(caught.value.hint), "he has answered"
    three.exchange("alice", "bob", "carol")
    assert alice.doubts() == {}
    put(alice, b"/media/after")
    three.exchange("alice", "bob", "carol")
    assert names(alice) == {b"before", b"told", b"after"}
    assert alice.heads()[alice.datastores()[0].feed_id].epoch_number == 2
    assert_level(three, "alice", "bob", "carol")


def test_a_deleted_database_comes_back(three: TestFederation) -> None:
    """Only heads and keys are left; roster, definitions, keys and tree come from the others."""
    store = three.catalogs["alice"].datastores()[0].feed_id
    put(three.catalogs["alice"], b"/media/told")
    three.exchange("alice", "bob", "carol")
    alice = three.restart("alice", {})
    assert alice.is_doubtful()
    assert alice.tend(0) is False, "nothing is signed before anybody was heard"
    three.exchange("alice", "bob", "carol")
    assert alice.doubts() == {}
    assert names(alice) == {b"before", b"told"}
    assert alice.datastores()[0].feed_id == store
    put(alice, b"/media/after")
    three.exchange("alice", "bob", "carol")
    assert_level(three, "alice", "bob", "carol")


def test_entries_past_the_base_are_handed_back(three: TestFederation) -> None:
    """carol alone saw the last entries; alice went on without her; carol's come back, once, and nothing clashes."""
    old = three.saved_database("alice")
    alice = three.catalogs["alice"]
    put(alice, b"/media/seen-by-both")
    three.exchange("alice", "bob", "carol")
    put(alice, b"/media/seen-by-carol")
    put(alice, b"/media/folder/inside")
    three.exchange("alice", "carol")
    alice = three.restart("alice", old, "carol")
    three.exchange("alice", "bob")
    assert alice.doubts() == {}
    assert names(alice) == {b"before", b"seen-by-both"}
    put(alice, b"/media/meanwhile")
    three.exchange("alice", "bob", "carol")
    everything = {b"before", b"seen-by-both", b"seen-by-carol", b"meanwhile", b"folder", b"folder/inside"}
    assert names(alice) == everything
    (kept,) = three.catalogs["carol"]._all("SELECT count(*) FROM abandoned")[0]
    assert kept == 2, "what was un-applied stays as evidence"
    assert_level(three, "alice", "bob", "carol")


def test_a_lost_tail_of_member_and_root_feed_comes_back(three: TestFederation) -> None:
    """A member admitted, a DataStore made and a grant given in the lost tail: all there again, with what lies in it."""
    old = three.saved_database("alice")
    alice = three.catalogs["alice"]
    photos = alice.create_datastore(b"/photos", 0, 0, {}).feed_id
    given = alice.grant(b"/photos", [feed_pb2.READ], "carol@media.collective")
    put(alice, b"/photos/one")
    three.exchange("alice", "carol")
    alice = three.restart("alice", old, "carol")
    three.exchange("alice", "bob")
    assert [store.path for store in alice.datastores()] == [b"/media"]
    three.exchange("alice", "bob", "carol")
    assert [store.path for store in alice.datastores()] == [b"/media", b"/photos"]
    assert given in alice.grants(photos)
    assert alice.find(b"/photos/one") is not None
    put(alice, b"/photos/two")
    three.exchange("alice", "bob", "carol")
    assert three.catalogs["carol"].find(b"/photos/two") is not None
    assert alice.doubts() == {}


def test_an_admission_in_the_lost_tail_comes_back(three: TestFederation) -> None:
    """dave was admitted, alice's database rolled back; he is a member again with the same feed."""
    old = three.saved_database("alice")
    three.add("dave")
    three.exchange("alice", "bob", "carol", "dave")
    alice = three.restart("alice", old, "bob", "carol")
    three.catalogs["alice"].hearing.excused.add(domain("dave"))
    assert alice.tend(three.clock.wall())
    assert alice.doubts() == {}
    assert domain("dave") not in {member.domain for member in alice.members()}
    for _ in range(3):
        three.exchange("alice", "bob", "carol")
    assert domain("dave") in {member.domain for member in alice.members()}
    three.exchange("alice", "bob", "carol", "dave")
    assert three.catalogs["dave"].heads() == alice.heads() or names(three.catalogs["dave"]) == names(alice)


def test_an_owner_rolled_back_again_gets_them_again(three: TestFederation) -> None:
    """Handed back, then lost again before anybody else had the replay: the next epoch brings them once more."""
    old = three.saved_database("alice")
    put(three.catalogs["alice"], b"/media/told")
    three.exchange("alice", "carol")
    three.restart("alice", old, "bob", "carol").tend(three.clock.wall())
    alice, carol = three.catalogs["alice"], three.catalogs["carol"]
    before_replay = three.saved_database("alice")
    alice = three.catalogs["alice"]
    three.pull_from("alice", "carol")
    three.pull_from("alice", "carol")
    assert carol.find(b"/media/told") is None
    alice.tend(three.clock.wall())
    assert alice.find(b"/media/told") is not None
    alice = three.restart("alice", before_replay, "bob")
    three.exchange("alice", "bob", "carol")
    assert alice.find(b"/media/told") is not None
    assert_level(three, "alice", "bob", "carol")


def test_a_home_with_nobody_else_goes_on(federation: TestFederation) -> None:
    """Alone on an older copy: there is nobody to wait for."""
    federation.catalogs["alice"].create_datastore(b"/media", 0, 0, {})
    old = federation.saved_database("alice")
    put(federation.catalogs["alice"], b"/media/lost")
    alice = federation.restart("alice", old)
    assert alice.doubts()
    alice.tend(federation.clock.wall())
    assert alice.doubts() == {}
    put(alice, b"/media/new")
    assert alice.resolve(b"/media/new").number > 1 << 24, "above every number the lost tail can have given out"


def test_a_recovered_database_is_in_doubt_about_everything(three: TestFederation) -> None:
    """The marker beside the heads counts although every head agrees; it goes when the doubt is over."""
    marker = three.folder("alice") / "heads" / "recovered"
    marker.touch()
    alice = three.restart("alice")
    with pytest.raises(Misconfigured, match="had back"):
        put(alice, b"/media/new")
    three.exchange("alice", "bob", "carol")
    assert alice.doubts() == {}
    assert not marker.exists()
    assert {position.epoch_number for feed, position in alice.heads().items() if alice.is_own(feed)} == {2}
    assert_level(three, "alice", "bob", "carol")


def test_a_crash_in_doubt_stays_in_doubt(three: TestFederation) -> None:
    """All entries are back, carol has not answered, alice stops: she still waits when she starts again."""
    old = three.saved_database("alice")
    put(three.catalogs["alice"], b"/media/told")
    three.exchange("alice", "bob", "carol")
    alice = three.restart("alice", old)
    three.exchange("alice", "bob")
    alice = three.restart("alice")
    assert alice.doubts()
    three.exchange("alice", "bob", "carol")
    assert alice.doubts() == {}


def test_a_foreign_entry_stops_signing(three: TestFederation, tmp_path: Path) -> None:
    """A copy that nothing betrayed meets its own later entries: it stops; started again, it wakes up in doubt."""
    twin = rebuild(three, three.catalogs["alice"], tmp_path / "twin")
    put(three.catalogs["alice"], b"/media/by-the-first")
    three.exchange("alice", "bob", "carol")
    store = twin.datastores()[0].feed_id
    (entry,) = three.catalogs["bob"].entries_beyond(store, twin.heads()[store])
    with pytest.raises(Conflict, match="this home signed"):
        twin.receive(entry)
    with pytest.raises(Misconfigured, match="this home signed"):
        put(twin, b"/media/by-the-second")
    twin.tend(three.clock.wall())
    assert twin.doubts(), "it does not mend itself while it runs"
    twin.close()
    again = Catalog(
        tmp_path / "twin" / "catalog.db",
        federation_domain=FEDERATION,
        root_certificate=three.authority.certificate,
        own=twin.own,
        heads=twin.heads_kept,
        clock=three.clock,
    )
    assert again.receive(entry), "in doubt it takes its entries back"
    again.close()


def test_statements_of_a_left_epoch_do_not_count_past_its_base(three: TestFederation) -> None:
    """bob stated entries that alice lost: after her new epoch they say nothing about what stands at those places."""
    old = three.saved_database("alice")
    put(three.catalogs["alice"], b"/media/told")
    three.exchange("alice", "bob")
    alice = three.restart("alice", old, "bob", "carol")
    alice.tend(three.clock.wall())
    position = put(alice, b"/media/other")
    assert alice.holders_of_entry(alice.datastores()[0].feed_id, position) == [domain("alice")]
    three.exchange("alice", "bob", "carol")
    assert domain("bob") in alice.holders_of_entry(alice.datastores()[0].feed_id, position)
    assert_level(three, "alice", "bob", "carol")


def test_an_opening_that_lies_about_its_base_is_refused(three: TestFederation) -> None:
    """An epoch's first entry must follow the base it names, at a follower that has the base."""
    bob = three.catalogs["bob"]
    alice = three.catalogs["alice"]
    store = alice.datastores()[0].feed_id
    head = alice.heads()[store]
    before = state_of(bob)
    for base, seq, previous in (
        (feed_pb2.Position(epoch_number=1, epoch_id=head.epoch_id, seq=1, hash=b"h" * 32), head.seq, head.hash),
        (feed_pb2.Position(epoch_number=1, epoch_id=b"x" * 16, seq=head.seq, hash=head.hash), head.seq, b"h" * 32),
        (feed_pb2.Position(epoch_number=2, epoch_id=b"x" * 16, seq=head.seq, hash=head.hash), head.seq, head.hash),
    ):
        body = feed_pb2.StorePublic(epoch_start=feed_pb2.EpochStart(base=base))
        lie = build_entry(
            three.keys["alice"].signing_key,
            feed_pb2.Position(epoch_number=2, epoch_id=b"e" * 16, seq=seq, hash=previous),
            feed_id=store,
            lamport=1000,
            wall_milliseconds=0,
            public_part=body.SerializeToString(),
        )
        with pytest.raises(Corrupt):
            bob.receive(lie.raw)
    assert state_of(bob) == before


def test_a_removed_file_stays_removed(three: TestFederation) -> None:
    """A file made and removed in the lost tail is replayed in order: it is not there afterwards."""
    old = three.saved_database("alice")
    alice = three.catalogs["alice"]
    put(alice, b"/media/short-lived")
    alice.remove_path(operation_id(), control_pb2.RemovePath(path=b"/media/short-lived"), "test")
    put(alice, b"/media/stays")
    three.exchange("alice", "carol")
    three.restart("alice", old, "bob", "carol").tend(three.clock.wall())
    three.exchange("alice", "bob", "carol")
    assert names(three.catalogs["alice"]) == {b"before", b"stays"}
    assert_level(three, "alice", "bob", "carol")
