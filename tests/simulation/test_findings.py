"""Whole coordinators in virtual time: what befell one seed or another, told again each by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from simulation.chance import seeded
from simulation.checkers import Checkers
from simulation.homes import Home, Life
from simulation.hostile import Hostile
from simulation.ledgers import NAMES, Template
from simulation.promises import Promises
from simulation.street import Street
from simulation.world import Network
from support.catalogs import put

from collective.transfer.forward import ANSWER_SECONDS
from collective.wire import submit_pb2
from collective.wire.feed_pb2 import Position
from collective.wire.gossip_pb2 import GossipMessage, SignedGossip

SEEDS = range(4)


@pytest.fixture(params=SEEDS)
def street(request: pytest.FixtureRequest, template: Template, room: Path) -> Iterator[Street]:
    """Five homes that know each other, on lines that lose a tenth of what they carry."""
    seed: int = request.param
    with seeded(seed):
        street = Street(seed, Network(loss=0.1, most_delay=0.1), real_signatures=False)
        for name in NAMES:
            Home(street, name, template, room / name, 0.0)
        street.introduce()
        for home in street.homes.values():
            home.start()
        yield street
        street.close()
    assert street.surprises == []


def named(street: Street, name: str) -> Home:
    return next(one for one in street.homes.values() if one.label == name)


def write(one: Home, name: bytes) -> None:
    put(one.catalog, b"/" + one.label.encode() + b"/" + name)
    assert one.life is not None
    one.life.bell.ring()


def unlevel(street: Street, feed: bytes) -> str:
    """Whoever has the feed has the same of it, and nothing is kept aside."""
    heads = {one.label: one.catalog.heads()[feed] for one in street.homes.values() if feed in one.catalog.heads()}
    if len({head.hash for head in heads.values()}) != 1:
        return f"the heads differ: { {name: head.seq for name, head in heads.items()} }"
    waiting = [one.label for one in street.homes.values() if one.catalog.parcels()]
    return f"{waiting} have something to hand back" if waiting else ""


def store_of(one: Home) -> bytes:
    (store,) = [store.feed_id for store in one.catalog.datastores() if store.owner == one.domain]
    return store


def test_a_block_of_numbers_is_told_at_once(street: Street) -> None:
    """carol leases numbers from bob: that is an entry, and nobody lacks it for as long as rights are not looked at.
    Seeds of the stories showed that it waited for the next change.
    """
    bob, carol = named(street, "bob"), named(street, "carol")
    store = store_of(bob)
    street.network.mend()
    street.run(7)
    assert bob.life is not None
    before = bob.catalog.heads()[store].seq
    request = submit_pb2.LeaseNumbersRequest(store_id=store, count=8)
    bob.life.spawn(bob.life.writing.numbers.lease(carol.domain, request), "a lease")
    street.run_until(lambda: "no entry" if bob.catalog.heads()[store].seq == before else unlevel(street, store), 1)


def test_nothing_old_waits_for_a_silent_peer(street: Street) -> None:
    """While carol does not answer, bob has much to say; when she does again, she hears the newest of it alone. Seeds of
    the stories showed suspicions of long ago that were answered with news, behind which the next ones waited.
    """
    bob, carol = named(street, "bob"), named(street, "carol")
    street.network.mend()
    street.run(5)
    street.network.block([bob.domain], [carol.domain])
    for number in range(10):
        write(bob, b"news-%d" % number)
        street.run(0.25)
    street.network.heal()
    assert bob.life is not None
    healed = bob.life.gossiping._engine.statements.lamport
    carol.listens = True
    street.run(5)
    told = [GossipMessage.FromString(SignedGossip.FromString(raw).message) for raw in carol.overheard]
    stamps = [message.lamport for message in told if message.source.endswith(bob.domain)]
    assert sum(stamp <= healed for stamp in stamps) <= 1 < len(stamps)


def test_a_lie_about_what_was_sent_keeps_nothing_away(street: Street) -> None:
    """dave sends alice an entry of bob's that she has, and calls it the next one. A seed of the stories showed that she
    took the next one to be on its way for ever.
    """
    alice, bob, dave = (named(street, name) for name in ("alice", "bob", "dave"))
    street.run(5)
    store = store_of(bob)
    street.run_until(lambda: unlevel(street, store), 60)
    hostile = Hostile(dave, street, Random(1))
    assert dave.life is not None
    head = dave.catalog.heads()[store]
    known = dave.catalog.entries_after(store, head.seq - 1)
    head.seq += 1
    street.network.mend()
    hostile._push(dave.life, alice, store, head, known)
    street.run(1)
    write(bob, b"next")
    street.run_until(lambda: unlevel(street, store), 10)


def test_an_entry_of_another_epoch_has_not_arrived(street: Street) -> None:
    """bob is set back, and takes a change of carol's in his new epoch; her chain is longer and has not got there, so
    it is staged. Nor does his new epoch hold what the old one did. Seeds of the stories showed that neither was asked:
    what an owner answered and then lost was lost.
    """
    bob, carol = named(street, "bob"), named(street, "carol")
    street.network.mend()
    street.run(5)
    store = store_of(bob)
    bob.keep_copy()
    for number in range(5):
        write(bob, b"told-%d" % number)
    street.run_until(lambda: unlevel(street, store), 60)
    bob.set_back(bob.copies[0])
    street.network.block([carol.domain], list(street.homes))
    bob.start(*street.homes)
    assert bob.catalog.tend(bob.wall())
    here, there = carol.catalog.heads()[store], bob.catalog.heads()[store]
    assert (there.epoch_number, there.seq) > (here.epoch_number, here.seq)
    assert there.seq < here.seq
    for one, its_own, the_others in ((carol, here, there), (bob, there, here)):
        assert one.catalog.has_entry(store, its_own)
        assert not one.catalog.has_entry(store, the_others)
    assert carol.life is not None
    arrived = carol.life.spawn(carol.life.writing.forwarder._arrived(carol.catalog.store(store), there), "arrived")
    street.run(ANSWER_SECONDS + 1)
    assert not arrived.result()


def test_an_epoch_based_on_an_old_backup_reaches_everybody(street: Street) -> None:
    """bob is set back by forty entries and goes on without asking anybody: longer chains give way, nothing is lost."""
    bob, carol = named(street, "bob"), named(street, "carol")
    street.run(5)
    store = store_of(bob)
    bob.keep_copy()
    for number in range(40):
        write(bob, b"told-%d" % number)
    street.run_until(lambda: unlevel(street, store), 60)
    longer = bob.catalog.heads()[store]
    assert carol.catalog.heads()[store] == longer

    bob.set_back(bob.copies[0])
    assert store in bob.catalog.doubts()
    bob.start(*street.homes)
    assert bob.life is not None
    assert bob.catalog.tend(bob.wall())
    write(bob, b"after")
    shorter = bob.catalog.heads()[store]
    assert shorter.seq < longer.seq
    assert shorter.epoch_number > longer.epoch_number
    street.run(5)  # what went with the old epoch is handed back and signed anew meanwhile
    street.run_until(lambda: unlevel(street, store), 60)
    assert carol.witness.counts["catalog.unapplied"] >= 1
    for one in (bob, carol):
        for name in (b"after", *(b"told-%d" % number for number in range(40))):
            assert one.catalog.find(b"/bob/" + name) is not None, f"{one.label} lost {name.decode()}"


def test_a_feed_that_nobody_was_told_of_is_given_up_when_all_have_answered(street: Street) -> None:
    """dave made a DataStore while he was alone, lost his database, and went on without erin: once she is met again,
    nothing is in doubt any more. A seed of the stories showed that she was never asked.
    """
    dave, erin = named(street, "dave"), named(street, "erin")
    street.run(5)
    others = [domain for domain in street.homes if domain != dave.domain]
    street.network.block([dave.domain], others)
    dave.catalog.create_datastore(b"/alone", 1, 2, {})
    (lost,) = [store.feed_id for store in dave.catalog.datastores() if store.path == b"/alone"]
    street.run(1)
    dave.set_back(None)
    street.network.heal()
    street.network.block([erin.domain], [dave.domain])
    dave.start(erin.domain)
    street.run_until(lambda: "" if set(dave.catalog.doubts()) == {lost} else f"in doubt: {dave.catalog.doubts()}", 60)
    street.network.heal()
    street.run_until(lambda: "still in doubt" if dave.catalog.doubts() else "", 30)
    assert dave.witness.counts["catalog.feed_lost"] == 1


def test_a_forked_feed_is_not_pulled_for_ever(street: Street) -> None:
    """dave signs two histories; whoever saw both keeps the evidence, and lets nobody send the rest again and again."""
    dave, bob = named(street, "dave"), named(street, "bob")
    street.run(5)
    checkers = Checkers(street, Promises())
    hostile = Hostile(dave, street, Random(1))
    assert dave.life is not None
    street.network.mend()  # so that the other history arrives
    hostile.fork(dave.life, bob, checkers)
    (feed,) = checkers.forked_on_purpose
    street.run(60)
    knowing = [one for one in street.homes.values() if one.catalog.is_forked(feed)]
    assert knowing
    for one in knowing:
        assert one.catalog._one("SELECT 1 FROM forks WHERE feed_id = ?", feed)
    carried = street.network.entry_bytes
    street.run(30)
    assert street.network.entry_bytes == carried


def test_a_fork_that_only_a_removed_member_saw_need_not_be_noticed(
    street: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dave shows another history to erin alone. While she is a member somebody has to notice; once she is removed
    nobody asks her for anything. A seed of the stories showed that the checker wanted it all the same.
    """
    dave, erin = named(street, "dave"), named(street, "erin")
    street.run(5)
    street.network.block([dave.domain, erin.domain], list(street.homes))
    checkers = Checkers(street, Promises())
    checkers.hostile = dave
    hostile = Hostile(dave, street, Random(1))

    def hand_over(life: Life, victim: Home, feed: bytes, head: Position, entries: list[bytes]) -> None:
        assert [victim.catalog.receive(raw) for raw in entries] == [True]

    monkeypatch.setattr(hostile, "_push", hand_over)
    assert dave.life is not None
    hostile.fork(dave.life, erin, checkers)
    with pytest.raises(AssertionError, match="nobody noticed a fork"):
        checkers._check_forks()
    checkers.removed = erin
    checkers._check_forks()
