"""Where changes are committed: the owner's side of writing (docs/protocol/staging.md).

`commit_operations` takes changes as they were staged, from the own mounts and commands and from other members, and puts
everything that can be applied into one entry (a very large batch: into a few, in one transaction). Each is judged
against the tree as those before it left it: absorbed already, allowed, numbered rightly, and as its writer expected;
what does not fit is settled by catalog/conflicts. An id is absorbed once: sending twice changes nothing.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from collective.catalog.conflicts import Kept, Repair
from collective.catalog.entry import operation_hash
from collective.catalog.facts import as_bytes, as_int
from collective.catalog.ledger import Ledger
from collective.catalog.models import DataStore
from collective.catalog.numbers import block_in_gap, leased_to, was_lost
from collective.catalog.obstacles import View, find_obstacle, numbers_of
from collective.catalog.overlay import Overlay
from collective.catalog.placements import put_pages
from collective.catalog.rights import WritersRights
from collective.catalog.tree import MAX_NUMBER
from collective.core.errors import NotFound, Refused
from collective.core.layout import MAX_CHUNK_SIZE_BYTES, VersionLayout, sealed_size
from collective.core.sizes import KIB
from collective.wire import feed_pb2, submit_pb2

__all__ = [
    "Batch",
    "ChooseMembers",
    "Conflict",
    "commit_operations",
    "committed_at",
    "list_conflicts",
    "writer_and_owner",
]

# (DataStore, version id, sealed bytes, writer's member domain) -> who shall hold it, the writer first
ChooseMembers = Callable[[DataStore, bytes, int, str], Sequence[str]]

MAX_ENTRY_CHANGES = 1000  # of an entry's 1,024 operations …
MAX_ENTRY_CHANGE_BYTES = 900 * KIB  # … and of its 1 MiB
ID_BYTES = 16
MAX_CONFLICTS = 10_000  # that are remembered for the report
MAX_REPAIRS = 4  # content, then folder, then name: no change needs more

Outcome = submit_pb2.OperationOutcome


@dataclass(frozen=True)
class Conflict:
    """A change that was kept under another name; paths within the DataStore."""

    at_milliseconds: int
    store_id: bytes
    writer: str
    wanted: bytes
    kept: bytes
    reason: str


def writer_and_owner(store: DataStore, version_id: bytes, sealed_bytes: int, writer: str) -> list[str]:
    """The least placement: whoever wrote it, and the owner."""
    return list(dict.fromkeys([writer, store.owner]))


def commit_operations(
    ledger: Ledger,
    store_id: bytes,
    staged: Sequence[submit_pb2.StagedOperation],
    *,
    actor_domain: str,
    now: float,
    exact: bool,
    choose_members: ChooseMembers = writer_and_owner,
) -> tuple[list[Outcome], feed_pb2.Position | None]:
    """Commit changes of one member to an own DataStore, in order; one outcome each, and the position of the last.

    `actor_domain` is the member that sends them: it must be the writer of every id. `now` in seconds since 1970. Exact:
    what no longer holds is not done (MISSED). Pages are kept under the names that their layouts give them: the caller
    has checked that they have those hashes. The position is None when nothing of it is in the feed.
    Raises: Refused (not the owner here), NotFound, Misconfigured (in doubt), Full.
    """
    with ledger.change():
        store = ledger.store(store_id)
        if store.owner != ledger.own_domain:
            raise Refused(f"{store.owner} orders the changes of that DataStore")
        ledger.check_not_in_doubt(store_id)
        batch = Batch(ledger, store, actor_domain, now, exact, choose_members)
        outcomes = [batch.take(one) for one in staged]
        return outcomes, batch.append()


def committed_at(ledger: Ledger, id_: feed_pb2.OperationId) -> feed_pb2.Position | None:
    """The entry that carries an operation already."""
    if ledger._one("SELECT 1 FROM operations WHERE writer = ? AND random = ?", id_.writer, id_.random) is None:
        return None
    row = ledger._one(
        "SELECT f.epoch_number, f.epoch_id, o.seq, coalesce(e.hash, x'') FROM operations o"
        " JOIN feeds f ON f.id = o.feed LEFT JOIN entries e ON e.feed = o.feed AND e.seq = o.seq"
        " WHERE o.writer = ? AND o.random = ?",
        id_.writer, id_.random,
    )  # fmt: skip
    if row is None:
        return None
    return feed_pb2.Position(
        epoch_number=as_int(row[0]), epoch_id=as_bytes(row[1]), seq=as_int(row[2]), hash=as_bytes(row[3])
    )


def list_conflicts(ledger: Ledger, limit: int = 100) -> list[Conflict]:
    """The newest conflicts in own DataStores, newest first."""
    rows = ledger._all(
        "SELECT at_ms, feed_id, writer, wanted, kept, reason FROM conflicts ORDER BY number DESC LIMIT ?", limit
    )
    return [
        Conflict(as_int(at), as_bytes(feed), str(writer), as_bytes(wanted), as_bytes(kept), str(reason))
        for at, feed, writer, wanted, kept, reason in rows
    ]


@dataclass
class _Part:
    """What will be one entry."""

    operations: list[feed_pb2.TreeOperation] = field(default_factory=list)
    layouts: list[feed_pb2.Layout] = field(default_factory=list)
    leases: list[feed_pb2.NumberLease] = field(default_factory=list)
    size_bytes: int = 0


class Batch:
    """The changes of one call, laid over the tree one after the other, gathered into entries."""

    def __init__(
        self, ledger: Ledger, store: DataStore, domain: str, now: float, exact: bool, choose_members: ChooseMembers
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._domain = domain
        self._now = now
        self._exact = exact
        self._choose_members = choose_members
        self._view = View(Overlay(ledger.applied()), store)
        self._rights = WritersRights(ledger, self._view, domain, now)
        self._repair = Repair(ledger, self._view, domain, now)
        self._numbers = leased_to(ledger, store.store_number, domain)
        self._parts = [_Part()]
        self._pages: dict[bytes, bytes] = {}
        self._absorbed: feed_pb2.Position | None = None
        self._here: set[bytes] = set()
        self._had_conflicts = False

    # ------------------------------------------------------------ one change

    def take(self, staged: submit_pb2.StagedOperation) -> Outcome:
        """Judge one change and, when it can be applied, take it up."""
        id_ = staged.operation.id
        if id_.writer != self._domain or len(id_.random) != ID_BYTES:
            return _refused("a change carries the id of another writer", errno.EACCES)
        if any(number >= MAX_NUMBER for number in numbers_of(staged.operation)):
            return _refused("a number that no inode can have", errno.EINVAL)
        if id_.random in self._here:
            return Outcome(outcome=submit_pb2.APPLIED)
        position = committed_at(self._ledger, id_)
        if position is not None:
            self._absorbed = position
            return self._told_before(id_)
        operation = feed_pb2.TreeOperation()
        operation.CopyFrom(staged.operation)
        kept: Kept | None = None
        for attempt in range(MAX_REPAIRS + 1):
            obstacle = find_obstacle(self._view, operation)
            if obstacle is None:
                break
            if self._repair.follow_detour(operation):
                continue
            if self._exact:
                return Outcome(outcome=submit_pb2.MISSED, reason=obstacle.reason, errno=obstacle.errno)
            again = self._repair.repair(operation, obstacle) if attempt < MAX_REPAIRS else None
            if again is None:
                return _refused(obstacle.reason, obstacle.errno)
            kept = again if kept is None else Kept(kept.wanted, again.parent, again.name, kept.reason)
        return self._accept(staged, operation, kept)

    def _accept(
        self, staged: submit_pb2.StagedOperation, operation: feed_pb2.TreeOperation, kept: Kept | None
    ) -> Outcome:
        refusal = self.not_allowed(operation, numbered_by_writer=kept is None)
        if refusal:
            return _refused(refusal, errno.EACCES)
        layout = self.layout_for(staged, operation)
        if isinstance(layout, str):
            return _refused(layout, errno.EINVAL)
        reason = self._view.overlay.apply(len(self._here), self._store, operation, int(self._now * 1e9))
        if reason:
            return _refused(reason, errno.EINVAL)
        self._here.add(operation.id.random)
        self._add(operation, layout)
        if layout is not None:
            self._pages.update(zip([*layout.pages, *layout.key_pages], [*staged.pages, *staged.key_pages], strict=True))
        if kept is None:
            return Outcome(outcome=submit_pb2.APPLIED)
        self._record(operation.id, kept)
        return Outcome(outcome=submit_pb2.CONFLICT, reason=kept.reason, name=kept.name)

    def not_allowed(self, operation: feed_pb2.TreeOperation, *, numbered_by_writer: bool) -> str:
        """Why the writer may not make this change, which fits the tree; "" when it may."""
        refusal = self._rights.check(operation)
        if not refusal and operation.HasField("create") and numbered_by_writer:
            number = operation.create.inode
            leased = any(number in block for block in self._numbers) or self._lease_from_gap(number)
            if not leased and not was_lost(self._ledger, self._store.store_number, number):
                return "an inode number that was not leased to the writer"
        return refusal

    def _lease_from_gap(self, number: int) -> bool:
        """What this home numbered in doubt becomes its own by the entry that uses it (catalog/numbers)."""
        if self._domain != self._store.owner:
            return False
        lease = block_in_gap(self._ledger, self._store.store_number, number)
        if lease is None:
            return False
        self._numbers.append(range(lease.first, lease.first + lease.count))
        self._parts[-1].leases.append(lease)
        return True

    def layout_for(
        self, staged: submit_pb2.StagedOperation, operation: feed_pb2.TreeOperation
    ) -> feed_pb2.Layout | str | None:
        """The layout to go with a change, None when it needs none, or why it cannot be."""
        change = operation.WhichOneof("change")
        content = getattr(operation, change).content if change in ("create", "set_content") else feed_pb2.Content()
        if not content.version_id:
            return None
        if not staged.HasField("layout"):
            known = self._known_layout(content.version_id)
            return None if known is not None and known.size_bytes == content.size_bytes else "its layout is missing"
        layout = feed_pb2.Layout()
        layout.CopyFrom(staged.layout)
        if (layout.version_id, layout.size_bytes) != (content.version_id, content.size_bytes):
            return "the layout is that of another content"
        if len(layout.pages) != len(staged.pages) or len(layout.key_pages) != len(staged.key_pages):
            return "the layout's pages are missing"
        if not 0 < layout.chunk_size_bytes <= MAX_CHUNK_SIZE_BYTES:
            return "the layout has no chunk size"
        sealed = _sealed_bytes(VersionLayout(layout.size_bytes, layout.chunk_size_bytes))
        members = self._choose_members(self._store, layout.version_id, sealed, self._domain)
        layout.members[:] = list(dict.fromkeys([self._domain, *members]))
        return layout

    def _known_layout(self, version_id: bytes) -> feed_pb2.Layout | None:
        for part in self._parts:
            for layout in part.layouts:
                if layout.version_id == version_id:
                    return layout
        try:
            return self._ledger.layout(self._store.feed_id, version_id)
        except NotFound:
            return None

    # ------------------------------------------------------------ the entries

    def _add(self, operation: feed_pb2.TreeOperation, layout: feed_pb2.Layout | None) -> None:
        size = operation.ByteSize() + (layout.ByteSize() if layout is not None else 0)
        part = self._parts[-1]
        if len(part.operations) >= MAX_ENTRY_CHANGES or part.size_bytes + size > MAX_ENTRY_CHANGE_BYTES:
            part = _Part()
            self._parts.append(part)
        part.operations.append(operation)
        part.size_bytes += size
        if layout is not None:
            part.layouts.append(layout)

    def append(self) -> feed_pb2.Position | None:
        """Append what was taken up; the position of the last entry that carries one of the changes."""
        position = self._absorbed
        if self._had_conflicts:
            self._forget_old()
        if self._pages:
            put_pages(self._ledger, self._pages)
        foreign = self._domain != self._store.owner
        for part in self._parts:
            if part.operations:
                position = self._ledger.append_store(
                    self._store.feed_id,
                    layouts=part.layouts,
                    operations=part.operations,
                    leases=part.leases,
                    absorbed=[operation_hash(one.id) for one in part.operations] if foreign else (),
                )
        return position

    # ------------------------------------------------------------ conflicts

    def _record(self, id_: feed_pb2.OperationId, kept: Kept) -> None:
        path = self._view.path(kept.parent)
        with self._ledger.change() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO conflicts (at_ms, feed_id, writer, random, wanted, kept, name, reason)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    int(self._now * 1000), self._store.feed_id, self._domain, id_.random, kept.wanted,
                    path + b"/" + kept.name if path else kept.name, kept.name, kept.reason,
                ),
            )  # fmt: skip
        self._had_conflicts = True

    def _forget_old(self) -> None:
        """With new conflicts the oldest reports go, and what led their writers' later changes around them."""
        with self._ledger.change() as connection:
            connection.execute(
                "DELETE FROM conflicts WHERE number <= (SELECT max(number) FROM conflicts) - ?", (MAX_CONFLICTS,)
            )
        self._repair.forget_old_detours()

    def _told_before(self, id_: feed_pb2.OperationId) -> Outcome:
        row = self._ledger._one(
            "SELECT name, reason FROM conflicts WHERE writer = ? AND random = ?", id_.writer, id_.random
        )
        if row is None:
            return Outcome(outcome=submit_pb2.APPLIED)
        return Outcome(outcome=submit_pb2.CONFLICT, name=as_bytes(row[0]), reason=str(row[1]))


def _refused(reason: str, number: int) -> Outcome:
    return Outcome(outcome=submit_pb2.REFUSED, reason=reason, errno=number)


def _sealed_bytes(layout: VersionLayout) -> int:
    whole, rest = divmod(layout.size_bytes, layout.chunk_size_bytes)
    return whole * sealed_size(layout.chunk_size_bytes) + (sealed_size(rest) if rest else 0)
