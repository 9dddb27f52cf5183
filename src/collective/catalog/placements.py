"""What is where: the statements of this home, and the copies that its own DataStores lack."""

from __future__ import annotations

import os
from collections.abc import Set

from collective.catalog.facts import as_bytes, as_int
from collective.catalog.ledger import Ledger
from collective.catalog.models import HeldHere
from collective.core.errors import Full, NotFound
from collective.core.layout import decode_page
from collective.wire import feed_pb2

__all__ = [
    "copies_at",
    "copies_missing",
    "held_here",
    "hold",
    "lose",
    "put_pages",
    "regain",
    "restate_holdings",
    "versions_below_target",
    "versions_lost",
    "versions_short_of_members",
    "versions_with_chunks",
]

EXCEPTIONS_INLINE = 64
BROKEN_AT_MOST = 16_384  # of one DataStore, held by the entry: 300 KiB of a statement
COPIES_PER_ROUND = 256

# a version that a file has, or had and can have again; hosts cannot see that and count every one not released
_LIVE = (
    "(EXISTS (SELECT 1 FROM inodes i WHERE i.version_id = v.version_id AND i.store = f.tree)"
    " OR EXISTS (SELECT 1 FROM history y WHERE y.version_id = v.version_id AND y.store = f.tree)"
    " OR EXISTS (SELECT 1 FROM snapshots s WHERE s.feed = f.id"
    " AND v.version_id IN (s.public_version, s.sealed_version)))"
)
_BY_ENTRY = "p.domain = v.writer"  # who holds a version by the very entry that names it (decision 0003)
_HELD = (
    f"({_BY_ENTRY} OR h.seq >= v.seq) AND NOT EXISTS (SELECT 1 FROM holding_exceptions x"
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
        _state(ledger, store_id, whole=set(versions))


def restate_holdings(ledger: Ledger, *, lazily: bool = False) -> bool:
    """State anew what is held wherever the last statement is behind the feed; whether anything was stated.

    Lazily: only of backup DataStores, whose writers wait for it; a stream of changes elsewhere is stated in portions.
    """
    rows = ledger._all(
        "SELECT f.feed_id FROM feeds f JOIN datastores d USING (feed_id)"
        " LEFT JOIN holdings h ON h.feed_id = f.feed_id AND h.domain = ?"
        " WHERE f.kind = 'store' AND d.owner <> ? AND (h.seq IS NULL OR h.seq < f.seq)",
        ledger.own_domain, ledger.own_domain,
    )  # fmt: skip
    stated = False
    for (feed_id,) in rows:
        assert isinstance(feed_id, bytes)
        store = ledger.store(feed_id)
        if lazily and store.strategy != feed_pb2.BACKUP:
            continue
        if ledger.own_domain in store.hosts:
            with ledger.change():
                stated = _state(ledger, feed_id) or stated
    return stated


def lose(ledger: Ledger, lost: list[tuple[bytes, bytes]]) -> None:
    """State that versions (store, version) are not whole here any more, so that nobody counts this copy of them.

    What was placed here is offered again; what is held by the entry stays listed in `versions_lost`.
    """
    with ledger.change() as connection:
        connection.executemany("DELETE FROM held WHERE feed_id = ? AND version_id = ?", lost)
        for store_id in sorted({store_id for store_id, _ in lost}):
            versions = {version for store, version in lost if store == store_id}
            _state(ledger, store_id, lost=versions & _by_entry(ledger, store_id))


def regain(ledger: Ledger, store_id: bytes, version_id: bytes) -> None:
    """State that a version held by the entry is whole here again."""
    with ledger.change():
        _state(ledger, store_id, whole={version_id})


def versions_lost(ledger: Ledger) -> list[tuple[bytes, bytes]]:
    """(store, version) of versions held by the entry that are not whole here and wanted from another holder."""
    rows = ledger._all(
        # CROSS JOIN: from the few exceptions, not from every version there is
        "SELECT v.feed_id, v.version_id FROM holding_exceptions x CROSS JOIN versions v USING (feed_id, version_id)"
        " CROSS JOIN placements p ON p.feed_id = v.feed_id AND p.version_id = v.version_id AND p.domain = x.domain"
        f" WHERE x.domain = ? AND {_BY_ENTRY} AND NOT v.released ORDER BY v.seq LIMIT ?",
        ledger.own_domain, COPIES_PER_ROUND,
    )  # fmt: skip
    return [(store, version) for store, version in rows]  # type: ignore[misc]


def versions_with_chunks(ledger: Ledger, chunk_ids: set[bytes]) -> dict[bytes, set[tuple[bytes, bytes]]]:
    """Chunk id -> the (store, version) placed on this home that list it. Reads every page: not for event loops."""
    found: dict[bytes, set[tuple[bytes, bytes]]] = {id_: set() for id_ in chunk_ids}
    rows = ledger._all(
        "SELECT v.feed_id, v.version_id, v.layout FROM versions v JOIN placements p USING (feed_id, version_id)"
        " WHERE p.domain = ? AND NOT v.released",
        ledger.own_domain,
    )
    for store_id, version_id, layout in rows:
        version = as_bytes(store_id), as_bytes(version_id)
        for name in feed_pb2.Layout.FromString(as_bytes(layout)).pages:
            page = ledger.page(name)
            for chunk in decode_page(page) if page is not None else ():
                if chunk.id in found:
                    found[chunk.id].add(version)
    return found


def _by_entry(ledger: Ledger, store_id: bytes) -> set[bytes]:
    """The versions of a DataStore that this home holds by the very entry that names them."""
    rows = ledger._all(
        "SELECT p.version_id FROM placements p JOIN versions v USING (feed_id, version_id)"
        f" WHERE p.feed_id = ? AND p.domain = ? AND {_BY_ENTRY}",
        store_id, ledger.own_domain,
    )  # fmt: skip
    return {as_bytes(version) for (version,) in rows}


def _stated_exceptions(ledger: Ledger, store_id: bytes) -> set[bytes]:
    rows = ledger._all(
        "SELECT version_id FROM holding_exceptions WHERE feed_id = ? AND domain = ?", store_id, ledger.own_domain
    )
    return {as_bytes(version) for (version,) in rows}


def _state(ledger: Ledger, store_id: bytes, *, lost: Set[bytes] = frozenset(), whole: Set[bytes] = frozenset()) -> bool:
    """One statement: everything placed on us up to a head, except what is not here yet.

    With more exceptions than fit, the head stated is the last one before them: true, and it grows as they arrive.
    What is held by the entry counts whatever the head; of it the exceptions are those stated before, with `lost` and
    without `whole`.
    """
    missing = ledger._all(
        "SELECT v.version_id, v.seq FROM versions v JOIN placements p USING (feed_id, version_id)"
        f" LEFT JOIN held USING (feed_id, version_id) WHERE v.feed_id = ? AND p.domain = ? AND NOT ({_BY_ENTRY})"
        " AND NOT v.released AND held.version_id IS NULL ORDER BY v.seq LIMIT ?",
        store_id, ledger.own_domain, EXCEPTIONS_INLINE + 1,
    )  # fmt: skip
    head = ledger.heads().get(store_id)
    if head is None:
        raise NotFound("that DataStore's feed has not arrived here yet")
    if len(missing) > EXCEPTIONS_INLINE:
        limit = as_int(missing[-1][1])
        row = ledger._one(
            "SELECT e.seq, e.hash FROM entries e JOIN feeds f ON f.id = e.feed WHERE f.feed_id = ? AND e.seq = ?",
            store_id, limit - 1,
        )  # fmt: skip
        head = feed_pb2.Position(
            epoch_number=head.epoch_number,
            epoch_id=head.epoch_id,
            seq=limit - 1,
            hash=as_bytes(row[1]) if row is not None else b"",  # a snapshot stands for that entry
        )
        missing = [pair for pair in missing if as_int(pair[1]) < limit]
    stated = _stated_exceptions(ledger, store_id)
    broken = ((stated & _by_entry(ledger, store_id) if stated else stated) | lost) - whole
    if len(broken) > BROKEN_AT_MOST:
        raise Full(f"more than {BROKEN_AT_MOST} versions of one DataStore are broken here", "replace the disk")
    exceptions = {as_bytes(version) for version, _ in missing} | broken
    standing = ledger._one("SELECT seq FROM holdings WHERE feed_id = ? AND domain = ?", store_id, ledger.own_domain)
    if standing is not None and standing[0] == head.seq and stated == exceptions:
        return False
    holding = feed_pb2.Holding(feed_id=store_id, head=head, except_versions=sorted(exceptions))
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
    """(store, version, plain bytes) of own live versions placed on fewer members than asked for, and than there are."""
    members = sum(not member.removed for member in ledger.members())
    short: list[tuple[bytes, bytes, int]] = []
    for store in ledger.datastores():
        if store.owner != ledger.own_domain:
            continue
        rows = ledger._all(
            # placements are counted in the order they lie in; only what is short is looked at
            "SELECT v.version_id, v.size_bytes FROM (SELECT p.version_id AS short_id FROM placements p"
            " JOIN members m ON m.domain = p.domain AND NOT m.removed WHERE p.feed_id = ?"
            " GROUP BY p.version_id HAVING count(*) < ?)"
            " CROSS JOIN versions v ON v.feed_id = ? AND v.version_id = short_id"
            f" CROSS JOIN feeds f ON f.feed_id = v.feed_id WHERE {_LIVE} ORDER BY v.seq LIMIT ?",
            store.feed_id, min(store.replicas, members), store.feed_id, COPIES_PER_ROUND - len(short),
        )  # fmt: skip
        short += [(store.feed_id, as_bytes(version), as_int(size)) for version, size in rows]
    return short


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


def copies_at(ledger: Ledger, domain: str) -> int:
    """How many versions of own DataStores a member holds."""
    row = ledger._one(
        "SELECT count(*) FROM placements p JOIN versions v USING (feed_id, version_id)"
        " JOIN datastores d USING (feed_id)"
        " LEFT JOIN holdings h ON h.feed_id = p.feed_id AND h.domain = p.domain"
        f" WHERE p.domain = ? AND d.owner = ? AND NOT v.released AND {_HELD}",
        domain, ledger.own_domain,
    )  # fmt: skip
    assert row is not None
    return as_int(row[0])


def held_here(ledger: Ledger) -> list[HeldHere]:
    """What this home holds, by DataStore, as its readers count it; of a DataStore it cannot read all not released."""
    holders = (
        " (SELECT {} FROM placements p JOIN members m ON m.domain = p.domain AND NOT m.removed"
        " LEFT JOIN holdings h ON h.feed_id = p.feed_id AND h.domain = p.domain"
        f" WHERE p.feed_id = v.feed_id AND p.version_id = v.version_id AND coalesce({_HELD}, 0))"
    )
    rows = ledger._all(
        "SELECT feed_id, count(*), sum(size_bytes), sum(others = 0), sum((others = 0) * size_bytes) FROM (SELECT"
        f" v.feed_id, v.size_bytes, {holders.format('total(p.domain = ?)')} AS own,"
        f" {holders.format('total(p.domain <> ?)')} AS others"
        " FROM versions v JOIN feeds f USING (feed_id)"
        f" WHERE NOT v.released AND (f.opened_seq = 0 OR {_LIVE})) WHERE own GROUP BY feed_id",
        *[ledger.own_domain] * 2,
    )  # fmt: skip
    held = []
    for store_id, versions, size_bytes, alone, alone_bytes in rows:
        store = ledger.store(as_bytes(store_id))
        held.append(
            HeldHere(store.path, store.owner, as_int(versions), as_int(size_bytes), as_int(alone), as_int(alone_bytes))
        )
    return sorted(held, key=lambda each: (each.owner, each.path))
