"""Asking another member's coordinator over the control wire, at whichever of its endpoints answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import Message

from collective.core.address import FederatedAddress
from collective.core.errors import CollectiveError, Unreachable
from collective.net.channels import Channels
from collective.transfer.peers import PeerBook

__all__ = ["Coordinators"]

_Reply = TypeVar("_Reply", bound=Message)


@dataclass(frozen=True)
class Coordinators:
    """Calls of the Federation service by their short name."""

    channels: Channels
    book: PeerBook

    async def call(
        self, domain: str, method: str, request: Message, reply_type: type[_Reply], timeout_seconds: float
    ) -> _Reply:
        """One call, its endpoints tried in the book's order. Raises: Unreachable, and what the other side raised."""
        error: CollectiveError = Unreachable(
            f"nobody told where {domain} can be reached", "it will be known when it connects"
        )
        for endpoint in self.book.endpoints(domain):
            try:
                return await self.channels.unary(
                    FederatedAddress("coord", domain),
                    endpoint.grpc,
                    f"/collective.v1.Federation/{method}",
                    request,
                    reply_type,
                    timeout_seconds,
                )
            except Unreachable as failure:
                error = failure
        raise error
