"""Inode numbers: leased by the owner in blocks, kept in stock by each writing member, handed out from there.

A block is leased once, in the feed, and belongs to its member for ever: what was created while the owner was away keeps
its number. Numbers that get lost on the way (a mount that dies with some in hand) are never used; 2^40 last.

In doubt nothing can be leased, and which numbers the lost entries gave out is not known. A new epoch leaves a gap of
2^24 above every number before it (`apply.open_numbers`); what is created in doubt is numbered from the third quarter of
that gap, beginning at a random block: neither what was lost nor another doubt on the same database comes there. Such a
block is leased in the entry that first uses it.
"""

from __future__ import annotations

import os

from collective.catalog.apply import NUMBER_GAP
from collective.catalog.facts import as_int
from collective.catalog.ledger import Ledger
from collective.catalog.tree import MAX_NUMBER, ROOT_NUMBER
from collective.core.errors import Full, Refused, Unreachable
from collective.wire import feed_pb2

__all__ = [
    "BLOCK_COUNT",
    "add_numbers",
    "block_in_gap",
    "lease_numbers",
    "leased_to",
    "stock_count",
    "take_number",
    "take_numbers",
]

BLOCK_COUNT = 65_536
MAX_UNUSED_BLOCKS = 64  # of one member: 4 million numbers with not one file to show for it


def lease_numbers(ledger: Ledger, store_id: bytes, domain: str, count: int) -> range:
    """Lease a block of an own DataStore to a member: `count` numbers, at least a block, at most sixteen.

    Raises: Refused (not the owner), Full (no numbers left, or the member used none of very many).
    """
    with ledger.change():
        store = ledger.store(store_id)
        if store.owner != ledger.own_domain:
            raise Refused(f"{store.owner} gives out that DataStore's numbers")
        _check_use(ledger, store.store_number, domain)
        blocks = min(max(-(-count // BLOCK_COUNT), 1), 16)
        first = _next_number(ledger, store.store_number)
        if first + blocks * BLOCK_COUNT > MAX_NUMBER:
            raise Full("the DataStore has given out all its inode numbers", "make another DataStore")
        lease = feed_pb2.NumberLease(member_domain=domain, first=first, count=blocks * BLOCK_COUNT)
        ledger.append_store(store_id, leases=[lease])
        return range(first, first + blocks * BLOCK_COUNT)


def _check_use(ledger: Ledger, store: int, domain: str) -> None:
    blocks = leased_to(ledger, store, domain)[-MAX_UNUSED_BLOCKS:]
    if len(blocks) < MAX_UNUSED_BLOCKS:
        return
    for block in reversed(blocks):
        for query in (
            "SELECT 1 FROM inodes WHERE store = ? AND number BETWEEN ? AND ? LIMIT 1",
            "SELECT 1 FROM gone WHERE store = ? AND inode BETWEEN ? AND ? LIMIT 1",
        ):
            if ledger._one(query, store, block.start, block.stop - 1) is not None:
                return
    raise Full(f"{domain} has leased {MAX_UNUSED_BLOCKS} blocks of inode numbers and used none of them")


def leased_to(ledger: Ledger, store: int, domain: str) -> list[range]:
    """The blocks that a member holds, the oldest first."""
    rows = ledger._all(
        "SELECT first, count FROM number_leases WHERE store = ? AND domain = ? ORDER BY first", store, domain
    )
    return [range(as_int(first), as_int(first) + as_int(count)) for first, count in rows]


def was_lost(ledger: Ledger, store: int, number: int) -> bool:
    """Whether a number lies in a gap that a new epoch left: nobody gets it any more, who had it was in a lost entry."""
    query = "SELECT 1 FROM number_leases WHERE store = ? AND first <= ? AND first + count > ?"
    if ledger._one(query, store, number, number) is not None:
        return False
    row = ledger._one("SELECT next_number FROM store_numbers WHERE store = ?", store)
    return row is not None and 0 < number < as_int(row[0])


def add_numbers(ledger: Ledger, store_id: bytes, numbers: range) -> None:
    """Put numbers that were leased to this home in stock."""
    with ledger.change() as connection:
        connection.execute("INSERT INTO number_stock VALUES (?, ?, ?)", (store_id, numbers.start, len(numbers)))


def stock_count(ledger: Ledger, store_id: bytes) -> int:
    """Numbers in stock."""
    row = ledger._one("SELECT coalesce(sum(count), 0) FROM number_stock WHERE feed_id = ?", store_id)
    return as_int(row[0]) if row else 0


def take_numbers(ledger: Ledger, store_id: bytes, count: int) -> range | None:
    """Up to `count` numbers out of the stock, each handed out once. None: there are none.

    The stock of an own DataStore fills itself and never runs out, in doubt from the gap.
    """
    with ledger.change() as connection:
        query = "SELECT first, count FROM number_stock WHERE feed_id = ? ORDER BY first LIMIT 1"
        row = connection.execute(query, (store_id,)).fetchone()
        if row is None:
            if ledger.store(store_id).owner != ledger.own_domain:
                return None
            if ledger.is_in_doubt(store_id):
                add_numbers(ledger, store_id, _numbers_in_doubt(ledger, store_id))
            else:
                add_numbers(ledger, store_id, lease_numbers(ledger, store_id, ledger.own_domain, count))
            row = connection.execute(query, (store_id,)).fetchone()
        first, held = row
        taken = min(max(count, 1), held)
        connection.execute("DELETE FROM number_stock WHERE feed_id = ? AND first = ?", (store_id, first))
        if taken < held:
            connection.execute("INSERT INTO number_stock VALUES (?, ?, ?)", (store_id, first + taken, held - taken))
        return range(first, first + taken)


def _numbers_in_doubt(ledger: Ledger, store_id: bytes) -> range:
    """What a doubt may number with: a quarter of the gap that the next epoch will leave, from a random block on."""
    blocks = NUMBER_GAP // 4 // BLOCK_COUNT
    begin = (_next_number(ledger, ledger.store(store_id).store_number) + NUMBER_GAP // 2) // BLOCK_COUNT + 1
    first = (begin + os.urandom(1)[0] % blocks) * BLOCK_COUNT
    return range(first, first + NUMBER_GAP // 4 - BLOCK_COUNT)


def block_in_gap(ledger: Ledger, store: int, number: int) -> feed_pb2.NumberLease | None:
    """The lease, to the owner, of the block around a number that lies in a gap; None when somebody may have it."""
    first = number // BLOCK_COUNT * BLOCK_COUNT
    if not first or first + BLOCK_COUNT > _next_number(ledger, store):
        return None
    overlapping = "SELECT 1 FROM number_leases WHERE store = ? AND first < ? AND first + count > ?"
    if ledger._one(overlapping, store, first + BLOCK_COUNT, first) is not None:
        return None
    return feed_pb2.NumberLease(member_domain=ledger.own_domain, first=first, count=BLOCK_COUNT)


def _next_number(ledger: Ledger, store: int) -> int:
    """The lowest number never given out, as far as it is known here."""
    row = ledger._one("SELECT next_number FROM store_numbers WHERE store = ?", store)
    return as_int(row[0]) if row else ROOT_NUMBER + 1


def take_number(ledger: Ledger, store_id: bytes) -> int:
    """One number. Raises: Unreachable when there is none and only the owner has more."""
    taken = take_numbers(ledger, store_id, 1)
    if taken is None:
        raise Unreachable(
            f"no inode numbers of {ledger.store(store_id).path.decode(errors='replace')} are left here",
            "its owner gives more as soon as it can be reached",
        )
    return taken.start
