"""The signed heads of own feeds on the disks of separate nodes too: they outlive the coordinator's machine.

`keep` hands a head to every node that is connected, then syncs it in the local folders, then waits for those nodes for
a moment: their round trip runs beside the local syncs. A node that is away or slow holds nothing up; it is told what it
lacks by `compare`, every few seconds and before a coordinator serves. What a node has that is newer than the database
puts the feed in doubt. What this promises: docs/decisions/0005-heads-on-separate-nodes.md.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Awaitable, Callable

from google.protobuf.message import DecodeError

from collective.catalog import Catalog, HeadKeeper
from collective.core.errors import CollectiveError
from collective.core.observe import Observer
from collective.transfer.nodes import NodeDirectory, NodeRecord
from collective.wire import feed_pb2, lane_pb2

__all__ = ["NodeHeads", "compare_heads"]

CALL_SECONDS = 0.8  # an entry waits so long for connected nodes; one that took longer counts as away, and is told later
WAIT_SECONDS = 1.0  # for the event loop to say so
Hear = Callable[[Callable[[], set[bytes]]], Awaitable[set[bytes]]]


class NodeHeads:
    """A HeadKeeper over the local one. Before `attach` it keeps heads locally alone."""

    def __init__(self, local: HeadKeeper, observer: Observer) -> None:
        self._local = local
        self._observer = observer
        self._nodes: NodeDirectory | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._local_nodes: frozenset[str] = frozenset()

    def attach(self, nodes: NodeDirectory, local_nodes: frozenset[str]) -> None:
        """From now on tell the connected nodes, on the running loop; the disks of `local_nodes` are local folders."""
        self._nodes, self._loop, self._local_nodes = nodes, asyncio.get_running_loop(), local_nodes

    def newest(self, feed_id: bytes) -> feed_pb2.Position | None:
        return self._local.newest(feed_id)

    def feeds(self) -> set[bytes]:
        return self._local.feeds()

    def recovered(self) -> bool:
        return self._local.recovered()

    def settle(self) -> None:
        self._local.settle()

    def keep(self, feed_id: bytes, position: feed_pb2.Position) -> None:
        """Called on the catalogue's writer thread. Raises: as the local keeper; never because of a node."""
        telling = self._begin_telling(feed_id, position)
        try:
            self._local.keep(feed_id, position)
        finally:
            if telling is not None:
                self._wait(telling)

    def _begin_telling(self, feed_id: bytes, position: feed_pb2.Position) -> concurrent.futures.Future[None] | None:
        if self._nodes is None or self._loop is None or self._loop.is_closed():
            return None
        connected = [
            node
            for node in self._nodes.all()
            if node.lane is not None and not node.lane.is_closed and str(node.address) not in self._local_nodes
        ]
        if not connected:
            return None
        return asyncio.run_coroutine_threadsafe(self._tell(connected, feed_id, position), self._loop)

    def _wait(self, telling: concurrent.futures.Future[None]) -> None:
        try:
            telling.result(WAIT_SECONDS)
        except (concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
            telling.cancel()
            self._observer.event("heads.node_late", seconds=WAIT_SECONDS)

    async def _tell(self, connected: list[NodeRecord], feed_id: bytes, position: feed_pb2.Position) -> None:
        assert self._nodes is not None
        nodes, request = self._nodes, _keep_request(feed_id, position)

        async def one(node: NodeRecord) -> None:
            try:
                await nodes.call(node, lane_pb2.LANE_KEEP_HEAD, request, CALL_SECONDS)
            except CollectiveError as error:
                self._observer.event("heads.node_away", node=str(node.address), reason=error.message)

        await asyncio.gather(*(one(node) for node in connected))


async def compare_heads(catalog: Catalog, nodes: NodeDirectory, observer: Observer, write: Hear) -> None:
    """Read the heads that every node keeps: a newer one is doubt, an older or missing one is renewed there.

    `write` runs on the catalogue's writer thread: comparing waits for whatever change is under way.
    """

    async def one(node: NodeRecord) -> None:
        try:
            reply = lane_pb2.HeadsReply.FromString(await nodes.call(node, lane_pb2.LANE_HEADS, lane_pb2.HeadsRequest()))
            rows = [feed_pb2.FeedHead.FromString(row) for row in reply.heads]
            kept = {row.feed_id: row.head for row in rows}
            # read after what the node said: never behind it, unless the database is; it may lack the feed altogether
            doubtful = await write(
                lambda: {feed_id for feed_id, there in kept.items() if catalog.hear_head(feed_id, there)}
            )
            for feed_id, here in catalog.own_heads().items():
                if feed_id not in doubtful and kept.get(feed_id) != here:
                    await nodes.call(node, lane_pb2.LANE_KEEP_HEAD, _keep_request(feed_id, here))
        except (CollectiveError, DecodeError) as error:
            observer.event("heads.node_away", node=str(node.address), reason=str(error))

    await asyncio.gather(*(one(node) for node in nodes.all()))


def _keep_request(feed_id: bytes, position: feed_pb2.Position) -> lane_pb2.KeepHeadRequest:
    return lane_pb2.KeepHeadRequest(feed_id=feed_id, head=position.SerializeToString())
