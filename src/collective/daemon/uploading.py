"""A mount's contents onto this home's nodes: plans and lanes kept from one upload to the next.

A plan (ticket, secrets, a node) is asked of the coordinator for many uploads at once and used until its time or its
bytes are nearly over; small files would otherwise each cost a call and a TLS handshake.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from collective.core.clock import Clock
from collective.core.errors import Full
from collective.core.sizes import MIB
from collective.daemon.client import ReadSide
from collective.mount.committing import PlainContent, SealedContent
from collective.transfer.node_lane import NodeLane
from collective.transfer.push import Previous, UploadPlan, upload_content
from collective.wire import control_pb2, feed_pb2

__all__ = ["BeginUpload", "Uploader"]

BeginUpload = Callable[[bytes, int], Awaitable[control_pb2.BeginUploadReply]]
"""(store id, bytes) -> the coordinator's answer."""
PLAN_BYTES = 256 * MIB
PLAN_SECONDS = 240.0  # a ticket holds for ten minutes; what begins under it must also end under it


@dataclass
class _Plan:
    """One plan and its lane; `users` are the uploads under way."""

    reply: control_pb2.BeginUploadReply
    lane: NodeLane
    plan: UploadPlan
    until: float
    left_bytes: int
    users: int = 0
    retired: bool = False


class _PlainBytes:
    """A mount's content, as an upload reads it."""

    def __init__(self, content: PlainContent) -> None:
        self._content = content

    @property
    def size_bytes(self) -> int:
        return self._content.size_bytes

    async def read(self, offset: int, into: memoryview) -> None:
        await self._content.read(offset, into)


class Uploader:
    """Uploads of one process. Close it when the last is over."""

    def __init__(self, side: ReadSide, begin: BeginUpload, clock: Clock) -> None:
        self._side = side
        self._begin = begin
        self._clock = clock
        self._plans: dict[bytes, _Plan] = {}
        self._gates: dict[bytes, asyncio.Lock] = {}

    async def upload(self, content: PlainContent) -> SealedContent:
        """See `mount.committing.Committer.upload`."""
        async with self._plan(content.store_id, content.size_bytes) as plan:
            previous = None
            if content.previous is not None:
                source = await self._side.fetcher.open(content.previous, for_bytes=False)
                previous = Previous(source.layout, source.chunks)
            uploaded = await upload_content(
                _PlainBytes(content), plan.plan, plan.lane, changed=content.changed, previous=previous
            )
        made = feed_pb2.Content(
            size_bytes=uploaded.layout.size_bytes,
            version_id=uploaded.layout.version_id,
            key_pages=uploaded.layout.key_pages,
            key_name=plan.reply.key_name,
        )
        return SealedContent(made, uploaded.layout, uploaded.pages, uploaded.key_pages, uploaded.sent_bytes)

    async def close(self) -> None:
        for plan in self._plans.values():
            await plan.lane.close()
        self._plans.clear()

    @asynccontextmanager
    async def _plan(self, store_id: bytes, size_bytes: int) -> AsyncIterator[_Plan]:
        """A plan with time and bytes for this upload; a failed upload gives its plan up."""
        async with self._gates.setdefault(store_id, asyncio.Lock()):
            plan = self._plans.get(store_id)
            if plan is None or plan.until < self._clock.monotonic() or plan.left_bytes < size_bytes:
                await self._retire(store_id)
                plan = self._plans[store_id] = await self._ask(store_id, size_bytes)
            plan.left_bytes -= size_bytes
            plan.users += 1
        try:
            yield plan
        except BaseException:
            if self._plans.get(store_id) is plan:
                await self._retire(store_id)
            raise
        finally:
            plan.users -= 1
            if plan.retired and not plan.users:
                await plan.lane.close()

    async def _retire(self, store_id: bytes) -> None:
        plan = self._plans.pop(store_id, None)
        if plan is not None:
            plan.retired = True
            if not plan.users:
                await plan.lane.close()

    async def _ask(self, store_id: bytes, size_bytes: int) -> _Plan:
        limit = max(size_bytes, PLAN_BYTES)
        try:
            reply = await self._begin(store_id, limit)
        except Full:
            if limit == size_bytes:
                raise
            limit = size_bytes  # no room for many; perhaps for this one
            reply = await self._begin(store_id, limit)
        plan = UploadPlan(
            store_id=reply.store_id,
            store_secret=reply.store_secret,
            store_key=reply.store_key,
            chunk_size_bytes=reply.chunk_size_bytes,
            signed_ticket=reply.signed_ticket,
            nodes=list(reply.nodes),
        )
        return _Plan(reply, NodeLane(plan, self._side.dial), plan, self._clock.monotonic() + PLAN_SECONDS, limit)
