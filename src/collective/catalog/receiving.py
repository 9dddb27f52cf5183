"""Taking entries that others send: of their feeds as they come, of our own only when we are in doubt.

                 not own                    own, in doubt              own, otherwise
follows head     applied                    applied                    signing stops: a second writer, or an old copy
known            nothing                    nothing                    nothing
of a left epoch  nothing (its holder        kept, replayed after       kept, replayed
                 hands it to the owner)     waking up
opens an epoch   un-applied past its base,  the same                   signing stops
based earlier    then applied
fork             kept as evidence; the feed is taken no further, and at its owner nothing more is signed
"""

from __future__ import annotations

import sqlite3
from abc import abstractmethod
from collections.abc import Iterator

from collective.catalog.abandoned import keep_abandoned
from collective.catalog.applier import Applier, Feed, epoch_start_of
from collective.catalog.chain import entry_standing_at, is_folded, last_kept_seq
from collective.catalog.entry import ParsedEntry, parse_entry
from collective.catalog.feed import FeedState, Fork, Gap, Step, judge
from collective.catalog.unapply import go_back, is_made, unapply
from collective.core.errors import Conflict
from collective.core.observe import Observer

__all__ = ["FOREIGN", "GoesBack", "Receiver"]

FOREIGN = "entries came that this home signed and does not know"


class GoesBack(Gap):
    """An entry takes others of a store back: make the earlier tree by `Receiver.go_back`, then it can be received."""

    def __init__(self, feed_id: bytes, kept_seq: int) -> None:
        super().__init__(f"what is past entry {kept_seq} of feed {feed_id.hex()[:12]} is taken back first")
        self.feed_id = feed_id
        self.kept_seq = kept_seq


class Receiver(Applier):
    """What a catalogue does with an entry from outside."""

    observer: Observer

    @abstractmethod
    def is_in_doubt(self, feed_id: bytes) -> bool:
        """Whether an own feed takes its entries back from others."""

    @abstractmethod
    def enter_doubt(self, feed_id: bytes, reason: str) -> None:
        """Sign nothing on an own feed until everybody told what they have of it."""

    @abstractmethod
    def _writes(self, kind: str, owner: str) -> bool:
        """Whether this home is the feed's one writer."""

    @abstractmethod
    def _took_back(self, feed_id: bytes) -> None:
        """Entries of an own feed came back, or were un-applied; inside the change."""

    def go_back(self, back: GoesBack) -> Iterator[None]:
        """Make the tree that an entry goes back to, beside the one that shows; one change at each step."""
        return go_back(self, back.feed_id, back.kept_seq)

    def receive(self, raw: bytes, *, at_once: bool = True) -> bool:
        """Take an entry from another member; False when it changes nothing.

        `at_once` False: GoesBack is raised where a store's tree would be made anew within this change.
        Raises: Gap (pull what is missing), Corrupt, Refused, NotFound (its writer is not known yet), Conflict (fork:
        both are kept as evidence, nothing of that feed is applied any more; or a foreign entry of an own feed).
        """
        entry = parse_entry(raw)
        with self._lock:
            feed = self._feed(entry.header.feed_id)
            standing = entry_standing_at(self, entry.header.feed_id, entry.header.epoch_id, entry.header.seq)
            if standing == entry.hash or is_folded(self, entry.header):
                return False
            kind, owner = self._verify(entry)
            if feed is not None and feed.forked:
                raise Conflict(f"feed {feed.feed_id.hex()[:12]} is forked; nothing more of it is taken")
            try:
                if self._writes(kind, owner) and not self._takes_back(feed, entry):
                    return self._own_came(feed, entry, kind, standing)
                return self._take(feed, entry, kind, owner, standing, at_once=at_once)
            except Fork:
                self._keep_fork(entry)
                raise

    def _takes_back(self, feed: Feed | None, entry: ParsedEntry) -> bool:
        """Whether an own feed takes entries from others; one of which nothing is here starts to."""
        if feed is None and not self.is_in_doubt(entry.header.feed_id):
            self.enter_doubt(entry.header.feed_id, "its entries are with others alone")
        return self.is_in_doubt(entry.header.feed_id)

    def _take(
        self, feed: Feed | None, entry: ParsedEntry, kind: str, owner: str, standing: bytes | None, *, at_once: bool
    ) -> bool:
        head = feed.head if feed else FeedState()
        start = epoch_start_of(entry, kind)
        own = self._writes(kind, owner)
        match judge(head, entry, start, standing):
            case Step.KNOWN:
                return False
            case Step.LEFT:
                if own:
                    with self.change() as connection:
                        keep_abandoned(connection, entry)
                return False
            case Step.UNAPPLY:
                assert feed is not None
                assert start is not None
                base = start.base
                there = entry_standing_at(self, feed.feed_id, base.epoch_id, base.seq)
                if there not in (None, base.hash):
                    raise Fork(f"entry {entry.header.seq} opens an epoch on another entry {base.seq} than the one here")
                kept = last_kept_seq(self, feed.feed_id, base)
                makes_tree = kind == "store" and feed.dropped_seq <= kept and kept > 0 and feed.opened_seq > 0
                if makes_tree and not at_once and not is_made(self, feed, kept):
                    raise GoesBack(feed.feed_id, kept)
                with self.change() as connection:
                    self._unapply(connection, feed, kept)
                    if kept == base.seq:
                        self._apply(connection, entry)
                    if own:
                        self._took_back(feed.feed_id)
                if kept != base.seq:
                    raise Gap(f"entry {entry.header.seq} came, {kept + 1} is next", "the missing entries are pulled")
            case Step.NEXT:
                with self.change() as connection:
                    self._apply(connection, entry)
                    if own:
                        self._took_back(entry.header.feed_id)
        return True

    def _unapply(self, connection: sqlite3.Connection, feed: Feed, kept_seq: int) -> None:
        count = unapply(self, connection, feed, kept_seq)
        self.observer.event("catalog.unapplied", feed=feed.feed_id.hex(), kept=kept_seq, entries=count)

    def _own_came(self, feed: Feed | None, entry: ParsedEntry, kind: str, standing: bytes | None) -> bool:
        """A verified entry of an own feed, while nothing is in doubt, that is not on the chain here."""
        assert feed is not None
        if standing is not None:
            raise Fork(f"another process signed entry {entry.header.seq} of feed {feed.feed_id.hex()[:12]}")
        if entry.header.epoch_number < feed.head.epoch_number:
            with self.change() as connection:
                keep_abandoned(connection, entry)
            return False
        self.enter_doubt(feed.feed_id, FOREIGN)
        raise Conflict(
            f"{FOREIGN} (feed {feed.feed_id.hex()[:12]}, entry {entry.header.seq}); nothing more is signed on it",
            "find the second copy of this home and stop it, then start this coordinator again",
        )

    def take_handed_back(self, raw: bytes) -> None:
        """Keep an entry of an own feed that a later epoch left behind; it is replayed when nothing is in doubt.

        May be repeated. Raises: as `receive`; Conflict when it is not of a feed that this home writes.
        """
        entry = parse_entry(raw)
        with self._lock:
            kind, owner = self._verify(entry)
            if not self._writes(kind, owner):
                raise Conflict(f"feed {entry.header.feed_id.hex()[:12]} is not written here")
            if not self.is_in_doubt(entry.header.feed_id):
                self.receive(raw)
                return
            if entry_standing_at(self, entry.header.feed_id, entry.header.epoch_id, entry.header.seq) == entry.hash:
                return
            with self.change() as connection:
                keep_abandoned(connection, entry)

    def _keep_fork(self, entry: ParsedEntry) -> None:
        """Keep what contradicts the chain, with what stands here, as evidence; the feed is taken no further."""
        header = entry.header
        with self.change() as connection:
            connection.execute("INSERT OR IGNORE INTO forks VALUES (?, ?, ?)", (header.feed_id, header.seq, entry.raw))
            connection.execute("UPDATE feeds SET forked = 1 WHERE feed_id = ?", (header.feed_id,))
            connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'changes'")
        self.observer.event("catalog.fork", feed=header.feed_id.hex(), seq=header.seq)
