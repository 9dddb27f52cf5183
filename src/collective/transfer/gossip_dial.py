"""Where gossip hands a message over: at the place that answered last, at those in the book, at those that are found."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from collective.core.address import FederatedAddress
from collective.core.errors import CollectiveError, Unreachable
from collective.core.observe import Observer
from collective.net.channels import Channels
from collective.transfer.finding import Finder
from collective.transfer.peers import PeerBook
from collective.wire import control_pb2
from collective.wire.feed_pb2 import Endpoint
from collective.wire.gossip_pb2 import SignedGossip

__all__ = ["GossipDial"]

CALL_SECONDS = 3.0


class GossipDial:
    """The ways to every member. Looked up in the book once, until `forget`."""

    def __init__(self, channels: Channels, book: PeerBook, finder: Finder, observer: Observer) -> None:
        self._channels = channels
        self._book = book
        self._finder = finder
        self._observer = observer
        self._booked: dict[str, list[Endpoint]] = {}
        self._used: dict[str, Endpoint] = {}  # what answered last

    def used(self, peer: str) -> str:
        """The place that answered last, "" when none did."""
        used = self._used.get(peer)
        return used.grpc if used is not None else ""

    def forget(self, peer: str | None = None) -> None:
        """A member, or somebody, may be elsewhere now."""
        if peer is None:
            self._booked.clear()
        else:
            self._booked.pop(peer, None)

    def heard(self, peer: str) -> None:
        """Something is new about it: worth a search, when it is nowhere in the book."""
        self._finder.heard(peer)

    async def first_place(self, peer: str) -> str:
        """The place to try first. Raises: Unreachable, when there is none."""
        async with aclosing(self._places(peer)) as places:
            async for endpoint, _ in places:
                return endpoint.grpc
        raise _nobody_told(peer)

    async def call(self, peer: str, raw: bytes) -> control_pb2.GossipReply:
        """Hand a message over at the first place that takes it. Raises: what the last one of the book raised."""
        failure: CollectiveError | None = None
        async with aclosing(self._places(peer)) as places:
            async for endpoint, hinted in places:
                try:
                    reply = await self._channels.unary(
                        FederatedAddress("coord", peer),
                        endpoint.grpc,
                        "/collective.v1.Federation/Gossip",
                        SignedGossip.FromString(raw),
                        control_pb2.GossipReply,
                        CALL_SECONDS,
                    )
                except CollectiveError as error:
                    if failure is None or not hinted:
                        failure = error
                    if hinted:
                        self._observer.event(
                            "debug.gossip.not_found", peer=peer, place=endpoint.grpc, reason=error.message
                        )
                    self._failed(peer, endpoint)
                else:
                    self._answered(peer, endpoint)
                    return reply
        raise failure or _nobody_told(peer)

    async def _places(self, peer: str) -> AsyncGenerator[tuple[Endpoint, bool], None]:
        """Everywhere to try, with whether it is only a hint."""
        if peer not in self._booked:
            self._booked[peer] = self._book.endpoints(peer)
        tried = {endpoint.grpc: endpoint for endpoint in self._booked[peer]}
        if used := self._used.get(peer):
            tried = {used.grpc: used} | tried
        for endpoint in list(tried.values()):
            yield endpoint, False
        async with aclosing(self._finder.search(peer)) as hints:
            async for hint in hints:
                if hint.grpc not in tried:
                    tried[hint.grpc] = hint
                    yield hint, True

    def _answered(self, peer: str, endpoint: Endpoint) -> None:
        booked = any(known.grpc == endpoint.grpc for known in self._booked.get(peer, ()))
        if not booked or self.used(peer) != endpoint.grpc:
            self._used[peer] = endpoint
            self._book.met(peer, endpoint)
            self._finder.heard(peer)
            self.forget(peer)

    def _failed(self, peer: str, endpoint: Endpoint) -> None:
        if self.used(peer) == endpoint.grpc:
            del self._used[peer]
            self._book.missed(peer, endpoint.grpc)
            self.forget(peer)


def _nobody_told(peer: str) -> Unreachable:
    return Unreachable(f"nobody told where {peer} can be reached")
