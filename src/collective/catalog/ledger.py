"""The ledger of one home: own feeds are appended to, others' are received, both are applied the same way.

Every change is one SQLite transaction. An own entry is durable here and its head synced beside the database before it
is served to anybody or acknowledged. An entry of another is verified as if its writer had handed it over.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import DecodeError

from collective.catalog import apply as applying
from collective.catalog.database import database_error, open_for_writing
from collective.catalog.entry import (
    MAX_OPERATIONS,
    ParsedEntry,
    build_entry,
    open_sealed,
    parse_entry,
    position_of,
    root_feed_id,
    verify_signature,
)
from collective.catalog.feed import FeedState, Fork, check_follows
from collective.catalog.heads import HeadKeeper
from collective.catalog.reader import Reader
from collective.catalog.roster import apply_member_operation, apply_root_operation, signing_public_key
from collective.core.address import FederatedAddress
from collective.core.clock import Clock
from collective.core.errors import Conflict, Corrupt, Misconfigured, NotFound, Refused
from collective.core.observe import SILENT, Observer
from collective.wire import feed_pb2

__all__ = ["ChooseHosts", "Ledger", "OwnKeys"]

ChooseHosts = Callable[[bytes, int, Sequence[str]], Sequence[str]]
_Message = TypeVar("_Message", feed_pb2.RootBody, feed_pb2.MemberBody)
Body = feed_pb2.RootBody | feed_pb2.MemberBody | feed_pb2.StorePublic


@dataclass(frozen=True)
class OwnKeys:
    """What a home writes its feeds with. `root_key` only at the root holder."""

    member_domain: str
    signing_key: Ed25519PrivateKey
    signing_certificate: x509.Certificate
    wrapping_key: X25519PrivateKey
    root_key: Ed25519PrivateKey | None
    coordinator_address: FederatedAddress


@dataclass(frozen=True)
class _Feed:
    """A feed as it stands: its row, kind (root, member, store) and writer's member domain."""

    id: int
    feed_id: bytes
    kind: str
    owner: str
    head: FeedState
    opened_seq: int
    forked: bool


class Ledger(Reader):
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
        super().__init__(path, own.member_domain)
        self.federation_domain = federation_domain
        self.root_certificate = root_certificate
        self.own = own
        self.clock = clock
        self.observer = observer
        self.choose_hosts = choose_hosts
        self.root_feed_id = root_feed_id(root_certificate.public_bytes(Encoding.DER))
        self._heads = heads
        self._writing = open_for_writing(path)
        self._lock = threading.RLock()
        self._writer_thread: int | None = None
        self._announced: dict[bytes, int] = {}
        self._doubtful: set[bytes] = set()
        self._unannounced: dict[bytes, feed_pb2.Position] = {}
        self._find_doubt()

    def close(self) -> None:
        super().close()
        with self._lock:
            self._writing.close()

    def _sql(self) -> sqlite3.Connection:
        """Inside a change its own connection, so that it sees what it did."""
        if self._writer_thread == threading.get_ident():
            return self._writing
        return super()._sql()

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """One transaction; nested ones join the outer. Heads of own entries are synced after it, before it returns."""
        with self._lock:
            if self._writer_thread == threading.get_ident():
                yield self._writing
                return
            self._writer_thread = threading.get_ident()
            try:
                self._writing.execute("BEGIN IMMEDIATE")
                yield self._writing
                self._writing.execute("COMMIT")
            except BaseException as error:
                self._unannounced.clear()
                if self._writing.in_transaction:
                    self._writing.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise database_error(error, self.path) from error
                raise
            finally:
                self._writer_thread = None
            unannounced, self._unannounced = self._unannounced, {}
            for feed_id, position in unannounced.items():
                self._heads.keep(feed_id, position)
                self._announced[feed_id] = position.seq

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

    def _find_doubt(self) -> None:
        for feed in self._own_feeds():
            kept = self._heads.newest(feed.feed_id)
            self._announced[feed.feed_id] = feed.head.seq
            if kept is None:
                continue
            here = feed.head
            if (kept.epoch_number, kept.seq) > (here.epoch_number, here.seq) or (
                kept.seq == here.seq and kept.hash != here.hash
            ):
                self._doubtful.add(feed.feed_id)
                self.observer.event("catalog.doubt", feed=feed.feed_id.hex(), here=here.seq, kept=kept.seq)

    def _own_feeds(self) -> list[_Feed]:
        feeds = [
            self._feed(_b(row[0])) for row in self._all("SELECT feed_id FROM feeds WHERE owner = ?", self.own_domain)
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
        start: feed_pb2.StoreStart | None = None,
    ) -> feed_pb2.Position:
        """Append to an own DataStore's feed, sealed under its current key. Raises: Refused, Misconfigured in doubt."""
        with self.change():
            store = self.store(store_id)
            if store.owner != self.own_domain:
                raise Refused(f"{store.owner} writes that DataStore's feed")
            key = self.store_key(store.key_name)
            if key is None:
                raise Misconfigured("the DataStore's key is missing here")
            public = feed_pb2.StorePublic(layouts=layouts, placements=placements, start=start)
            sealed = feed_pb2.StoreSealed(operations=operations)
            row = self._one("SELECT next_number FROM store_numbers WHERE store = ?", store.store_number)
            sealed.next_number = max(
                [
                    2,
                    *([_i(row[0])] if row else []),
                    *(op.create.inode + 1 for op in operations if op.HasField("create")),
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

    def _known(self, feed: _Feed, entry: ParsedEntry) -> bool:
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

    # ------------------------------------------------------------ verification and application

    def _feed(self, feed_id: bytes) -> _Feed | None:
        row = self._one(
            "SELECT id, kind, owner, epoch_number, epoch_id, seq, hash, lamport, opened_seq, forked FROM feeds"
            " WHERE feed_id = ?",
            feed_id,
        )
        if row is None:
            return None
        number, kind, owner, epoch, epoch_id, seq, hash_, lamport, opened, forked = row
        head = FeedState(_i(epoch), _b(epoch_id), _i(seq), _b(hash_), _i(lamport))
        return _Feed(_i(number), feed_id, str(kind), str(owner), head, _i(opened), bool(forked))

    def _verify(self, entry: ParsedEntry) -> tuple[str, str]:
        """Check the signature against the feed's one writer; (kind, owner). Raises: Corrupt, NotFound, Refused."""
        feed_id = entry.header.feed_id
        if feed_id == self.root_feed_id:
            key = self.root_certificate.public_key()
            if not isinstance(key, Ed25519PublicKey):
                raise Misconfigured("the root certificate holds no Ed25519 key")
            verify_signature(entry, key)
            return "root", ""
        row = self._one("SELECT domain, ca FROM members WHERE feed_id = ?", feed_id)
        if row is not None:
            verify_signature(entry, self._member_key(str(row[0]), _b(row[1]), entry))
            return "member", str(row[0])
        row = self._one(
            "SELECT d.owner, m.ca FROM datastores d JOIN members m ON m.domain = d.owner WHERE d.feed_id = ?", feed_id
        )
        if row is None:
            raise NotFound("an entry came of a feed that nobody here knows of yet")
        verify_signature(entry, self._member_key(str(row[0]), _b(row[1]), None))
        return "store", str(row[0])

    def _member_key(self, domain: str, authority: bytes, first: ParsedEntry | None) -> Ed25519PublicKey:
        """The key that signs a member's feeds: from its feed, or from its very first entry."""
        row = self._one("SELECT certificate FROM signing_keys WHERE domain = ?", domain)
        if row is not None:
            return signing_public_key(_b(row[0]), authority, domain)
        if first is not None and first.header.seq == 1:
            for operation in _decode(feed_pb2.MemberBody, first.public_part).operations:
                if operation.HasField("signing_key"):
                    return signing_public_key(operation.signing_key.certificate, authority, domain)
        raise NotFound(f"the signing key of {domain} has not arrived yet")

    def _apply(self, connection: sqlite3.Connection, entry: ParsedEntry) -> None:
        """Verify, chain, store, apply; inside a transaction."""
        header = entry.header
        kind, owner = self._verify(entry)
        feed = self._feed(header.feed_id)
        body: Body
        if kind == "root":
            body = _decode(feed_pb2.RootBody, entry.public_part)
        elif kind == "member":
            body = _decode(feed_pb2.MemberBody, entry.public_part)
        else:
            body = applying.parse_store_public(entry.public_part)
            if (header.seq == 1) != body.HasField("start"):
                raise Corrupt("a store feed begins with its start, and only once")
        check_follows(
            feed.head if feed else FeedState(), entry, body.epoch_start if body.HasField("epoch_start") else None
        )
        number = self._store_entry(connection, entry, feed, kind, owner)
        if isinstance(body, feed_pb2.RootBody):
            for index, root_operation in enumerate(body.operations):
                if self._fresh(connection, number, header.seq, index, root_operation.id):
                    reason = apply_root_operation(
                        connection, root_operation, header.seq, self.federation_domain, self.root_certificate
                    )
                    self._skipped(connection, number, header.seq, index, reason)
        elif isinstance(body, feed_pb2.MemberBody):
            for index, operation in enumerate(body.operations):
                if self._fresh(connection, number, header.seq, index, operation.id):
                    reason = apply_member_operation(connection, owner, operation, header.seq, header.lamport)
                    self._skipped(connection, number, header.seq, index, reason)
        else:
            self._check_start(body, owner)
            applying.apply_store_public(connection, header.feed_id, body, header.seq)
            self.open_waiting(connection, header.feed_id)
        connection.execute("UPDATE meta SET value = max(value, ?) WHERE key = 'lamport'", (header.lamport,))
        connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'changes'")

    def _check_start(self, body: feed_pb2.StorePublic, owner: str) -> None:
        if body.HasField("start"):
            row = self._one("SELECT feed_id FROM members WHERE domain = ?", owner)
            if row is None or row[0] != body.start.member_feed_id:
                raise Corrupt("a store feed names another owner than its definition")

    @staticmethod
    def _fresh(connection: sqlite3.Connection, feed: int, seq: int, index: int, id_: feed_pb2.OperationId) -> bool:
        if applying.absorb(connection, id_, feed, seq):
            return True
        applying.record_refusal(connection, feed, seq, index, "applied before")
        return False

    @staticmethod
    def _skipped(connection: sqlite3.Connection, feed: int, seq: int, index: int, reason: str) -> None:
        if reason:
            applying.record_refusal(connection, feed, seq, index, reason)

    def _store_entry(
        self, connection: sqlite3.Connection, entry: ParsedEntry, feed: _Feed | None, kind: str, owner: str
    ) -> int:
        header = entry.header
        opened = header.seq if kind != "store" else (feed.opened_seq if feed else 0)
        if feed is None:
            cursor = connection.execute(
                "INSERT INTO feeds (feed_id, kind, owner, epoch_number, epoch_id, seq, hash, lamport, opened_seq)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    header.feed_id, kind, owner, header.epoch_number, header.epoch_id, header.seq, entry.hash,
                    header.lamport, opened,
                ),
            )  # fmt: skip
            number = _i(cursor.lastrowid)
        else:
            number = feed.id
            connection.execute(
                "UPDATE feeds SET epoch_number = ?, epoch_id = ?, seq = ?, hash = ?, lamport = ?, opened_seq = ?"
                " WHERE id = ?",
                (header.epoch_number, header.epoch_id, header.seq, entry.hash, header.lamport, opened, number),
            )
        connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?)", (number, header.seq, entry.hash, entry.raw))
        return number

    def open_waiting(self, connection: sqlite3.Connection, store_id: bytes) -> int:
        """Apply the sealed parts whose key is here, in order, up to the first whose key is not; how many."""
        feed = self._feed(store_id)
        if feed is None:
            return 0
        done = 0
        for seq, raw in connection.execute(
            "SELECT seq, entry FROM entries WHERE feed = ? AND seq > ? ORDER BY seq", (feed.id, feed.opened_seq)
        ).fetchall():
            entry = parse_entry(raw)
            if entry.sealed_part:
                key = self.store_key(entry.header.key_name)
                if key is None:
                    break
                applying.apply_store_sealed(connection, feed.id, entry, open_sealed(entry, key))
            connection.execute("UPDATE feeds SET opened_seq = ? WHERE id = ?", (seq, feed.id))
            done += 1
        if done:
            connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'changes'")
        return done


def _decode(kind: type[_Message], raw: bytes) -> _Message:
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        raise Corrupt("an entry's public part cannot be decoded") from error


def _i(value: object) -> int:
    assert isinstance(value, int)
    return value


def _b(value: object) -> bytes:
    assert isinstance(value, bytes)
    return value
