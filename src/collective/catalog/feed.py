"""What an entry is to the chain that stands here: the rules, without I/O.

    same epoch:    number and id equal, seq = head's + 1, previous hash = head's hash, Lamport stamp above the head's
    new epoch:     number above the head's, seq goes on, an EpochStart whose base is the head
    first entry:   seq 1, no previous hash; epoch 1, or a later one on an empty base when nothing came back
    left epoch:    a lower number, or the head's number under another id: not on this chain, nothing changes
    epoch based before the head: what lies past the base is un-applied first, then it follows

Whatever lies beyond is a `Gap`: pull what is missing. The same (epoch id, seq) with another hash is a fork.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from collective.catalog.entry import ParsedEntry
from collective.core.errors import Conflict, Corrupt, NotFound
from collective.wire import feed_pb2

__all__ = ["FeedState", "Fork", "Gap", "Step", "check_follows", "judge"]


class Gap(NotFound):
    """Entries before this one are missing here."""


class Fork(Conflict):
    """Two different entries were signed for one place."""


class Step(Enum):
    """What to do with an entry."""

    KNOWN = "it is here"
    NEXT = "it follows the head"
    LEFT = "it is of an epoch that this chain left or never had"
    UNAPPLY = "it opens an epoch based before the head"


@dataclass(frozen=True)
class FeedState:
    """The head of a feed as it stands here; seq 0 before the first entry."""

    epoch_number: int = 0
    epoch_id: bytes = b""
    seq: int = 0
    hash: bytes = b""
    lamport: int = 0

    def position(self) -> feed_pb2.Position:
        return feed_pb2.Position(epoch_number=self.epoch_number, epoch_id=self.epoch_id, seq=self.seq, hash=self.hash)


def judge(head: FeedState, entry: ParsedEntry, epoch_start: feed_pb2.EpochStart | None, standing: bytes | None) -> Step:
    """What a verified entry is to the chain. `standing`: the hash of the entry here with its epoch id and seq, if any.

    Raises: Gap, Fork, Corrupt.
    """
    header = entry.header
    if standing is not None:
        if standing == entry.hash:
            return Step.KNOWN
        raise Fork(f"two different entries {header.seq} of feed {header.feed_id.hex()[:12]} are signed")
    if header.epoch_number < head.epoch_number:
        return Step.LEFT
    if header.epoch_number == head.epoch_number:
        if header.epoch_id != head.epoch_id:
            return Step.LEFT
        if header.seq <= head.seq:
            return Step.KNOWN  # dropped after a snapshot: what stood there was checked when it came
        check_follows(head, entry, epoch_start)
        return Step.NEXT
    if epoch_start is not None and head.seq and _is_past(head, epoch_start.base):
        _check_opening(entry, epoch_start.base)
        return Step.UNAPPLY
    check_follows(head, entry, epoch_start)
    return Step.NEXT


def _is_past(head: FeedState, base: feed_pb2.Position) -> bool:
    """Whether the head has what an epoch with this base leaves behind."""
    if head.epoch_number != base.epoch_number:
        return head.epoch_number > base.epoch_number
    return head.epoch_id != base.epoch_id or head.seq > base.seq


def check_follows(head: FeedState, entry: ParsedEntry, epoch_start: feed_pb2.EpochStart | None) -> None:
    """That an entry above the head may come next. Raises: Gap, Fork, Corrupt."""
    header = entry.header
    if header.epoch_number > max(head.epoch_number, 1) and epoch_start is not None:
        _check_opening(entry, epoch_start.base)
    if header.seq != head.seq + 1 or (header.epoch_number > max(head.epoch_number, 1) and epoch_start is None):
        raise Gap(f"entry {header.seq} came, {head.seq + 1} is next", "the missing entries are pulled")
    if header.previous_hash != head.hash:
        raise Fork(f"entry {header.seq} follows another entry {head.seq} than the one here")
    if header.lamport <= head.lamport:
        raise Corrupt(f"entry {header.seq} has a Lamport stamp that does not grow")
    if header.epoch_number == 1 and head.seq == 0:
        if epoch_start is not None:
            raise Corrupt("a feed's first epoch is not opened")
        return
    if epoch_start is not None and header.epoch_number > head.epoch_number:
        if head.seq and (epoch_start.base.epoch_number, epoch_start.base.epoch_id) != (
            head.epoch_number,
            head.epoch_id,
        ):
            raise Corrupt(f"entry {header.seq} opens an epoch on a base that is not the head it follows")
    elif epoch_start is not None or header.epoch_id != head.epoch_id:
        raise Corrupt(f"entry {header.seq} names another epoch under the same number")


def _check_opening(entry: ParsedEntry, base: feed_pb2.Position) -> None:
    """That an epoch's first entry follows the base it names. Raises: Corrupt."""
    header = entry.header
    if (
        header.seq != base.seq + 1
        or header.previous_hash != base.hash
        or header.epoch_number <= max(base.epoch_number, 1)
        or bool(base.seq) != bool(base.hash)
    ):
        raise Corrupt(f"entry {header.seq} opens an epoch on a base that it does not follow")
