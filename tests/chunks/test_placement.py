"""Placement: the same answer everywhere, little moved when somebody comes or goes, room and weight respected."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collective.chunks import CandidateMember, CandidateNode, PlacementInput, place_members, rank_hosts, rank_nodes
from collective.chunks.placement import score
from collective.wire import feed_pb2

TB = 10**12
STRATEGIES = (feed_pb2.MEDIA, feed_pb2.BACKUP, feed_pb2.HYBRID)


def member(name: str, capacity: int = 10 * TB, free: int | None = None, **labels: str) -> CandidateMember:
    return CandidateMember(name, capacity, capacity if free is None else free, capacity, labels)


def wanted(
    members: list[CandidateMember], *, key: bytes = b"v" * 16, strategy: int = feed_pb2.MEDIA, copies: int = 2
) -> PlacementInput:
    return PlacementInput(key, strategy, copies, "alice", 10**9, members)


CANDIDATES = st.lists(
    st.builds(
        member,
        st.sampled_from([f"m{number}" for number in range(12)]),
        st.integers(1, 20).map(lambda tb: tb * TB),
        st.none(),
        location=st.sampled_from(["cellar", "attic", "office"]),
        bandwidth=st.sampled_from(["10gbps", "1gbps", ""]),
    ),
    unique_by=lambda candidate: candidate.domain,
    max_size=10,
)
CASES: dict[str, st.SearchStrategy[Any]] = {
    "members": CANDIDATES,
    "strategy": st.sampled_from(STRATEGIES),
    "copies": st.integers(1, 5),
    "key": st.binary(min_size=16, max_size=16),
}


@given(**CASES, order=st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_answer_does_not_hang_on_the_order_of_the_question(
    members: list[CandidateMember], strategy: int, copies: int, key: bytes, order: random.Random
) -> None:
    question = wanted(members, strategy=strategy, copies=copies, key=key)
    answer = place_members(question)
    shuffled = list(members)
    order.shuffle(shuffled)
    assert place_members(replace(question, members=shuffled)) == answer
    assert answer.members[0] == "alice"
    assert len(set(answer.members)) == len(answer.members) == min(copies, 1 + len(members))
    assert (answer.finding == "") == (len(answer.members) == copies)


@given(**CASES)
@settings(deadline=None)
def test_one_member_more_or_less_moves_at_most_one_copy(
    members: list[CandidateMember], strategy: int, copies: int, key: bytes
) -> None:
    question = wanted(members, strategy=strategy, copies=copies, key=key)
    before = set(place_members(question).members)
    for leaving in members:
        rest = [other for other in members if other is not leaving]
        after = set(place_members(replace(question, members=rest)).members)
        if leaving.domain in before:
            assert before - after == {leaving.domain}
        else:
            assert after == before


def test_members_get_their_share_by_weight() -> None:
    members = [member("bob", 30 * TB), member("carol", 10 * TB), member("dave", 20 * TB)]
    for strategy, shares in ((feed_pb2.BACKUP, (3 / 6, 1 / 6, 2 / 6)), (feed_pb2.MEDIA, (3 / 6, 1 / 6, 2 / 6))):
        won = Counter(
            place_members(wanted(members, strategy=strategy, key=number.to_bytes(16, "big"))).members[1]
            for number in range(6000)
        )
        for name, share in zip(("bob", "carol", "dave"), shares, strict=True):
            assert won[name] / 6000 == pytest.approx(share, abs=0.025)


def test_media_prefers_fast_lines_twice_to_one() -> None:
    members = [member("bob", bandwidth="10gbps"), member("carol", bandwidth="1gbps")]
    won = Counter(place_members(wanted(members, key=number.to_bytes(16, "big"))).members[1] for number in range(3000))
    assert won["bob"] / 3000 == pytest.approx(2 / 3, abs=0.03)


def test_backup_goes_to_another_location_before_a_second_copy_in_one() -> None:
    members = [
        member("alice", location="cellar"),
        *(member(f"near{number}", 100 * TB, location="cellar") for number in range(5)),
        member("far", 1 * TB, location="island"),
    ]
    for strategy in (feed_pb2.BACKUP, feed_pb2.HYBRID):
        for number in range(50):
            question = wanted(members, strategy=strategy, key=number.to_bytes(16, "big"))
            assert place_members(question).members == ("alice", "far")


def test_hybrid_takes_the_less_loaded_before_the_loaded() -> None:
    members = [member("full", 100 * TB, 15 * TB), member("half", 100 * TB, 40 * TB), member("idle", 2 * TB)]
    for number in range(50):
        question = wanted(members, strategy=feed_pb2.HYBRID, copies=4, key=number.to_bytes(16, "big"))
        assert place_members(question).members == ("alice", "idle", "half", "full")


def test_members_without_room_pledge_or_life_are_left_out_and_the_shortness_is_told() -> None:
    needed = 10**9
    members = [
        member("tight", free=needed - 1),
        replace(member("stingy"), pledge_bytes=needed - 1),
        replace(member("dead"), alive=False),
        member("exact", free=needed),
    ]
    for strategy in STRATEGIES:
        placed = place_members(wanted(members, strategy=strategy, copies=3))
        assert placed.members == ("alice", "exact")
        assert "1 of 3 copies have no place" in placed.finding
        assert place_members(wanted(members, strategy=strategy, copies=2)).finding == ""


def test_a_writer_without_room_is_named() -> None:
    placed = place_members(wanted([member("alice", free=5), member("bob")]))
    assert placed.members == ("alice", "bob")
    assert "alice" in placed.finding


def test_nodes_with_room_are_ranked_fast_ones_first_for_media() -> None:
    nodes = [
        CandidateNode("disk-1", 20 * TB, 15 * TB, {"type": "spinning_disk", "bandwidth": "1gbps"}),
        CandidateNode("ssd-1", 2 * TB, 1 * TB, {"type": "ssd"}),
        CandidateNode("net-1", 2 * TB, 1 * TB, {"bandwidth": "10gbps"}),
        CandidateNode("slow-net", 2 * TB, 1 * TB, {"bandwidth": "2500mbps"}),
        CandidateNode("full", 2 * TB, 10),
        CandidateNode("dead", 2 * TB, 2 * TB, alive=False),
    ]
    for number in range(30):
        key = number.to_bytes(16, "big")
        ranked = rank_nodes(key, 1000, feed_pb2.MEDIA, nodes)
        assert set(ranked[:2]) == {"ssd-1", "net-1"}
        assert set(ranked[2:]) == {"disk-1", "slow-net"}
    first = Counter(rank_nodes(n.to_bytes(16, "big"), 1000, feed_pb2.BACKUP, nodes)[0] for n in range(3000))
    assert first["disk-1"] / 3000 == pytest.approx(15 / 18, abs=0.03)


@given(st.binary(max_size=40), st.lists(st.text(max_size=20), unique=True, max_size=8))
def test_hosts_are_ranked_the_same_whoever_asks_and_whoever_left(key: bytes, names: list[str]) -> None:
    ranked = rank_hosts(key, names)
    assert sorted(ranked) == sorted(names)
    assert rank_hosts(key, list(reversed(names))) == ranked
    for gone in names:
        rest = [name for name in names if name != gone]
        assert rank_hosts(key, rest) == [name for name in ranked if name != gone]


def test_scores_are_positive_at_the_ends_of_the_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fixed:
        def __init__(self, digest: bytes) -> None:
            self._digest = digest

        def digest(self, _length: int) -> bytes:
            return self._digest

    for end in (bytes(8), b"\xff" * 8):
        monkeypatch.setattr("collective.chunks.placement.blake3", lambda _data, end=end: Fixed(end))
        assert 0 < score(b"k", "n", 1.0) < 1e17
