"""The control wire's asking side: one channel per peer and place, errors turned back into our kinds.

The TLS name of a channel is the component's own dNSName (`coord.alice.media.collective`), which only a CA constrained
to that member can certify; host names and addresses prove nothing. A channel whose connection failed is thrown away,
so that the next call dials and judges afresh; so are all channels to a member that is removed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from collective.core.address import FederatedAddress
from collective.core.clock import Clock
from collective.core.errors import CollectiveError, Full, Refused, Unreachable, error_named
from collective.identity import Credentials, TrustStore
from collective.net.rpc import ERROR_KEY, OPTIONS, VERSIONS_KEY
from collective.net.versions import CONTROL

__all__ = ["Channels", "LocalChannel"]

Reply = TypeVar("Reply", bound=Message)
MAX_CHANNELS = (
    64  # a file descriptor and some 100 KiB each; of those without a call the one used longest ago makes room
)
DIAL_OPTIONS = (
    # a peer that comes back is found again within a second, not after gRPC's usual two minutes
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
)


class _ConnectionFailed(Unreachable):
    """The channel itself failed; nobody at the other end said so."""


class Channels:
    """Calls to other components by their address and place. Belongs to one event loop."""

    def __init__(self, credentials: Credentials, trust: TrustStore, clock: Clock) -> None:
        self._credentials = credentials
        self._trust = trust
        self._clock = clock
        self._open: dict[tuple[str, str], grpc.aio.Channel] = {}  # the one used last stands last
        self._calls: Counter[grpc.aio.Channel] = Counter()  # under way on each
        self._closing: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def unary(
        self,
        peer: FederatedAddress,
        endpoint: str,
        method: str,
        request: Message,
        reply_type: type[Reply],
        timeout_seconds: float,
    ) -> Reply:
        """One call. Raises: what the peer raised, Unreachable, Refused (not the peer meant, or removed)."""
        with self._using(peer, endpoint) as channel:
            return await _unary(channel, f"{peer} at {endpoint}", method, request, reply_type, timeout_seconds)

    async def stream(
        self, peer: FederatedAddress, endpoint: str, method: str, request: Message, reply_type: type[Reply]
    ) -> AsyncGenerator[Reply, None]:
        """A stream of answers, until it ends. Raises as `unary`."""
        with self._using(peer, endpoint) as channel:
            async with contextlib.aclosing(
                _stream(channel, f"{peer} at {endpoint}", method, request, reply_type)
            ) as replies:
                async for reply in replies:
                    yield reply

    async def close(self) -> None:
        """Close all channels; calls under way fail with Unreachable."""
        self._trust.unsubscribe(self._trust_changed)
        self._loop = None
        channels, self._open = list(self._open.values()), {}
        await asyncio.gather(*(channel.close() for channel in channels), *self._closing)

    @contextlib.contextmanager
    def _using(self, peer: FederatedAddress, endpoint: str) -> Iterator[grpc.aio.Channel]:
        """The channel, kept while the call lasts; thrown away when its connection failed."""
        channel = self._channel(peer, endpoint)
        self._calls[channel] += 1
        try:
            yield channel
        except _ConnectionFailed as error:
            self._drop(peer, endpoint, channel)
            raise Unreachable(error.message, error.hint) from error
        finally:
            self._calls[channel] -= 1
            if not self._calls[channel]:
                del self._calls[channel]
            self._make_room(MAX_CHANNELS)

    def _make_room(self, most: int) -> None:
        """Close channels without a call until at most `most` are open; with calls there may be more for a while."""
        idle = [key for key, channel in self._open.items() if channel not in self._calls]
        for key in idle[: max(0, len(self._open) - most)]:
            self._close(self._open.pop(key))

    def _channel(self, peer: FederatedAddress, endpoint: str) -> grpc.aio.Channel:
        if self._trust.is_removed(peer.domain):
            raise Refused(f"{peer.domain} was removed from the federation")
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._trust.subscribe(self._trust_changed)
        key = (str(peer), endpoint)
        channel = self._open.pop(key, None)
        if channel is None:
            self._make_room(MAX_CHANNELS - 1)
            credentials = grpc.ssl_channel_credentials(
                self._credentials.root_pem, self._credentials.key_pem, self._credentials.chain_pem
            )
            options = (*OPTIONS, *DIAL_OPTIONS, ("grpc.ssl_target_name_override", peer.dns_name()))
            channel = grpc.aio.secure_channel(endpoint, credentials, options=options)
        self._open[key] = channel  # now the one used last
        return channel

    def _drop(self, peer: FederatedAddress, endpoint: str, channel: grpc.aio.Channel) -> None:
        key = (str(peer), endpoint)
        if self._open.get(key) is channel:
            self._close(self._open.pop(key))

    def _close(self, channel: grpc.aio.Channel) -> None:
        task = asyncio.get_running_loop().create_task(channel.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _trust_changed(self) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._close_removed)

    def _close_removed(self) -> None:
        for address, endpoint in list(self._open):
            if self._trust.is_removed(address.partition("@")[2]):
                self._close(self._open.pop((address, endpoint)))


class LocalChannel:
    """Calls to the coordinator of this home over its Unix socket."""

    def __init__(self, path: Path) -> None:
        self._channel = grpc.aio.insecure_channel(f"unix:{path}", options=OPTIONS)

    async def ready(self, timeout_seconds: float) -> bool:
        """Whether somebody answers at the socket."""
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
        return await _unary(self._channel, "this home's coordinator", method, request, reply_type, timeout_seconds)

    async def stream(self, method: str, request: Message, reply_type: type[Reply]) -> AsyncGenerator[Reply, None]:
        """A stream of answers. Raises as `unary`."""
        async with contextlib.aclosing(
            _stream(self._channel, "this home's coordinator", method, request, reply_type)
        ) as replies:
            async for reply in replies:
                yield reply

    async def close(self) -> None:
        await self._channel.close()


async def _unary(
    channel: grpc.aio.Channel,
    who: str,
    method: str,
    request: Message,
    reply_type: type[Reply],
    timeout_seconds: float,
) -> Reply:
    try:
        call = channel.unary_unary(method, request_serializer=_serialize, response_deserializer=reply_type.FromString)
        reply: Reply = await call(request, timeout=timeout_seconds, metadata=_spoken())
    except grpc.aio.AioRpcError as error:
        raise _error_of(error, who) from error
    except asyncio.CancelledError:
        _raise_if_cut(who)
        raise
    except grpc.aio.UsageError as error:
        raise Unreachable(f"the channel to {who} was closed") from error
    return reply


async def _stream(
    channel: grpc.aio.Channel, who: str, method: str, request: Message, reply_type: type[Reply]
) -> AsyncGenerator[Reply, None]:
    try:
        call = channel.unary_stream(method, request_serializer=_serialize, response_deserializer=reply_type.FromString)(
            request, metadata=_spoken()
        )
    except grpc.aio.UsageError as error:
        raise Unreachable(f"the channel to {who} was closed") from error
    try:
        async for reply in call:
            yield reply
    except grpc.aio.AioRpcError as error:
        raise _error_of(error, who) from error
    except asyncio.CancelledError:
        _raise_if_cut(who)
        raise
    finally:
        call.cancel()


def _raise_if_cut(who: str) -> None:
    """gRPC raises CancelledError in calls whose channel is closed; only a cancelled task may see that."""
    task = asyncio.current_task()
    if task is not None and not task.cancelling():
        raise Unreachable(f"the call to {who} was cut off") from None


def _spoken() -> tuple[tuple[str, str], ...]:
    """What every call says of the versions that this side speaks."""
    return ((VERSIONS_KEY, str(CONTROL)),)


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _error_of(error: grpc.aio.AioRpcError, who: str) -> CollectiveError:
    for key, value in error.trailing_metadata() or ():
        if key == ERROR_KEY and isinstance(value, bytes):
            kind, _, rest = value.decode(errors="replace").partition("\0")
            message, _, hint = rest.partition("\0")
            return error_named(kind, message, hint)
    code, whole = error.code(), error.details() or ""
    details = whole.strip().partition("\n")[0][:200]
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Unreachable(f"{who} did not answer in time")
    if code is grpc.StatusCode.UNAVAILABLE:
        if any(word in whole for word in ("CERTIFICATE_VERIFY_FAILED", "Hostname Verification", "not match")):
            return Refused(f"{who} shows a certificate that is not its own or not of this federation")
        if "Connection refused" in whole:
            return _ConnectionFailed(f"nothing listens for {who}")
        return _ConnectionFailed(f"{who} cannot be reached: {details or 'no answer'}")
    if code is grpc.StatusCode.CANCELLED:
        return Unreachable(f"the call to {who} was cut off")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return Refused(f"{who} does not know this call", "one of the two may need an update")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return Full(f"{who} cannot take this call: {details}", "it is busy, or the message is too large")
    return CollectiveError(f"{who} answered {code.name}: {details}")
