"""What a coordinator answers to other members and to its own nodes: the rows of `Federation` and `Membership`.

Names and entries leave only by `follow`, bytes only by the tickets of `open_version`, and both ask the catalogue
first whether the caller may. Absent and forbidden are answered alike.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from collective.catalog import Catalog
from collective.core.address import FederatedAddress, parse_address
from collective.core.clock import Clock
from collective.core.errors import NotFound, Refused
from collective.core.observe import Observer
from collective.identity import ComponentKind, Level, PeerIdentity
from collective.net.rpc import Caller, Row
from collective.transfer.copies import CopyDesk
from collective.transfer.introducing import Introductions
from collective.transfer.nodes import NodeDirectory, TicketOffice
from collective.transfer.peers import ordered
from collective.transfer.sync import EntryServer
from collective.wire import control_pb2, feed_pb2
from collective.wire.gossip_pb2 import SignedGossip

__all__ = ["FederationDesk", "federation_rows", "membership_rows"]

INLINE_PAGES = 8
PAGES_PER_CALL = 32
COORDINATOR = frozenset({ComponentKind.COORDINATOR})
READERS = frozenset({ComponentKind.COORDINATOR, ComponentKind.CLIENT})


def caller_identity(caller: Caller) -> PeerIdentity:
    """The certificate's word on who calls. Raises: Refused on the local socket, where nobody has one."""
    if caller.identity is None:
        raise Refused("this call is for other components, not for the local socket")
    return caller.identity


@dataclass(frozen=True)
class FederationDesk:
    """Answers peers."""

    catalog: Catalog
    entries: EntryServer
    gossip: Callable[[str, SignedGossip], Awaitable[control_pb2.GossipReply]]
    copies: CopyDesk
    introductions: Introductions
    nodes: NodeDirectory
    tickets: TicketOffice
    clock: Clock
    observer: Observer
    own_address: FederatedAddress
    signing_certificate: x509.Certificate
    endpoints: Sequence[feed_pb2.Endpoint]

    async def peer_connect(
        self, caller: Caller, request: control_pb2.PeerConnectRequest
    ) -> control_pb2.PeerConnectReply:
        return self.introductions.answer(caller_identity(caller), request)

    async def gossiped(self, caller: Caller, message: SignedGossip) -> control_pb2.GossipReply:
        """A signed message; the connection says who hands it over."""
        return await self.gossip(caller_identity(caller).member_domain, message)

    async def follow(
        self, caller: Caller, request: control_pb2.FollowRequest
    ) -> AsyncIterator[control_pb2.FollowReply]:
        async for message in self.entries.follow(caller_identity(caller).member_domain, request):
            yield message

    async def open_version(
        self, caller: Caller, request: control_pb2.OpenVersionRequest
    ) -> control_pb2.OpenVersionReply:
        """A read ticket for one version that this member holds, for a caller who may READ its DataStore."""
        identity = caller_identity(caller)
        layout = self._readable_layout(identity, request.store_id, request.version_id)
        signed, expires = self.tickets.read(identity.member_domain, layout.layout_hash)
        reply = control_pb2.OpenVersionReply(
            layout=layout, signed_ticket=signed, nodes=self._locations(), expires_milliseconds=expires
        )
        if request.with_pages:
            reply.pages.extend(self._pages(layout.pages[:INLINE_PAGES]))
            reply.key_pages.extend(self._pages(layout.key_pages[:INLINE_PAGES]))
        return reply

    def _locations(self) -> list[control_pb2.NodeLocation]:
        """Our nodes, and this coordinator last: its lane passes on what a node's lane cannot be reached for."""
        nodes = self.nodes.locations()
        lanes = [endpoint.lane for endpoint in ordered(self.endpoints) if endpoint.lane]
        if nodes and lanes:
            nodes.append(control_pb2.NodeLocation(address=str(self.own_address), lane_addresses=lanes))
        return nodes

    async def fetch_pages(self, caller: Caller, request: control_pb2.FetchPagesRequest) -> control_pb2.FetchPagesReply:
        layout = self._readable_layout(caller_identity(caller), request.store_id, request.version_id)
        if len(request.names) > PAGES_PER_CALL:
            raise Refused(f"{len(request.names)} pages in one call", f"ask for up to {PAGES_PER_CALL}")
        if not set(request.names) <= {*layout.pages, *layout.key_pages}:
            raise NotFound("no such page in this version")
        return control_pb2.FetchPagesReply(pages=self._pages(list(request.names)))

    async def offer_copy(self, caller: Caller, request: control_pb2.OfferCopyRequest) -> control_pb2.OfferCopyReply:
        return await self.copies.offer(caller_identity(caller).member_domain, request)

    async def complete_copy(
        self, caller: Caller, request: control_pb2.CompleteCopyRequest
    ) -> control_pb2.CompleteCopyReply:
        return await self.copies.complete(caller_identity(caller).member_domain, request)

    async def ping(self, caller: Caller, request: control_pb2.PingRequest) -> control_pb2.PingReply:
        return control_pb2.PingReply(payload=request.payload, federated_address=str(self.own_address))

    async def register_node(
        self, caller: Caller, request: control_pb2.RegisterNodeRequest
    ) -> control_pb2.RegisterNodeReply:
        identity = caller_identity(caller)
        if parse_address(request.federated_address) != identity.address:
            raise Refused(f"{identity.address} registers as {request.federated_address}")
        self.nodes.register(request, self.endpoints)
        return control_pb2.RegisterNodeReply(
            signing_certificate=self.signing_certificate.public_bytes(Encoding.DER),
            policy_epoch=self.tickets.policy_epoch,
        )

    def _readable_layout(self, identity: PeerIdentity, store_id: bytes, version_id: bytes) -> feed_pb2.Layout:
        """The layout, when the caller may read it and this member holds it; otherwise one answer for all."""
        verdict = self.catalog.may(identity.address, feed_pb2.READ, store_id, now=self.clock.wall())
        hosted = self.catalog.is_public_snapshot_for(identity.member_domain, store_id, version_id)
        if not verdict.allowed and not (hosted and identity.kind is ComponentKind.COORDINATOR):
            self.observer.event("access.refused", caller=str(identity.address), right="READ", reason=verdict.reason)
            raise NotFound("no such version here for you")
        here = [*self.catalog.holders(store_id, version_id), *self.catalog.partial_holders(store_id, version_id)]
        if self.own_address.domain not in here:
            raise NotFound("no such version here for you")
        return self.catalog.layout(store_id, version_id)

    def _pages(self, names: list[bytes]) -> list[bytes]:
        pages = [self.catalog.page(name) for name in names]
        if missing := sum(page is None for page in pages):
            raise NotFound(f"{missing} pages of this version are not here")
        return [page for page in pages if page is not None]


def federation_rows(desk: FederationDesk) -> list[Row]:
    """The dispatch rows of the Federation service."""

    def row(name: str, handler: Callable[[Caller, Any], Any], kinds: frozenset[ComponentKind], right: str) -> Row:
        return Row(
            method=f"/collective.v1.Federation/{name}",
            kinds=kinds,
            local=False,
            right=right,
            level=Level.FEDERATED,
            handler=handler,
        )

    return [
        row("PeerConnect", desk.peer_connect, COORDINATOR, "being a member"),
        row("Gossip", desk.gossiped, COORDINATOR, "being a member"),
        row("Follow", desk.follow, COORDINATOR, "per feed: member, host or READ"),
        row("OpenVersion", desk.open_version, READERS, "READ"),
        row("FetchPages", desk.fetch_pages, READERS, "READ"),
        row("OfferCopy", desk.offer_copy, COORDINATOR, "owning the DataStore"),
        row("CompleteCopy", desk.complete_copy, COORDINATOR, "owning the DataStore"),
        row("Ping", desk.ping, READERS, "being a member"),
    ]


def membership_rows(desk: FederationDesk) -> list[Row]:
    """The dispatch rows of the Membership service."""
    return [
        Row(
            method="/collective.v1.Membership/RegisterNode",
            kinds=frozenset({ComponentKind.NODE}),
            local=False,
            right="being a node of this member",
            level=Level.LOCAL,
            handler=desk.register_node,
        )
    ]
