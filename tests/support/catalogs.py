"""Members with real keys and real catalogues, in one process, with a clock that stands still."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from collective.catalog import Catalog, FolderHeadKeeper, Gap, OwnKeys, member_feed_id
from collective.core.address import FederatedAddress
from collective.core.clock import ManualClock
from collective.core.errors import Conflict, NotFound
from collective.identity import MemberAuthority, RootAuthority, generate_signing_key, generate_wrapping_key
from collective.wire import control_pb2, feed_pb2

FEDERATION = "media.collective"


def operation_id(writer: str = "test") -> feed_pb2.OperationId:
    return feed_pb2.OperationId(writer=writer, random=os.urandom(16))


@dataclass
class TestFederation:
    """Catalogues by member name; the first is the root holder."""

    __test__ = False
    root: Path
    clock: ManualClock = field(default_factory=ManualClock)
    catalogs: dict[str, Catalog] = field(default_factory=dict)
    keys: dict[str, OwnKeys] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.authority = RootAuthority.create(FEDERATION, self.clock.wall())

    def add(self, name: str) -> Catalog:
        """A member: admitted, its signing key and card in its feed, known to all."""
        domain = f"{name}.{FEDERATION}"
        now = self.clock.wall()
        ca_key, request = MemberAuthority.create_request(domain)
        ca = self.authority.sign_member(domain, request, now)
        signing = generate_signing_key()
        certificate = MemberAuthority(ca, ca_key, self.authority.certificate).issue_signing(signing.public_key(), now)
        root_key = self.authority.key if not self.catalogs else None
        own = OwnKeys(
            domain, signing, certificate, generate_wrapping_key(), root_key, FederatedAddress("coord", domain)
        )
        self.keys[name] = own
        catalog = self.catalogs[name] = self.open(name)
        founder = next(iter(self.catalogs.values()))
        der = ca.public_bytes(Encoding.DER)
        admission = feed_pb2.AdmitMember(
            member_domain=domain, ca_certificate=der, generation=1, member_feed_id=member_feed_id(der)
        )
        founder.append_root([feed_pb2.RootOperation(id=operation_id(), admit_member=admission)])
        if catalog is not founder:
            self.pull(founder, catalog)
        catalog.append_member(
            [
                feed_pb2.MemberOperation(
                    id=operation_id(),
                    signing_key=feed_pb2.SigningKey(certificate=certificate.public_bytes(Encoding.DER)),
                ),
                feed_pb2.MemberOperation(
                    id=operation_id(),
                    card=feed_pb2.Card(wrapping_key=own.wrapping_key.public_key().public_bytes_raw()),
                ),
            ]
        )
        self.sync()
        return catalog

    def folder(self, name: str) -> Path:
        return self.root / name

    def open(self, name: str) -> Catalog:
        """A member's catalogue over its folder, made when it is not there."""
        folder = self.folder(name)
        folder.mkdir(parents=True, exist_ok=True)
        return Catalog(
            folder / "catalog.db",
            federation_domain=FEDERATION,
            root_certificate=self.authority.certificate,
            own=self.keys[name],
            heads=FolderHeadKeeper([folder / "heads"]),
            clock=self.clock,
        )

    def pull(self, source: Catalog, target: Catalog) -> int:
        """Everything the target may follow and lacks, in order; how many entries."""
        count = 0
        for feed in source.in_dependency_order(source.feeds_for(target.own_domain, self.clock.wall())):
            have = target.heads()
            for entry in source.entries_beyond(feed, have.get(feed)):
                count += target.receive(entry)
        return count

    def pull_from(self, source: str, target: str) -> bool:
        """One whole answer of `source` to `target`, as the streams give it, with what is handed back; whether it moved.

        A gap or a foreign entry ends the answer, as it ends a stream; it is asked anew next time.
        """
        asked, asking = self.catalogs[source], self.catalogs[target]
        moved = False
        try:
            moved = self.pull(asked, asking) > 0
        except Gap:
            return True
        except (Conflict, NotFound):
            return False
        if asked.own_domain not in asking.hearing.answered:
            asking.hearing.answered.add(asked.own_domain)
            moved = True
        for parcel in asking.parcels():
            if parcel.owner == asked.own_domain:
                try:
                    for entry in parcel.entries:
                        asked.take_handed_back(entry)
                except NotFound:
                    continue  # it does not know its own feeds yet: the call fails and is made again
                asking.note_handed_over(parcel)
                moved = True
        return moved

    def exchange(self, *names: str) -> None:
        """Let those homes alone pull from each other, with background care, until nothing moves."""
        moved = True
        while moved:
            moved = False
            for target in names:
                for source in names:
                    if source != target:
                        moved = self.pull_from(source, target) or moved
                moved = self.catalogs[target].tend(self.clock.wall()) or moved

    def saved_database(self, name: str) -> dict[str, bytes]:
        """A copy of a home's database as it is now, as a backup would have it."""
        self.catalogs[name].close()
        saved = {path.name: path.read_bytes() for path in self.folder(name).glob("catalog.db*")}
        self.restart(name)
        return saved

    def restart(self, name: str, database: dict[str, bytes] | None = None, *without: str) -> Catalog:
        """Stop and start a home; with `database` given, on that older copy ({}: on none)."""
        self.catalogs[name].close()
        if database is not None:
            for path in self.folder(name).glob("catalog.db*"):
                path.unlink()
            for file_name, content in database.items():
                (self.folder(name) / file_name).write_bytes(content)
        catalog = self.catalogs[name] = self.open(name)
        catalog.hearing.excused.update(f"{other}.{FEDERATION}" for other in without)
        return catalog

    def sync(self) -> None:
        """Pull between all, with background care, until nothing moves."""
        moved = True
        while moved:
            moved = False
            for target in self.catalogs.values():
                for source in self.catalogs.values():
                    if source is not target:
                        moved = self.pull(source, target) > 0 or moved
                moved = target.tend(self.clock.wall()) or moved

    def close(self) -> None:
        for catalog in self.catalogs.values():
            catalog.close()


def put(catalog: Catalog, path: bytes, data: bytes = b"content", **more: object) -> feed_pb2.Position:
    """A small file; what stands there is what was expected."""
    standing = catalog.find(path)
    request = control_pb2.PutFile(
        path=path,
        mode=0o644,
        content=feed_pb2.Content(size_bytes=len(data), inline=data),
        make_parents=True,
        expected_inode=standing.number if standing else 0,
        expected_version_id=(standing.version_id or b"") if standing else b"",
    )
    return catalog.put_file(operation_id(), request, "client@alice.media.collective")


def tree_of(catalog: Catalog) -> dict[bytes, tuple[int, int, int, int, int]]:
    """Path -> (ino, mode, size, mtime, links) of everything readable."""
    found: dict[bytes, tuple[int, int, int, int, int]] = {}
    waiting = [(b"", catalog.root())]
    while waiting:
        path, node = waiting.pop()
        for name, child in catalog.list(node.ino):
            found[path + b"/" + name] = (child.ino, child.mode, child.size_bytes, child.mtime_ns, child.link_count)
            if child.is_directory and child.readable:
                waiting.append((path + b"/" + name, child))
    return found


DERIVED = {
    "members": "SELECT domain, roster_order, generation, ca, feed_id, removed FROM members",
    "signing_keys": "SELECT * FROM signing_keys",
    "cards": "SELECT * FROM cards",
    "datastores": "SELECT * FROM datastores",
    "grants": "SELECT * FROM grants",
    "wraps": "SELECT * FROM wraps",
    "versions": "SELECT * FROM versions",
    "placements": "SELECT * FROM placements",
    "holdings": "SELECT * FROM holdings",
    "holding_exceptions": "SELECT * FROM holding_exceptions",
    "inodes": "SELECT f.feed_id, i.number, i.mode, i.uid, i.gid, i.rdev, i.link_count, i.size_bytes, i.mtime_ns,"
    " i.ctime_ns, i.atime_ns, i.symlink_target, i.version_id, i.content FROM inodes i JOIN feeds f ON f.tree = i.store",
    "links": "SELECT f.feed_id, l.parent, l.name, l.inode FROM links l JOIN feeds f ON f.tree = l.store",
    "creators": "SELECT f.feed_id, i.number, i.creator, i.content_change, i.content_actor, i.provisional FROM inodes i"
    " JOIN feeds f ON f.tree = i.store",
    "history": "SELECT f.feed_id, h.inode, h.change, h.content, h.version_id, h.size_bytes, h.mtime_ns, h.actor,"
    " h.replaced_change, h.replaced_ns, h.removed FROM history h JOIN feeds f ON f.tree = h.store",
    "gone": "SELECT f.feed_id, g.inode, g.parent, g.name, g.change FROM gone g JOIN feeds f ON f.tree = g.store",
    "number_leases": "SELECT f.feed_id, n.first, n.count, n.domain FROM number_leases n"
    " JOIN feeds f ON f.tree = n.store",
    "xattrs": "SELECT f.feed_id, x.inode, x.name, x.value FROM xattrs x JOIN feeds f ON f.tree = x.store",
    "numbers": "SELECT f.feed_id, n.next_number FROM store_numbers n JOIN feeds f ON f.tree = n.store",
    "operations": "SELECT o.writer, o.random, f.feed_id, o.seq FROM operations o JOIN feeds f ON f.id = o.feed",
    "refused": "SELECT f.feed_id, r.seq, r.number, r.reason FROM refused_operations r JOIN feeds f ON f.id = r.feed",
    "snapshots": "SELECT f.feed_id, s.base_seq, s.seq, s.public_version, s.sealed_version FROM snapshots s"
    " JOIN feeds f ON f.id = s.feed",
    "epochs": "SELECT f.feed_id, e.number, e.epoch_id, e.first_seq FROM epochs e JOIN feeds f ON f.id = e.feed",
    "feeds": "SELECT feed_id, kind, owner, epoch_number, epoch_id, seq, hash, lamport, opened_seq, forked FROM feeds",
}


def state_of(catalog: Catalog) -> dict[str, list[tuple[object, ...]]]:
    """Every derived table, by feed ids, so that two catalogues can be compared."""
    return {name: sorted(catalog._all(query), key=repr) for name, query in DERIVED.items()}


def rebuild(federation: TestFederation, catalog: Catalog, folder: Path) -> Catalog:
    """A fresh catalogue that applies the very entries, with the keys that the live one has.

    Own feeds are applied as they were written: through the same `_apply`, since `receive` refuses foreign own entries.
    """
    folder.mkdir(parents=True)
    fresh = Catalog(
        folder / "catalog.db",
        federation_domain=FEDERATION,
        root_certificate=federation.authority.certificate,
        own=catalog.own,
        heads=FolderHeadKeeper([folder / "heads"]),
        clock=federation.clock,
    )
    from collective.catalog.entry import parse_entry

    with fresh.change() as connection:
        for name, feed_id, key in catalog._all("SELECT name, feed_id, key FROM keys"):
            connection.execute("INSERT INTO keys VALUES (?, ?, ?)", (name, feed_id, key))
        for feed in catalog.in_dependency_order(catalog.heads()):
            (rows) = catalog._all(
                "SELECT e.entry FROM entries e JOIN feeds f ON f.id = e.feed WHERE f.feed_id = ? ORDER BY e.seq", feed
            )
            for (raw,) in rows:
                assert isinstance(raw, bytes)
                fresh._apply(connection, parse_entry(raw))
    return fresh
