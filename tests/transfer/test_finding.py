"""Where a member is looked for, in which order and how often; and what is kept of a place that nobody told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message
from support.catalogs import FEDERATION, TestFederation
from support.writing import Events

from collective.core.address import FederatedAddress
from collective.core.clock import ManualClock
from collective.core.errors import Refused, Unreachable
from collective.transfer.finding import FIRST_PAUSE_SECONDS, HINTS_PER_SOURCE, LAST_PAUSE_SECONDS, Finder
from collective.transfer.gossip_dial import GossipDial
from collective.transfer.peers import PeerBook
from collective.wire import control_pb2
from collective.wire.feed_pb2 import Endpoint
from collective.wire.gossip_pb2 import SignedGossip

BOB = f"bob.{FEDERATION}"
TOLD, NEAR, FAR = "10.0.0.9:8001", "192.168.1.9:8001", "bob.example.org:8001"
MESSAGE = SignedGossip(message=b"news").SerializeToString()


class Source:
    """A way to look somebody up, and how often it was asked."""

    def __init__(self, *places: str) -> None:
        self.places: Sequence[str] = places
        self.asked: list[str] = []

    async def __call__(self, domain: str) -> Sequence[str]:
        self.asked.append(domain)
        return self.places


class Alice:
    """alice's ways to bob, who answers at `at`; in other places there is nobody, or somebody else (`liars`)."""

    def __init__(self, federation: TestFederation) -> None:
        self.clock = ManualClock()
        self.mdns, self.dns = Source(), Source()
        self.finder = Finder([("lan", self.mdns), ("direct", self.dns)], self.clock)
        self.saved: dict[str, list[Endpoint]] = {}
        self.catalog = federation.catalogs["alice"]
        self.book = PeerBook(self.catalog, {}, self._save)
        self.events = Events()
        self.dial = GossipDial(self, self.book, self.finder, self.events)  # type: ignore[arg-type]
        self.at: set[str] = set()
        self.liars: set[str] = set()
        self.dialled: list[str] = []
        self.heard: list[bytes] = []  # what was said to somebody

    def _save(self, book: Any) -> None:
        self.saved = {domain: list(endpoints) for domain, endpoints in book.items()}

    async def unary(
        self, peer: FederatedAddress, place: str, method: str, request: Message, reply: type[Message], seconds: float
    ) -> Message:
        """What `Channels` does: nobody is told anything who is not the one that was meant."""
        assert (peer, reply) == (FederatedAddress("coord", BOB), control_pb2.GossipReply)
        self.dialled.append(place)
        if place in self.liars:
            raise Refused(f"{peer} at {place} shows a certificate that is not its own")
        if place not in self.at:
            raise Unreachable(f"nothing listens for {peer} at {place}")
        self.heard.append(request.SerializeToString())
        return reply()

    async def call(self) -> list[str]:
        """One message; the places that were dialled for it."""
        self.dialled = []
        await self.dial.call(BOB, MESSAGE)
        return self.dialled

    async def call_in_vain(self) -> list[str]:
        self.dialled = []
        with pytest.raises((Unreachable, Refused)) as caught:
            await self.dial.call(BOB, MESSAGE)
        self.reason = str(caught.value)
        return self.dialled


@pytest.fixture
def alice(tmp_path: Path) -> Iterator[Alice]:
    federation = TestFederation(tmp_path)
    federation.add("alice")
    federation.add("bob")
    yield Alice(federation)
    federation.close()


def places(endpoints: Sequence[Endpoint]) -> list[tuple[str, str]]:
    return [(endpoint.type, endpoint.grpc) for endpoint in endpoints]


async def test_the_book_then_the_own_network_then_dns(alice: Alice) -> None:
    """Each is asked only when those before it know no place that answers."""
    alice.book.learn(BOB, [Endpoint(type="lan", grpc=TOLD)])
    alice.mdns.places, alice.dns.places = [NEAR], [FAR]
    alice.at = {TOLD, NEAR, FAR}
    assert await alice.call() == [TOLD]
    assert not alice.mdns.asked
    alice.at = {NEAR, FAR}
    assert await alice.call() == [TOLD, NEAR]
    assert not alice.dns.asked
    assert await alice.call() == [NEAR], "the place that answered last comes first"
    alice.at = {FAR}
    alice.clock.advance(FIRST_PAUSE_SECONDS)
    assert await alice.call() == [NEAR, TOLD, FAR]
    assert alice.dns.asked == [BOB]


async def test_what_was_found_is_in_everybodys_book(alice: Alice) -> None:
    """Bytes and copies go there too, also after a restart; a place that answers no more is forgotten."""
    alice.mdns.places = [NEAR]
    alice.at = {NEAR}
    await alice.call()
    assert places(alice.book.endpoints(BOB)) == [("lan", NEAR)]
    assert alice.book.domains(f"alice.{FEDERATION}") == [BOB]
    alice.book.learn(BOB, [Endpoint(type="direct", grpc=TOLD)])
    alice.dial.forget(BOB)
    await alice.call()
    assert places(alice.book.endpoints(BOB)) == [("lan", NEAR), ("direct", TOLD)], "what answers comes first"
    again = PeerBook(alice.catalog, alice.saved, lambda saved: None)
    assert places(again.endpoints(BOB)) == [("lan", NEAR), ("direct", TOLD)]
    alice.at = {TOLD}
    assert await alice.call() == [NEAR, TOLD]
    assert places(alice.book.endpoints(BOB)) == [("direct", TOLD)]
    assert places(alice.saved[BOB]) == [("direct", TOLD)]


async def test_what_a_member_told_is_nothing_found(alice: Alice) -> None:
    """A hint that it told itself later stands in the book once, as it told it."""
    alice.mdns.places = [NEAR]
    alice.at = {NEAR}
    await alice.call()
    alice.book.learn(BOB, [Endpoint(type="vpn", grpc=NEAR, lane="192.168.1.9:8002")])
    alice.dial.forget(BOB)
    await alice.call()
    assert places(alice.book.endpoints(BOB)) == [("vpn", NEAR)]
    assert alice.dialled == [NEAR]


async def test_a_liar_hears_nothing_and_is_passed_by(alice: Alice) -> None:
    """Who answers in a member's place and cannot prove it costs a dial; nothing of it is kept."""
    liars = [f"192.168.1.{number}:8001" for number in range(66, 69)]
    alice.mdns.places, alice.dns.places = [*liars, NEAR], liars
    alice.liars, alice.at = set(liars), {NEAR}
    assert await alice.call() == [*liars, NEAR]
    assert len(alice.heard) == 1
    assert [endpoint.grpc for endpoint in alice.book.endpoints(BOB)] == [NEAR]
    assert [fields["place"] for fields in alice.events.named("debug.gossip.not_found")] == liars


async def test_a_crowd_of_liars_is_cut(alice: Alice) -> None:
    """Each source is followed to a few places, the ones after it still have their turn."""
    alice.mdns.places, alice.dns.places = [f"192.168.1.66:{port}" for port in range(9000, 9999)], [FAR]
    alice.liars, alice.at = set(alice.mdns.places), {FAR}
    assert len(await alice.call()) == HINTS_PER_SOURCE + 1


async def test_the_reason_is_the_told_places(alice: Alice) -> None:
    """What people read is why the place that they named does not answer, whatever was tried besides."""
    alice.book.learn(BOB, [Endpoint(type="lan", grpc=TOLD)])
    alice.dns.places = [FAR]
    await alice.call_in_vain()
    assert TOLD in alice.reason
    assert FAR not in alice.reason


async def test_searches_get_rarer_until_the_member_shows_itself(alice: Alice) -> None:
    """A member that is off for a week is not asked for all the time; one that comes back is found at once."""
    searched = []
    for _ in range(400):
        before = len(alice.mdns.asked)
        await alice.call_in_vain()
        if len(alice.mdns.asked) > before:
            searched.append(alice.clock.monotonic())
        alice.clock.advance(1.0)
    gaps = [later - earlier for earlier, later in pairwise(searched)]
    assert gaps[:4] == [5.0, 10.0, 20.0, 40.0]
    assert set(gaps[4:]) == {LAST_PAUSE_SECONDS}
    before = len(alice.mdns.asked)
    alice.dial.heard(BOB)
    await alice.call_in_vain()
    assert len(alice.mdns.asked) == before + 1


async def test_a_pull_goes_to_the_first_place_there_is(alice: Alice) -> None:
    """Also of a member that told nothing; of one that is nowhere it is said so."""
    with pytest.raises(Unreachable):
        await alice.dial.first_place(BOB)
    alice.dial.heard(BOB)
    alice.dns.places = [FAR]
    assert await alice.dial.first_place(BOB) == FAR
    alice.book.learn(BOB, [Endpoint(type="lan", grpc=TOLD)])
    alice.dial.forget(BOB)
    assert await alice.dial.first_place(BOB) == TOLD


async def test_a_place_that_goes_on_answering_costs_no_look_at_the_book(alice: Alice) -> None:
    """Thousands of messages an hour go where the last one went."""
    alice.mdns.places = [NEAR]
    alice.at = {NEAR}
    await alice.call()
    await alice.call()
    looks = 0

    def counted(domain: str) -> list[Endpoint]:
        nonlocal looks
        looks += 1
        return []

    alice.book._named = counted  # type: ignore[method-assign]
    for _ in range(50):
        await alice.call()
    assert looks == 0
