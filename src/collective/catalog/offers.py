"""When a snapshot stands in for entries: who is offered one, what an offer says, and when entries may be dropped.

An offer is the signed entry that points to the snapshot: it lays out both versions, so their bytes are checked against
its writer's word wherever they come from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from collective.catalog.applier import parse_body
from collective.catalog.chain import meeting_seq
from collective.catalog.entry import parse_entry
from collective.catalog.facts import as_bytes, as_int
from collective.core.address import FederatedAddress
from collective.core.errors import Corrupt
from collective.wire import feed_pb2

if TYPE_CHECKING:
    from collective.catalog.ledger import Ledger

__all__ = ["Offer", "droppable", "offer_for", "offer_in", "unopened_offers"]

WORTH_ENTRIES = 1000  # behind by less, entries are as quick


@dataclass(frozen=True)
class Offer:
    """A snapshot of a store feed to start from. `key_name` is the DataStore key of the sealed version."""

    store_id: bytes
    owner: str
    base_seq: int
    public: feed_pb2.Layout
    sealed: feed_pb2.Layout
    key_name: bytes


def offer_for(
    ledger: Ledger, feed_id: bytes, theirs: feed_pb2.Position | None, *, entries_wanted: bool = False
) -> bytes | None:
    """The entry to send to somebody with that head instead of entries, None when entries will do.

    `entries_wanted`: only when the entries they lack are dropped here.
    """
    row = ledger._one(
        "SELECT f.dropped_seq, s.base_seq, e.entry FROM feeds f JOIN snapshots s ON s.feed = f.id"
        " JOIN entries e ON e.feed = s.feed AND e.seq = s.seq WHERE f.feed_id = ? ORDER BY s.base_seq DESC LIMIT 1",
        feed_id,
    )
    if row is None:
        return None
    dropped, base = as_int(row[0]), as_int(row[1])
    start = meeting_seq(ledger, feed_id, theirs)
    if start >= base or (start >= dropped and (entries_wanted or base - start < WORTH_ENTRIES)):
        return None
    return as_bytes(row[2])


def offer_in(ledger: Ledger, raw: bytes) -> Offer | None:
    """What a verified entry offers, None when the feed here is past it or it points to nothing.

    Raises: Corrupt, NotFound (its writer is not known yet).
    """
    entry = parse_entry(raw)
    kind, owner = ledger._verify(entry)
    if kind != "store":
        raise Corrupt("a snapshot was offered of a feed that has none")
    public = parse_body(kind, entry.public_part)
    assert isinstance(public, feed_pb2.StorePublic)
    layouts = {layout.version_id: layout for layout in public.layouts}
    for pointer in public.snapshots:
        if pointer.public_version not in layouts or pointer.sealed_version not in layouts:
            continue
        feed = ledger._feed(entry.header.feed_id)
        if feed is not None and feed.head.seq >= pointer.base.seq:
            return None
        return _offer(entry.header, owner, pointer, layouts)
    return None


def _offer(
    header: feed_pb2.Header, owner: str, pointer: feed_pb2.SnapshotPointer, layouts: dict[bytes, feed_pb2.Layout]
) -> Offer:
    return Offer(
        store_id=header.feed_id,
        owner=owner,
        base_seq=pointer.base.seq,
        public=layouts[pointer.public_version],
        sealed=layouts[pointer.sealed_version],
        key_name=header.key_name,
    )


def unopened_offers(ledger: Ledger) -> list[Offer]:
    """Snapshots that feeds here started from without their trees, whose key is here now."""
    rows = ledger._all(
        "SELECT e.entry, f.owner, f.dropped_seq FROM feeds f"
        " JOIN snapshots s ON s.feed = f.id AND s.base_seq = f.dropped_seq"
        " JOIN entries e ON e.feed = f.id AND e.seq = s.seq WHERE f.opened_seq < f.dropped_seq"
    )
    return [
        offer
        for raw, owner, base in rows
        if (offer := _stored(as_bytes(raw), str(owner), as_int(base))) and ledger.store_key(offer.key_name) is not None
    ]


def _stored(raw: bytes, owner: str, base_seq: int) -> Offer | None:
    entry = parse_entry(raw)
    public = parse_body("store", entry.public_part)
    assert isinstance(public, feed_pb2.StorePublic)
    layouts = {layout.version_id: layout for layout in public.layouts}
    for pointer in public.snapshots:
        if pointer.base.seq == base_seq and {pointer.public_version, pointer.sealed_version} <= set(layouts):
            return _offer(entry.header, owner, pointer, layouts)
    return None


def droppable(ledger: Ledger, now: float) -> list[Offer]:
    """Snapshots whose older entries may go here: both versions held at the copy target, every follower past the base.

    The newest of each feed. Whether the blocks are here is another question (`folding.drop_entries`).
    """
    rows = ledger._all(
        "SELECT f.feed_id, f.owner, s.base_seq, e.entry FROM snapshots s JOIN feeds f ON f.id = s.feed"
        " JOIN entries e ON e.feed = s.feed AND e.seq = s.seq WHERE s.base_seq > f.dropped_seq AND NOT f.forked"
        " ORDER BY f.id, s.base_seq DESC"
    )
    known = {store.feed_id for store in ledger.datastores()}
    found: dict[bytes, Offer] = {}
    for feed_id, owner, base, raw in rows:
        store_id = as_bytes(feed_id)
        if store_id in found or store_id not in known or ledger.is_in_doubt(store_id):
            continue
        offer = _stored(as_bytes(raw), str(owner), as_int(base))
        if offer is not None and _is_held(ledger, offer) and _all_past(ledger, offer, now):
            found[store_id] = offer
    return list(found.values())


def _is_held(ledger: Ledger, offer: Offer) -> bool:
    members = sum(not member.removed for member in ledger.members())
    target = min(max(ledger.store(offer.store_id).replicas, 1), members)
    return all(
        len(ledger.holders(offer.store_id, layout.version_id)) >= target for layout in (offer.public, offer.sealed)
    )


def _all_past(ledger: Ledger, offer: Offer, now: float) -> bool:
    """Whether every other unremoved follower told a head past the base."""
    store = ledger.store(offer.store_id)
    for member in ledger.members():
        if member.removed or member.domain == ledger.own_domain:
            continue
        follows = member.domain in (store.owner, *store.hosts)
        if (
            follows
            or ledger.may(FederatedAddress("coord", member.domain), feed_pb2.READ, store.feed_id, now=now).allowed
        ):
            told = ledger.hearing.heads.get((member.domain, offer.store_id))
            if told is None or told < offer.base_seq:
                return False
    return True
