"""Asking the catalogue: names, contents, members, grants, holders. Never changes anything.

The mount and the commands open the database with this while the coordinator writes to it; each thread has its own
connection. Names are always answered from here, whoever is away.
"""

from __future__ import annotations

import sqlite3
import stat
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from cryptography import x509

from collective.catalog.database import database_error, open_for_reading
from collective.catalog.entry import parse_entry
from collective.catalog.models import DataStore, Inline, Member, Node, VersionReference
from collective.catalog.namespace import NUMBER_BITS, ROOT_INO, Joined, join
from collective.catalog.permissions import Verdict, judge, path_covers
from collective.catalog.tree import ROOT_NUMBER
from collective.core.address import FederatedAddress, parse_address
from collective.core.errors import Corrupt, NotFound, Refused
from collective.wire import feed_pb2

__all__ = ["Reader"]

_NODE_COLUMNS = (
    "i.number, i.mode, i.uid, i.gid, i.size_bytes, i.mtime_ns, i.ctime_ns, i.atime_ns, i.link_count,"
    " i.symlink_target, i.version_id, i.rdev"
)


class Reader:
    """The catalogue as one home has it. Thread-safe."""

    def __init__(self, path: Path, own_domain: str) -> None:
        self.path = path
        self.own_domain = own_domain
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._connections_lock = threading.Lock()
        self._joined: tuple[int, Joined] | None = None

    @classmethod
    def open(cls, path: Path, own_domain: str) -> Reader:
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

    def change_counter(self) -> int:
        """Grows with every applied entry."""
        row = self._one("SELECT value FROM meta WHERE key = 'changes'")
        return _int(row[0]) if row else 0

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
                ca_certificate=x509.load_der_x509_certificate(_bytes(ca)),
                generation=_int(generation),
                feed_id=_bytes(feed_id),
                removed=bool(removed),
                card=feed_pb2.Card.FromString(_bytes(card)) if card is not None else None,
                signing_certificate=_bytes(certificate) if certificate is not None else None,
            )
            for domain, ca, generation, feed_id, removed, card, certificate in rows
        ]

    def datastores(self) -> list[DataStore]:
        """All that are not deleted, the first ones first."""
        rows = self._all(
            "SELECT d.feed_id, d.owner, d.lamport, d.definition, f.id, k.name FROM datastores d"
            " LEFT JOIN members m ON m.domain = d.owner LEFT JOIN feeds f ON f.feed_id = d.feed_id"
            " LEFT JOIN keys k ON k.feed_id = d.feed_id GROUP BY d.feed_id"
            " ORDER BY d.lamport, m.roster_order, d.feed_id"
        )
        stores = []
        for feed_id, owner, lamport, definition_bytes, number, _ in rows:
            definition = feed_pb2.DataStoreDefinition.FromString(_bytes(definition_bytes))
            if definition.deleted:
                continue
            stores.append(
                DataStore(
                    feed_id=_bytes(feed_id),
                    path=definition.path,
                    owner=str(owner),
                    strategy=definition.strategy,
                    replicas=definition.replicas,
                    hosts=tuple(definition.hosts),
                    key_name=definition.key_name,
                    inode_prefix=definition.inode_prefix,
                    metadata=dict(definition.metadata),
                    readable=number is not None and self.store_key(definition.key_name) is not None,
                    store_number=_int(number) if number is not None else 0,
                    lamport=_int(lamport),
                )
            )
        return stores

    def store(self, store_id: bytes) -> DataStore:
        """Raises: NotFound."""
        for store in self.datastores():
            if store.feed_id == store_id:
                return store
        raise NotFound("there is no such DataStore here")

    def datastore_at(self, path: bytes, owner: str | None = None) -> tuple[DataStore, bytes]:
        """The DataStore a path lies in and the rest of the path (b"" for itself). Raises: NotFound."""
        joined = self._namespace()
        best: tuple[int, DataStore, bytes] | None = None
        for store in self.datastores():
            shown = store.path if owner is not None else joined.shown.get(store.feed_id, store.path)
            if owner not in (None, store.owner) or not path_covers(shown, path):
                continue
            if best is None or len(shown) > best[0]:
                best = (len(shown), store, path[len(shown) :].strip(b"/"))
        if best is None:
            shown_path = path.decode(errors="replace")
            raise NotFound(
                f"{shown_path} lies in no DataStore" + (f" of {owner}" if owner else ""),
                f"make one: collective datastore create {shown_path.rsplit('/', 1)[0] or shown_path}",
            )
        return best[1], best[2]

    def grants(self, store_id: bytes) -> list[feed_pb2.Grant]:
        """The grants that count for a DataStore, ended ones included."""
        store = self.store(store_id)
        return [grant for grant in self._grants_of(store.owner) if path_covers(grant.path, store.path)]

    def _grants_of(self, owner: str) -> list[feed_pb2.Grant]:
        rows = self._all("SELECT grant_ FROM grants WHERE owner = ? ORDER BY seq, id", owner)
        return [feed_pb2.Grant.FromString(_bytes(row[0])) for row in rows]

    def may(
        self, subject: FederatedAddress | str, right: int, store_id: bytes, sub_path: bytes = b"", *, now: float
    ) -> Verdict:
        """Whether a component or member has a right in a DataStore. `now` in seconds since 1970."""
        try:
            store = self.store(store_id)
        except NotFound as error:
            return Verdict(False, error.message)
        address = parse_address(subject) if isinstance(subject, str) else subject
        removed = self._one("SELECT removed FROM members WHERE domain = ?", address.domain)
        return judge(
            self._grants_of(store.owner),
            owner=store.owner,
            store_path=store.path + (b"/" + sub_path if sub_path else b""),
            subject=address,
            right=right,
            now=now,
            removed=bool(removed and removed[0]),
        )

    def store_key(self, key_name: bytes) -> bytes | None:
        """A DataStore key by its name, None when this home does not hold it."""
        row = self._one("SELECT key FROM keys WHERE name = ?", key_name)
        return _bytes(row[0]) if row else None

    # ------------------------------------------------------------ feeds

    def heads(self) -> dict[bytes, feed_pb2.Position]:
        """Feed id -> head, of every feed that is followed here."""
        rows = self._all("SELECT feed_id, epoch_number, epoch_id, seq, hash FROM feeds WHERE seq > 0")
        return {
            _bytes(feed): feed_pb2.Position(
                epoch_number=_int(number), epoch_id=_bytes(epoch), seq=_int(seq), hash=_bytes(hash_)
            )
            for feed, number, epoch, seq, hash_ in rows
        }

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
            entry = _bytes(raw)
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
        feeds = {_bytes(feed) for (feed,) in self._all("SELECT feed_id FROM feeds WHERE kind IN ('root', 'member')")}
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
        return [_bytes(feed) for (feed,) in rows if feed in wanted]

    # ------------------------------------------------------------ versions and holders

    def layout(self, store_id: bytes, version_id: bytes) -> feed_pb2.Layout:
        """Raises: NotFound."""
        row = self._one("SELECT layout FROM versions WHERE feed_id = ? AND version_id = ?", store_id, version_id)
        if row is None:
            raise NotFound("there is no such version here")
        return feed_pb2.Layout.FromString(_bytes(row[0]))

    def page(self, name: bytes) -> bytes | None:
        """A page by its name, None when it is not here."""
        row = self._one("SELECT page FROM pages WHERE name = ?", name)
        return _bytes(row[0]) if row else None

    def placed_members(self, store_id: bytes, version_id: bytes) -> list[str]:
        """Who shall hold a version, in order."""
        rows = self._all(
            "SELECT domain FROM placements WHERE feed_id = ? AND version_id = ? ORDER BY rank", store_id, version_id
        )
        return [str(domain) for (domain,) in rows]

    def holders(self, store_id: bytes, version_id: bytes) -> list[str]:
        """Who holds a version: placed there, and stated; the owner by the very entry that names it."""
        rows = self._all(
            "SELECT p.domain FROM placements p JOIN versions v USING (feed_id, version_id)"
            " JOIN datastores d USING (feed_id) JOIN members m ON m.domain = p.domain AND NOT m.removed"
            " LEFT JOIN holdings h ON h.feed_id = p.feed_id AND h.domain = p.domain"
            " LEFT JOIN holding_exceptions x ON x.feed_id = p.feed_id AND x.domain = p.domain"
            " AND x.version_id = p.version_id"
            " WHERE p.feed_id = ? AND p.version_id = ? AND x.version_id IS NULL"
            " AND (p.domain = d.owner OR h.seq >= v.seq) ORDER BY p.rank",
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
        return _int(row[0]) if row else 0

    def usage(self, store_id: bytes) -> tuple[int, int]:
        """(files, plain bytes) of a DataStore that is readable here; (0, 0) of others."""
        row = self._one(
            "SELECT count(*), coalesce(sum(i.size_bytes), 0) FROM inodes i JOIN feeds f ON f.id = i.store"
            " WHERE f.feed_id = ? AND (i.mode & ?) = ?",
            store_id, stat.S_IFMT(0xFFFF), stat.S_IFREG,
        )  # fmt: skip
        return (_int(row[0]), _int(row[1])) if row else (0, 0)

    # ------------------------------------------------------------ the joined tree

    def _namespace(self) -> Joined:
        counter = self.change_counter()
        cached = self._joined
        if cached is None or cached[0] != counter:
            cached = self._joined = (counter, join(self.datastores(), self._walk))
        return cached[1]

    def _walk(self, store: DataStore, names: Sequence[bytes]) -> tuple[int, int]:
        """How many of the names exist as directories in a store, and the ino of the last one."""
        number, depth = ROOT_NUMBER, 0
        for name in names:
            row = self._one(
                "SELECT l.inode, i.mode FROM links l JOIN inodes i ON i.store = l.store AND i.number = l.inode"
                " WHERE l.store = ? AND l.parent = ? AND l.name = ?",
                store.store_number, number, name,
            )  # fmt: skip
            if row is None or not stat.S_ISDIR(_int(row[1])):
                break
            number, depth = _int(row[0]), depth + 1
        return depth, store.inode_prefix << NUMBER_BITS | number

    def root(self) -> Node:
        """The top of the joined tree."""
        return self._synthetic(ROOT_INO)

    def _synthetic(self, ino: int) -> Node:
        return Node(
            ino=ino, mode=stat.S_IFDIR | 0o555, uid=0, gid=0, size_bytes=0, mtime_ns=0, ctime_ns=0, atime_ns=0,
            link_count=2, symlink_target=None, store_id=None, number=0, owner="",
        )  # fmt: skip

    def get(self, ino: int) -> Node:
        """Raises: NotFound."""
        joined = self._namespace()
        if ino in joined.synthetic:
            return self._synthetic(ino)
        store = self._store_of(ino, joined)
        if not store.readable:
            return self._unreadable(store)
        row = self._one(
            f"SELECT {_NODE_COLUMNS} FROM inodes i WHERE i.store = ? AND i.number = ?",
            store.store_number, ino & ((1 << NUMBER_BITS) - 1),
        )  # fmt: skip
        if row is None:
            raise NotFound("there is no such file any more")
        return _node(store, row)

    def _store_of(self, ino: int, joined: Joined) -> DataStore:
        store = joined.roots.get((ino >> NUMBER_BITS) << NUMBER_BITS | ROOT_NUMBER)
        if store is None:
            raise NotFound("there is no such file any more")
        return store

    def _unreadable(self, store: DataStore) -> Node:
        return Node(
            ino=store.inode_prefix << NUMBER_BITS | ROOT_NUMBER, mode=stat.S_IFDIR, uid=0, gid=0, size_bytes=0,
            mtime_ns=0, ctime_ns=0, atime_ns=0, link_count=2, symlink_target=None, store_id=store.feed_id,
            number=ROOT_NUMBER, owner=store.owner, readable=False,
        )  # fmt: skip

    def lookup(self, parent_ino: int, name: bytes) -> Node:
        """Raises: NotFound; Refused below a DataStore that is not readable here."""
        joined = self._namespace()
        standing = joined.children.get(parent_ino, {}).get(name)
        if standing is not None:
            return self.get(standing)
        if parent_ino in joined.synthetic:
            raise NotFound(f"there is no {name.decode(errors='replace')}")
        store = self._readable_store(parent_ino, joined)
        row = self._one(
            f"SELECT {_NODE_COLUMNS} FROM links l JOIN inodes i ON i.store = l.store AND i.number = l.inode"
            " WHERE l.store = ? AND l.parent = ? AND l.name = ?",
            store.store_number, parent_ino & ((1 << NUMBER_BITS) - 1), name,
        )  # fmt: skip
        if row is None:
            raise NotFound(f"there is no {name.decode(errors='replace')}")
        return _node(store, row)

    def list(self, ino: int, after: bytes = b"", limit: int = 1000) -> list[tuple[bytes, Node]]:
        """A page of a directory: names above `after` in byte order. Raises: NotFound, Refused."""
        joined = self._namespace()
        inside = joined.children.get(ino, {})
        found = [(name, self.get(child)) for name, child in inside.items() if name > after]
        if ino not in joined.synthetic:
            store = self._readable_store(ino, joined)
            rows = self._all(
                f"SELECT {_NODE_COLUMNS}, l.name FROM links l JOIN inodes i ON i.store = l.store"
                " AND i.number = l.inode WHERE l.store = ? AND l.parent = ? AND l.name > ? ORDER BY l.name LIMIT ?",
                store.store_number, ino & ((1 << NUMBER_BITS) - 1), after, limit,
            )  # fmt: skip
            found += [(_bytes(row[-1]), _node(store, row[:-1])) for row in rows if row[-1] not in inside]
        return sorted(found, key=lambda pair: pair[0])[:limit]

    def _readable_store(self, ino: int, joined: Joined) -> DataStore:
        store = self._store_of(ino, joined)
        if not store.readable:
            raise Refused(
                f"{store.path.decode(errors='replace')} of {store.owner} cannot be read from here",
                f"{store.owner} gives it: collective datastore grant {store.path.decode(errors='replace')} read …",
            )
        return store

    def find(self, path: bytes, owner: str | None = None) -> Node | None:
        """The node at a path, None when nothing is there. Raises: Refused."""
        try:
            return self.resolve(path, owner)
        except NotFound:
            return None

    def resolve(self, path: bytes, owner: str | None = None) -> Node:
        """The node at a path of the joined tree, or of one owner's DataStores. Raises: NotFound, Refused."""
        node = self.root()
        names = [name for name in path.split(b"/") if name]
        if owner is not None:
            store, rest = self.datastore_at(path, owner)
            node = self.get(store.inode_prefix << NUMBER_BITS | ROOT_NUMBER)
            names = [name for name in rest.split(b"/") if name]
        for name in names:
            if not node.is_directory:
                raise NotFound(f"there is no {path.decode(errors='replace')}")
            try:
                node = self.lookup(node.ino, name)
            except NotFound:
                raise NotFound(f"there is no {path.decode(errors='replace')}") from None
        return node

    def content(self, node: Node) -> Inline | VersionReference:
        """Where a file's content is. Raises: NotFound."""
        row = self._one(
            "SELECT i.content FROM inodes i JOIN feeds f ON f.id = i.store WHERE f.feed_id = ? AND i.number = ?",
            node.store_id, node.number,
        )  # fmt: skip
        if row is None:
            raise NotFound("there is no such file any more")
        if row[0] is None:
            return Inline(b"")
        content = feed_pb2.Content.FromString(_bytes(row[0]))
        if not content.version_id:
            return Inline(content.inline)
        assert node.store_id is not None
        return VersionReference(
            node.store_id, content.version_id, content.size_bytes, tuple(content.key_pages), content.key_name
        )


def _node(store: DataStore, row: Sequence[object]) -> Node:
    number, mode, uid, gid, size, mtime, ctime, atime, links, target, version, rdev = row
    return Node(
        ino=store.inode_prefix << NUMBER_BITS | _int(number),
        mode=_int(mode), uid=_int(uid), gid=_int(gid), size_bytes=_int(size), mtime_ns=_int(mtime),
        ctime_ns=_int(ctime), atime_ns=_int(atime), link_count=_int(links),
        symlink_target=_bytes(target) if target is not None else None,
        store_id=store.feed_id, number=_int(number), owner=store.owner,
        version_id=_bytes(version) if version is not None else None, rdev=_int(rdev),
    )  # fmt: skip


def _int(value: object) -> int:
    assert isinstance(value, int)
    return value


def _bytes(value: object) -> bytes:
    assert isinstance(value, bytes)
    return value
