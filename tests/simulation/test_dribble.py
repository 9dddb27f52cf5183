"""A member that has much to offer and hardly sends any of it keeps nobody from pulling the same from others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
from simulation.chance import seeded
from simulation.homes import Home
from simulation.hostile import Hostile
from simulation.ledgers import NAMES, Template
from simulation.street import Street
from simulation.world import Network
from support.catalogs import operation_id, put

from collective.gossip.antientropy import WAIT_SECONDS
from collective.transfer.sync import SILENCE_SECONDS, EntryServer
from collective.wire import control_pb2, feed_pb2

LACKING = 40  # entries
PAUSE_SECONDS = 9.0  # between two messages: never silent for long
OFFER_SECONDS = 0.25  # how often it says that it has more than anybody
AHEAD = 1000
MBIT_BYTES = 125_000
LARGE_BYTES = 60_000
Follow = Callable[[str, control_pb2.FollowRequest], AsyncIterator[control_pb2.FollowReply]]


@pytest.fixture
def street(template: Template, room: Path) -> Iterator[Street]:
    with seeded(1):
        street = Street(1, Network(), real_signatures=False)
        for name in NAMES:
            Home(street, name, template, room / name, 0.0)
        street.introduce()
        for home in street.homes.values():
            home.start()
        street.run(5)
        yield street
        street.close()
    assert street.surprises == []


def store_of(home: Home) -> bytes:
    (store,) = [store.feed_id for store in home.catalog.datastores() if store.owner == home.domain]
    return store


@dataclass
class Dribbler:
    """Answers pulls in one of several ways that never come to anything, and always offers more."""

    home: Home
    feed: bytes
    way: str
    asked: int = 0

    async def follow(
        self, member_domain: str, request: control_pb2.FollowRequest
    ) -> AsyncIterator[control_pb2.FollowReply]:
        """Sends a little, pauses, and so on for ever."""
        self.asked += 1
        catalog = self.home.catalog
        seq = next(head.head.seq for head in request.heads if head.feed_id == self.feed)
        while True:
            reply = control_pb2.FollowReply(feed_id=self.feed)
            if self.way == "padding":
                reply.feed_id = bytes(200_000)
            elif self.way == "what is known":
                reply.entries[:] = catalog.entries_after(self.feed, 0, max_entries=1)
            elif self.way == "one entry":
                reply.entries[:] = catalog.entries_after(self.feed, seq, max_entries=1)
                seq += 1
            elif self.way == "its own":
                reply.feed_id = catalog.own_member_feed()
                before = catalog.heads()[reply.feed_id].seq
                catalog.grant(b"/dave", [feed_pb2.READ], "alice@media.collective")
                reply.entries[:] = catalog.entries_after(reply.feed_id, before)
            yield reply
            await asyncio.sleep(PAUSE_SECONDS)
            if self.way == "an end":
                return

    async def offer(self, liar: Hostile, victim: Home) -> None:
        """Be the first to have more than is there."""
        while self.home.life is not None:
            head = self.home.catalog.heads()[self.feed]
            head.seq += AHEAD
            liar._push(self.home.life, victim, self.feed, head, [])
            await asyncio.sleep(OFFER_SECONDS)


@pytest.mark.parametrize(
    ("way", "most_seconds"),
    [
        ("what is known", 5),  # given up at once
        ("nothing", 2 * SILENCE_SECONDS + 5),  # too little, twice
        ("padding", 2 * SILENCE_SECONDS + 5),  # many bytes, and no entry
        ("its own", 2 * SILENCE_SECONDS + 5),
        ("one entry", 4 * WAIT_SECONDS + 5),  # what three wait for
        ("an end", 4 * WAIT_SECONDS + 5),
    ],
)
def test_a_dribble_does_not_hold_a_feed(way: str, most_seconds: float, street: Street) -> None:
    """dave, who means harm, is asked first for what alice lacks of bob's; she has it all from others before long."""
    alice, bob, _, dave, _ = street.homes.values()
    feed = store_of(bob)
    others = [home.domain for home in street.homes.values() if home not in (alice, dave)]
    street.network.block([alice.domain], [*others, dave.domain])
    for number in range(LACKING):
        put(bob.catalog, b"/bob/%d" % number)
    assert bob.life is not None
    assert dave.life is not None
    bob.life.bell.ring()
    street.run(5)
    full = bob.catalog.heads()[feed]
    assert dave.catalog.heads()[feed] == full
    dribbler = Dribbler(dave, feed, way)
    dave.life.entries = dribbler  # type: ignore[assignment]  # the one method that is called
    street.network.heal()
    street.network.block([alice.domain], others)
    dave.life.spawn(dribbler.offer(Hostile(dave, street, Random(1)), alice), "offers", told=True)
    street.run(3)
    assert dribbler.asked
    assert alice.catalog.heads()[feed] != full
    street.network.heal()
    took = street.run_until(lambda: "" if alice.catalog.heads()[feed] == full else "alice lacks entries", most_seconds)
    print(f"{way}: level after {took:.1f} s")


def test_news_arrive_while_somebody_dribbles(street: Street) -> None:
    """dave offers what does not exist, and is asked for it for long; what bob writes meanwhile comes all the same."""
    alice, bob, _, dave, _ = street.homes.values()
    feed = store_of(bob)
    assert bob.life is not None
    assert dave.life is not None
    dribbler = Dribbler(dave, feed, "nothing")
    dave.life.entries = dribbler  # type: ignore[assignment]
    dave.life.spawn(dribbler.offer(Hostile(dave, street, Random(1)), alice), "offers", told=True)
    street.run(1)
    assert dribbler.asked == 1
    put(bob.catalog, b"/bob/news")
    bob.life.bell.ring()
    full = bob.catalog.heads()[feed]
    street.run_until(lambda: "" if alice.catalog.heads()[feed] == full else "alice lacks the news", 1)
    assert dribbler.asked == 1, "it is still being asked"


def slow(server: EntryServer, line: asyncio.Lock) -> Follow:
    """What this server answers, over a line of 1 Mbit/s that several share."""

    async def follow(domain: str, request: control_pb2.FollowRequest) -> AsyncIterator[control_pb2.FollowReply]:
        async for reply in server.follow(domain, request):
            async with line:
                await asyncio.sleep(reply.ByteSize() / MBIT_BYTES)
            yield reply

    return follow


def test_a_slow_line_brings_everything(street: Street, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries of almost a megabyte at 1 Mbit/s, from several who have them: all come, and hardly one comes twice."""
    alice, bob, carol, *others = street.homes.values()
    feed = store_of(bob)
    street.network.block([alice.domain], list(street.homes))
    change = feed_pb2.SetXattr(inode=1, name=b"user.large", value=bytes(LARGE_BYTES))
    for _ in range(16):
        operations = [feed_pb2.TreeOperation(id=operation_id(bob.domain), set_xattr=change) for _ in range(15)]
        bob.catalog.append_store(feed, operations=operations)
    assert bob.life is not None
    bob.life.bell.ring()
    street.run(10)
    full = bob.catalog.heads()[feed]
    line = asyncio.Lock()
    for home in (bob, carol, *others):
        assert home.catalog.heads()[feed] == full
        assert home.life is not None
        monkeypatch.setattr(home.life, "follow", slow(home.life.entries, line))
    carried = street.network.entry_bytes
    street.network.heal()
    took = street.run_until(lambda: "" if alice.catalog.heads()[feed] == full else "alice lacks entries", 240)
    size_bytes = sum(len(raw) for raw in bob.catalog.entries_after(feed, 0, max_bytes=1 << 30))
    print(f"level after {took:.1f} s; carried {(street.network.entry_bytes - carried) / size_bytes:.2f} times")
    assert street.network.entry_bytes - carried < 1.5 * size_bytes
