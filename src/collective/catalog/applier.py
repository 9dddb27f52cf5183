"""Applying entries: verified against their one writer, chained, stored and applied in one transaction.

Own entries and received ones take the same way. The sealed part of an entry whose key is not here yet waits, and is
applied in order when the key comes; hosts never get it and follow all the same.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import DecodeError

from collective.catalog import apply as applying
from collective.catalog import beside
from collective.catalog.chain import note_entry
from collective.catalog.database import database_error, open_for_writing
from collective.catalog.entry import ParsedEntry, open_sealed, parse_entry, root_feed_id, verify_signature
from collective.catalog.facts import as_bytes, as_int
from collective.catalog.feed import FeedState, check_follows
from collective.catalog.reader import Reader
from collective.catalog.roster import (
    apply_member_operation,
    apply_root_operation,
    cut_statements,
    signing_public_key,
)
from collective.core.errors import Corrupt, Misconfigured, NotFound
from collective.wire import feed_pb2

__all__ = ["Applier", "Body", "Feed", "epoch_start_of", "parse_body"]

_Message = TypeVar("_Message", feed_pb2.RootBody, feed_pb2.MemberBody)
Body = feed_pb2.RootBody | feed_pb2.MemberBody | feed_pb2.StorePublic


@dataclass(frozen=True)
class Feed:
    """A feed as it stands: its row, kind (root, member, store) and writer's member domain.

    `tree` is the number under which stands what its operations made (`catalog/beside`); the id in feeds without a tree.
    """

    id: int
    feed_id: bytes
    kind: str
    owner: str
    head: FeedState
    opened_seq: int
    forked: bool
    dropped_seq: int
    tree: int


class Applier(Reader):
    """The one writing connection of a catalogue, and what an entry does to it."""

    def __init__(self, path: Path, own_domain: str, federation_domain: str, root_certificate: x509.Certificate) -> None:
        super().__init__(path, own_domain)
        self.federation_domain = federation_domain
        self.root_certificate = root_certificate
        self.root_feed_id = root_feed_id(root_certificate.public_bytes(Encoding.DER))
        self._writing = open_for_writing(path)
        self._lock = threading.RLock()
        self._writer_thread: int | None = None
        self.in_the_making: set[int] = set()  # trees that are not swept though nothing shows them
        self.made_beside: dict[bytes, beside.Made] = {}  # by feed: trees that wait to be shown

    def _rederive(self) -> None:
        """After a migration that asks for it: make the derived tables of all stores anew from their entries."""
        with self.change() as connection:
            (asked,) = connection.execute("SELECT value FROM meta WHERE key = 'rederive'").fetchone()
            if not asked:
                return
            for feed, store_id in connection.execute("SELECT id, feed_id FROM feeds WHERE kind = 'store'").fetchall():
                applying.forget_public(connection, feed, store_id)
                for _, raw in connection.execute("SELECT seq, entry FROM entries WHERE feed = ? ORDER BY seq", (feed,)):
                    entry = parse_entry(raw)
                    note_entry(connection, feed, entry.header)
                    public = applying.parse_store_public(entry.public_part)
                    applying.apply_store_public(connection, store_id, public, entry.header.seq)
                beside.show(self, connection, feed, beside.begin(self))
                connection.execute("UPDATE feeds SET opened_seq = 0 WHERE id = ?", (feed,))
                while self.open_waiting(connection, store_id):
                    continue
            connection.execute("UPDATE meta SET value = 0 WHERE key = 'rederive'")
            applying.note_joined(connection)

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
        """One transaction; nested ones join the outer. `_committed` runs after it, before it returns."""
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
                self._rolled_back()
                if self._writing.in_transaction:
                    self._writing.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise database_error(error, self.path) from error
                raise
            finally:
                self._writer_thread = None
            self._committed()

    def _committed(self) -> None:
        """A change is durable."""

    def _rolled_back(self) -> None:
        """A change did not happen: what was read inside it is forgotten."""
        self._stores = None
        self._joined = None
        self._forget_staged()

    def _feed(self, feed_id: bytes) -> Feed | None:
        row = self._one(
            "SELECT id, kind, owner, epoch_number, epoch_id, seq, hash, lamport, opened_seq, forked, dropped_seq, tree"
            " FROM feeds WHERE feed_id = ?",
            feed_id,
        )
        if row is None:
            return None
        number, kind, owner, epoch, epoch_id, seq, hash_, lamport, opened, forked, dropped, tree = row
        head = FeedState(as_int(epoch), as_bytes(epoch_id), as_int(seq), as_bytes(hash_), as_int(lamport))
        return Feed(
            as_int(number), feed_id, str(kind), str(owner), head, as_int(opened), bool(forked), as_int(dropped),
            as_int(tree),
        )  # fmt: skip

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
            verify_signature(entry, self._member_key(str(row[0]), as_bytes(row[1]), entry))
            return "member", str(row[0])
        row = self._one(
            "SELECT d.owner, m.ca FROM datastores d JOIN members m ON m.domain = d.owner WHERE d.feed_id = ?", feed_id
        )
        if row is None:
            raise NotFound("an entry came of a feed that nobody here knows of yet")
        verify_signature(entry, self._member_key(str(row[0]), as_bytes(row[1]), None))
        return "store", str(row[0])

    def _member_key(self, domain: str, authority: bytes, first: ParsedEntry | None) -> Ed25519PublicKey:
        """The key that signs a member's feeds: from its feed, or from its very first entry."""
        row = self._one("SELECT certificate FROM signing_keys WHERE domain = ?", domain)
        if row is not None:
            return signing_public_key(as_bytes(row[0]), authority, domain)
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
        check_follows(feed.head if feed else FeedState(), entry, epoch_start_of(entry, kind))
        number = self._store_entry(connection, entry, feed, kind, owner)
        self.change_tables(connection, entry, kind, owner, number)
        connection.execute("UPDATE meta SET value = max(value, ?) WHERE key = 'lamport'", (header.lamport,))
        connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'changes'")

    def change_tables(
        self, connection: sqlite3.Connection, entry: ParsedEntry, kind: str, owner: str, number: int
    ) -> None:
        """What an entry that was verified and stored changes in the derived tables; inside a transaction."""
        header = entry.header
        body = parse_body(kind, entry.public_part)
        if body.HasField("epoch_start"):
            cut_statements(connection, header.feed_id, header.epoch_number, body.epoch_start.base.seq)
        if isinstance(body, feed_pb2.RootBody):
            for index, root_operation in enumerate(body.operations):
                if self._fresh(connection, number, header.seq, index, root_operation.id):
                    reason = apply_root_operation(
                        connection, root_operation, header.seq, self.federation_domain, self.root_certificate
                    )
                    self._skipped(connection, number, header.seq, index, reason)
            applying.note_joined(connection)  # the roster's order is who was first
        elif isinstance(body, feed_pb2.MemberBody):
            for index, operation in enumerate(body.operations):
                if self._fresh(connection, number, header.seq, index, operation.id):
                    reason = apply_member_operation(connection, owner, operation, header.seq, header.lamport)
                    self._skipped(connection, number, header.seq, index, reason)
                    if operation.HasField("datastore"):
                        applying.note_joined(connection)
        else:
            self._change_by_store(connection, header, body, owner)
            opened = connection.execute("SELECT opened_seq FROM feeds WHERE id = ?", (number,)).fetchone()
            if opened == (header.seq - 1,):  # else others wait before it, and are opened in turns of their own
                self.open_waiting(connection, header.feed_id)

    def change_by_public_part(self, connection: sqlite3.Connection, entry: ParsedEntry, owner: str) -> None:
        """What a store's entry changes without being opened; inside a transaction."""
        body = applying.parse_store_public(entry.public_part)
        if body.HasField("epoch_start"):
            cut_statements(connection, entry.header.feed_id, entry.header.epoch_number, body.epoch_start.base.seq)
        self._change_by_store(connection, entry.header, body, owner)

    def _change_by_store(
        self, connection: sqlite3.Connection, header: feed_pb2.Header, body: feed_pb2.StorePublic, owner: str
    ) -> None:
        if (header.seq == 1) != body.HasField("start"):
            raise Corrupt("a store feed begins with its start, and only once")
        self._check_start(body, owner)
        applying.apply_store_public(connection, header.feed_id, body, header.seq)

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
        self, connection: sqlite3.Connection, entry: ParsedEntry, feed: Feed | None, kind: str, owner: str
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
            number = as_int(cursor.lastrowid)
            connection.execute("UPDATE feeds SET tree = id WHERE id = ?", (number,))
            applying.note_joined(connection)
        else:
            number = feed.id
            connection.execute(
                "UPDATE feeds SET epoch_number = ?, epoch_id = ?, seq = ?, hash = ?, lamport = ?, opened_seq = ?"
                " WHERE id = ?",
                (header.epoch_number, header.epoch_id, header.seq, entry.hash, header.lamport, opened, number),
            )
        connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?)", (number, header.seq, entry.hash, entry.raw))
        note_entry(connection, number, header)
        return number

    def open_waiting(self, connection: sqlite3.Connection, store_id: bytes) -> int:
        """Apply a slice of the sealed parts, in order, as far as their keys are here; how many."""
        feed = self._feed(store_id)
        if feed is None:
            return 0
        if feed.opened_seq < feed.dropped_seq:
            return 0  # the tree that the first entry here goes on from is still to come (catalog/folding)
        done = size = 0
        for seq, raw in connection.execute(
            "SELECT seq, entry FROM entries WHERE feed = ? AND seq > ? ORDER BY seq", (feed.id, feed.opened_seq)
        ):
            if not self.open_entry(connection, feed.tree, raw):
                break
            connection.execute("UPDATE feeds SET opened_seq = ? WHERE id = ?", (seq, feed.id))
            done, size = done + 1, size + len(raw)
            if size >= beside.BYTES_PER_SLICE:
                break
        if done:
            connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'changes'")
        return done

    def open_entry(self, connection: sqlite3.Connection, tree: int, raw: bytes) -> bool:
        """What the sealed part of a store's next entry makes of a tree; False when its key is not here."""
        entry = parse_entry(raw)
        if entry.sealed_part:
            key = self.store_key(entry.header.key_name)
            if key is None:
                return False
            applying.apply_store_sealed(connection, tree, entry, open_sealed(entry, key))
            return True
        public = applying.parse_store_public(entry.public_part)
        if public.HasField("epoch_start"):
            applying.open_numbers(connection, tree, entry, public.epoch_start)
        return True

    def waits_to_be_opened(self, feed_id: bytes) -> bool:
        """Whether entries of a feed are here that could be opened and are not yet."""
        feed = self._feed(feed_id)
        if feed is None or not feed.dropped_seq <= feed.opened_seq < feed.head.seq:
            return False
        row = self._one("SELECT entry FROM entries WHERE feed = ? AND seq > ? ORDER BY seq", feed.id, feed.opened_seq)
        if row is None:
            return False
        entry = parse_entry(as_bytes(row[0]))
        return not entry.sealed_part or self.store_key(entry.header.key_name) is not None


def parse_body(kind: str, public_part: bytes) -> Body:
    """The public part of an entry of a feed of that kind (root, member, store). Raises: Corrupt."""
    if kind == "root":
        return _decode(feed_pb2.RootBody, public_part)
    if kind == "member":
        return _decode(feed_pb2.MemberBody, public_part)
    return applying.parse_store_public(public_part)


def epoch_start_of(entry: ParsedEntry, kind: str) -> feed_pb2.EpochStart | None:
    """What an entry says of the epoch it opens, None when it opens none. Raises: Corrupt."""
    body = parse_body(kind, entry.public_part)
    return body.epoch_start if body.HasField("epoch_start") else None


def _decode(kind: type[_Message], raw: bytes) -> _Message:
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        raise Corrupt("an entry's public part cannot be decoded") from error
