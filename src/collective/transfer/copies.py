"""Taking a copy: what the receiving member answers when an owner, or a version's writer, offers it a version.

The host follows the store feed sealed. It takes only what a verified entry places on it, only from the DataStore's
owner (the owner itself from the version's writer), and only while its pledge and its disks have room. When the bytes
are there it says so in its own member feed: that statement, not the sender's belief, is what makes a copy.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from collective.catalog import Catalog
from collective.chunks import compute_layout_hash, page_name
from collective.core.errors import Conflict, Corrupt, Full, NotFound, Refused
from collective.core.layout import decode_page, sealed_size
from collective.core.observe import Observer
from collective.transfer.events import ChangeBell
from collective.transfer.nodes import NodeDirectory, TicketOffice
from collective.wire import control_pb2, feed_pb2

__all__ = ["CopyDesk", "chunks_of_pages"]


def chunks_of_pages(pages: list[bytes]) -> list[tuple[bytes, int]]:
    """(chunk id, sealed size) of every chunk that has bytes, each id once."""
    chunks = {
        chunk.id: sealed_size(chunk.size_bytes) for page in pages for chunk in decode_page(page) if chunk.id is not None
    }
    return list(chunks.items())


@dataclass(frozen=True)
class CopyDesk:
    """Answers OfferCopy and CompleteCopy. `pledge_bytes` is what this member hosts for others at most."""

    catalog: Catalog
    nodes: NodeDirectory
    tickets: TicketOffice
    bell: ChangeBell
    observer: Observer
    own_domain: str
    pledge_bytes: Callable[[], int]
    write: Callable[[Callable[[], None]], Awaitable[None]]

    async def offer(self, sender: str, request: control_pb2.OfferCopyRequest) -> control_pb2.OfferCopyReply:
        """An upload ticket for one placed version, or the word that it is here already."""
        layout = self._placed_layout(sender, request.store_id, request.version_id)
        if layout.layout_hash != request.layout_hash:
            raise Conflict("the offer names another layout than the feed", "it will be offered again")
        if self.own_domain in self.catalog.holders(request.store_id, request.version_id):
            return control_pb2.OfferCopyReply(already_held=True)
        node = await self.nodes.for_writing(request.version_id, request.sealed_bytes)
        hosted = self.catalog.hosted_bytes(self.own_domain) - layout.size_bytes  # this one is placed here already
        pledge = self.pledge_bytes()
        ours = self.catalog.store(request.store_id).owner == self.own_domain
        if not ours and hosted + request.sealed_bytes > pledge:
            raise Full(
                f"{self.own_domain} hosts {hosted} of {pledge} pledged bytes for others and cannot take"
                f" {request.sealed_bytes} more",
                "raise the pledge (--storage) there, or place the copy elsewhere",
            )
        signed, _ = self.tickets.upload(sender, request.store_id, request.sealed_bytes)
        return control_pb2.OfferCopyReply(signed_ticket=signed, node=node.location())

    async def complete(self, sender: str, request: control_pb2.CompleteCopyRequest) -> control_pb2.CompleteCopyReply:
        """Check that every chunk and page is here, then state the holding."""
        layout = self._placed_layout(sender, request.store_id, request.version_id)
        self._check_pages(layout, request)
        await self._check_chunks(request.store_id, chunks_of_pages(list(request.pages)))

        def state() -> None:
            names = [*layout.pages, *layout.key_pages]
            self.catalog.put_pages(dict(zip(names, [*request.pages, *request.key_pages], strict=True)))
            self.catalog.hold(request.store_id, [request.version_id])

        await self.write(state)
        self.bell.ring()
        self.observer.event(
            "copies.held", sender=sender, version=request.version_id.hex(), size_bytes=layout.size_bytes
        )
        feed_id = self.catalog.own_member_feed()
        return control_pb2.CompleteCopyReply(
            head=feed_pb2.FeedHead(feed_id=feed_id, head=self.catalog.heads()[feed_id])
        )

    def _placed_layout(self, sender: str, store_id: bytes, version_id: bytes) -> feed_pb2.Layout:
        try:
            store = self.catalog.store(store_id)
        except NotFound:
            raise NotFound("that DataStore's feed has not arrived here yet", "it will be offered again") from None
        if sender != store.owner and store.owner != self.own_domain:
            raise Refused(f"{sender} does not own this DataStore")
        try:
            layout = self.catalog.layout(store_id, version_id)
        except NotFound:
            raise NotFound("that version's entry has not arrived here yet", "it will be offered again") from None
        if sender not in (store.owner, *layout.members[:1]):
            raise Refused(f"{sender} did not write that version")
        if self.own_domain not in self.catalog.placed_members(store_id, version_id):
            raise Refused(f"that version is not placed on {self.own_domain}")
        return layout

    @staticmethod
    def _check_pages(layout: feed_pb2.Layout, request: control_pb2.CompleteCopyRequest) -> None:
        if [page_name(page) for page in request.pages] != list(layout.pages):
            raise Corrupt("the pages are not the ones the layout names")
        if [page_name(page) for page in request.key_pages] != list(layout.key_pages):
            raise Corrupt("the sealed pages are not the ones the layout names")
        if compute_layout_hash(layout) != layout.layout_hash:
            raise Corrupt("the layout is not the one its hash names")

    async def _check_chunks(self, store_id: bytes, chunks: list[tuple[bytes, int]]) -> None:
        there = await self.nodes.holding(store_id, chunks)
        if missing := len(chunks) - len(there):
            raise NotFound(f"{missing} of {len(chunks)} chunks have not arrived", "they will be sent again")
