"""Operations of entries that a later epoch left behind, signed anew by the feeds' owner: in order, each once.

What the ids say was absorbed is skipped. Of a member feed, what its home says anew by itself is not replayed (card,
holding statements), nor a definition that was changed since: the later word counts. Releases are never replayed; a
new epoch based before one cancels it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from collective.catalog.applier import parse_body
from collective.catalog.entry import ParsedEntry, open_sealed, operation_hash, parse_entry
from collective.catalog.facts import as_bytes
from collective.wire import feed_pb2

if TYPE_CHECKING:
    from collective.catalog.ledger import Ledger

__all__ = ["replay"]

ENTRIES_PER_ROUND = 64  # a round is one change: the writer thread is free in between
_SAID_ANEW = frozenset({"card", "holding"})


def replay(ledger: Ledger) -> bool:
    """Sign anew what was handed back of own feeds that are not in doubt; whether anything was looked at."""
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
            if not _replay_entry(ledger, str(kind), parse_entry(as_bytes(raw))):
                waiting.add(feed_id)  # its key is on the way; what comes after it waits too
                continue
            connection.execute(
                "UPDATE abandoned SET replayed = 1 WHERE feed_id = ? AND epoch_number = ? AND seq = ? AND hash = ?",
                (feed_id, epoch, seq, hash_),
            )
            done = True
    return done


def _replay_entry(ledger: Ledger, kind: str, entry: ParsedEntry) -> bool:
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
    return _replay_store(ledger, entry, body)


def _replay_store(ledger: Ledger, entry: ParsedEntry, public: feed_pb2.StorePublic) -> bool:
    sealed = feed_pb2.StoreSealed()
    if entry.sealed_part:
        key = ledger.store_key(entry.header.key_name)
        store = next((s for s in ledger.datastores() if s.feed_id == entry.header.feed_id), None)
        if key is None or store is None or not store.readable:
            return False
        sealed.ParseFromString(open_sealed(entry, key))
    operations = [operation for operation in sealed.operations if _is_fresh(ledger, operation.id)]
    laid_out = ledger._all("SELECT version_id FROM versions WHERE feed_id = ?", entry.header.feed_id)
    known = {version for (version,) in laid_out}
    layouts = [layout for layout in public.layouts if layout.version_id not in known]
    # of versions laid out since, where they are placed now counts; the tail's own come back with their layouts
    placements = [p for p in public.placements if p.version_id in {layout.version_id for layout in layouts}]
    if operations or layouts or placements:
        ledger.append_store(
            entry.header.feed_id,
            layouts=layouts,
            placements=placements,
            operations=operations,
            absorbed=[operation_hash(operation.id) for operation in operations],
        )
    return True


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
