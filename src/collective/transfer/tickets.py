"""Asking holders' coordinators for read tickets, over the control wire."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from collective.core.address import FederatedAddress
from collective.core.errors import CollectiveError, Unreachable
from collective.net.channels import Channels
from collective.transfer.peers import PeerBook
from collective.wire import control_pb2

__all__ = ["RpcTicketProvider"]

TIMEOUT_SECONDS = 3.0
_Request = control_pb2.OpenVersionRequest | control_pb2.FetchPagesRequest
_Reply = TypeVar("_Reply", control_pb2.OpenVersionReply, control_pb2.FetchPagesReply)


class RpcTicketProvider:
    """`open` and `fetch_pages` at a member's coordinator, its endpoints tried in the book's order."""

    def __init__(self, channels: Channels, book: PeerBook) -> None:
        self._channels = channels
        self._book = book

    async def open(self, holder_domain: str, store_id: bytes, version_id: bytes) -> control_pb2.OpenVersionReply:
        """A read ticket, where to use it, and the first pages. Raises: Unreachable, NotFound, Refused."""
        request = control_pb2.OpenVersionRequest(store_id=store_id, version_id=version_id, with_pages=True)
        return await self._ask(holder_domain, "OpenVersion", request, control_pb2.OpenVersionReply)

    async def fetch_pages(
        self, holder_domain: str, store_id: bytes, version_id: bytes, names: Sequence[bytes]
    ) -> list[bytes]:
        """Pages by their names, in the order asked. Raises: Unreachable, NotFound, Refused."""
        request = control_pb2.FetchPagesRequest(store_id=store_id, version_id=version_id, names=names)
        reply = await self._ask(holder_domain, "FetchPages", request, control_pb2.FetchPagesReply)
        return list(reply.pages)

    async def _ask(self, holder_domain: str, method: str, request: _Request, reply_type: type[_Reply]) -> _Reply:
        error: CollectiveError = Unreachable(f"nobody told where {holder_domain} can be reached")
        for endpoint in self._book.endpoints(holder_domain):
            try:
                return await self._channels.unary(
                    FederatedAddress("coord", holder_domain),
                    endpoint.grpc,
                    f"/collective.v1.Federation/{method}",
                    request,
                    reply_type,
                    TIMEOUT_SECONDS,
                )
            except Unreachable as failure:
                error = failure
        raise error
