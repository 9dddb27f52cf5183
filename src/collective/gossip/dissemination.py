"""News on its way to everybody: once down a tree, then told on for a few rounds to those who may have missed it.

A new entry goes at once to `fanout` followers of its feed. Each is given a part of the ring of names to pass it on in,
and divides that part again: without loss everybody gets it exactly once, after log n hops. Trees break where messages
are lost or somebody is down, so whoever has news also tells its head, not its entries, to `fanout` others each round,
for about log n rounds or until all are known to have it; who lacks it answers and is sent it. Every answer "I have it"
shortens that. Statements and suspicions are as
small as a notice and travel by rounds alone; hearing one again shortens its life.

Source: Demers et al., "Epidemic algorithms" (PODC 1987); Leitao et al., "Epidemic broadcast trees" (SRDS 2007).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple, TypeVar

from collective.gossip.settings import GossipSettings

__all__ = ["MAX_PUSH_BYTES", "NOBODY", "NOWHERE", "Dissemination", "Head", "Interval", "Part", "Place", "divide"]

Key = TypeVar("Key", bound=Hashable)
MAX_PUSH_BYTES = 64 * 1024  # entries of one feed in a push; what is larger is pulled
MAX_HOT = 1024  # feeds, statements and suspicions that are told on at once
LINGER_ROUNDS = 4  # entries stay at hand so long after they were last told on: somebody may just be asking
MOST_PER_ROUND = 256  # of each, to one peer in one round


Place = tuple[int, int]
"""(epoch number, seq): the order in which a feed's heads follow each other. A later epoch leaves behind what stood past
its base, so a head may be newer than another of a higher seq."""
NOWHERE: Place = (0, 0)


class Head(NamedTuple):
    """How far a feed has got."""

    epoch_number: int
    epoch_id: bytes
    seq: int
    hash: bytes

    @property
    def place(self) -> Place:
        return self.epoch_number, self.seq


class Interval(NamedTuple):
    """The ring of names past `after` up to and with `up_to`; all of it when they are the same, nobody when empty."""

    after: str
    up_to: str


NOBODY = Interval("", "")


class Part(NamedTuple):
    """A peer, and the part of the ring it passes news on in."""

    target: str
    interval: Interval


def divide(ring: Sequence[str], interval: Interval, fanout: int, random: Random) -> list[Part]:
    """Divide the sorted ring's members in the interval into at most `fanout` parts, one member of each to be told."""
    if not interval.up_to:
        return []
    start, end = bisect_right(ring, interval.after), bisect_right(ring, interval.up_to)
    inside = ring[start:end] if interval.after < interval.up_to else [*ring[start:], *ring[:end]]
    parts: list[Part] = []
    after, begin = interval.after, 0
    count = min(fanout, len(inside))
    for number in range(count):
        stop = (number + 1) * len(inside) // count
        up_to = interval.up_to if number == count - 1 else inside[stop - 1]
        parts.append(Part(random.choice(inside[begin:stop]), Interval(after, up_to)))
        after, begin = up_to, stop
    return parts


@dataclass
class FeedNews:
    """A feed's newest entries while they are new. `entries` (seq, bytes) are contiguous and end at the head."""

    head: Head
    entries: list[tuple[int, bytes]]
    rounds_left: int
    echoes_left: int  # how many more may say that they have it before it is told on no longer
    has_it: set[str] = field(default_factory=set)


@dataclass
class Rumour:
    """A statement or a suspicion while it is new."""

    payload: object
    rounds_left: int
    has_it: set[str] = field(default_factory=set)


class Dissemination:
    """What is new here and who may not have it yet."""

    def __init__(self, own: str, settings: GossipSettings, random: Random) -> None:
        self._own = own
        self._settings = settings
        self._random = random
        self.feeds: dict[bytes, FeedNews] = {}
        self.rumours: dict[Hashable, Rumour] = {}
        self.next_round = math.inf

    def advanced(
        self,
        feed: bytes,
        head: Head,
        entries: Sequence[tuple[int, bytes]],
        followers: Sequence[str],
        interval: Interval,
        had_it: Iterable[str],
        now: float,
    ) -> list[Part]:
        """A feed has new entries here: whom to push them to. `followers`: the ring of live members that may have it."""
        self.feeds.pop(feed, None)
        self._make_room(self.feeds)
        rounds = self._rounds(len(followers))
        news = self.feeds[feed] = FeedNews(head, list(entries), 2 * rounds, rounds, set(had_it))
        self.next_round = min(self.next_round, now + self._settings.round_seconds)
        ring = [domain for domain in followers if domain != self._own and domain not in news.has_it]
        return divide(ring, interval, self._settings.fanout, self._random)

    def spread(self, key: Hashable, payload: object, members: int, now: float, had_it: Iterable[str] = ()) -> None:
        """Tell a statement or suspicion on, from now on."""
        self.rumours.pop(key, None)
        self._make_room(self.rumours)
        self.rumours[key] = Rumour(payload, self._rounds(members), set(had_it))
        self.next_round = min(self.next_round, now)

    def heard_again(self, key: Hashable, peer: str) -> None:
        """The same rumour came back: it is less new than was thought."""
        if rumour := self.rumours.get(key):
            rumour.has_it.add(peer)
            rumour.rounds_left -= 1

    def drop(self, key: Hashable) -> None:
        """A rumour that is not true any more."""
        self.rumours.pop(key, None)

    def told(self, peer: str, feed: bytes, head: Head, answer: bool) -> None:
        """A peer said how far a feed has got there. In answer to a notice: the news are not as new as was thought, or,
        where somebody lacks them, not as old.
        """
        news = self.feeds.get(feed)
        if news is None:
            return
        if head.place >= news.head.place:
            news.has_it.add(peer)
            news.echoes_left -= answer
        elif answer:
            news.echoes_left = self._rounds(len(news.has_it))

    def first_seq(self, feed: bytes) -> int:
        """From where on entries of a feed are at hand; 0 when none are."""
        news = self.feeds.get(feed)
        return news.entries[0][0] if news is not None and news.entries else 0

    def entries_after(self, feed: bytes, seq: int) -> list[tuple[int, bytes]]:
        """The entries past `seq` that are at hand; none unless they follow it directly."""
        first = self.first_seq(feed)
        return self.feeds[feed].entries[seq + 1 - first :] if 0 < first <= seq + 1 else []

    def round(
        self, live: Collection[str], followers: Callable[[bytes], Sequence[str]], now: float
    ) -> tuple[dict[str, list[bytes]], dict[str, list[object]]]:
        """One round: (peer -> feeds whose heads to tell, peer -> statements and suspicions to tell)."""
        heads: dict[str, list[bytes]] = {}
        payloads: dict[str, list[object]] = {}
        for feed, news in list(self.feeds.items()):
            if news.rounds_left > 0 and news.echoes_left <= 0:
                news.rounds_left = 0
            news.rounds_left -= 1
            if news.rounds_left >= 0:
                open_ = [peer for peer in followers(feed) if peer not in news.has_it and peer != self._own]
                for peer in self._draw(open_):
                    told = heads.setdefault(peer, [])
                    if len(told) < MOST_PER_ROUND:
                        told.append(feed)
                if not open_:
                    news.rounds_left = 0
            elif news.rounds_left < -LINGER_ROUNDS:
                del self.feeds[feed]
        if self.rumours:
            peers = self._draw(sorted(live))
            for key, rumour in list(self.rumours.items()):
                for peer in peers:
                    told_payloads = payloads.setdefault(peer, [])
                    if peer not in rumour.has_it and len(told_payloads) < MOST_PER_ROUND:
                        told_payloads.append(rumour.payload)
                rumour.rounds_left -= 1
                if rumour.rounds_left <= 0:
                    del self.rumours[key]
        hot = self.feeds or self.rumours
        self.next_round = now + self._settings.round_seconds if hot else math.inf
        return heads, payloads

    def _draw(self, peers: Sequence[str]) -> list[str]:
        return self._random.sample(peers, min(self._settings.fanout, len(peers)))

    def _rounds(self, members: int) -> int:
        return math.ceil(math.log2(members + 2)) + 2

    @staticmethod
    def _make_room(table: dict[Key, Any]) -> None:
        """The oldest goes when there are too many."""
        while len(table) >= MAX_HOT:
            del table[next(iter(table))]
