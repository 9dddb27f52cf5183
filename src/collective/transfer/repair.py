"""Making the copies that are asked for: the owner's side of the second copy.

Each tick looks at what the owner's feed places on a member that has not stated it holds it, offers it, has the own
node stream the chunks to the other node, and asks for the statement. Whatever fails is tried again later, with a
growing pause per member and version; nothing is ever given up, nothing is counted that was not stated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from collective.catalog import Catalog
from collective.core.address import FederatedAddress
from collective.core.errors import CollectiveError, Corrupt, Unreachable
from collective.core.observe import Observer
from collective.net.channels import Channels
from collective.transfer.copies import chunks_of_pages
from collective.transfer.nodes import NodeDirectory
from collective.transfer.peers import PeerBook
from collective.wire import control_pb2, feed_pb2, lane_pb2

__all__ = ["CopyMaker"]

VERSIONS_AT_ONCE = 4
CHUNKS_PER_PUSH = 64  # up to 512 MiB a call: progress is kept by the receiving disk, so a lost call costs little
CALL_TIMEOUT_SECONDS = 15.0
FIRST_PAUSE_SECONDS = 0.5
LAST_PAUSE_SECONDS = 60.0


@dataclass
class _Attempt:
    pause_seconds: float = FIRST_PAUSE_SECONDS
    not_before: float = 0.0


@dataclass
class CopyMaker:
    """Brings the versions of own DataStores to the members they are placed on."""

    catalog: Catalog
    nodes: NodeDirectory
    book: PeerBook
    channels: Channels
    observer: Observer
    own_domain: str
    reasons: dict[str, str] = field(default_factory=dict)  # member domain -> why its last copy failed
    _attempts: dict[tuple[bytes, str], _Attempt] = field(default_factory=dict)

    async def tick(self, now: float) -> None:
        """One round, `now` in monotonic seconds. Returns when every copy of the round is made or failed."""
        missing = await asyncio.to_thread(self.catalog.copies_missing)  # a look at every version there is
        due = [
            (store_id, version_id, member)
            for store_id, version_id, member in missing
            if self._attempts.get((version_id, member), _Attempt()).not_before <= now
        ]
        gate = asyncio.Semaphore(VERSIONS_AT_ONCE)

        async def bounded(store_id: bytes, version_id: bytes, member: str) -> None:
            async with gate:
                await self._try(store_id, version_id, member, now)

        async with asyncio.TaskGroup() as group:
            for copy in due:
                group.create_task(bounded(*copy))

    async def _try(self, store_id: bytes, version_id: bytes, member: str, now: float) -> None:
        try:
            await self._copy(store_id, version_id, member)
        except CollectiveError as error:
            attempt = self._attempts.setdefault((version_id, member), _Attempt())
            attempt.not_before = now + attempt.pause_seconds
            attempt.pause_seconds = min(attempt.pause_seconds * 2, LAST_PAUSE_SECONDS)
            self.reasons[member] = error.message
            self.observer.event("repair.failed", member=member, version=version_id.hex(), reason=error.message)
        else:
            self._attempts.pop((version_id, member), None)
            self.reasons.pop(member, None)

    async def _copy(self, store_id: bytes, version_id: bytes, member: str) -> None:
        layout = self.catalog.layout(store_id, version_id)
        pages, key_pages = self._pages(layout.pages), self._pages(layout.key_pages)
        chunks = chunks_of_pages(pages)
        endpoint = self._endpoint(member)
        peer = FederatedAddress("coord", member)
        offer = await self.channels.unary(
            peer,
            endpoint,
            "/collective.v1.Federation/OfferCopy",
            control_pb2.OfferCopyRequest(
                store_id=store_id,
                version_id=version_id,
                layout_hash=layout.layout_hash,
                sealed_bytes=sum(size for _, size in chunks),
                head=self.catalog.heads()[store_id],
            ),
            control_pb2.OfferCopyReply,
            CALL_TIMEOUT_SECONDS,
        )
        if offer.already_held:
            return
        await self._push(store_id, chunks, offer)
        await self.channels.unary(
            peer,
            endpoint,
            "/collective.v1.Federation/CompleteCopy",
            control_pb2.CompleteCopyRequest(store_id=store_id, version_id=version_id, pages=pages, key_pages=key_pages),
            control_pb2.CompleteCopyReply,
            CALL_TIMEOUT_SECONDS,
        )

    async def _push(self, store_id: bytes, chunks: list[tuple[bytes, int]], offer: control_pb2.OfferCopyReply) -> None:
        """Each of our nodes sends what it has. Raises: Corrupt when a chunk is on none of them."""
        holding = await self.nodes.holding(store_id, chunks)
        if missing := len(chunks) - len(holding):
            raise Corrupt(f"{missing} of {len(chunks)} chunks are on none of our nodes", "start the node that has them")
        for node in self.nodes.all():
            chunk_ids = [id_ for id_, _ in chunks if holding[id_] is node]
            for start in range(0, len(chunk_ids), CHUNKS_PER_PUSH):
                await self.nodes.push(
                    node,
                    lane_pb2.PushRequest(
                        lane_addresses=offer.node.lane_addresses,
                        node_address=offer.node.address,
                        signed_ticket=offer.signed_ticket,
                        chunk_ids=chunk_ids[start : start + CHUNKS_PER_PUSH],
                    ),
                )

    def _pages(self, names: Iterable[bytes]) -> list[bytes]:
        pages = [self.catalog.page(name) for name in names]
        if None in pages:
            raise Corrupt("a page of our own version is missing from the database")
        return [page for page in pages if page is not None]

    def _endpoint(self, member: str) -> str:
        endpoints: list[feed_pb2.Endpoint] = self.book.endpoints(member)
        if not endpoints:
            raise Unreachable(f"nobody told where {member} can be reached", "it will be known when it connects")
        return endpoints[0].grpc
