"""Where gossip hands a message over: at the place that answered last, else at each place that a member told."""

from __future__ import annotations

from collective.core.address import FederatedAddress
from collective.core.errors import CollectiveError, Unreachable
from collective.net.channels import Channels
from collective.transfer.peers import PeerBook
from collective.wire import control_pb2
from collective.wire.gossip_pb2 import SignedGossip

__all__ = ["GossipDial"]

CALL_SECONDS = 3.0
DEFAULT_PORT = 8001  # of a member that is known by its domain alone


class GossipDial:
    """The ways to every member. Looked up in the book once, until `forget`."""

    def __init__(self, channels: Channels, book: PeerBook) -> None:
        self._channels = channels
        self._book = book
        self._places: dict[str, list[str]] = {}
        self._used: dict[str, str] = {}  # the endpoint that answered last

    def used(self, peer: str) -> str:
        """The place that answered last, "" when none did."""
        return self._used.get(peer, "")

    def forget(self, peer: str | None = None) -> None:
        """A member, or somebody, may be elsewhere now."""
        if peer is None:
            self._places.clear()
        else:
            self._places.pop(peer, None)

    def places_of(self, peer: str) -> list[str]:
        """Where to dial, the place that answered last first; without any, the domain itself is asked of DNS."""
        places = self._places.get(peer)
        if places is None:
            told = [endpoint.grpc for endpoint in self._book.endpoints(peer)]
            places = self._places[peer] = told or [f"{peer}:{DEFAULT_PORT}"]
        used = self._used.get(peer)
        return [used, *(place for place in places if place != used)] if used else places

    async def call(self, peer: str, raw: bytes) -> control_pb2.GossipReply:
        """Hand a message over at the first place that takes it. Raises: what the last one raised."""
        failure: CollectiveError = Unreachable(f"nobody told where {peer} can be reached")
        for place in self.places_of(peer):
            try:
                reply = await self._channels.unary(
                    FederatedAddress("coord", peer),
                    place,
                    "/collective.v1.Federation/Gossip",
                    SignedGossip.FromString(raw),
                    control_pb2.GossipReply,
                    CALL_SECONDS,
                )
            except CollectiveError as error:
                failure = error
                if self._used.get(peer) == place:
                    del self._used[peer]
                    self._places.pop(peer, None)
            else:
                self._used[peer] = place
                return reply
        raise failure
