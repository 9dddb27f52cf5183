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
    write: Callable[[Callable[[], object]], Awaitable[object]],
) -> bool:
    """State the card anew when it says something else now; whether it did."""
    card = feed_pb2.Card(
        wrapping_key=wrapping_key,
        endpoints=endpoints,
        nodes=nodes.cards() if storage_bytes or nodes.all() else [],
        pledge_bytes=pledge_of(nodes, storage_bytes),
    )
    own = next(member for member in catalog.members() if member.domain == catalog.own_domain)
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
