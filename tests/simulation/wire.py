"""The control wire between simulated homes: what `Channels` offers, over a network that delays, loses and cuts off.

A call travels there and its answer back. Either may get lost: then the caller hears nothing, as long as its patience
lasts, and does not know whether it was done. Messages travel as bytes; nobody shares an object with anybody.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import Message

from collective.core.address import FederatedAddress
from collective.core.errors import Unreachable

if TYPE_CHECKING:
    from simulation.homes import Life
    from simulation.street import Street

__all__ = ["SILENCE_SECONDS", "Wire"]

Reply = TypeVar("Reply", bound=Message)
SILENCE_SECONDS = 3.5  # net/rpc pings a peer that says nothing; so long until a stream over a cut link breaks


class Wire:
    """One member's asking side."""

    def __init__(self, street: Street, life: Life) -> None:
        self._street = street
        self._life = life
        self._domain = life.home.domain

    async def unary(
        self,
        peer: FederatedAddress,
        endpoint: str,
        method: str,
        request: Message,
        reply_type: type[Reply],
        timeout_seconds: float,
    ) -> Reply:
        """One call. Raises: what the peer raised, Unreachable."""
        try:
            async with asyncio.timeout(timeout_seconds):
                reply = await self._ask(peer.domain, endpoint, method.rpartition("/")[2], request)
        except TimeoutError:
            raise Unreachable(f"{peer.domain} is silent") from None
        return reply_type.FromString(reply)

    async def _ask(self, peer: str, endpoint: str, method: str, request: Message) -> bytes:
        street, raw = self._street, request.SerializeToString()
        await self._dial(peer, endpoint, len(raw))
        target = street.homes[peer]
        if street.network.duplication and street.random.random() < street.network.duplication:
            target.answer(self._domain, method, type(request).FromString(raw))  # once more, and nobody hears the answer
        life = target.life
        assert life is not None
        answering = target.answer(self._domain, method, type(request).FromString(raw))
        await asyncio.wait([answering])
        if life.ended:
            await _silence()  # the peer died over it
        answer = answering.result().SerializeToString()
        await self._travel(peer, self._domain, len(answer))
        return answer

    async def stream(
        self, peer: FederatedAddress, endpoint: str, method: str, request: Message, reply_type: type[Reply]
    ) -> AsyncGenerator[Reply, None]:
        """A stream of answers (of `Follow`, there is no other). Raises as `unary`."""
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                await self._dial(peer.domain, endpoint, request.ByteSize())
        except TimeoutError:
            raise Unreachable(f"{peer.domain} is silent") from None
        life = self._street.homes[peer.domain].life
        assert life is not None
        replies = life.follow(self._domain, type(request).FromString(request.SerializeToString()))
        while life is self._street.homes[peer.domain].life:
            reply = await anext(replies, None)
            if reply is None:
                return
            raw = reply.SerializeToString()
            self._street.network.entry_bytes += len(raw)
            try:
                async with asyncio.timeout(SILENCE_SECONDS):
                    await self._travel(peer.domain, self._domain, len(raw))
            except TimeoutError:
                raise Unreachable(f"{peer.domain} fell silent") from None
            yield reply_type.FromString(raw)
        raise Unreachable(f"{peer.domain} went away in the middle")

    async def _dial(self, peer: str, endpoint: str, size_bytes: int) -> None:
        """As net/channels: nobody removed is dialled, and nobody is found where it was once. Raises: as `unary`."""
        if self._life.ended:
            await _silence()
        self._life.check_member(peer)
        await self._travel(self._domain, peer, size_bytes)
        if endpoint not in (self._street.homes[peer].place, f"{peer}:8001"):
            raise Unreachable(f"nobody listens at {endpoint}")

    async def _travel(self, source: str, target: str, size_bytes: int) -> None:
        """One message on its way; returns when it is there, or never. Raises: Unreachable when nobody listens."""
        street, network = self._street, self._street.network
        network.messages += 1
        network.bytes += size_bytes
        if (source, target) in network.blocked or (network.loss and street.random.random() < network.loss):
            await _silence()
        await asyncio.sleep(street.random.uniform(network.least_delay, network.most_delay))
        if street.homes[target].life is None:
            if not network.refuses:
                await _silence()
            raise Unreachable(f"nobody listens at {target}")


async def _silence() -> None:
    await asyncio.Event().wait()
