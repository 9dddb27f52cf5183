"""Operations of entries that a later epoch left behind, signed anew by the feeds' owner: in order, each once.

What the ids say was absorbed is skipped. Changes of the tree meet it as staged ones do: what no longer fits goes under
a conflict name, a removal of what was changed since is refused and told. Of a member feed, what its home says anew by
itself is not replayed (card, holding statements), nor a definition that was changed since: the later word counts.
Releases are never replayed; a new epoch based before one cancels it.
"""

from __future__ import annotations

from itertools import groupby

from collective.catalog.applier import parse_body
from collective.catalog.entry import ParsedEntry, open_sealed, parse_entry
from collective.catalog.facts import as_bytes
from collective.catalog.ledger import Ledger
from collective.catalog.models import DataStore
from collective.catalog.staging import Batch, writer_and_owner
from collective.catalog.tree import MAX_NUMBER
from collective.wire import feed_pb2, submit_pb2

__all__ = ["replay"]

ENTRIES_PER_ROUND = 64  # a round is one change: the writer thread is free in between
_SAID_ANEW = frozenset({"card", "holding"})


def replay(ledger: Ledger, now: float) -> bool:
    """Sign anew what was handed back of own feeds not in doubt; whether any was. `now` in seconds since 1970."""
    rows = ledger._all(
        "SELECT a.feed_id, a.epoch_number, a.seq, a.hash, a.entry, f.kind FROM abandoned a"
        " JOIN feeds f ON f.feed_id = a.feed_id WHERE a.replayed = 0 AND (f.owner = ? OR (f.kind = 'root' AND ?))"
        " ORDER BY CASE f.kind WHEN 'root' THEN 0 WHEN 'member' THEN 1 ELSE 2 END, f.id, a.epoch_number, a.seq LIMIT ?",
        ledger.own_domain, ledger.own.root_key is not None, ENTRIES_PER_ROUND,
    )  # fmt: skip
    waiting: set[object] = set()
    done = False
    for feed_id, epoch, seq, hash_, raw, kind in rows:
        if feed_id in waiting or ledger.is_in_doubt(as_bytes(feed_id)) or ledger.is_forked(as_bytes(feed_id)):
            continue
        with ledger.change() as connection:
            if not _replay_entry(ledger, str(kind), parse_entry(as_bytes(raw)), now):
                waiting.add(feed_id)  # its key is on the way; what comes after it waits too
                continue
            connection.execute(
                "UPDATE abandoned SET replayed = 1 WHERE feed_id = ? AND epoch_number = ? AND seq = ? AND hash = ?",
                (feed_id, epoch, seq, hash_),
            )
            done = True
    return done


def _replay_entry(ledger: Ledger, kind: str, entry: ParsedEntry, now: float) -> bool:
    """False when it cannot be opened yet."""
    body = parse_body(kind, entry.public_part)
    if isinstance(body, feed_pb2.RootBody):
        if root_operations := [operation for operation in body.operations if _is_fresh(ledger, operation.id)]:
            ledger.append_root(root_operations)
        return True
    if isinstance(body, feed_pb2.MemberBody):
        changed = _changed_since(ledger, entry.header.feed_id)
        operations = [
            operation
            for operation in body.operations
            if _is_fresh(ledger, operation.id)
            and operation.WhichOneof("change") not in _SAID_ANEW
            and not (operation.HasField("datastore") and operation.datastore.feed_id in changed)
        ]
        if operations:
            ledger.append_member(operations)
        return True
    return _replay_store(ledger, entry, body, now)


def _replay_store(ledger: Ledger, entry: ParsedEntry, public: feed_pb2.StorePublic, now: float) -> bool:
    store = next((one for one in ledger.datastores() if one.feed_id == entry.header.feed_id), None)
    if store is None or not store.readable:
        return False
    sealed = feed_pb2.StoreSealed()
    if entry.sealed_part:
        key = ledger.store_key(entry.header.key_name)
        if key is None:
            return False
        sealed.ParseFromString(open_sealed(entry, key))
    operations = [operation for operation in sealed.operations if _is_fresh(ledger, operation.id)]
    leases = [lease for lease in sealed.leases if not _is_leased(ledger, store, lease)]
    known = {version for (version,) in _versions(ledger, store)}
    layouts = {layout.version_id: layout for layout in public.layouts if layout.version_id not in known}
    placements = [p for p in public.placements if p.version_id in layouts]
    if leases or layouts or placements:
        ledger.append_store(store.feed_id, layouts=layouts.values(), placements=placements, leases=leases)
    for writer, group in groupby(operations, lambda operation: operation.id.writer):
        batch = _Again(ledger, store, writer, now, False, writer_and_owner)
        for operation in group:
            outcome = batch.take(submit_pb2.StagedOperation(operation=operation))
            if outcome.outcome not in (submit_pb2.APPLIED, submit_pb2.CONFLICT):
                _tell_refused(ledger, store, operation, outcome.reason)
        batch.append()
    return True


class _Again(Batch):
    """Changes that were committed once: they meet the tree as it is now like staged ones, and were allowed."""

    def not_allowed(self, operation: feed_pb2.TreeOperation, *, numbered_by_writer: bool) -> str:
        return ""

    def layout_for(
        self, staged: submit_pb2.StagedOperation, operation: feed_pb2.TreeOperation
    ) -> feed_pb2.Layout | str | None:
        return None  # the layouts of the entry came back with it


def _tell_refused(ledger: Ledger, store: DataStore, operation: feed_pb2.TreeOperation, reason: str) -> None:
    """What cannot be done any more (a removal of what was changed since) is reported, with its evidence kept."""
    kind = operation.WhichOneof("change") or ""
    ledger.observer.event(
        "catalog.replay_refused", store=store.feed_id.hex(), writer=operation.id.writer, change=kind, reason=reason
    )


def _versions(ledger: Ledger, store: DataStore) -> list[tuple[object, ...]]:
    return ledger._all("SELECT version_id FROM versions WHERE feed_id = ?", store.feed_id)


def _is_leased(ledger: Ledger, store: DataStore, lease: feed_pb2.NumberLease) -> bool:
    row = ledger._one(
        "SELECT 1 FROM number_leases WHERE store = ? AND first = ?", store.store_number, min(lease.first, MAX_NUMBER)
    )
    return row is not None


def _is_fresh(ledger: Ledger, id_: feed_pb2.OperationId) -> bool:
    return ledger._one("SELECT 1 FROM operations WHERE writer = ? AND random = ?", id_.writer, id_.random) is None


def _changed_since(ledger: Ledger, feed_id: bytes) -> set[bytes]:
    """DataStores whose definition was changed in the current epoch by anything but a replay."""
    replayed = {
        operation.id.random
        for (raw,) in ledger._all("SELECT entry FROM abandoned WHERE feed_id = ?", feed_id)
        for operation in feed_pb2.MemberBody.FromString(parse_entry(as_bytes(raw)).public_part).operations
    }
    row = ledger._one(
        "SELECT max(e.first_seq) FROM epochs e JOIN feeds f ON f.id = e.feed WHERE f.feed_id = ?", feed_id
    )
    since = row[0] if row and isinstance(row[0], int) else 0
    rows = ledger._all(
        "SELECT e.entry FROM entries e JOIN feeds f ON f.id = e.feed WHERE f.feed_id = ? AND e.seq > ?", feed_id, since
    )
    return {
        operation.datastore.feed_id
        for (raw,) in rows
        for operation in feed_pb2.MemberBody.FromString(parse_entry(as_bytes(raw)).public_part).operations
        if operation.HasField("datastore") and operation.id.random not in replayed
    }
