"""Ranges of entries between members: what a feed has past a head, asked for and answered by one stream.

Gossip decides who asks whom for what (`gossiping`), waking up asks everybody for everything (`waking`); this moves it.
The answering side judges anew before every message what the asker may follow, and sends root feed, member feeds, then
store feeds: an entry is judged by what stands in the feeds before it. It finds where its chain meets the head that was
told, and offers a snapshot where that stands in for entries. Whatever arrives is verified by the catalogue as if its
writer had sent it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from collective.catalog import Catalog, Gap, GoesBack, position_in
from collective.core.address import FederatedAddress
from collective.core.clock import Clock
from collective.core.errors import CollectiveError, Conflict, Unreachable
from collective.core.observe import Observer
from collective.net.channels import Channels
from collective.transfer.events import ChangeBell
from collective.transfer.slices import by_size, in_slices
from collective.wire import control_pb2, feed_pb2

__all__ = ["EntryServer", "EntryTaker", "Pulled"]

REPLY_BYTES = 256 * 1024  # per message, a single entry apart: two seconds of a line of 1 Mbit/s
REPLY_ENTRIES = 256
BYTES_AT_ONCE = 256 * 1024  # applied in one turn of the writer thread: some 3,000 operations, 0.15 s
SILENCE_SECONDS = 15.0
LEAST_BYTES_PER_SECOND = 16 * 1024  # of a pull; an eighth of what a line of 1 Mbit/s carries


class EntryServer:
    """The answering side of `Follow`."""

    def __init__(self, catalog: Catalog, clock: Clock) -> None:
        self._catalog = catalog
        self._clock = clock

    async def follow(
        self, member_domain: str, request: control_pb2.FollowRequest
    ) -> AsyncIterator[control_pb2.FollowReply]:
        """What the feeds named, or all of them, have past the heads told, as far as the member may follow; the end."""
        told = {head.feed_id: head.head for head in request.heads}
        self._catalog.note_heads(member_domain, request.heads)
        asked = self._may_follow(member_domain) if request.all_feeds else set(told)
        for feed_id in self._catalog.in_dependency_order(asked):
            theirs = told.get(feed_id)
            while feed_id in self._may_follow(member_domain):
                # in a thread: what is read from the disk may take a while
                offer, entries = await asyncio.to_thread(self._beyond, feed_id, theirs, request.entries_only)
                if offer is not None:
                    yield control_pb2.FollowReply(feed_id=feed_id, snapshot_entry=offer)
                    break  # they start from it and ask anew
                if not entries:
                    break
                theirs = position_in(entries[-1])
                yield control_pb2.FollowReply(feed_id=feed_id, entries=entries)
        yield control_pb2.FollowReply(caught_up=True)

    def _beyond(
        self, feed_id: bytes, theirs: feed_pb2.Position | None, entries_only: bool
    ) -> tuple[bytes | None, list[bytes]]:
        """The entry that points to a snapshot to start from, else the next entries."""
        offer = self._catalog.snapshot_offer_for(feed_id, theirs, entries_wanted=entries_only)
        if offer is not None:
            return offer, []
        return None, self._catalog.entries_beyond(feed_id, theirs, max_bytes=REPLY_BYTES, max_entries=REPLY_ENTRIES)

    def _may_follow(self, member_domain: str) -> set[bytes]:
        return self._catalog.feeds_for(member_domain, self._clock.wall())


@dataclass(frozen=True)
class Pulled:
    """How a pull ended: whether anything was new here, and whether nothing that was told is lacking any more."""

    progress: bool
    complete: bool


@dataclass(frozen=True)
class EntryTaker:
    """Takes entries into the catalogue, pushed or pulled. `write` runs a change on the one writer thread."""

    catalog: Catalog
    bell: ChangeBell
    channels: Channels
    observer: Observer
    write: Callable[[Callable[[], int]], Awaitable[int]]
    after_receive: Callable[[], Awaitable[None]]
    take_snapshot: Callable[[str, bytes], Awaitable[bool]]  # (peer, entry that points to it)
    _entries_only: set[str] = field(default_factory=set)  # peers from or through whom a snapshot could not be had

    async def take(self, domain: str, feed: bytes, entries: Sequence[bytes]) -> int:
        """Apply entries of one feed in order; how many were new. Raises: what the catalogue raises at the first bad."""

        new = 0
        try:
            for some in by_size(entries, BYTES_AT_ONCE):
                new += await self._receive(some)
        except CollectiveError as error:
            self.bell.ring()  # the ones before it count
            kind = "debug.sync.gap" if isinstance(error, Gap) else "sync.entry_refused"
            self.observer.event(kind, peer=domain, feed=feed.hex(), reason=error.message)
            raise
        if new:
            self.bell.ring()
            await self.after_receive()
        return new

    async def _receive(self, entries: Sequence[bytes]) -> int:
        """In one turn of the writer thread; where an entry takes others back, the earlier tree is made before."""
        taken = new = 0

        def receive() -> int:
            nonlocal taken, new
            for entry in entries[taken:]:
                new += self.catalog.receive(entry, at_once=False)
                taken += 1
            return new

        while True:
            try:
                return await self.write(receive)
            except GoesBack as back:
                await in_slices(self.write, self.catalog.go_back(back))

    async def pull(self, domain: str, endpoint: str, feeds: Iterable[bytes] | None = None) -> Pulled:
        """Ask for what these feeds, or all there are, have past our heads. Raises: Unreachable, Refused.

        Of a forked feed nothing more is taken, so it is not asked for.
        """
        here = self.catalog.heads()
        nothing = feed_pb2.Position()
        wanted = here if feeds is None else [feed for feed in feeds if not self.catalog.is_forked(feed)]
        if feeds is not None and not wanted:
            return Pulled(progress=False, complete=True)
        heads = [feed_pb2.FeedHead(feed_id=feed, head=here.get(feed, nothing)) for feed in wanted]
        request = control_pb2.FollowRequest(
            heads=heads, entries_only=domain in self._entries_only, all_feeds=feeds is None
        )
        stream = self.channels.stream(
            FederatedAddress("coord", domain),
            endpoint,
            "/collective.v1.Federation/Follow",
            request,
            control_pb2.FollowReply,
        )
        progress, complete, left = False, True, set[bytes]()
        patience = _Patience(domain)
        async with contextlib.aclosing(stream):
            while (message := await patience.wait_for(stream)) is not None:
                try:
                    if message.snapshot_entry:
                        if await self._start_from(domain, message):
                            progress = True
                            patience.earn(len(message.snapshot_entry))
                        complete = False  # what follows it is asked for next
                    elif message.entries and message.feed_id not in left:
                        new = await self.take(domain, message.feed_id, message.entries)
                        progress = new > 0 or progress
                        if feeds is not None and 2 * new < len(message.entries) and self._has_last(message):
                            return Pulled(progress, complete=False)  # they come from somebody else, and sooner
                        patience.earn(sum(map(len, message.entries)))
                except Conflict:
                    left.add(message.feed_id)  # a fork, or a foreign entry of our own: that feed is taken no further
                except CollectiveError:
                    left.add(message.feed_id)  # told by `take`; the other feeds may be fine
                    complete = False
        return Pulled(progress, complete)

    def _has_last(self, message: control_pb2.FollowReply) -> bool:
        """Whether the last entry of a message stands here; one of an epoch that lost is passed over, and what follows
        it may be new."""
        return self.catalog.has_entry(message.feed_id, position_in(message.entries[-1]))

    async def _start_from(self, domain: str, message: control_pb2.FollowReply) -> bool:
        """Start a feed from a snapshot; a peer through whom it cannot be had is asked for entries the next time."""
        try:
            started = await self.take_snapshot(domain, message.snapshot_entry)
        except CollectiveError as error:
            self.observer.event("sync.snapshot_refused", peer=domain, feed=message.feed_id.hex(), reason=error.message)
            self._entries_only.add(domain)
            return False
        self._entries_only.discard(domain)
        return started


class _Patience:
    """How long a stream may bring nothing: 15 s in all, and what its entries earn."""

    def __init__(self, domain: str) -> None:
        self._domain = domain
        self._left_seconds = SILENCE_SECONDS

    async def wait_for(self, stream: AsyncIterator[control_pb2.FollowReply]) -> control_pb2.FollowReply | None:
        """The next message, None at the end. Raises: Unreachable when it brings next to nothing and does not end."""
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            async with asyncio.timeout(self._left_seconds):
                return await anext(stream, None)
        except TimeoutError:
            raise Unreachable(f"{self._domain} has sent next to nothing for {SILENCE_SECONDS:.0f} s") from None
        finally:
            self._left_seconds -= clock() - began

    def earn(self, size_bytes: int) -> None:
        """So many bytes of use came."""
        self._left_seconds = min(SILENCE_SECONDS, self._left_seconds + size_bytes / LEAST_BYTES_PER_SECOND)
