"""Entries that were un-applied here, on their way to the one who wrote them.

They are handed over once for every epoch their feed opens: an owner who took them and woke up in doubt again gets them
again, and what was absorbed is absorbed once. Here they stay, as evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from collective.catalog.facts import as_bytes, as_int
from collective.core.sizes import MIB

if TYPE_CHECKING:
    from collective.catalog.ledger import Ledger

__all__ = ["Parcel", "note_handed_over", "parcels"]

MAX_PARCEL_BYTES = MIB  # beside one entry, which may be as large
MAX_PARCEL_ENTRIES = 256


@dataclass(frozen=True)
class Parcel:
    """Entries of one feed, in order, for its owner; `epoch_number` the feed's epoch as it stands here."""

    owner: str
    feed_id: bytes
    epoch_number: int
    hashes: tuple[bytes, ...]
    entries: tuple[bytes, ...]


def parcels(ledger: Ledger) -> list[Parcel]:
    """The next parcel of every feed of another member that has something to hand over."""
    founder = next((member.domain for member in ledger.members()), "")
    feeds = ledger._all(
        "SELECT DISTINCT f.feed_id, f.kind, f.owner, f.epoch_number FROM abandoned a JOIN feeds f USING (feed_id)"
        " WHERE a.handed_epoch < f.epoch_number AND f.owner <> ?",
        ledger.own_domain,
    )
    found = []
    for feed_id, kind, feed_owner, epoch in feeds:
        owner = founder if kind == "root" else str(feed_owner)
        if owner in ("", ledger.own_domain):
            continue
        rows = ledger._all(
            "SELECT hash, entry FROM abandoned WHERE feed_id = ? AND handed_epoch < ?"
            " ORDER BY epoch_number, seq LIMIT ?",
            feed_id, epoch, MAX_PARCEL_ENTRIES,
        )  # fmt: skip
        found.append(_parcel(owner, as_bytes(feed_id), as_int(epoch), rows))
    return found


def _parcel(owner: str, feed_id: bytes, epoch: int, rows: Sequence[tuple[object, ...]]) -> Parcel:
    hashes: list[bytes] = []
    entries: list[bytes] = []
    total = 0
    for hash_, raw in rows:
        total += len(as_bytes(raw))
        if entries and total > MAX_PARCEL_BYTES:
            break
        hashes.append(as_bytes(hash_))
        entries.append(as_bytes(raw))
    return Parcel(owner, feed_id, epoch, tuple(hashes), tuple(entries))


def note_handed_over(ledger: Ledger, parcel: Parcel) -> None:
    """The owner has it durably."""
    with ledger.change() as connection:
        connection.executemany(
            "UPDATE abandoned SET handed_epoch = ? WHERE feed_id = ? AND hash = ?",
            [(parcel.epoch_number, parcel.feed_id, hash_) for hash_ in parcel.hashes],
        )
