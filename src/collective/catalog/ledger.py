"""The ledger of one home: own feeds are appended to, others' are received, both are applied the same way.

Every change is one SQLite transaction. An own entry is durable here and its head synced beside the database before it
is served to anybody or acknowledged. An entry of another is verified as if its writer had handed it over.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from collective.catalog.applier import Applier, Body, Feed
from collective.catalog.entry import (
    MAX_OPERATIONS,
    ParsedEntry,
    build_entry,
    parse_entry,
    position_of,
)
from collective.catalog.facts import as_bytes, as_int
from collective.catalog.feed import Fork
from collective.catalog.heads import HeadKeeper
from collective.catalog.tree import MAX_NUMBER
from collective.core.address import FederatedAddress
from collective.core.clock import Clock
from collective.core.errors import Conflict, Misconfigured, NotFound, Refused
from collective.core.observe import SILENT, Observer
from collective.wire import feed_pb2

__all__ = ["ChooseHosts", "Ledger", "OwnKeys"]

ChooseHosts = Callable[[bytes, int, Sequence[str]], Sequence[str]]


@dataclass(frozen=True)
class OwnKeys:
    """What a home writes its feeds with. `root_key` only at the root holder."""

    member_domain: str
    signing_key: Ed25519PrivateKey
    signing_certificate: x509.Certificate
    wrapping_key: X25519PrivateKey
    root_key: Ed25519PrivateKey | None
    coordinator_address: FederatedAddress


class Ledger(Applier):
    """One home's feeds, with the right to change them. One process at a time; its methods are thread-safe."""

    def __init__(
        self,
        path: Path,
        *,
        federation_domain: str,
        root_certificate: x509.Certificate,
        own: OwnKeys,
        heads: HeadKeeper,
        clock: Clock,
        observer: Observer = SILENT,
        choose_hosts: ChooseHosts = lambda feed, replicas, others: list(others),
    ) -> None:
        super().__init__(path, own.member_domain, federation_domain, root_certificate)
        self.own = own
        self.clock = clock
        self.observer = observer
        self.choose_hosts = choose_hosts
        self._heads = heads
        self._announced: dict[bytes, int] = {}
        self._doubtful: set[bytes] = set()
        self._unannounced: dict[bytes, feed_pb2.Position] = {}
        self._rederive()
        self._find_doubt()

    def _committed(self) -> None:
        """Sync the heads of own entries beside the database; only then they are served or acknowledged."""
        unannounced, self._unannounced = self._unannounced, {}
        for feed_id, position in unannounced.items():
            self._heads.keep(feed_id, position)
            self._announced[feed_id] = position.seq

    def _rolled_back(self) -> None:
        super()._rolled_back()
        self._unannounced.clear()

    # ------------------------------------------------------------ own feeds

    def own_member_feed(self) -> bytes:
        """Raises: NotFound before the root feed admitted this member."""
        row = self._one("SELECT feed_id FROM members WHERE domain = ?", self.own_domain)
        if row is None:
            raise NotFound(f"{self.own_domain} is not in the root feed yet")
        assert isinstance(row[0], bytes)
        return row[0]

    def root_feed(self) -> bytes:
        return self.root_feed_id

    def doubtful_feeds(self) -> list[bytes]:
        """Own feeds that are behind what was told to others; nothing is appended to them."""
        return sorted(self._doubtful)

    def is_doubtful(self) -> bool:
        """Whether the own member feed is in doubt; then nothing is stated or granted."""
        return self.own_is_admitted() and self.own_member_feed() in self._doubtful

    def own_is_admitted(self) -> bool:
        """Whether the root feed here names this member."""
        return self._one("SELECT 1 FROM members WHERE domain = ?", self.own_domain) is not None

    def entries_after(
        self, feed_id: bytes, seq: int, *, max_bytes: int = 1 << 20, max_entries: int = 1024
    ) -> list[bytes]:
        """As the reader's, but never an own entry whose head is not synced beside the database yet."""
        limit = self._announced.get(feed_id)
        if limit is not None:
            max_entries = min(max_entries, limit - seq)
        if max_entries <= 0:
            return []
        return super().entries_after(feed_id, seq, max_bytes=max_bytes, max_entries=max_entries)

    def own_heads(self) -> dict[bytes, feed_pb2.Position]:
        """Feed id -> head, of the feeds that this home writes and that are not in doubt."""
        return {feed.feed_id: feed.head.position() for feed in self._own_feeds() if feed.feed_id not in self._doubtful}

    def hear_head(self, feed_id: bytes, kept: feed_pb2.Position) -> bool:
        """Take in what a disk of this home keeps as the head of an own feed; True when that puts the feed in doubt."""
        with self._lock:
            feed = self._feed(feed_id)
            if feed is None or not _is_past(kept, feed.head.position()):
                return False
            if feed_id not in self._doubtful:
                self._doubtful.add(feed_id)
                self.observer.event("catalog.doubt", feed=feed_id.hex(), here=feed.head.seq, kept=kept.seq)
            return True

    def _find_doubt(self) -> None:
        for feed in self._own_feeds():
            self._announced[feed.feed_id] = feed.head.seq
            if (kept := self._heads.newest(feed.feed_id)) is not None:
                self.hear_head(feed.feed_id, kept)

    def _own_feeds(self) -> list[Feed]:
        feeds = [
            self._feed(as_bytes(row[0]))
            for row in self._all("SELECT feed_id FROM feeds WHERE owner = ?", self.own_domain)
        ]
        if self.own.root_key is not None:
            feeds.append(self._feed(self.root_feed_id))
        return [feed for feed in feeds if feed is not None]

    def append_root(self, operations: Sequence[feed_pb2.RootOperation]) -> feed_pb2.Position:
        """Append to the root feed. Raises: Refused where the root key is not, Misconfigured in doubt."""
        if self.own.root_key is None:
            raise Refused("this home does not hold the root key")
        body = feed_pb2.RootBody(operations=operations)
        return self._append(self.root_feed_id, self.own.root_key, body)

    def append_member(self, operations: Sequence[feed_pb2.MemberOperation]) -> feed_pb2.Position:
        """Append to the own member feed. Raises: Misconfigured in doubt."""
        with self.change():
            feed_id = self.own_member_feed()
            position = feed_pb2.Position()
            for start in range(0, len(operations), MAX_OPERATIONS):
                body = feed_pb2.MemberBody(operations=operations[start : start + MAX_OPERATIONS])
                position = self._append(feed_id, self.own.signing_key, body)
        return position

    def append_store(
        self,
        store_id: bytes,
        *,
        layouts: Iterable[feed_pb2.Layout] = (),
        placements: Iterable[feed_pb2.Placement] = (),
        operations: Sequence[feed_pb2.TreeOperation] = (),
        leases: Sequence[feed_pb2.NumberLease] = (),
        absorbed: Iterable[bytes] = (),
        start: feed_pb2.StoreStart | None = None,
    ) -> feed_pb2.Position:
        """Append to an own DataStore's feed, sealed under its current key. Raises: Refused, Misconfigured in doubt.

        `absorbed`: hashes of the ids of other members' operations that the entry settles, for those who cannot open it.
        """
        with self.change():
            store = self.store(store_id)
            if store.owner != self.own_domain:
                raise Refused(f"{store.owner} writes that DataStore's feed")
            key = self.store_key(store.key_name)
            if key is None:
                raise Misconfigured("the DataStore's key is missing here")
            public = feed_pb2.StorePublic(
                layouts=layouts, placements=placements, start=start, absorbed_operations=absorbed
            )
            sealed = feed_pb2.StoreSealed(operations=operations, leases=leases)
            row = self._one("SELECT next_number FROM store_numbers WHERE store = ?", store.store_number)
            sealed.next_number = max(
                [
                    2,
                    *([as_int(row[0])] if row else []),
                    *(min(op.create.inode, MAX_NUMBER - 1) + 1 for op in operations if op.HasField("create")),
                    *(lease.first + lease.count for lease in leases),
                ]
            )
            return self._append(store_id, self.own.signing_key, public, sealed.SerializeToString(), key)

    def _append(
        self, feed_id: bytes, key: Ed25519PrivateKey, body: Body, sealed: bytes = b"", store_key: bytes = b""
    ) -> feed_pb2.Position:
        if feed_id in self._doubtful:
            raise Misconfigured(
                "the database is older than what was already told to others; nothing is signed on top of it",
                "restore the newest catalog.db of this home",
            )
        with self.change() as connection:
            feed = self._feed(feed_id)
            if feed is not None and feed.forked:
                raise Misconfigured(
                    "another process signed entries of this feed; nothing more is signed here",
                    "find the second copy of this home and stop it",
                )
            previous = feed.head.position() if feed else feed_pb2.Position()
            if not previous.seq:
                previous = feed_pb2.Position(epoch_number=1, epoch_id=os.urandom(16))
            (lamport,) = connection.execute("SELECT value FROM meta WHERE key = 'lamport'").fetchone()
            entry = build_entry(
                key,
                previous,
                feed_id=feed_id,
                lamport=lamport + 1,
                wall_milliseconds=int(self.clock.wall() * 1000),
                public_part=body.SerializeToString(),
                sealed_plain=sealed,
                store_key=store_key,
            )
            self._apply(connection, entry)
            self._unannounced[feed_id] = position_of(entry)
            self._announced.setdefault(feed_id, 0)
            return position_of(entry)

    # ------------------------------------------------------------ received entries

    def receive(self, raw: bytes) -> bool:
        """Take an entry of another's feed (or an own one that came back); False when it is here already.

        Raises: Gap (pull what is missing), Corrupt, Refused, NotFound (its writer is not known yet), Conflict (fork:
        both are kept as evidence, nothing of that feed is applied any more).
        """
        entry = parse_entry(raw)
        with self._lock:
            feed = self._feed(entry.header.feed_id)
            if feed is not None and entry.header.seq <= feed.head.seq:
                return self._known(feed, entry)
            if feed is not None and feed.forked:
                raise Conflict(f"feed {feed.feed_id.hex()[:12]} is forked; nothing more of it is taken")
            try:
                with self.change() as connection:
                    if self._is_own(entry.header.feed_id):
                        self._verify(entry)
                        raise Fork("an entry of an own feed came that was not written here")
                    self._apply(connection, entry)
            except Fork:
                self._keep_fork(entry)
                raise
        return True

    def _is_own(self, feed_id: bytes) -> bool:
        if feed_id == self.root_feed_id:
            return self.own.root_key is not None
        row = self._one("SELECT owner FROM feeds WHERE feed_id = ?", feed_id)
        return row is not None and row[0] == self.own_domain

    def _known(self, feed: Feed, entry: ParsedEntry) -> bool:
        """An entry at or below the head: the same is fine, another is evidence."""
        row = self._one("SELECT hash FROM entries WHERE feed = ? AND seq = ?", feed.id, entry.header.seq)
        if row is None or row[0] == entry.hash:
            return False
        self._verify(entry)
        self._keep_fork(entry)
        raise Fork(f"two different entries {entry.header.seq} of feed {feed.feed_id.hex()[:12]} are signed")

    def _keep_fork(self, entry: ParsedEntry) -> None:
        self._verify(entry)  # only what the writer really signed is evidence
        with self.change() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO forks VALUES (?, ?, ?)", (entry.header.feed_id, entry.header.seq, entry.raw)
            )
            connection.execute("UPDATE feeds SET forked = 1 WHERE feed_id = ?", (entry.header.feed_id,))
        self.observer.event("catalog.fork", feed=entry.header.feed_id.hex(), seq=entry.header.seq)


def _is_past(kept: feed_pb2.Position, here: feed_pb2.Position) -> bool:
    """Whether a kept head is above the database's, or another entry at the same place."""
    above = (kept.epoch_number, kept.seq) > (here.epoch_number, here.seq)
    return above or (kept.seq == here.seq and kept.hash != here.hash)
