"""A home's card in its member feed: its nodes, where it is reached, what it pledges; written when it changed."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence

from collective.catalog import Catalog
from collective.transfer.nodes import NodeDirectory
from collective.wire import feed_pb2

__all__ = ["pledge_of", "update_card"]


def pledge_of(nodes: NodeDirectory, told_bytes: int) -> int:
    """What this home hosts for others at most: what was said, or what its separate nodes may hold."""
    return told_bytes or sum(node.capacity_bytes for node in nodes.all())


async def update_card(
    catalog: Catalog,
    *,
    wrapping_key: bytes,
    endpoints: Sequence[feed_pb2.Endpoint],
    nodes: NodeDirectory,
    storage_bytes: int,
    keeps_absent: bool,
    write: Callable[[Callable[[], object]], Awaitable[object]],
) -> bool:
    """State the card anew when it says something else now; whether it did.

    Separate nodes that have not registered since the start stay on it while `keeps_absent`: a coordinator that was
    started a moment ago does not know better, and looks for the heads they keep where the card says they are.
    """
    own = next(member for member in catalog.members() if member.domain == catalog.own_domain)
    cards = nodes.cards()
    if own.card is not None and keeps_absent:
        present = {card.address for card in cards}
        cards += [card for card in own.card.nodes if card.address not in present]
    card = feed_pb2.Card(
        wrapping_key=wrapping_key,
        endpoints=endpoints,
        nodes=sorted(cards, key=lambda card: card.address),
        pledge_bytes=storage_bytes or sum(card.capacity_bytes for card in cards),
    )
    if own.card is not None and _nearly_equal(own.card, card):
        return False
    operation_id = feed_pb2.OperationId(writer=catalog.own_domain, random=os.urandom(16))
    await write(lambda: catalog.append_member([feed_pb2.MemberOperation(id=operation_id, card=card)]))
    return True


def _nearly_equal(one: feed_pb2.Card, other: feed_pb2.Card) -> bool:
    """Whether two cards say the same; a disk's capacity may differ by a twentieth, since other files lie on it too."""
    if len(one.nodes) != len(other.nodes):
        return False
    copy = feed_pb2.Card()
    copy.CopyFrom(other)
    for told, now in zip(one.nodes, copy.nodes, strict=True):
        if abs(told.capacity_bytes - now.capacity_bytes) * 20 <= told.capacity_bytes:
            now.capacity_bytes = told.capacity_bytes
    return one == copy
