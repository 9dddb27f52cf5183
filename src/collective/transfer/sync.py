"""Ranges of entries between members: what a feed has past a seq, asked for and answered by one stream.

Gossip decides who asks whom for what (`gossiping`); this moves it. The answering side judges anew before every message
what the asker may follow, and sends root feed, member feeds, then store feeds: an entry is judged by what stands in the
feeds before it. Whatever arrives is verified by the catalogue exactly as if its writer had sent it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from collective.catalog import Catalog, Gap
from collective.core.address import FederatedAddress
from collective.core.clock import Clock
from collective.core.errors import CollectiveError, Unreachable
from collective.core.observe import Observer
from collective.net.channels import Channels
from collective.transfer.events import ChangeBell
from collective.wire import control_pb2, feed_pb2

__all__ = ["EntryServer", "EntryTaker", "introduce"]

REPLY_BYTES = 1 << 20  # per message; well under the control wire's limit
REPLY_ENTRIES = 256
SILENCE_SECONDS = 15.0
PROTOCOL_VERSION = 1


def introduce(catalog: Catalog, request: control_pb2.PeerConnectRequest) -> control_pb2.PeerConnectRequest:
    """Fill in the heads and versions that are true right now."""
    del request.heads[:]
    request.heads.extend(
        feed_pb2.FeedHead(feed_id=feed_id, head=position) for feed_id, position in catalog.heads().items()
    )
    request.version = request.oldest_version = PROTOCOL_VERSION
    return request


class EntryServer:
    """The answering side of `Follow`."""

    def __init__(self, catalog: Catalog, clock: Clock) -> None:
        self._catalog = catalog
        self._clock = clock

    async def follow(
        self, member_domain: str, request: control_pb2.FollowRequest
    ) -> AsyncIterator[control_pb2.FollowReply]:
        """What the feeds named have past the seqs named, as far as the member may follow them; then the end."""
        sent = {head.feed_id: head.head.seq for head in request.heads}
        for feed_id in self._catalog.in_dependency_order(sent):
            while feed_id in self._catalog.feeds_for(member_domain, self._clock.wall()):
                entries = self._catalog.entries_after(
                    feed_id, sent[feed_id], max_bytes=REPLY_BYTES, max_entries=REPLY_ENTRIES
                )
                if not entries:
                    break
                sent[feed_id] += len(entries)
                yield control_pb2.FollowReply(feed_id=feed_id, entries=entries)
        yield control_pb2.FollowReply(caught_up=True)


@dataclass(frozen=True)
class EntryTaker:
    """Takes entries into the catalogue, pushed or pulled. `write` runs a change on the one writer thread."""

    catalog: Catalog
    bell: ChangeBell
    channels: Channels
    observer: Observer
    write: Callable[[Callable[[], int]], Awaitable[int]]
    after_receive: Callable[[], Awaitable[None]]

    async def take(self, domain: str, feed: bytes, entries: Sequence[bytes]) -> int:
        """Apply entries of one feed in order; how many were new. Raises: what the catalogue raises at the first bad."""

        def receive() -> int:
            return sum(self.catalog.receive(entry) for entry in entries)

        try:
            new = await self.write(receive)
        except CollectiveError as error:
            self.bell.ring()  # the ones before it count
            kind = "debug.sync.gap" if isinstance(error, Gap) else "sync.entry_refused"
            self.observer.event(kind, peer=domain, feed=feed.hex(), reason=error.message)
            raise
        if new:
            self.bell.ring()
            await self.after_receive()
        return new

    async def pull(self, domain: str, endpoint: str, after: Mapping[bytes, int]) -> tuple[int, bool]:
        """Ask for what comes after these seqs; (new entries, whether all that came fitted). Raises: Unreachable,
        Refused.
        """
        heads = [feed_pb2.FeedHead(feed_id=feed, head=feed_pb2.Position(seq=seq)) for feed, seq in after.items()]
        stream = self.channels.stream(
            FederatedAddress("coord", domain),
            endpoint,
            "/collective.v1.Federation/Follow",
            control_pb2.FollowRequest(heads=heads),
            control_pb2.FollowReply,
        )
        new, refused = 0, set[bytes]()
        try:
            while True:
                try:
                    async with asyncio.timeout(SILENCE_SECONDS):
                        message = await anext(stream)
                except StopAsyncIteration:
                    return new, not refused
                except TimeoutError:
                    raise Unreachable(f"{domain} has been silent for {SILENCE_SECONDS:.0f} s") from None
                if message.entries and message.feed_id not in refused:
                    try:
                        new += await self.take(domain, message.feed_id, message.entries)
                    except CollectiveError:
                        refused.add(message.feed_id)  # told by `take`; the other feeds may be fine
        finally:
            await stream.aclose()
