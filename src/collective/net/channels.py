"""The control wire's asking side: one channel per peer and place, errors turned back into our kinds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from collective.core.address import FederatedAddress
from collective.core.clock import Clock
from collective.core.errors import CollectiveError, Refused, Unreachable, error_named
from collective.identity import Credentials, TrustStore
from collective.net.rpc import ERROR_KEY, OPTIONS

__all__ = ["Channels", "LocalChannel"]

Reply = TypeVar("Reply", bound=Message)
MAX_CHANNELS = 64


class Channels:
    """Calls to other components by their address and place. The TLS name is the component's, never the host's."""

    def __init__(self, credentials: Credentials, trust: TrustStore, clock: Clock) -> None:
        self._credentials = credentials
        self._trust = trust
        self._clock = clock
        self._open: dict[tuple[str, str], grpc.aio.Channel] = {}

    async def unary(
        self,
        peer: FederatedAddress,
        endpoint: str,
        method: str,
        request: Message,
        reply_type: type[Reply],
        timeout_seconds: float,
    ) -> Reply:
        """One call. Raises: what the peer raised, Unreachable, Refused (not the peer meant)."""
        call = self._channel(peer, endpoint).unary_unary(
            method, request_serializer=_serialize, response_deserializer=reply_type.FromString
        )
        try:
            reply: Reply = await call(request, timeout=timeout_seconds)
        except grpc.aio.AioRpcError as error:
            self._forget(peer, endpoint, error)
            raise _error_of(error, f"{peer} at {endpoint}") from error
        return reply

    async def stream(
        self, peer: FederatedAddress, endpoint: str, method: str, request: Message, reply_type: type[Reply]
    ) -> AsyncGenerator[Reply, None]:
        """A stream of answers, until it ends. Raises as `unary`."""
        call = self._channel(peer, endpoint).unary_stream(
            method, request_serializer=_serialize, response_deserializer=reply_type.FromString
        )(request)
        try:
            async for reply in call:
                yield reply
        except grpc.aio.AioRpcError as error:
            self._forget(peer, endpoint, error)
            raise _error_of(error, f"{peer} at {endpoint}") from error
        finally:
            call.cancel()

    async def close(self) -> None:
        """Close all channels."""
        channels, self._open = list(self._open.values()), {}
        await asyncio.gather(*(channel.close() for channel in channels))

    def _channel(self, peer: FederatedAddress, endpoint: str) -> grpc.aio.Channel:
        key = (str(peer), endpoint)
        channel = self._open.get(key)
        if channel is None:
            if self._trust.is_removed(peer.domain):
                raise Refused(f"{peer.domain} was removed from the federation")
            credentials = grpc.ssl_channel_credentials(
                self._credentials.root_pem, self._credentials.key_pem, self._credentials.chain_pem
            )
            options = (
                *OPTIONS,
                ("grpc.ssl_target_name_override", peer.dns_name()),
                # a peer that comes back is found again within a second, not after gRPC's usual two minutes
                ("grpc.initial_reconnect_backoff_ms", 200),
                ("grpc.min_reconnect_backoff_ms", 200),
                ("grpc.max_reconnect_backoff_ms", 2000),
            )
            while len(self._open) >= MAX_CHANNELS:
                oldest = next(iter(self._open))
                asyncio.get_running_loop().create_task(self._open.pop(oldest).close()).add_done_callback(_done)
            channel = self._open[key] = grpc.aio.secure_channel(endpoint, credentials, options=options)
        return channel

    def _forget(self, peer: FederatedAddress, endpoint: str, error: grpc.aio.AioRpcError) -> None:
        """A place that could not be reached is dialled afresh, so that its certificate is judged afresh too."""
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            channel = self._open.pop((str(peer), endpoint), None)
            if channel is not None:
                asyncio.get_running_loop().create_task(channel.close()).add_done_callback(_done)


class LocalChannel:
    """Calls to the coordinator of this home over its Unix socket."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._channel = grpc.aio.insecure_channel(f"unix:{path}", options=OPTIONS)

    async def ready(self, timeout_seconds: float) -> bool:
        """Whether somebody answers at the socket."""
        self._channel.get_state(try_to_connect=True)
        try:
            async with asyncio.timeout(timeout_seconds):
                state = self._channel.get_state(try_to_connect=True)
                while state is not grpc.ChannelConnectivity.READY:
                    if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                        return False
                    await self._channel.wait_for_state_change(state)
                    state = self._channel.get_state(try_to_connect=True)
        except TimeoutError:
            return False
        return True

    async def unary(self, method: str, request: Message, reply_type: type[Reply], timeout_seconds: float) -> Reply:
        """One call. Raises: what the coordinator raised, Unreachable."""
        call = self._channel.unary_unary(
            method, request_serializer=_serialize, response_deserializer=reply_type.FromString
        )
        try:
            reply: Reply = await call(request, timeout=timeout_seconds)
        except grpc.aio.AioRpcError as error:
            raise _error_of(error, "this home's coordinator") from error
        return reply

    async def stream(self, method: str, request: Message, reply_type: type[Reply]) -> AsyncIterator[Reply]:
        """A stream of answers."""
        call = self._channel.unary_stream(
            method, request_serializer=_serialize, response_deserializer=reply_type.FromString
        )(request)
        try:
            async for reply in call:
                yield reply
        except grpc.aio.AioRpcError as error:
            raise _error_of(error, "this home's coordinator") from error
        finally:
            call.cancel()

    async def close(self) -> None:
        await self._channel.close()


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _done(task: asyncio.Task[Any]) -> None:
    """Take a closing channel's result, so that nothing is left unasked for."""
    if not task.cancelled():
        task.exception()


def _error_of(error: grpc.aio.AioRpcError, who: str) -> CollectiveError:
    for key, value in error.trailing_metadata() or ():
        if key == ERROR_KEY and isinstance(value, bytes):
            kind, _, rest = value.decode(errors="replace").partition("\0")
            message, _, hint = rest.partition("\0")
            return error_named(kind, message, hint)
    details = (error.details() or "").strip()
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Unreachable(f"{who} did not answer in time")
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        if "CERTIFICATE_VERIFY_FAILED" in details or "Hostname Verification" in details or "not match" in details:
            return Refused(f"{who} shows a certificate that is not its own or not of this federation")
        if "Connection refused" in details:
            return Unreachable(f"nothing listens for {who}")
        return Unreachable(f"{who} cannot be reached: {details.splitlines()[0][:200] if details else 'no answer'}")
    if error.code() is grpc.StatusCode.CANCELLED:
        return Unreachable(f"the call to {who} was cut off")
    return CollectiveError(f"{who} answered {error.code().name}: {details[:200]}")
