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
from cryptography.hazmat.primitives.serialization import Encoding

from collective.catalog import waking
from collective.catalog.applier import Body
from collective.catalog.chain import meeting_seq
from collective.catalog.entry import MAX_OPERATIONS, build_entry, parse_entry, position_of
from collective.catalog.facts import as_bytes, as_int
from collective.catalog.heads import HeadKeeper
from collective.catalog.receiving import FOREIGN, Receiver
from collective.catalog.tree import MAX_NUMBER
from collective.core.address import FederatedAddress
from collective.core.clock import Clock
from collective.core.errors import Misconfigured, NotFound, Refused
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


class Ledger(Receiver):
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
        self.heads_kept = heads
        self.hearing = waking.Hearing()
        self._announced: dict[bytes, int] = {}
        self._unannounced: dict[bytes, feed_pb2.Position] = {}  # heads that the change under way made
        self._unkept: dict[bytes, feed_pb2.Position] = {}  # … and committed ones that are not synced beside it yet
        self._rederive()
        for feed_id, position in self.heads().items():
            if self.is_own(feed_id):
                self._announced[feed_id] = position.seq
        waking.find_doubt(self)
        self._find_unkept()

    def _find_unkept(self) -> None:
        """Entries whose head an earlier run did not come to keep: not served before the next change has kept it.

        Served without, they would be forgotten by an older database that nothing betrays.
        """
        for feed_id, position in self.own_heads().items():
            kept = self.heads_kept.newest(feed_id)
            if kept is None or kept.hash != position.hash:
                self._unkept[feed_id] = position
                self._announced[feed_id] = min(kept.seq if kept is not None else 0, position.seq)

    def _committed(self) -> None:
        """Sync the heads of own entries beside the database; only then they are served or acknowledged."""
        made, self._unannounced = self._unannounced, {}
        self._unkept.update(made)
        for feed_id, position in list(self._unkept.items()):
            try:
                self.heads_kept.keep(feed_id, position)
            except Misconfigured as error:
                if made:
                    raise
                self.observer.event("catalog.head_not_kept", feed=feed_id.hex(), reason=error.message)
                return  # that was for an earlier change to tell; what this one did is durable
            self._announced[feed_id] = position.seq
            del self._unkept[feed_id]

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

    # ------------------------------------------------------------ doubt (waking.py has the rule)

    def doubts(self) -> dict[bytes, str]:
        """Own feeds on which nothing is signed, with why; under the empty id: all of them."""
        return {as_bytes(feed): str(why) for feed, why in self._all("SELECT feed_id, reason FROM doubts")}

    def doubtful_feeds(self) -> list[bytes]:
        """Own feeds that may be behind what was told to others; nothing is appended to them."""
        return sorted(self.doubts())

    def is_in_doubt(self, feed_id: bytes) -> bool:
        doubts = self.doubts()
        return feed_id in doubts or waking.ALL_FEEDS in doubts

    def check_not_in_doubt(self, feed_id: bytes) -> None:
        """Raises: Misconfigured, saying whom an own feed in doubt waits for and what mends it."""
        if self.is_in_doubt(feed_id):
            raise waking.refusal(self, feed_id)

    def is_doubtful(self) -> bool:
        """Whether the own member feed is in doubt, or not even here; then nothing is stated or granted."""
        doubts = self.doubts()
        if not doubts or waking.ALL_FEEDS in doubts:
            return bool(doubts)
        return not self.own_is_admitted() or self.own_member_feed() in doubts

    def is_own(self, feed_id: bytes) -> bool:
        """Whether this home writes a feed that is here."""
        feed = self._feed(feed_id)
        return feed is not None and self._writes(feed.kind, feed.owner)

    def forked_feeds(self) -> list[bytes]:
        """Feeds of which two histories were signed; their evidence is in the table `forks`."""
        return [as_bytes(feed) for (feed,) in self._all("SELECT feed_id FROM feeds WHERE forked = 1 ORDER BY id")]

    def is_forked(self, feed_id: bytes) -> bool:
        feed = self._feed(feed_id)
        return feed is not None and feed.forked

    def enter_doubt(self, feed_id: bytes, reason: str) -> None:
        if reason == FOREIGN:
            self.hearing.stopped.add(feed_id)
        self.observer.event("catalog.doubt", feed=feed_id.hex(), reason=reason)
        waking.note_doubt(self, feed_id, reason)

    def _writes(self, kind: str, owner: str) -> bool:
        return owner == self.own_domain or (kind == "root" and self.own.root_key is not None)

    def _took_back(self, feed_id: bytes) -> None:
        feed = self._feed(feed_id)
        self._announced[feed_id] = feed.head.seq if feed else 0

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
        doubts = self.doubts()
        if waking.ALL_FEEDS in doubts:
            return {}
        return {feed: head for feed, head in self.heads().items() if feed not in doubts and self.is_own(feed)}

    def hear_head(self, feed_id: bytes, kept: feed_pb2.Position) -> bool:
        """Take in what a disk of this home keeps as the head of an own feed; True when that puts the feed in doubt."""
        return waking.hear_head(self, feed_id, kept)

    def entries_beyond(
        self, feed_id: bytes, theirs: feed_pb2.Position | None, *, max_bytes: int = 1 << 20, max_entries: int = 1024
    ) -> list[bytes]:
        """What somebody with that head lacks of a feed as it stands here, verbatim."""
        start = meeting_seq(self, feed_id, theirs)
        feed = self._feed(feed_id)
        if feed is None or start < feed.dropped_seq:
            return []  # they start from a snapshot
        return self.entries_after(feed_id, start, max_bytes=max_bytes, max_entries=max_entries)

    # ------------------------------------------------------------ appending

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
        releases: Iterable[feed_pb2.Release] = (),
        snapshots: Sequence[feed_pb2.SnapshotPointer] = (),
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
                layouts=layouts,
                placements=placements,
                start=start,
                absorbed_operations=absorbed,
                releases=releases,
                snapshots=snapshots,
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

    def append_opening(
        self, feed_id: bytes, previous: feed_pb2.Position, start: feed_pb2.EpochStart
    ) -> feed_pb2.Position:
        """Open an epoch of an own feed: `previous` has the new epoch's name and the base's seq and hash.

        The entry carries nothing else, unless it is the feed's first: then what every first entry carries.
        """
        with self.change():
            if feed_id == self.root_feed_id:
                assert self.own.root_key is not None
                return self._append(feed_id, self.own.root_key, feed_pb2.RootBody(epoch_start=start), previous=previous)
            body: Body
            if feed_id == self.own_member_feed():
                body = feed_pb2.MemberBody(epoch_start=start)
                if not previous.seq:
                    certificate = self.own.signing_certificate.public_bytes(Encoding.DER)
                    body.operations.add(
                        id=feed_pb2.OperationId(writer=self.own_domain, random=os.urandom(16)),
                        signing_key=feed_pb2.SigningKey(certificate=certificate),
                    )
            else:
                body = feed_pb2.StorePublic(epoch_start=start)
                if not previous.seq:
                    body.start.CopyFrom(self.store_start())
            return self._append(feed_id, self.own.signing_key, body, previous=previous)

    def store_start(self) -> feed_pb2.StoreStart:
        """What a store feed of this home begins with. Raises: Misconfigured."""
        member_feed = self.own_member_feed()
        first = self.entries_after(member_feed, 0, max_entries=1)
        if not first:
            raise Misconfigured("the member feed has no first entry")
        position = position_of(parse_entry(first[0]))
        return feed_pb2.StoreStart(member_feed_id=member_feed, signing_key_entry=position)

    def _append(
        self,
        feed_id: bytes,
        key: Ed25519PrivateKey,
        body: Body,
        sealed: bytes = b"",
        store_key: bytes = b"",
        previous: feed_pb2.Position | None = None,
    ) -> feed_pb2.Position:
        self.check_not_in_doubt(feed_id)
        with self.change() as connection:
            feed = self._feed(feed_id)
            if feed is not None and feed.forked:
                raise Misconfigured(
                    "another process signed entries of this feed; nothing more is signed here",
                    "find the second copy of this home and stop it",
                )
            if previous is None:
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
