"""Asking holders' coordinators over the control wire: for read tickets, and for bytes where no lane leads to them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import TypeVar

from collective.core.address import FederatedAddress
from collective.core.errors import CollectiveError, Corrupt, Unreachable
from collective.net.channels import Channels
from collective.transfer.peers import PeerBook
from collective.wire import control_pb2

__all__ = ["RpcTicketProvider"]

TIMEOUT_SECONDS = 3.0
STREAM_SECONDS = 30.0  # 8 MiB at 2 Mbit/s; a silent holder is overtaken by the next long before
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

    async def read_segments(
        self, holder_domain: str, request: control_pb2.ReadSegmentsRequest, into: memoryview
    ) -> tuple[int, int]:
        """Sealed segments by a stream of the control wire, the hash list before them when asked for.

        (hash bytes, all bytes) that stand in `into`. Raises: Unreachable, NotFound, Refused, Corrupt (too much came).
        """
        error: CollectiveError = Unreachable(f"nobody told where {holder_domain} can be reached")
        for endpoint in self._book.endpoints(holder_domain):
            try:
                async with asyncio.timeout(STREAM_SECONDS):
                    return await self._stream_into(holder_domain, endpoint.grpc, request, into)
            except Unreachable as failure:
                error = failure
            except TimeoutError:
                error = Unreachable(f"{holder_domain} did not send the bytes in time")
        raise error

    async def _stream_into(
        self, holder_domain: str, endpoint: str, request: control_pb2.ReadSegmentsRequest, into: memoryview
    ) -> tuple[int, int]:
        hash_bytes = got = 0
        async with contextlib.aclosing(
            self._channels.stream(
                FederatedAddress("coord", holder_domain),
                endpoint,
                "/collective.v1.Federation/ReadSegments",
                request,
                control_pb2.ReadSegmentsReply,
            )
        ) as replies:
            async for reply in replies:
                for part in (reply.hashes, reply.sealed):
                    if got + len(part) > len(into):
                        raise Corrupt(f"{holder_domain} sends more than was asked for")
                    into[got : got + len(part)] = part
                    got += len(part)
                hash_bytes += len(reply.hashes)
        return hash_bytes, got

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
