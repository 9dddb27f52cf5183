"""Tickets shown on a lane, and what they open: judged alike at a node and at the coordinator that stands in for it.

    PRESENT (ticket, layout) --> handle --PRESENT_PAGE (a page the layout names)--> the chunks that page lists

A read ticket names one layout; the caller shows what the layout's hash covers, then its public pages, and may read the
chunks they list, nothing else: absent and forbidden are answered alike. Handles die with the ticket's end, with a
raised policy epoch, and with the connection.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from typing_extensions import Buffer

from collective.chunks import compute_layout_hash, page_name
from collective.core.clock import Clock
from collective.core.errors import NotFound, Refused, Unreachable
from collective.core.layout import SEALED_SEGMENT_BYTES, decode_page, sealed_size
from collective.identity import verify_ticket
from collective.net.lane import LaneCaller
from collective.wire import feed_pb2, lane_pb2, ticket_pb2

__all__ = ["HANDLES_PER_CONNECTION", "NodePolicy", "ShownTickets", "chunks_listed", "no_such_chunk", "segment_run"]

HANDLES_PER_CONNECTION = 1024
LAYOUTS_KEPT = 64  # presented layouts remembered for other connections of the same member


def no_such_chunk() -> NotFound:
    """The one answer for what is absent and what is forbidden."""
    return NotFound("no such chunk under this ticket")


def segment_run(size_bytes: int, first: int, count: int) -> tuple[int, int]:
    """(segments, sealed bytes) of a run, cut at the end of a chunk of this sealed size. Raises: NotFound."""
    count = min(count, -(-size_bytes // SEALED_SEGMENT_BYTES) - first)
    if count <= 0:
        raise NotFound("no such segment in the chunk")
    return count, min(count * SEALED_SEGMENT_BYTES, size_bytes - first * SEALED_SEGMENT_BYTES)


@dataclass
class NodePolicy:
    """What a member's coordinator says of its tickets: the key they are signed with, and the policy epoch."""

    member_domain: str
    signing_key: Ed25519PublicKey | None = None
    policy_epoch: int = 0

    def update(self, signing_key: Ed25519PublicKey, policy_epoch: int) -> None:
        """Take the coordinator's word; epochs only rise."""
        self.signing_key = signing_key
        self.policy_epoch = max(self.policy_epoch, policy_epoch)

    def verify(self, signed: bytes, bearer: str, now: float) -> ticket_pb2.Ticket:
        """Raises: Refused, Unreachable (the coordinator has not been heard yet)."""
        if self.signing_key is None:
            raise Unreachable("this node has not heard from its coordinator yet", "try again in a moment")
        return verify_ticket(
            signed,
            signing_public_key=self.signing_key,
            issuer=self.member_domain,
            bearer=bearer,
            policy_epoch=self.policy_epoch,
            now=now,
        )

    def verify_read(self, signed: bytes, bearer: str, now: float, layout: feed_pb2.Layout) -> ticket_pb2.Ticket:
        """As `verify`, for a ticket that opens this layout and nothing else. Raises: Refused, Unreachable."""
        ticket = self.verify(signed, bearer, now)
        if not ticket.HasField("read") or compute_layout_hash(layout) != ticket.read.layout_hash:
            raise Refused("the ticket is for another layout")
        return ticket


@dataclass
class _Handle:
    """One ticket shown on one connection. `chunks`: id -> sealed size, of the pages shown."""

    ticket: ticket_pb2.Ticket
    pages: list[bytes] = field(default_factory=list)
    chunks: dict[bytes, int] = field(default_factory=dict)


@dataclass
class ShownTickets:
    """Answers LANE_PRESENT and LANE_PRESENT_PAGE, and tells what a handle opens."""

    policy: NodePolicy
    clock: Clock
    _layouts: OrderedDict[tuple[str, bytes], dict[bytes, int]] = field(default_factory=OrderedDict)

    async def present(self, caller: LaneCaller, head: bytes, body: memoryview) -> tuple[bytes, Sequence[Buffer]]:
        request = lane_pb2.PresentRequest.FromString(head)
        member = caller.peer.member_domain
        handle = _Handle(self.policy.verify(request.signed_ticket, member, self.clock.wall()))
        if handle.ticket.HasField("read"):
            layout = feed_pb2.Layout(
                size_bytes=request.size_bytes,
                chunk_size_bytes=request.chunk_size_bytes,
                coding=feed_pb2.Coding(k=request.coding_k, m=request.coding_m),
                pages=request.pages,
            )
            self.policy.verify_read(request.signed_ticket, member, self.clock.wall(), layout)
            handle.pages = list(request.pages)
            handle.chunks = self._chunks_of(member, handle.ticket.read.layout_hash)
        handles: dict[int, _Handle] = caller.state.setdefault("handles", {})
        numbers = caller.state.setdefault("numbers", itertools.count(1))
        if len(handles) >= HANDLES_PER_CONNECTION:
            del handles[next(iter(handles))]
        number = next(numbers)
        handles[number] = handle
        return lane_pb2.PresentReply(handle=number).SerializeToString(), ()

    async def present_page(self, caller: LaneCaller, head: bytes, body: memoryview) -> tuple[bytes, Sequence[Buffer]]:
        request = lane_pb2.PresentPageRequest.FromString(head)
        handle = self._handle(caller, request.handle, "read")
        handle.chunks.update(chunks_listed(handle.pages, request.page_index, bytes(body)))
        return lane_pb2.PresentPageReply().SerializeToString(), ()

    def chunk_size(self, caller: LaneCaller, handle: int, chunk_id: bytes) -> int:
        """The sealed size of a chunk that a read handle opens. Raises: Refused (no such handle), NotFound."""
        size = self._handle(caller, handle, "read").chunks.get(chunk_id)
        if size is None:
            raise no_such_chunk()
        return size

    def upload_scope(self, caller: LaneCaller, handle: int) -> ticket_pb2.UploadScope:
        """What an upload handle opens. Raises: Refused."""
        return self._handle(caller, handle, "upload").ticket.upload

    def _chunks_of(self, member: str, layout_hash: bytes) -> dict[bytes, int]:
        """The chunks that this member has shown pages of, shared by its connections, bounded."""
        key = (member, layout_hash)
        chunks = self._layouts.pop(key, {})
        self._layouts[key] = chunks
        while len(self._layouts) > LAYOUTS_KEPT:
            self._layouts.popitem(last=False)
        return chunks

    def _handle(self, caller: LaneCaller, number: int, scope: str) -> _Handle:
        """A handle that still counts. Raises: Refused."""
        handle: _Handle | None = caller.state.get("handles", {}).get(number)
        if handle is None or handle.ticket.WhichOneof("scope") != scope:
            raise Refused(f"there is no {scope} ticket under that handle", "show a ticket first")
        ticket = handle.ticket
        if ticket.expires_milliseconds <= self.clock.wall() * 1000 or ticket.policy_epoch < self.policy.policy_epoch:
            del caller.state["handles"][number]
            raise Refused("the ticket has ended", "ask the coordinator for a new one")
        return handle


def chunks_listed(pages: Sequence[bytes], index: int, page: bytes) -> dict[bytes, int]:
    """id -> sealed size of the chunks that a page lists. Raises: Refused when it is not the one `pages` names."""
    if index >= len(pages) or page_name(page) != pages[index]:
        raise Refused("the page is not the one the layout names")
    return {chunk.id: sealed_size(chunk.size_bytes) for chunk in decode_page(page) if chunk.id is not None}
