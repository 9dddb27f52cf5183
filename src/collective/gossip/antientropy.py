"""Two members compare what they have: one hash first, then heads, then what is missing is pulled.

    A                                             B
    summary of all heads both may follow  ---->   the same: done
                                          <----   not the same: digest {feed: epoch, seq, hash}, statements' stamps
    pulls what it lacks                   ---->   what B lacks: heads, statements
                                                  pulls what it lacks

Only feeds that the other may follow stand in a summary or digest. A feed is pulled from one peer at a time; whoever
offered it meanwhile is compared with again afterwards. That one peer may send next to nothing for ever: whoever has
waited for long is pulled from beside it. Comparisons without progress are spaced out up to 5 s.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from blake3 import blake3

from collective.gossip.dissemination import NOWHERE, Head, Place
from collective.gossip.settings import GossipSettings
from collective.wire.feed_pb2 import FeedHead, Position
from collective.wire.gossip_pb2 import Digest

__all__ = ["AntiEntropy", "Difference", "MayFollow", "feed_head", "head_of"]

_CONTEXT = "collective 2026 gossip summary 1"
MAX_DIGEST_HEADS = 1024  # feeds in one digest; more go in several
MAX_DISPUTED = 256
ASK_TIMES = 3
WAIT_SECONDS = 15.0  # for another's pull, times those who wait: what two send at once is in vain, and seldom sent so …
MOST_WAITING = 4  # … but nobody waits for longer than for so many

MayFollow = Callable[[str, bytes], bool]  # (member domain, feed id)


def feed_head(feed: bytes, head: Head) -> FeedHead:
    """The wire form."""
    position = Position(epoch_number=head.epoch_number, epoch_id=head.epoch_id, seq=head.seq, hash=head.hash)
    return FeedHead(feed_id=feed, head=position)


def head_of(told: FeedHead) -> Head:
    """A head from its wire form."""
    return Head(told.head.epoch_number, told.head.epoch_id, told.head.seq, told.head.hash)


class Difference(NamedTuple):
    """What a digest showed: feeds to pull, and heads that the other lacks."""

    missing_here: list[bytes]
    missing_there: list[tuple[bytes, Head]]


@dataclass
class _Turn:
    """Where comparing with one peer stands."""

    due: float | None = None
    not_before: float = 0.0
    backoff: float = 0.0
    unanswered: int = 0
    told: tuple[bytes, bytes] | None = None  # the pair of differing summaries seen last
    look_at: float | None = None  # when the peer is told our summary once more, because of that


@dataclass
class AntiEntropy:
    """The heads here, the pulls under way, and with whom to compare next."""

    settings: GossipSettings
    may_follow: MayFollow
    own: str
    heads: dict[bytes, Head] = field(default_factory=dict)
    pulling: dict[str, frozenset[bytes]] = field(default_factory=dict)  # from whom -> feeds
    _turns: dict[str, _Turn] = field(default_factory=dict)
    _waiting: dict[str, float] = field(default_factory=dict)  # who has what is being pulled from another -> since when
    _disputed: dict[tuple[bytes, bytes], None] = field(default_factory=dict)

    # ------------------------------------------------------------ when to compare

    def want(self, peer: str, now: float) -> None:
        """Compare with a peer as soon as its back-off allows."""
        turn = self._turns.setdefault(peer, _Turn())
        turn.due, turn.unanswered = max(now, turn.not_before), 0

    def due(self) -> float:
        """When the next comparison, or second look, is due."""
        moments = [moment for turn in self._turns.values() for moment in (turn.due, turn.look_at) if moment is not None]
        return min(moments, default=float("inf"))

    def look_again(self, peer: str, now: float) -> None:
        """A difference was seen once: the peer is to see soon whether it lasts, and not only by the next heartbeat."""
        turn = self._turns.setdefault(peer, _Turn())
        turn.look_at = turn.look_at or now + self.settings.second_look_seconds

    def take_looks(self, now: float) -> list[str]:
        """Whom to tell our summary once more."""
        peers = [peer for peer, turn in self._turns.items() if turn.look_at is not None and turn.look_at <= now]
        for peer in peers:
            self._turns[peer].look_at = None
        return peers

    def take_due(self, now: float) -> list[str]:
        """With whom to compare now."""
        peers = []
        for peer, turn in self._turns.items():
            if turn.due is not None and turn.due <= now:
                peers.append(peer)
                first, last = self.settings.first_backoff_seconds, self.settings.last_backoff_seconds
                turn.backoff = min(max(turn.backoff * 2, first), last)
                turn.not_before = now + turn.backoff
                turn.unanswered += 1
                # the question or its answer may be lost; a peer that never answers is the failure detector's matter
                retry = turn.unanswered < ASK_TIMES
                turn.due = max(turn.not_before, now + 2 * self.settings.probe_seconds) if retry else None
        return peers

    def answered(self, peer: str) -> None:
        """The peer's side of a comparison came."""
        if turn := self._turns.get(peer):
            turn.due, turn.unanswered = None, 0

    def progressed(self, peer: str) -> None:
        """Something came of it: the next comparison need not wait."""
        self._turns[peer] = _Turn()

    def forget(self, peer: str) -> None:
        """The peer is not a member any more, or away: nothing is compared until it is heard again."""
        self._turns.pop(peer, None)
        self._waiting.pop(peer, None)

    # ------------------------------------------------------------ comparing

    def summary(self, peer: str, statements: bytes) -> bytes:
        """The hash of every head that the peer may follow, and of the statements."""
        hasher = blake3(derive_key_context=_CONTEXT)
        hasher.update(statements)
        for feed in sorted(self._shared(peer)):
            head = self.heads[feed]
            hasher.update(feed + head.hash + head.seq.to_bytes(8, "big") + head.epoch_number.to_bytes(8, "big"))
        return hasher.digest(16)

    def differs(self, peer: str, ours: bytes, theirs: bytes, now: float, *, again: bool) -> bool:
        """Take note of a peer's summary. True when it differs; seen twice the same, or `again` at a second look, it is
        compared: a difference seen once is mostly news on its way.
        """
        turn = self._turns.setdefault(peer, _Turn())
        if ours == theirs:
            self._waiting.pop(peer, None)
            self.progressed(peer)
            return False
        if again or turn.told == (ours, theirs):
            self.want(peer, now)
        turn.told = (ours, theirs)
        return True

    def digests(self, peer: str) -> list[Digest]:
        """Everything that the peer may follow, in as many digests as it takes."""
        feeds = sorted(self._shared(peer))
        if len(feeds) <= MAX_DIGEST_HEADS:
            return [Digest(heads=[feed_head(feed, self.heads[feed]) for feed in feeds])]
        made = []
        lowest = b"\0" * 32
        for start in range(0, len(feeds), MAX_DIGEST_HEADS):
            part = feeds[start : start + MAX_DIGEST_HEADS]
            highest = part[-1] if start + MAX_DIGEST_HEADS < len(feeds) else b"\xff" * 32
            heads = [feed_head(feed, self.heads[feed]) for feed in part]
            made.append(Digest(heads=heads, from_feed=lowest, to_feed=highest))
            lowest = highest + b"\0"
        return made

    def compare(self, peer: str, digest: Digest, complete: bool) -> Difference:
        """What is missing on either side. `complete`: what the digest's range does not name, the peer has not."""
        missing_here: list[bytes] = []
        missing_there: list[tuple[bytes, Head]] = []
        theirs = {told.feed_id: head_of(told) for told in digest.heads}
        for feed, head in theirs.items():
            mine = self.heads.get(feed)
            if self._newer(head, mine):
                missing_here.append(feed)
            elif mine is not None and mine.place == head.place and mine.hash != head.hash:
                if self._first_dispute(feed, head.hash):
                    missing_here.append(feed)  # two heads for one place: fetched once, as evidence
            elif mine is not None and mine != head and self.may_follow(peer, feed):
                missing_there.append((feed, mine))
        if complete:
            for feed in self._shared(peer):
                if feed not in theirs and (not digest.to_feed or digest.from_feed <= feed <= digest.to_feed):
                    missing_there.append((feed, self.heads[feed]))
        if complete and not digest.to_feed and not missing_here:
            self._waiting.pop(peer, None)
        return Difference(missing_here, missing_there)

    def lacking(self, feed: bytes, head: Head) -> bool:
        """Whether a head that was told is beyond the one here."""
        return self._newer(head, self.heads.get(feed))

    # ------------------------------------------------------------ pulling

    def begin_pull(self, peer: str, feeds: Collection[bytes], now: float) -> list[bytes]:
        """Which of the feeds to pull from this peer now; the others are on their way from somebody else, and the peer
        waits for that, but not for ever.
        """
        if peer in self.pulling:
            return []
        free = [feed for feed in feeds if not self.is_pulled(feed)]
        if len(free) < len(feeds):
            enough = self._waiting.setdefault(peer, now) + WAIT_SECONDS * min(len(self._waiting), MOST_WAITING)
            if now < enough:
                turn = self._turns.setdefault(peer, _Turn())
                turn.due = enough if turn.due is None else min(turn.due, enough)
            else:
                free = list(feeds)
        if len(free) == len(feeds):
            self._waiting.pop(peer, None)
        if free:
            self.pulling[peer] = frozenset(free)
        return free

    def is_pulled(self, feed: bytes) -> bool:
        """Whether a feed is on its way from anybody."""
        return any(feed in feeds for feeds in self.pulling.values())

    def end_pull(self, peer: str, now: float) -> frozenset[bytes]:
        """A pull ended, well or not: of which feeds. Whoever waits for the same is compared with."""
        for other in sorted(self._waiting):
            self.want(other, now)
        return self.pulling.pop(peer, frozenset())

    def behind(self, peer: str, known: Mapping[bytes, Place]) -> tuple[int, int]:
        """(entries the peer lacks, entries lacking here) as far as is known."""
        there = sum(_steps(known.get(feed, NOWHERE), self.heads[feed].place) for feed in self._shared(peer))
        here = sum(_steps(self.heads[feed].place if feed in self.heads else NOWHERE, at) for feed, at in known.items())
        return there, here

    def known_all(self, peer: str) -> dict[bytes, Place]:
        """What a peer has whose summary is ours."""
        return {feed: self.heads[feed].place for feed in self._shared(peer)}

    def _shared(self, peer: str) -> Iterable[bytes]:
        return [feed for feed in self.heads if self.may_follow(peer, feed) and self.may_follow(self.own, feed)]

    def _first_dispute(self, feed: bytes, digest: bytes) -> bool:
        if (feed, digest) in self._disputed:
            return False
        if len(self._disputed) >= MAX_DISPUTED:
            self._disputed.pop(next(iter(self._disputed)))
        self._disputed[feed, digest] = None
        return True

    @staticmethod
    def _newer(head: Head, mine: Head | None) -> bool:
        return head.seq > 0 and (mine is None or head.place > mine.place)


def _steps(behind: Place, ahead: Place) -> int:
    """How many entries lie between, as far as that can be told: across epochs at least one."""
    if ahead <= behind:
        return 0
    return ahead[1] - behind[1] if ahead[0] == behind[0] else max(1, ahead[1] - behind[1])
