"""The form that travels: refused when altered, too large or for somebody else; replays do nothing."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation.world import stand_in_sign, stand_in_verify

from collective.core.address import FederatedAddress
from collective.core.errors import CollectiveError, Refused
from collective.gossip import LAN, Deliver, Engine, Head, Persist, Self, Send, Versions
from collective.gossip.messages import (
    MAX_REPEATED,
    MAX_STATEMENT_BYTES,
    WINDOW,
    ReplayWindow,
    open_heartbeat,
    open_statement,
    seal,
)
from collective.gossip.statements import STAMP_BLOCK
from collective.wire import feed_pb2, gossip_pb2

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "gossip" / "messages.json"
ALICE, BOB = "alice.media.collective", "bob.media.collective"


VERSIONS = Versions()


def an_engine(domain: str = ALICE, versions: Versions = VERSIONS) -> Engine:
    return Engine(
        Self(FederatedAddress("coord", domain), (b"signing", b"authority")),
        LAN,
        Random(1),
        sign=stand_in_sign(domain),
        verify=stand_in_verify,
        may_follow=lambda member, feed: True,
        wall=lambda: 1_700_000_000.0,
        versions=versions,
    )


def statement(**fields: object) -> gossip_pb2.GossipMessage:
    return gossip_pb2.GossipMessage(
        version=1, oldest_version=1, type=gossip_pb2.UPDATE, source=f"coord@{ALICE}", incarnation=3, lamport=41,
        timestamp_milliseconds=1_700_000_000_000,
        endpoints=[feed_pb2.Endpoint(type="lan", grpc="192.168.1.10:8001", lane="192.168.1.10:8002")],
        datastores=[b"/media"], **fields,
    )  # fmt: skip


def heartbeat(**fields: object) -> gossip_pb2.GossipMessage:
    return gossip_pb2.GossipMessage(
        version=1, oldest_version=1, type=gossip_pb2.HEARTBEAT, source=f"coord@{ALICE}", incarnation=3, lamport=42,
        recipient=BOB, summary=b"s" * 16,
        probe=gossip_pb2.Probe(kind=gossip_pb2.Probe.PING, nonce=7), **fields,
    )  # fmt: skip


def sends(effects: list[object], peer: str) -> list[bytes]:
    return [effect.raw for effect in effects if isinstance(effect, Send) and effect.peer == peer]


@pytest.mark.parametrize("kind", ["statement", "heartbeat"])
def test_every_flipped_byte_is_refused(kind: str) -> None:
    """An untrusted relay can lose a message or pass it on, nothing else."""
    made = statement() if kind == "statement" else heartbeat()
    raw = seal(made, stand_in_sign(ALICE))

    def opened(altered: bytes) -> object:
        if kind == "statement":
            return open_statement(altered, stand_in_verify, VERSIONS)
        return open_heartbeat(altered, ALICE, BOB, stand_in_verify, VERSIONS)

    assert opened(raw)
    for index in range(len(raw)):
        for flip in (0x01, 0x80, 0xFF):
            altered = raw[:index] + bytes([raw[index] ^ flip]) + raw[index + 1 :]
            with pytest.raises(CollectiveError):
                opened(altered)


def test_a_statement_crosses_an_untrusted_relay_unharmed_or_is_refused() -> None:
    """bob hears of carol through alice alone: what alice altered is not believed, what she passed on is, as it was."""
    carol = "carol.media.collective"
    made = statement()
    made.source = f"coord@{carol}"
    raw = seal(made, stand_in_sign(carol))
    bob = an_engine(BOB)
    bob.start(b"", [ALICE], {}, 0.0)
    stamp = 42

    def relayed(passed_on: gossip_pb2.SignedGossip) -> None:
        nonlocal stamp
        stamp += 1
        around = heartbeat(statements=[passed_on])
        around.lamport = stamp
        assert bob.receive(ALICE, seal(around, stand_in_sign(ALICE)), float(stamp)), "alice herself is heard"

    for index in range(len(raw)):
        altered = raw[:index] + bytes([raw[index] ^ 0x01]) + raw[index + 1 :]
        try:
            relayed(gossip_pb2.SignedGossip.FromString(altered))
        except DecodeError:
            continue  # it does not even fit into a message
        assert bob.statements.get(carol) is None
    relayed(gossip_pb2.SignedGossip.FromString(raw))
    believed = bob.statements.get(carol)
    assert believed is not None
    assert believed.raw == raw


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_noise_is_refused(noise: bytes) -> None:
    """Whatever bytes come, the answer is a refusal, never another exception, and the engine goes on."""
    engine = an_engine(BOB)
    engine.start(b"", [ALICE], {}, 0.0)
    with pytest.raises(CollectiveError):
        engine.receive(ALICE, noise, 1.0)
    assert engine.receive(ALICE, seal(heartbeat(), stand_in_sign(ALICE)), 2.0)


def test_messages_for_others_or_of_others_are_refused() -> None:
    """A heartbeat counts only at its recipient and only from its source's own connection."""
    raw = seal(heartbeat(), stand_in_sign(ALICE))
    assert open_heartbeat(raw, ALICE, BOB, stand_in_verify, Versions()).domain == ALICE
    with pytest.raises(Refused, match="not for"):
        open_heartbeat(raw, ALICE, "carol.media.collective", stand_in_verify, Versions())
    with pytest.raises(Refused, match="as its own"):
        open_heartbeat(raw, "mallory.media.collective", BOB, stand_in_verify, Versions())
    with pytest.raises(Refused, match="relayed"):
        open_statement(raw, stand_in_verify, Versions())


def test_messages_are_bounded() -> None:
    """Too large, or too many parts: refused by who would send it and by who receives it."""
    with pytest.raises(Refused, match="limit"):
        seal(statement(certificates=[b"x" * MAX_STATEMENT_BYTES]), stand_in_sign(ALICE))
    many = heartbeat(notices=[gossip_pb2.Notice()] * (MAX_REPEATED + 1))
    with pytest.raises(Refused, match="more than"):
        open_heartbeat(seal(many, stand_in_sign(ALICE)), ALICE, BOB, stand_in_verify, Versions())


def test_versions_are_negotiated() -> None:
    """N speaks with N-1; two that share no version refuse each other."""
    now, before, after, later = Versions(2, 1), Versions(1, 1), Versions(3, 2), Versions(4, 3)
    assert now.agreed(before.newest, before.oldest) == 1
    assert now.agreed(after.newest, after.oldest) == 2
    for one, other in ((before, after), (after, before), (now, later)):
        with pytest.raises(Refused, match="update the older"):
            one.agreed(other.newest, other.oldest)
    bob = an_engine(BOB, versions=Versions(3, 2))
    bob.start(b"", [ALICE], {}, 0.0)
    with pytest.raises(Refused):
        bob.receive(ALICE, seal(heartbeat(), stand_in_sign(ALICE)), 1.0)


def test_what_a_later_version_adds_to_a_heartbeat_is_passed_over() -> None:
    """N+1 that still speaks N: fields and kinds that are not known here change nothing, the rest of it counts."""
    bob = an_engine(BOB)
    bob.start(b"", [ALICE], {}, 0.0)
    later = b"\xf2\xac\x04\x06later!"  # field 9,806
    push = gossip_pb2.Push(head=feed_pb2.FeedHead(feed_id=b"f" * 32, head=feed_pb2.Position(seq=1, hash=b"h" * 32)))
    push.first_seq = 1
    push.entries.append(b"an entry")
    made = heartbeat(pushes=[push])
    made.version = 2
    made.probe.kind = 77  # type: ignore[assignment]
    message = gossip_pb2.GossipMessage.FromString(made.SerializeToString() + later)
    effects = bob.receive(ALICE, seal(message, stand_in_sign(ALICE)), 1.0)
    assert any(isinstance(effect, Deliver) for effect in effects)
    assert not any(answer.probe.kind for answer in opened(effects)), "no answer to a probe of an unknown kind"


def opened(effects: list[object]) -> list[gossip_pb2.GossipMessage]:
    """What is sent to alice."""
    signed = [gossip_pb2.SignedGossip.FromString(raw) for raw in sends(effects, ALICE)]
    return [gossip_pb2.GossipMessage.FromString(one.message) for one in signed]


def test_a_statement_of_a_later_version_is_passed_on_verbatim() -> None:
    """bob, who does not know what alice adds, tells carol of it byte for byte, so that her signature holds."""
    made = gossip_pb2.GossipMessage.FromString(statement().SerializeToString() + b"\xf2\xac\x04\x06later!")
    made.version = 2
    raw = seal(made, stand_in_sign(ALICE))
    bob = an_engine(BOB)
    bob.start(b"", [ALICE], {}, 0.0)
    bob.receive(ALICE, seal(heartbeat(statements=[gossip_pb2.SignedGossip.FromString(raw)]), stand_in_sign(ALICE)), 1.0)
    kept = bob.statements.get(ALICE)
    assert kept is not None
    assert kept.raw == raw
    assert open_statement(kept.raw, stand_in_verify, VERSIONS).version == 1, "what both speak"


@given(st.lists(st.integers(1, 3 * WINDOW), max_size=4 * WINDOW))
def test_a_stamp_is_taken_once(stamps: list[int]) -> None:
    """No stamp is taken twice, whatever the order; stamps in a growing order are all taken."""
    window = ReplayWindow()
    taken = [stamp for stamp in stamps if window.take(stamp)]
    assert len(taken) == len(set(taken))
    fresh = ReplayWindow()
    assert all(fresh.take(stamp) for stamp in sorted(set(stamps)))


def test_a_replayed_heartbeat_changes_nothing() -> None:
    """The same message again makes nobody alive, delivers nothing and is answered with a stamp only."""
    bob = an_engine(BOB)
    bob.start(b"", [ALICE], {}, 0.0)
    push = gossip_pb2.Push(
        head=feed_pb2.FeedHead(feed_id=b"f" * 32, head=feed_pb2.Position(seq=1, hash=b"h" * 32)),
        first_seq=1, entries=[b"entry"],
    )  # fmt: skip
    raw = seal(heartbeat(pushes=[push]), stand_in_sign(ALICE))
    first = bob.receive(ALICE, raw, 1.0)
    assert any(type(effect).__name__ == "Deliver" for effect in first)
    heard = bob.members()[0].last_heard
    again = bob.receive(ALICE, raw, 9.0)
    assert {type(effect) for effect in again} <= {Send, Persist}
    assert bob.members()[0].last_heard == heard


def test_an_older_statement_does_not_replace_a_newer_one() -> None:
    """Endpoints of the higher (incarnation, stamp) stay, in whatever order they come."""
    bob = an_engine(BOB)
    bob.start(b"", [ALICE], {}, 0.0)
    newer, older = statement(), statement()
    newer.incarnation, newer.endpoints[0].grpc = 4, "10.0.0.1:8001"
    signed = [gossip_pb2.SignedGossip.FromString(seal(each, stand_in_sign(ALICE))) for each in (newer, older)]
    bob.receive(ALICE, seal(heartbeat(statements=signed), stand_in_sign(ALICE)), 1.0)
    kept = bob.statements.get(ALICE)
    assert kept is not None
    assert kept.message.endpoints[0].grpc == "10.0.0.1:8001"


def test_counters_survive_a_restart() -> None:
    """A new life has a higher incarnation, and no stamp is used twice, also after a crash at any point."""
    engine, saved, used = an_engine(), b"", set[int]()
    for life in range(1, 4):
        engine = an_engine()
        effects = engine.start(saved, [BOB], {b"f" * 32: Head(1, b"e", 1, b"h")}, 0.0)
        assert engine.statements.incarnation == 1_700_000_000 + life - 1
        for step in range(3 * STAMP_BLOCK // 40 if life == 1 else 40):
            effects += engine.tick(step * 5.0)
        for effect in effects:
            if isinstance(effect, Persist):
                saved = effect.state
            elif isinstance(effect, Send):
                message = gossip_pb2.GossipMessage.FromString(gossip_pb2.SignedGossip.FromString(effect.raw).message)
                assert message.lamport not in used
                used.add(message.lamport)


def test_a_member_that_lost_its_counters_goes_on_above_them() -> None:
    """Others kept its last statement; it takes a higher incarnation as soon as it hears of it."""
    bob, alice = an_engine(BOB), an_engine()
    bob.start(b"", [ALICE], {}, 0.0)
    old = statement()
    old.incarnation = 3_000_000_000  # its clock was far ahead then
    signed = gossip_pb2.SignedGossip.FromString(seal(old, stand_in_sign(ALICE)))
    old_life = heartbeat(statements=[signed])
    old_life.lamport = 500
    bob.receive(ALICE, seal(old_life, stand_in_sign(ALICE)), 1.0)
    waiting = [(BOB, raw) for raw in sends(alice.start(b"", [BOB], {}, 0.0) + alice.tick(0.5), BOB)]
    for _ in range(20):
        if not waiting:
            break
        target, raw = waiting.pop(0)
        engine, source = (bob, ALICE) if target == BOB else (alice, BOB)
        waiting += [(e.peer, e.raw) for e in engine.receive(source, raw, 2.0) if isinstance(e, Send)]
    assert alice.statements.incarnation == 3_000_000_001


def test_the_bytes_are_these() -> None:
    """A statement and a heartbeat made once still read the same, and are made the same."""
    told = json.loads(GOLDEN.read_text())
    assert seal(statement(), stand_in_sign(ALICE)).hex() == told["statement"]
    push = gossip_pb2.Push(
        head=feed_pb2.FeedHead(
            feed_id=b"f" * 32, head=feed_pb2.Position(epoch_number=1, epoch_id=b"e" * 16, seq=5, hash=b"h" * 32)
        ),
        first_seq=5, entries=[b"entry"], after=ALICE, up_to=BOB,
    )  # fmt: skip
    full = heartbeat(
        pushes=[push],
        notices=[gossip_pb2.Notice(head=push.head, first_seq=5)],
        suspicions=[gossip_pb2.Suspicion(member=BOB, incarnation=2, accusers=[ALICE])],
        digest=gossip_pb2.Digest(
            heads=[push.head], stamps=[gossip_pb2.StatementStamp(member=BOB, incarnation=2, lamport=8)], wanted=[BOB]
        ),
        compare=True,
    )
    assert seal(full, stand_in_sign(ALICE)).hex() == told["heartbeat"]
    opened = open_heartbeat(bytes.fromhex(told["heartbeat"]), ALICE, BOB, stand_in_verify, Versions())
    assert opened.message == full
    state = gossip_pb2.GossipState(format=1, incarnation=3, lamport=4137)
    assert state.SerializeToString().hex() == told["state"]
