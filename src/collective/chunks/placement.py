"""Who holds what: one pure ranking for members and for nodes inside a member.

Weighted rendezvous hashing inside tiers: every candidate gets a score from a hash of (key, candidate) bent by its
weight; the lowest tier goes first, in it the highest scores. Adding or removing a candidate moves only what it wins
or held. Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998; weights by
score = -w / ln(h), Schindelhauer and Schomaker, "Weighted distributed hash tables", 2005.

| strategy | the writer's member | tiers of the others | weight |
|---|---|---|---|
| media | first | one | capacity, twice for 10 Gbit/s and more |
| backup | first; every copy in another member | one of each location before a second | capacity |
| hybrid | first, the only local copy | by load, then as for backup | free bytes |
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from blake3 import blake3

from collective.core.sizes import format_size
from collective.wire import feed_pb2

__all__ = [
    "CandidateMember",
    "CandidateNode",
    "Placed",
    "PlacementInput",
    "place_members",
    "rank_hosts",
    "rank_nodes",
]

FAST_GIGABITS = 10.0
FAST_TYPES = frozenset({"ssd", "nvme"})
LOAD_STEPS = (0.5, 0.8)  # used parts of the capacity at which a hybrid's candidate falls a tier back
_BANDWIDTH = re.compile(r"(\d+(?:\.\d+)?)\s*([mg])(?:bit/s|bps|bit|b)?", re.IGNORECASE)


@dataclass(frozen=True)
class CandidateMember:
    """A member that could hold a copy; sizes in bytes. `free_bytes` is what it may still take from others."""

    domain: str
    capacity_bytes: int
    free_bytes: int
    pledge_bytes: int
    labels: Mapping[str, str] = field(default_factory=dict)
    alive: bool = True


@dataclass(frozen=True)
class CandidateNode:
    """A node of our own member; sizes in bytes."""

    name: str
    capacity_bytes: int
    free_bytes: int
    labels: Mapping[str, str] = field(default_factory=dict)
    alive: bool = True


@dataclass(frozen=True)
class PlacementInput:
    """What is to be placed: `key` (the version id), strategy, copies asked for, who writes it, its sealed bytes."""

    key: bytes
    strategy: int
    copies: int
    writer: str
    needed_bytes: int
    members: Sequence[CandidateMember]


@dataclass(frozen=True)
class Placed:
    """`members` in order, the writer's first; `finding` says what falls short, "" when nothing does."""

    members: tuple[str, ...]
    finding: str


def score(key: bytes, name: str, weight: float) -> float:
    """The rendezvous score of one candidate; weight > 0."""
    digest = blake3(len(key).to_bytes(2, "big") + key + name.encode()).digest(8)
    uniform = ((int.from_bytes(digest, "big") >> 12) + 0.5) / 2**52  # strictly between 0 and 1, also as a float
    return -weight / math.log(uniform)


def rank_hosts(key: bytes, names: Sequence[str]) -> list[str]:
    """Names by their equal-weight score, best first."""
    return sorted(names, key=lambda name: (-score(key, name, 1.0), name))


def place_members(wanted: PlacementInput) -> Placed:
    """The members that shall hold a version, each once. The writer's is always among them, room or not."""
    others = [
        member
        for member in wanted.members
        if member.domain != wanted.writer
        and member.alive
        and min(member.pledge_bytes, member.free_bytes) >= wanted.needed_bytes
    ]
    ranked = sorted(others, key=lambda member: _member_order(wanted, member))
    if wanted.strategy != feed_pb2.MEDIA:
        ranked = _diverse_first(wanted, ranked)
    chosen = [wanted.writer, *(member.domain for member in ranked[: max(0, wanted.copies - 1)])]
    return Placed(tuple(chosen), _finding(wanted, len(chosen)))


def rank_nodes(key: bytes, needed_bytes: int, strategy: int, nodes: Sequence[CandidateNode]) -> list[str]:
    """Live nodes with room, best first: by free bytes; for media the fast ones (ssd, nvme, 10 Gbit/s) before all."""
    fitting = [node for node in nodes if node.alive and node.free_bytes >= needed_bytes]

    def order(node: CandidateNode) -> tuple[int, float, str]:
        slow = strategy == feed_pb2.MEDIA and not _is_fast(node.labels)
        return (int(slow), -score(key, node.name, max(1.0, float(node.free_bytes))), node.name)

    return [node.name for node in sorted(fitting, key=order)]


def _member_order(wanted: PlacementInput, member: CandidateMember) -> tuple[int, float, str]:
    """The sort key: tier, score, name."""
    tier = 0
    weight = float(member.capacity_bytes)
    if wanted.strategy == feed_pb2.HYBRID:
        tier = _load_tier(member)
        weight = float(member.free_bytes)
    elif wanted.strategy == feed_pb2.MEDIA and _gigabits(member.labels) >= FAST_GIGABITS:
        weight *= 2
    return (tier, -score(wanted.key, member.domain, max(1.0, weight)), member.domain)


def _load_tier(member: CandidateMember) -> int:
    """0 for the least loaded."""
    room = min(member.capacity_bytes, member.pledge_bytes)
    used = 1.0 - member.free_bytes / room if room else 1.0
    return sum(used >= step for step in LOAD_STEPS)


def _diverse_first(wanted: PlacementInput, ranked: Sequence[CandidateMember]) -> list[CandidateMember]:
    """One member of each location before a second of any, the writer's location counted; order kept otherwise."""
    writer = next((member for member in wanted.members if member.domain == wanted.writer), None)
    seen = {writer.labels.get("location", writer.domain): 1} if writer else {}
    turns = []
    for position, member in enumerate(ranked):
        location = member.labels.get("location", member.domain)
        turns.append((seen.get(location, 0), position, member))
        seen[location] = seen.get(location, 0) + 1
    return [member for _, _, member in sorted(turns, key=lambda turn: turn[:2])]


def _finding(wanted: PlacementInput, placed: int) -> str:
    room = format_size(wanted.needed_bytes)
    parts = []
    if (missing := wanted.copies - placed) > 0:
        parts.append(f"{missing} of {wanted.copies} copies have no place: too few live members with {room} of room")
    writer = next((member for member in wanted.members if member.domain == wanted.writer), None)
    if writer is not None and writer.free_bytes < wanted.needed_bytes:
        parts.append(f"{wanted.writer}, who writes it, has no node with {room} of room")
    return "; ".join(parts)


def _is_fast(labels: Mapping[str, str]) -> bool:
    return labels.get("type", "").lower() in FAST_TYPES or _gigabits(labels) >= FAST_GIGABITS


def _gigabits(labels: Mapping[str, str]) -> float:
    """The label `bandwidth` ("10gbps", "2.5g", "1000mbps") in Gbit/s; 0 when it says nothing."""
    match = _BANDWIDTH.fullmatch(labels.get("bandwidth", "").strip())
    if match is None:
        return 0.0
    return float(match.group(1)) / (1000.0 if match.group(2).lower() == "m" else 1.0)
