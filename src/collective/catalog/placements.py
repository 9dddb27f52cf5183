"""What is where: the statements of this home, and the copies that its own DataStores lack."""

from __future__ import annotations

import os

from collective.catalog.ledger import Ledger
from collective.core.errors import NotFound
from collective.wire import feed_pb2

__all__ = [
    "copies_missing",
    "hold",
    "put_pages",
    "restate_holdings",
    "versions_below_target",
    "versions_short_of_members",
]

EXCEPTIONS_INLINE = 64
COPIES_PER_ROUND = 256

# a version that a file has, or had and can have again; hosts cannot see that and count every one not released
_LIVE = (
    "(EXISTS (SELECT 1 FROM inodes i WHERE i.version_id = v.version_id AND i.store = f.id)"
    " OR EXISTS (SELECT 1 FROM history y WHERE y.version_id = v.version_id AND y.store = f.id)"
    " OR EXISTS (SELECT 1 FROM snapshots s WHERE s.feed = f.id"
    " AND v.version_id IN (s.public_version, s.sealed_version)))"
)
_HELD = (
    "(p.domain = v.writer OR h.seq >= v.seq) AND NOT EXISTS (SELECT 1 FROM holding_exceptions x"
    " WHERE x.feed_id = p.feed_id AND x.domain = p.domain AND x.version_id = p.version_id)"
)


def put_pages(ledger: Ledger, names_and_pages: dict[bytes, bytes]) -> None:
    """Keep pages under their names (the caller has checked them)."""
    with ledger.change() as connection:
        connection.executemany("INSERT OR IGNORE INTO pages VALUES (?, ?)", list(names_and_pages.items()))


def hold(ledger: Ledger, store_id: bytes, versions: list[bytes]) -> None:
    """Note that versions placed on this home are all here, and state it in the member feed."""
    with ledger.change() as connection:
        connection.executemany(
            "INSERT OR IGNORE INTO held VALUES (?, ?)", [(store_id, version) for version in versions]
        )
        _state(ledger, store_id)


def restate_holdings(ledger: Ledger) -> bool:
    """State anew what is held wherever the last statement is behind the feed; whether anything was stated."""
    rows = ledger._all(
        "SELECT f.feed_id FROM feeds f JOIN datastores d USING (feed_id)"
        " LEFT JOIN holdings h ON h.feed_id = f.feed_id AND h.domain = ?"
        " WHERE f.kind = 'store' AND d.owner <> ? AND (h.seq IS NULL OR h.seq < f.seq)",
        ledger.own_domain, ledger.own_domain,
    )  # fmt: skip
    stated = False
    for (feed_id,) in rows:
        assert isinstance(feed_id, bytes)
        if ledger.own_domain in ledger.store(feed_id).hosts:
            with ledger.change():
                stated = _state(ledger, feed_id) or stated
    return stated


def _state(ledger: Ledger, store_id: bytes) -> bool:
    """One statement: everything placed on us up to a head, except what is not here yet.

    With more exceptions than fit, the head stated is the last one before them: true, and it grows as they arrive.
    """
    missing = ledger._all(
        "SELECT v.version_id, v.seq FROM versions v JOIN placements p USING (feed_id, version_id)"
        " LEFT JOIN held USING (feed_id, version_id)"
        " WHERE v.feed_id = ? AND p.domain = ? AND v.writer <> ? AND NOT v.released AND held.version_id IS NULL"
        " ORDER BY v.seq LIMIT ?",
        store_id, ledger.own_domain, ledger.own_domain, EXCEPTIONS_INLINE + 1,
    )  # fmt: skip
    head = ledger.heads().get(store_id)
    if head is None:
        raise NotFound("that DataStore's feed has not arrived here yet")
    if len(missing) > EXCEPTIONS_INLINE:
        limit = missing[-1][1]
        assert isinstance(limit, int)
        row = ledger._one(
            "SELECT e.seq, e.hash FROM entries e JOIN feeds f ON f.id = e.feed WHERE f.feed_id = ? AND e.seq = ?",
            store_id, limit - 1,
        )  # fmt: skip
        # without a hash where a snapshot stands for the entry
        hash_ = row[1] if row is not None else b""
        head = feed_pb2.Position(epoch_number=head.epoch_number, epoch_id=head.epoch_id, seq=limit - 1, hash=hash_)  # type: ignore[arg-type]
        missing = [pair for pair in missing if isinstance(pair[1], int) and pair[1] < limit]
    standing = ledger._one("SELECT seq FROM holdings WHERE feed_id = ? AND domain = ?", store_id, ledger.own_domain)
    exceptions = {version for version, _ in missing}
    before = {
        version
        for (version,) in ledger._all(
            "SELECT version_id FROM holding_exceptions WHERE feed_id = ? AND domain = ?", store_id, ledger.own_domain
        )
    }
    if standing is not None and standing[0] == head.seq and before == exceptions:
        return False
    holding = feed_pb2.Holding(feed_id=store_id, head=head, except_versions=sorted(exceptions))  # type: ignore[arg-type]
    operation_id = feed_pb2.OperationId(writer=ledger.own_domain, random=os.urandom(16))
    ledger.append_member([feed_pb2.MemberOperation(id=operation_id, holding=holding)])
    return True


def copies_missing(ledger: Ledger) -> list[tuple[bytes, bytes, str]]:
    """(store, version, member) that this home has to send: the member shall hold it and has not stated it.

    Of own DataStores what is here, to everybody it is placed on; of what this home wrote into another member's
    DataStore, to the owner, who sends it on. The oldest first.
    """
    rows = ledger._all(
        "SELECT v.feed_id, v.version_id, p.domain FROM versions v JOIN placements p USING (feed_id, version_id)"
        " JOIN datastores d USING (feed_id) JOIN feeds f USING (feed_id) JOIN members m ON m.domain = p.domain"
        " LEFT JOIN holdings h ON h.feed_id = p.feed_id AND h.domain = p.domain"
        " LEFT JOIN held ON held.feed_id = v.feed_id AND held.version_id = v.version_id"
        " WHERE p.domain <> ? AND (v.writer = ? OR (d.owner = ? AND held.version_id IS NOT NULL))"
        f" AND (d.owner = ? OR p.domain = d.owner) AND NOT m.removed AND {_LIVE} AND NOT coalesce({_HELD}, 0)"
        " ORDER BY v.seq LIMIT ?",
        *[ledger.own_domain] * 4, COPIES_PER_ROUND,
    )  # fmt: skip
    return [(store, version, str(member)) for store, version, member in rows]  # type: ignore[misc]


def versions_short_of_members(ledger: Ledger) -> list[tuple[bytes, bytes, int]]:
    """(store, version, plain bytes) of own live versions that are placed on fewer members than asked for."""
    rows = ledger._all(
        "SELECT v.feed_id, v.version_id, v.size_bytes, d.definition, count(p.domain) FROM versions v"
        " JOIN feeds f USING (feed_id) JOIN datastores d USING (feed_id)"
        " JOIN placements p USING (feed_id, version_id) JOIN members m ON m.domain = p.domain"
        f" WHERE d.owner = ? AND NOT m.removed AND {_LIVE} GROUP BY v.feed_id, v.version_id ORDER BY v.seq",
        ledger.own_domain,
    )
    short = []
    for store_id, version_id, size, definition, count in rows:
        replicas = feed_pb2.DataStoreDefinition.FromString(definition).replicas  # type: ignore[arg-type]
        if count < replicas:  # type: ignore[operator]
            short.append((store_id, version_id, size))
    return short[:COPIES_PER_ROUND]  # type: ignore[return-value]


def versions_below_target(ledger: Ledger, store_id: bytes) -> int:
    """Live versions of a DataStore that fewer members hold than it asks for."""
    store = ledger.store(store_id)
    row = ledger._one(
        "SELECT count(*) FROM versions v JOIN feeds f USING (feed_id) JOIN datastores d USING (feed_id)"
        f" WHERE v.feed_id = ? AND {_LIVE} AND (SELECT count(*) FROM placements p"
        " LEFT JOIN holdings h ON h.feed_id = p.feed_id AND h.domain = p.domain"
        f" WHERE p.feed_id = v.feed_id AND p.version_id = v.version_id AND {_HELD}) < ?",
        store_id, store.replicas,
    )  # fmt: skip
    assert row is not None
    assert isinstance(row[0], int)
    return row[0]
