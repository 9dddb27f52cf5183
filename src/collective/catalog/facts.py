"""Facts of the federation as one home has them: members, DataStores, grants, feeds, versions, holders.

The mount and the commands open the database with this while the coordinator writes to it; each thread has its own
connection. Nothing here changes anything.
"""

from __future__ import annotations

import sqlite3
import stat
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Self

from cryptography import x509

from collective.catalog.database import database_error, open_for_reading
from collective.catalog.entry import open_sub_path, parse_entry
from collective.catalog.models import DataStore, Member
from collective.catalog.permissions import Verdict, judge, path_covers
from collective.core.address import FederatedAddress, parse_address
from collective.core.errors import Corrupt, NotFound
from collective.wire import feed_pb2

__all__ = ["Counters", "Facts", "as_bytes", "as_int"]


_COUNTERS = (
    "SELECT (SELECT value FROM meta WHERE key = 'changes'), (SELECT value FROM meta WHERE key = 'joined'),"
    " (SELECT value FROM meta WHERE key = 'staged')"
)


@dataclass(frozen=True, slots=True)
class Counters:
    """Each grows when what it is named after changed: anything, the make-up of the joined tree, staged work."""

    changes: int
    joined: int
    staged: int


class Facts:
    """Everything but the tree. Thread-safe."""

    def __init__(self, path: Path, own_domain: str) -> None:
        self.path = path
        self.own_domain = own_domain
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._connections_lock = threading.Lock()
        self._stores: tuple[int, dict[bytes, DataStore]] | None = None

    @classmethod
    def open(cls, path: Path, own_domain: str) -> Self:
        """Open for reading. Raises: Misconfigured, Corrupt."""
        reader = cls(path, own_domain)
        reader._sql()
        return reader

    def close(self) -> None:
        """Close every thread's connection; nothing may be asked afterwards."""
        with self._connections_lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()

    def _sql(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = open_for_reading(self.path)
            with self._connections_lock:
                self._connections.append(connection)
        return connection

    def _all(self, query: str, *values: object) -> list[tuple[object, ...]]:
        try:
            return self._sql().execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise database_error(error, self.path) from error

    def _one(self, query: str, *values: object) -> tuple[object, ...] | None:
        rows = self._all(query, *values)
        return rows[0] if rows else None

    def counters(self) -> Counters:
        """What moved, in one look."""
        return Counters(*self._all(_COUNTERS)[0])  # type: ignore[arg-type]  # integers by the table's type

    def change_counter(self) -> int:
        """Grows with every applied entry and with every change that is staged here."""
        return self.counters().changes

    # ------------------------------------------------------------ members and DataStores

    def members(self) -> list[Member]:
        """The roster in its order, removed ones included."""
        rows = self._all(
            "SELECT m.domain, m.ca, m.generation, m.feed_id, m.removed, c.card, s.certificate FROM members m"
            " LEFT JOIN cards c USING (domain) LEFT JOIN signing_keys s USING (domain)"
            " ORDER BY m.roster_order, m.domain"
        )
        return [
            Member(
                domain=str(domain),
                ca_certificate=_certificate(as_bytes(ca)),
                generation=as_int(generation),
                feed_id=as_bytes(feed_id),
                removed=bool(removed),
                card=feed_pb2.Card.FromString(as_bytes(card)) if card is not None else None,
                signing_certificate=as_bytes(certificate) if certificate is not None else None,
            )
            for domain, ca, generation, feed_id, removed, card, certificate in rows
        ]

    def datastores(self) -> list[DataStore]:
        """All that are not deleted, the first ones first."""
        return list(self._known_stores(self.counters().joined).values())

    def _known_stores(self, joined: int) -> dict[bytes, DataStore]:
        """The DataStores by id, read anew when what they come from changed."""
        cached = self._stores
        if cached is None or cached[0] != joined:
            cached = self._stores = (joined, {store.feed_id: store for store in self._read_stores()})
        return cached[1]

    def _read_stores(self) -> list[DataStore]:
        rows = self._all(
            "SELECT d.feed_id, d.owner, d.lamport, d.definition,"
            " CASE WHEN f.opened_seq >= f.dropped_seq THEN f.tree END, k.name FROM datastores d"
            " LEFT JOIN members m ON m.domain = d.owner LEFT JOIN feeds f ON f.feed_id = d.feed_id"
            " LEFT JOIN keys k ON k.feed_id = d.feed_id GROUP BY d.feed_id"
            " ORDER BY d.lamport, m.roster_order, d.feed_id"
        )
        stores = []
        for feed_id, owner, lamport, definition_bytes, number, _ in rows:
            definition = feed_pb2.DataStoreDefinition.FromString(as_bytes(definition_bytes))
            if definition.deleted:
                continue
            stores.append(
                DataStore(
                    feed_id=as_bytes(feed_id),
                    path=definition.path,
                    owner=str(owner),
                    strategy=definition.strategy,
                    replicas=definition.replicas,
                    hosts=tuple(definition.hosts),
                    key_name=definition.key_name,
                    inode_prefix=definition.inode_prefix,
                    metadata=dict(definition.metadata),
                    readable=number is not None and self.store_key(definition.key_name) is not None,
                    store_number=as_int(number) if number is not None else 0,
                    lamport=as_int(lamport),
                )
            )
        return stores

    def store(self, store_id: bytes) -> DataStore:
        """Raises: NotFound."""
        store = self._known_stores(self.counters().joined).get(store_id)
        if store is None:
            raise NotFound("there is no such DataStore here")
        return store

    def grants(self, store_id: bytes) -> list[feed_pb2.Grant]:
        """The grants that count for a DataStore, ended ones included; for people.

        A grant on a folder inside shows that folder's path where this home can open it.
        """
        store = self.store(store_id)
        counting = [grant for grant in self._grants_of(store.owner) if path_covers(grant.path, store.path)]
        for grant in counting:
            folder = self.open_sub_path(store_id, grant.sealed_sub_path) if grant.sealed_sub_path else None
            if folder is not None:
                grant.path = store.path + b"/" + folder
                grant.sealed_sub_path = b""
        return counting

    def _grants_of(self, owner: str) -> list[feed_pb2.Grant]:
        rows = self._all("SELECT grant_ FROM grants WHERE owner = ? ORDER BY seq, id", owner)
        return [feed_pb2.Grant.FromString(as_bytes(row[0])) for row in rows]

    def may(
        self, subject: FederatedAddress | str, right: int, store_id: bytes, sub_path: bytes | None = b"", *, now: float
    ) -> Verdict:
        """Whether a component or member has a right at a path inside a DataStore; None: anywhere in it. `now` in
        seconds since 1970."""
        try:
            store = self.store(store_id)
        except NotFound as error:
            return Verdict(False, error.message)
        address = parse_address(subject) if isinstance(subject, str) else subject
        removed = self._one("SELECT removed FROM members WHERE domain = ?", address.domain)
        return judge(
            self._grants_of(store.owner),
            owner=store.owner,
            store_path=store.path,
            sub_path=sub_path,
            open_sub_path=lambda sealed: self.open_sub_path(store_id, sealed),
            subject=address,
            right=right,
            now=now,
            removed=bool(removed and removed[0]),
        )

    def open_sub_path(self, store_id: bytes, sealed: bytes) -> bytes | None:
        """The folder inside a DataStore that a grant names sealed; None where the key it was sealed under is not."""
        for (key,) in self._all("SELECT key FROM keys WHERE feed_id = ?", store_id):
            opened = open_sub_path(as_bytes(key), store_id, sealed)
            if opened is not None:
                return opened
        return None

    def store_key(self, key_name: bytes) -> bytes | None:
        """A DataStore key by its name, None when this home does not hold it."""
        row = self._one("SELECT key FROM keys WHERE name = ?", key_name)
        return as_bytes(row[0]) if row else None

    # ------------------------------------------------------------ feeds

    def heads(self) -> dict[bytes, feed_pb2.Position]:
        """Feed id -> head, of every feed that is followed here."""
        rows = self._all("SELECT feed_id, epoch_number, epoch_id, seq, hash FROM feeds WHERE seq > 0")
        return {
            as_bytes(feed): feed_pb2.Position(
                epoch_number=as_int(number), epoch_id=as_bytes(epoch), seq=as_int(seq), hash=as_bytes(hash_)
            )
            for feed, number, epoch, seq, hash_ in rows
        }

    def has_reached(self, feed_id: bytes, position: feed_pb2.Position) -> bool:
        """Whether a feed got as far here: a longer chain of an older epoch did not."""
        row = self._one("SELECT epoch_number, seq FROM feeds WHERE feed_id = ?", feed_id)
        return row is not None and (as_int(row[0]), as_int(row[1])) >= (position.epoch_number, position.seq)

    def has_entry(self, feed_id: bytes, position: feed_pb2.Position) -> bool:
        """Whether an entry is on the chain here, as far as is still known: a later epoch may have left it behind."""
        row = self._one(
            "SELECT f.dropped_seq >= ?2 OR EXISTS"
            " (SELECT 1 FROM entries e WHERE e.feed = f.id AND e.seq = ?2 AND ?3 IN (e.hash, x''))"
            " FROM feeds f WHERE f.feed_id = ?1 AND f.seq >= ?2",
            feed_id, position.seq, position.hash,
        )  # fmt: skip
        return row is not None and bool(row[0])

    def entries_after(
        self, feed_id: bytes, seq: int, *, max_bytes: int = 1 << 20, max_entries: int = 1024
    ) -> list[bytes]:
        """Entries past `seq`, verbatim, at least one when there is any. Raises: Corrupt (a stored one is broken)."""
        rows = self._all(
            "SELECT e.seq, e.hash, e.entry FROM entries e JOIN feeds f ON f.id = e.feed WHERE f.feed_id = ?"
            " AND e.seq > ? ORDER BY e.seq LIMIT ?",
            feed_id, seq, max_entries,
        )  # fmt: skip
        entries: list[bytes] = []
        total = 0
        for number, digest, raw in rows:
            entry = as_bytes(raw)
            if entries and total + len(entry) > max_bytes:
                break
            try:
                intact = parse_entry(entry).hash == digest
            except Corrupt:
                intact = False
            if not intact:
                if entries:
                    break
                raise Corrupt(f"the stored entry {number} of feed {feed_id.hex()[:12]} has a broken hash")
            entries.append(entry)
            total += len(entry)
        return entries

    def feeds_for(self, member_domain: str, now: float) -> set[bytes]:
        """The feeds a member may follow: root, all member feeds, and stores it owns, hosts or may READ."""
        row = self._one("SELECT removed FROM members WHERE domain = ?", member_domain)
        if row is not None and row[0]:
            return set()
        feeds = {as_bytes(feed) for (feed,) in self._all("SELECT feed_id FROM feeds WHERE kind IN ('root', 'member')")}
        subject = FederatedAddress("coord", member_domain)
        for store in self.datastores():
            if (
                store.owner == member_domain
                or member_domain in store.hosts
                or self.may(subject, feed_pb2.READ, store.feed_id, now=now).allowed
            ):
                feeds.add(store.feed_id)
        return feeds

    def in_dependency_order(self, feeds: Iterable[bytes]) -> list[bytes]:
        """Root feed, member feeds, store feeds: an entry is judged by what stands in the feeds before it."""
        wanted = set(feeds)
        rows = self._all(
            "SELECT feed_id FROM feeds ORDER BY CASE kind WHEN 'root' THEN 0 WHEN 'member' THEN 1 ELSE 2 END, id"
        )
        return [as_bytes(feed) for (feed,) in rows if feed in wanted]

    def is_public_snapshot_for(self, member_domain: str, store_id: bytes, version_id: bytes) -> bool:
        """Whether a version is the public part of a snapshot, and the member hosts that DataStore."""
        row = self._one(
            "SELECT 1 FROM snapshots s JOIN feeds f ON f.id = s.feed WHERE f.feed_id = ? AND s.public_version = ?",
            store_id, version_id,
        )  # fmt: skip
        return row is not None and member_domain in self.store(store_id).hosts

    # ------------------------------------------------------------ versions and holders

    def layout(self, store_id: bytes, version_id: bytes) -> feed_pb2.Layout:
        """Raises: NotFound."""
        row = self._one("SELECT layout FROM versions WHERE feed_id = ? AND version_id = ?", store_id, version_id)
        if row is None:
            raise NotFound("there is no such version here")
        return feed_pb2.Layout.FromString(as_bytes(row[0]))

    def page(self, name: bytes) -> bytes | None:
        """A page by its name, None when it is not here."""
        row = self._one("SELECT page FROM pages WHERE name = ?", name)
        return as_bytes(row[0]) if row else None

    def placed_members(self, store_id: bytes, version_id: bytes) -> list[str]:
        """Who shall hold a version, in order."""
        rows = self._all(
            "SELECT domain FROM placements WHERE feed_id = ? AND version_id = ? ORDER BY rank", store_id, version_id
        )
        return [str(domain) for (domain,) in rows]

    def holders(self, store_id: bytes, version_id: bytes) -> list[str]:
        """Who holds a version: placed there, and stated; its writer by the very entry that names it."""
        rows = self._all(
            "SELECT p.domain FROM placements p JOIN versions v USING (feed_id, version_id)"
            " JOIN datastores d USING (feed_id) JOIN members m ON m.domain = p.domain AND NOT m.removed"
            " LEFT JOIN holdings h ON h.feed_id = p.feed_id AND h.domain = p.domain"
            " LEFT JOIN holding_exceptions x ON x.feed_id = p.feed_id AND x.domain = p.domain"
            " AND x.version_id = p.version_id"
            " WHERE p.feed_id = ? AND p.version_id = ? AND x.version_id IS NULL"
            " AND (p.domain = v.writer OR h.seq >= v.seq) ORDER BY p.rank",
            store_id, version_id,
        )  # fmt: skip
        return [str(domain) for (domain,) in rows]

    def partial_holders(self, store_id: bytes, version_id: bytes) -> list[str]:
        """The writer while it states that something of the version is missing there: no copy, but readable in part."""
        rows = self._all(
            "SELECT v.writer FROM versions v JOIN holding_exceptions x USING (feed_id, version_id)"
            " JOIN members m ON m.domain = v.writer AND NOT m.removed"
            " WHERE v.feed_id = ? AND v.version_id = ? AND x.domain = v.writer",
            store_id, version_id,
        )  # fmt: skip
        return [str(domain) for (domain,) in rows]

    def holders_of_entry(self, store_id: bytes, position: feed_pb2.Position) -> list[str]:
        """Who holds an entry: the owner, and every host whose statement reaches it."""
        rows = self._all(
            "SELECT h.domain FROM holdings h JOIN members m ON m.domain = h.domain AND NOT m.removed"
            " WHERE h.feed_id = ? AND h.seq >= ?",
            store_id, position.seq,
        )  # fmt: skip
        owner = self.store(store_id).owner
        return [owner, *(str(domain) for (domain,) in rows if domain != owner)]

    def hosted_bytes(self, domain: str) -> int:
        """Plain bytes of all live versions placed on a member by others."""
        row = self._one(
            "SELECT coalesce(sum(v.size_bytes), 0) FROM placements p JOIN versions v USING (feed_id, version_id)"
            " JOIN datastores d USING (feed_id) WHERE p.domain = ? AND d.owner <> ? AND NOT v.released",
            domain, domain,
        )  # fmt: skip
        return as_int(row[0]) if row else 0

    def usage(self, store_id: bytes) -> tuple[int, int]:
        """(files, plain bytes) of a DataStore that is readable here; (0, 0) of others."""
        row = self._one(
            "SELECT count(*), coalesce(sum(i.size_bytes), 0) FROM inodes i JOIN feeds f ON f.tree = i.store"
            " WHERE f.feed_id = ? AND (i.mode & ?) = ?",
            store_id, stat.S_IFMT(0xFFFF), stat.S_IFREG,
        )  # fmt: skip
        return (as_int(row[0]), as_int(row[1])) if row else (0, 0)


def as_int(value: object) -> int:
    assert isinstance(value, int)
    return value


@lru_cache(maxsize=256)
def _certificate(der: bytes) -> x509.Certificate:
    """Members' CAs are asked for at every change, and hardly ever change themselves."""
    return x509.load_der_x509_certificate(der)


def as_bytes(value: object) -> bytes:
    assert isinstance(value, bytes)
    return value
