"""May this entry follow that one: the rules of a chain, without I/O.

    same epoch:  number and id equal, seq = head's + 1, previous hash = head's hash, Lamport stamp above the head's
    new epoch:   number above the head's, seq goes on, an EpochStart whose base is the head
    first entry: epoch 1, seq 1, no previous hash

Whatever lies beyond is a `Gap`: pull what is missing. The same (epoch, seq) with another hash is a fork.
"""

from __future__ import annotations

from dataclasses import dataclass

from collective.catalog.entry import ParsedEntry
from collective.core.errors import Conflict, Corrupt, NotFound
from collective.wire import feed_pb2

__all__ = ["FeedState", "Fork", "Gap", "check_follows"]


class Gap(NotFound):
    """Entries before this one are missing here."""


class Fork(Conflict):
    """Two different entries were signed for one place."""


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


def check_follows(head: FeedState, entry: ParsedEntry, epoch_start: feed_pb2.EpochStart | None) -> None:
    """That an entry above the head may come next. Raises: Gap, Corrupt, Conflict."""
    header = entry.header
    if header.seq != head.seq + 1:
        raise Gap(f"entry {header.seq} came, {head.seq + 1} is next", "the missing entries are pulled")
    if header.previous_hash != head.hash:
        raise Fork(f"entry {header.seq} follows another entry {head.seq} than the one here")
    if header.lamport <= head.lamport:
        raise Corrupt(f"entry {header.seq} has a Lamport stamp that does not grow")
    if head.seq == 0:
        if header.epoch_number != 1 or epoch_start is not None:
            raise Corrupt("a feed's first entry must open epoch 1")
        return
    if header.epoch_number == head.epoch_number:
        if header.epoch_id != head.epoch_id or epoch_start is not None:
            raise Corrupt(f"entry {header.seq} names another epoch under the same number")
        return
    if header.epoch_number < head.epoch_number or epoch_start is None:
        raise Corrupt(f"entry {header.seq} changes the epoch without opening one")
    base = epoch_start.base
    if (base.epoch_number, base.epoch_id, base.seq, base.hash) != (
        head.epoch_number, head.epoch_id, head.seq, head.hash
    ):  # fmt: skip
        raise Conflict(f"entry {header.seq} opens an epoch on another base than the head here")
