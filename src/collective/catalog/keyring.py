"""DataStore keys: wrapped to whom they are for, opened by whom they were wrapped to.

The owner wraps each key that is still needed to the card key of every member with READ, and to its own, before the
first entry sealed under it. "Who can read" is "for whom it was wrapped".
"""

from __future__ import annotations

from collections.abc import Iterator

from collective.catalog.apply import note_joined
from collective.catalog.entry import key_name_of
from collective.catalog.ledger import Ledger
from collective.catalog.models import DataStore
from collective.core.address import FederatedAddress
from collective.core.errors import Corrupt
from collective.identity import unwrap_key, wrap_key
from collective.wire import feed_pb2

__all__ = ["keep_key", "missing_wraps", "open_wraps", "wrap_for"]


def keep_key(ledger: Ledger, store_id: bytes, key: bytes) -> bytes:
    """Remember a key of this home; its name."""
    name = key_name_of(key)
    with ledger.change() as connection:
        connection.execute("INSERT OR IGNORE INTO keys VALUES (?, ?, ?)", (name, store_id, key))
        note_joined(connection)
    return name


def wrap_for(store_id: bytes, key: bytes, recipient: str, recipient_key: bytes) -> feed_pb2.KeyWrap:
    """One wrap of a key."""
    name = key_name_of(key)
    return feed_pb2.KeyWrap(
        feed_id=store_id,
        key_name=name,
        recipient=recipient,
        recipient_key=recipient_key,
        wrapped=wrap_key(recipient_key, key, feed_id=store_id, key_name=name),
    )


def readers_of(ledger: Ledger, store: DataStore, now: float) -> Iterator[tuple[str, bytes]]:
    """(domain, card key) of every member that may read a DataStore now and whose card is known."""
    for member in ledger.members():
        if member.removed or member.card is None:
            continue
        subject = FederatedAddress("coord", member.domain)
        if ledger.may(subject, feed_pb2.READ, store.feed_id, now=now).allowed:
            yield member.domain, member.card.wrapping_key


def missing_wraps(ledger: Ledger, now: float) -> list[feed_pb2.KeyWrap]:
    """Wraps of own DataStores' keys that a reader should have and has not: all keys, since old entries need them."""
    wraps = []
    for store in ledger.datastores():
        if store.owner != ledger.own_domain:
            continue
        there = {
            (row[0], row[1], row[2])
            for row in ledger._all(
                "SELECT key_name, recipient, recipient_key FROM wraps WHERE feed_id = ?", store.feed_id
            )
        }
        keys = ledger._all("SELECT name, key FROM keys WHERE feed_id = ?", store.feed_id)
        for domain, card_key in readers_of(ledger, store, now):
            for name, key in keys:
                if (name, domain, card_key) not in there:
                    assert isinstance(key, bytes)
                    wraps.append(wrap_for(store.feed_id, key, domain, card_key))
    return wraps


def open_wraps(ledger: Ledger) -> int:
    """Open the wraps that are for this home's card key, and the entries that waited for them; how many keys."""
    own_key = ledger.own.wrapping_key.public_key().public_bytes_raw()
    rows = ledger._all(
        "SELECT w.feed_id, w.key_name, w.wrapped FROM wraps w LEFT JOIN keys k ON k.name = w.key_name"
        " WHERE w.recipient = ? AND w.recipient_key = ? AND k.name IS NULL",
        ledger.own_domain, own_key,
    )  # fmt: skip
    opened = 0
    for feed_id, key_name, wrapped in rows:
        assert isinstance(feed_id, bytes)
        assert isinstance(key_name, bytes)
        assert isinstance(wrapped, bytes)
        try:
            key = unwrap_key(ledger.own.wrapping_key, wrapped, feed_id=feed_id, key_name=key_name)
            if key_name_of(key) != key_name:
                raise Corrupt("a wrapped key is not the one it is named after")
        except Corrupt as error:
            ledger.observer.event("catalog.wrap_refused", feed=feed_id.hex(), reason=error.message)
            continue
        keep_key(ledger, feed_id, key)
        opened += 1
    return opened
