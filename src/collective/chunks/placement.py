"""Who holds what: one pure ranking for members and for nodes inside a member.

Weighted rendezvous hashing inside tiers: every candidate gets a score from a hash of (key, candidate) bent by its
weight, the highest win. Adding or removing a candidate moves only what it wins or held.
Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998; weights by
score = -w / ln(h), Schindelhauer and Schomaker, "Weighted distributed hash tables", 2005.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from blake3 import blake3

from collective.wire import feed_pb2

__all__ = ["CandidateMember", "Placed", "PlacementInput", "place_members", "rank_hosts"]


@dataclass(frozen=True)
class CandidateMember:
    """A member that could hold a copy; sizes in bytes. `free_bytes` is what it may still take from others."""

    domain: str
    capacity_bytes: int
    free_bytes: int
    pledge_bytes: int
    labels: dict[str, str] = field(default_factory=dict)
    alive: bool = True


@dataclass(frozen=True)
class PlacementInput:
    """What is to be placed: `key` (16 bytes or more of version id), strategy, copies asked for, who writes it."""

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
    uniform = (int.from_bytes(digest, "big") + 1) / (2**64 + 1)
    return -weight / math.log(uniform)


def rank_hosts(key: bytes, names: Sequence[str]) -> list[str]:
    """Names by their equal-weight score, best first."""
    return sorted(names, key=lambda name: (-score(key, name, 1.0), name))


def place_members(wanted: PlacementInput) -> Placed:
    """The members that shall hold a version. The writer's member is always among them."""
    others = [
        member
        for member in wanted.members
        if member.domain != wanted.writer
        and member.alive
        and member.pledge_bytes >= wanted.needed_bytes
        and member.free_bytes >= wanted.needed_bytes
    ]
    ranked = sorted(
        others, key=lambda member: (-score(wanted.key, member.domain, _weight(wanted, member)), member.domain)
    )
    if wanted.strategy == feed_pb2.BACKUP:
        ranked = _diverse_first(ranked)
    chosen = [wanted.writer, *(member.domain for member in ranked[: wanted.copies - 1])]
    missing = wanted.copies - len(chosen)
    finding = (
        f"{missing} of {wanted.copies} copies have no place: too few members with {wanted.needed_bytes} bytes of room"
        if missing > 0
        else ""
    )
    return Placed(tuple(chosen), finding)


def _weight(wanted: PlacementInput, member: CandidateMember) -> float:
    """media: by capacity and bandwidth; backup: by capacity; hybrid: by what is free, so the less loaded go first."""
    if wanted.strategy == feed_pb2.HYBRID:
        return max(1.0, float(member.free_bytes))
    weight = max(1.0, float(member.capacity_bytes))
    if wanted.strategy == feed_pb2.MEDIA and member.labels.get("bandwidth", "").startswith("10g"):
        weight *= 2
    return weight


def _diverse_first(ranked: list[CandidateMember]) -> list[CandidateMember]:
    """One member of each location before a second of any; order kept otherwise."""
    seen: dict[str, int] = {}
    turns = []
    for position, member in enumerate(ranked):
        location = member.labels.get("location", member.domain)
        turns.append((seen.get(location, 0), position, member))
        seen[location] = seen.get(location, 0) + 1
    return [member for _, _, member in sorted(turns, key=lambda turn: turn[:2])]
