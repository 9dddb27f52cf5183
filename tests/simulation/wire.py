"""The control wire between simulated homes: what `Channels` offers, over a network that delays, loses and cuts off.

A call travels there and its answer back. What is lost on the way is sent again, as TCP does, later each time; when
nothing came through for so long that gRPC's pings would have given the connection up, the caller hears that, and does
not know whether it was done. Gossip alone has it harder than in life: what is lost of it stays lost. Messages travel as
bytes; nobody shares an object with anybody. Gossip, and entries that answer a pull, may come out of the network as
something else, or elsewhere (relay.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import Message

from collective.core.address import FederatedAddress
from collective.core.errors import Unreachable
from collective.wire import control_pb2
from collective.wire.gossip_pb2 import SignedGossip

if TYPE_CHECKING:
    from simulation.homes import Life
    from simulation.street import Street

__all__ = ["SILENCE_SECONDS", "Wire"]

Reply = TypeVar("Reply", bound=Message)
SILENCE_SECONDS = 3.5  # net/rpc pings a peer that says nothing; so long until a call over a cut link breaks
RESEND_SECONDS = 0.2  # after which TCP sends again what nobody acknowledged; twice as long each time (RFC 6298)


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
        street, kind, raw = self._street, type(request), request.SerializeToString()
        resends = method != "Gossip"
        await self._dial(peer, endpoint, len(raw), resends=resends)
        target = street.homes[peer]
        arriving = [raw] if resends else self._pass(self._domain, peer, raw)
        if not arriving:
            await _silence(peer)
        if street.network.duplication and street.random.random() < street.network.duplication:
            arriving *= 2
        *_, answering = [target.answer(self._domain, method, kind, one) for one in arriving]  # the others nobody hears
        life = target.life
        assert life is not None
        await asyncio.wait([answering])
        if life.ended:
            await self._gone(peer)  # the peer died over it
        answer = answering.result()
        await self._travel(peer, self._domain, answer.ByteSize(), resends=resends)
        if isinstance(answer, control_pb2.GossipReply):
            told = [message.SerializeToString() for message in answer.messages]
            arriving = [one for reply in told for one in self._pass(peer, self._domain, reply)]
            answer = control_pb2.GossipReply(messages=[self._life.read(SignedGossip, one) for one in arriving])
        return answer.SerializeToString()

    def _pass(self, source: str, target: str, raw: bytes) -> list[bytes]:
        """What comes out at its end for a gossip message; what comes out elsewhere is handed over there."""
        arriving = []
        for caller, called, one in self._street.network.passing(source, target, raw):
            home = self._street.homes[called]
            if (caller, called) == (source, target):
                arriving.append(one)
            elif home.life is not None:
                home.answer(caller, "Gossip", SignedGossip, one)
        return arriving

    async def stream(
        self, peer: FederatedAddress, endpoint: str, method: str, request: Message, reply_type: type[Reply]
    ) -> AsyncGenerator[Reply, None]:
        """A stream of answers (of `Follow`, there is no other). Raises as `unary`."""
        await self._dial(peer.domain, endpoint, request.ByteSize())
        life = self._street.homes[peer.domain].life
        assert life is not None
        replies = life.follow(self._domain, type(request).FromString(request.SerializeToString()))
        while life is self._street.homes[peer.domain].life:
            reply = await anext(replies, None)
            if reply is None:
                return
            size_bytes = reply.ByteSize()
            self._street.network.entry_bytes += size_bytes
            await self._travel(peer.domain, self._domain, size_bytes)
            answer = [(reply.feed_id, list(reply.entries))]
            for reply.feed_id, reply.entries[:] in self._street.network.answering(answer):
                yield reply_type.FromString(reply.SerializeToString())
        raise Unreachable(f"{peer.domain} went away in the middle")

    async def _dial(self, peer: str, endpoint: str, size_bytes: int, *, resends: bool = True) -> None:
        """As net/channels: nobody removed is dialled, and nobody is found where it was once. Raises: as `unary`."""
        if self._life.ended:
            await asyncio.Event().wait()  # the dead do not dial
        self._life.check_member(peer)
        if peer not in self._street.homes:
            raise Unreachable(f"nobody is called {peer}")
        await self._travel(self._domain, peer, size_bytes, resends=resends)
        if endpoint not in (self._street.homes[peer].place, f"{peer}:8001"):
            raise Unreachable(f"nobody listens at {endpoint}")

    async def _travel(self, source: str, target: str, size_bytes: int, *, resends: bool = True) -> None:
        """One message on its way; returns when it is there. Raises: Unreachable when nobody listens, or too long
        nothing came through.
        """
        street, network = self._street, self._street.network
        peer = source if target == self._domain else target
        waited, wait = 0.0, RESEND_SECONDS
        while True:
            network.messages += 1
            network.bytes += size_bytes
            is_lost = network.loss and street.random.random() < network.loss
            if (source, target) not in network.blocked and not is_lost:
                break
            if not resends or waited + wait > SILENCE_SECONDS:
                await _silence(peer, SILENCE_SECONDS - waited)
            await asyncio.sleep(wait)
            waited, wait = waited + wait, wait * 2
        await asyncio.sleep(street.random.uniform(network.least_delay, network.most_delay))
        if street.homes[target].life is None:
            await self._gone(target)

    async def _gone(self, peer: str) -> None:
        """Nobody runs there (any more): its machine says so, or nothing does. Raises: Unreachable."""
        if not self._street.network.refuses:
            await _silence(peer)
        raise Unreachable(f"nobody listens at {peer}")


async def _silence(peer: str, seconds: float = SILENCE_SECONDS) -> None:
    """Nothing comes, until that is noticed. Raises: Unreachable."""
    await asyncio.sleep(seconds)
    raise Unreachable(f"{peer} is silent")
