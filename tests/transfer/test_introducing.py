"""PeerConnect: asked once in each life of a member, believed as far as the certificates go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from google.protobuf.message import Message
from support.catalogs import FEDERATION, TestFederation
from support.writing import Events

from collective.core.address import FederatedAddress
from collective.core.errors import Refused, Unreachable
from collective.identity import ComponentKind, PeerIdentity
from collective.net.versions import Spoken
from collective.transfer.events import ChangeBell
from collective.transfer.introducing import Introductions
from collective.transfer.peers import PeerBook
from collective.wire import control_pb2, feed_pb2

PLACE = feed_pb2.Endpoint(type="lan", grpc="192.168.1.10:8001", lane="192.168.1.10:8002")


def identity(name: str, federation: str = FEDERATION) -> PeerIdentity:
    domain = f"{name}.{FEDERATION}"
    return PeerIdentity(
        FederatedAddress("coord", domain), domain, federation, ComponentKind.COORDINATOR, frozenset(), b"f" * 32, 2e9
    )


@dataclass
class Home:
    """One member; `others` answer it directly, and have the lives given."""

    federation: TestFederation
    name: str
    others: dict[str, Home] = field(default_factory=dict)
    lives: dict[str, int] = field(default_factory=dict)
    asked: int = 0
    reachable: bool = True

    def __post_init__(self) -> None:
        catalog = self.federation.catalogs[self.name]
        self.events = Events()
        self.book = PeerBook(catalog, {}, lambda saved: None)
        self.introductions = Introductions(
            catalog, self.book, self, self._own, lambda domain: self.lives.get(domain, 0),  # type: ignore[arg-type]
            ChangeBell(catalog.change_counter), self.events,
        )  # fmt: skip

    def _own(self) -> control_pb2.PeerConnectRequest:
        return control_pb2.PeerConnectRequest(
            federated_address=f"coord@{self.name}.{FEDERATION}", federation_domain=FEDERATION, endpoints=[PLACE]
        )

    async def call(
        self, domain: str, method: str, request: Message, reply_type: type[Message], timeout_seconds: float
    ) -> Message:
        """What `Coordinators` does."""
        assert method == "PeerConnect"
        other = self.others[domain]
        other.asked += 1
        if not other.reachable:
            raise Unreachable(f"{domain} is away")
        assert isinstance(request, control_pb2.PeerConnectRequest)
        return other.introductions.answer(identity(self.name), request)


@pytest.fixture
def homes(tmp_path: Path) -> Iterator[tuple[Home, Home]]:
    """alice, who knows where bob was last, and bob, who knows nothing of her place."""
    federation = TestFederation(tmp_path)
    federation.add("alice")
    federation.add("bob")
    alice, bob = Home(federation, "alice"), Home(federation, "bob")
    alice.others[f"bob.{FEDERATION}"] = bob
    alice.book.learn(f"bob.{FEDERATION}", [feed_pb2.Endpoint(type="lan", grpc="10.0.0.9:8001")])
    yield alice, bob
    federation.close()


BOB = f"bob.{FEDERATION}"


async def test_both_learn_of_each_other_once_in_a_life(homes: tuple[Home, Home]) -> None:
    """Where to dial and how far the feeds are, both ways; asked again when the other started again, and not before."""
    alice, bob = homes
    await alice.introductions.tick()
    assert bob.asked == 0, "nobody was met"
    alice.lives[BOB] = 1
    for _ in range(3):
        await alice.introductions.tick()
    assert bob.asked == 1
    assert PLACE in alice.book.endpoints(BOB)
    assert bob.book.endpoints(f"alice.{FEDERATION}") == [PLACE]
    feed = alice.introductions.catalog.own_member_feed()
    assert bob.introductions.catalog.hearing.heads[f"alice.{FEDERATION}", feed] > 0
    assert alice.introductions.catalog.hearing.heads[BOB, feed] > 0
    alice.lives[BOB] = 2
    await alice.introductions.tick()
    assert bob.asked == 2


async def test_who_cannot_be_reached_is_asked_again(homes: tuple[Home, Home]) -> None:
    """A call that failed is no meeting."""
    alice, bob = homes
    alice.lives[BOB] = 1
    bob.reachable = False
    await alice.introductions.tick()
    await alice.introductions.tick()
    assert bob.asked == 2
    bob.reachable = True
    await alice.introductions.tick()
    await alice.introductions.tick()
    assert bob.asked == 3


async def test_versions_that_do_not_meet_are_told(homes: tuple[Home, Home], monkeypatch: pytest.MonkeyPatch) -> None:
    """N speaks with N-1; a member that is two versions on is told of, and left alone until it starts again."""
    alice, bob = homes
    alice.lives[BOB] = 1
    answer = bob.introductions.answer

    def later(who: PeerIdentity, request: control_pb2.PeerConnectRequest) -> control_pb2.PeerConnectReply:
        reply = answer(who, request)
        reply.version, reply.oldest_version = 3, 2
        return reply

    monkeypatch.setattr(bob.introductions, "answer", later)
    for _ in range(3):
        await alice.introductions.tick()
    assert bob.asked == 1
    (told,) = alice.events.named("peer.refused")
    assert "control versions 2-3, this side 1-1" in str(told["reason"])
    monkeypatch.setattr("collective.transfer.introducing.CONTROL", Spoken("control", 2, 1))
    alice.lives[BOB] = 2
    await alice.introductions.tick()
    assert len(alice.events.named("peer.refused")) == 1, "2 and 2-3 have 2 in common"


def test_the_certificate_says_who_calls(homes: tuple[Home, Home]) -> None:
    """A message in another's name, or of another federation, teaches nothing."""
    _, bob = homes
    said = control_pb2.PeerConnectRequest(
        federated_address=f"coord@alice.{FEDERATION}", federation_domain=FEDERATION, endpoints=[PLACE], version=1,
        oldest_version=1,
    )  # fmt: skip
    with pytest.raises(Refused, match="says it is"):
        bob.introductions.answer(identity("mallory"), said)
    said.federation_domain = "other.collective"
    with pytest.raises(Refused, match="not other"):
        bob.introductions.answer(identity("alice"), said)
    said.federation_domain, said.version, said.oldest_version = FEDERATION, 9, 9
    with pytest.raises(Refused, match="control versions 9-9"):
        bob.introductions.answer(identity("alice"), said)
    assert bob.book.endpoints(f"alice.{FEDERATION}") == []
