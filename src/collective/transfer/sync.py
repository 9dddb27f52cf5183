"""Entries between members: who may follow what is answered by streams, and every peer's stream is read.

One stream per peer and direction. The asking side names the heads it has; the answering side sends what lies beyond
them, of the feeds the asker may follow, in the order root feed, member feeds, store feeds (an entry is judged by
what stands in the feeds before it), then goes on as new entries are applied. Whatever arrives is verified by the
catalogue exactly as if its writer had sent it.

    connecting --PeerConnect answered--> following --stream ends, gap, silence--> waiting
    waiting --back-off <= 5 s--> connecting
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from random import Random

from collective.catalog import Catalog, Gap, position_in
from collective.core.address import FederatedAddress
from collective.core.clock import Clock
from collective.core.errors import CollectiveError, Conflict, Corrupt, NotFound, Refused, Unreachable
from collective.core.observe import Observer
from collective.net.channels import Channels
from collective.transfer.events import ChangeBell
from collective.transfer.peers import PeerBook
from collective.wire import control_pb2, feed_pb2

__all__ = ["EntryServer", "PeerSync", "SyncParts", "introduce"]

REPLY_BYTES = 1 << 20  # per message; well under the control wire's limit
REPLY_ENTRIES = 256
IDLE_SECONDS = 5.0  # an empty message this often tells a quiet stream from a dead one
SILENCE_SECONDS = 15.0
FIRST_BACKOFF_SECONDS = 0.2
LAST_BACKOFF_SECONDS = 5.0
CONNECT_TIMEOUT_SECONDS = 5.0
HEADS_SECONDS = 30.0  # how often a peer is told again how far we are: entries are dropped when all are past them
ROSTER_SECONDS = 1.0  # how often the roster is looked through for peers not followed yet
PROTOCOL_VERSION = 1


@dataclass(frozen=True)
class SyncParts:
    """What both directions need. `write` runs a catalogue change on the one writer thread."""

    catalog: Catalog
    bell: ChangeBell
    book: PeerBook
    channels: Channels
    clock: Clock
    observer: Observer
    own_domain: str
    introduction: Callable[[], control_pb2.PeerConnectRequest]
    write: Callable[[Callable[[], None]], Awaitable[None]]
    after_receive: Callable[[], Awaitable[None]]
    take_snapshot: Callable[[str, bytes], Awaitable[bool]]  # (peer, entry that points to it)


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

    def __init__(self, catalog: Catalog, bell: ChangeBell, clock: Clock) -> None:
        self._catalog = catalog
        self._bell = bell
        self._clock = clock

    async def follow(
        self, member_domain: str, request: control_pb2.FollowRequest
    ) -> AsyncIterator[control_pb2.FollowReply]:
        """Everything the member may follow past its heads, then what comes; never ends by itself.

        What it may follow is judged anew before every message: a grant taken back stops the store's entries.
        """
        sent = {head.feed_id: head.head for head in request.heads}
        self._catalog.note_heads(member_domain, request.heads)
        offered: set[bytes] = set()
        caught_up = False
        while True:
            counter = self._catalog.change_counter()
            anything = False
            for feed_id in self._feeds(member_domain):
                if feed_id in offered:
                    continue  # they start from the snapshot and ask anew
                offer = self._catalog.snapshot_offer_for(
                    feed_id, sent.get(feed_id), entries_wanted=request.entries_only
                )
                if offer is not None:
                    offered.add(feed_id)
                    anything = True
                    yield control_pb2.FollowReply(feed_id=feed_id, snapshot_entry=offer)
                    continue
                # from where the chains meet: ours may have left theirs, also while this stream goes on
                while entries := self._catalog.entries_beyond(
                    feed_id, sent.get(feed_id), max_bytes=REPLY_BYTES, max_entries=REPLY_ENTRIES
                ):
                    sent[feed_id] = position_in(entries[-1])
                    anything = True
                    yield control_pb2.FollowReply(feed_id=feed_id, entries=entries)
            if not anything:
                if not caught_up:
                    caught_up = True
                    yield control_pb2.FollowReply(caught_up=True)
                if await self._bell.wait_past(counter, IDLE_SECONDS) <= counter:
                    yield control_pb2.FollowReply(caught_up=True)

    def _feeds(self, member_domain: str) -> list[bytes]:
        may_follow = self._catalog.feeds_for(member_domain, self._clock.wall())
        return self._catalog.in_dependency_order(may_follow)


@dataclass
class PeerState:
    """What is known of the connection to one peer."""

    endpoint: str = ""
    connected: bool = False
    caught_up: bool = False
    last_heard: float = 0.0  # monotonic seconds
    reason: str = ""
    entries_only: bool = False  # a snapshot could not be had from or through this peer


class PeerSync:
    """The asking side: one task per peer that reads its stream into the catalogue."""

    def __init__(self, parts: SyncParts, random: Random) -> None:
        self._parts = parts
        self._random = random
        self.states: dict[str, PeerState] = {}

    async def run(self) -> None:
        """Follow everybody the book knows, also who joins later. Ends by cancellation."""
        async with asyncio.TaskGroup() as group:
            following: set[str] = set()
            while True:
                for domain in self._parts.book.domains(self._parts.own_domain):
                    if domain not in following:
                        following.add(domain)
                        self.states.setdefault(domain, PeerState())
                        group.create_task(self._follow_for_ever(domain), name=f"follow {domain}")
                counter = self._parts.catalog.change_counter()
                await self._parts.bell.wait_past(counter, ROSTER_SECONDS)

    async def _follow_for_ever(self, domain: str) -> None:
        state = self.states[domain]
        backoff = FIRST_BACKOFF_SECONDS
        while True:
            for endpoint in self._parts.book.endpoints(domain):
                try:
                    await self._follow_once(domain, endpoint.grpc, state)
                except CollectiveError as error:
                    if state.connected:
                        backoff = FIRST_BACKOFF_SECONDS
                    state.reason = error.message
                    self._parts.observer.event("sync.broken", peer=domain, at=endpoint.grpc, reason=error.message)
                except Exception as error:
                    # what one peer sends must never end the coordinator; it is told loudly and tried again
                    state.reason = f"{type(error).__name__}: {error}"
                    self._parts.observer.event("sync.unexpected", peer=domain, at=endpoint.grpc, error=state.reason)
                state.connected = state.caught_up = False
            await asyncio.sleep(backoff * self._random.uniform(0.8, 1.2))
            backoff = min(backoff * 2, LAST_BACKOFF_SECONDS)

    async def _follow_once(self, domain: str, endpoint: str, state: PeerState) -> None:
        parts = self._parts
        peer = FederatedAddress("coord", domain)
        await self._introduce(domain, endpoint)
        told_heads = parts.clock.monotonic()
        state.endpoint, state.connected, state.reason = endpoint, True, ""
        heads = [feed_pb2.FeedHead(feed_id=feed, head=head) for feed, head in parts.catalog.heads().items()]
        stream = parts.channels.stream(
            peer,
            endpoint,
            "/collective.v1.Federation/Follow",
            control_pb2.FollowRequest(heads=heads, entries_only=state.entries_only),
            control_pb2.FollowReply,
        )
        try:
            while True:
                try:
                    async with asyncio.timeout(SILENCE_SECONDS):
                        message = await anext(stream)
                except StopAsyncIteration:
                    raise Unreachable(f"{domain} ended the stream") from None
                except TimeoutError:
                    raise Unreachable(f"{domain} has been silent for {SILENCE_SECONDS:.0f} s") from None
                state.last_heard = parts.clock.monotonic()
                state.caught_up = state.caught_up or message.caught_up
                if message.snapshot_entry:
                    await self._start_from(domain, message, state)
                if message.entries:
                    await self._take(domain, message)
                if message.caught_up and parts.catalog.note_answer(domain):
                    parts.bell.ring()
                if message.caught_up and parts.clock.monotonic() - told_heads > HEADS_SECONDS:
                    await self._introduce(domain, endpoint)
                    told_heads = parts.clock.monotonic()
        finally:
            await stream.aclose()

    async def _introduce(self, domain: str, endpoint: str) -> None:
        """Tell each other who and how far we are. Raises: Refused (another protocol), Unreachable."""
        parts = self._parts
        reply = await parts.channels.unary(
            FederatedAddress("coord", domain),
            endpoint,
            "/collective.v1.Federation/PeerConnect",
            introduce(parts.catalog, parts.introduction()),
            control_pb2.PeerConnectReply,
            CONNECT_TIMEOUT_SECONDS,
        )
        if reply.oldest_version > PROTOCOL_VERSION or reply.version < PROTOCOL_VERSION:
            raise Refused(
                f"{domain} speaks protocol {reply.oldest_version}-{reply.version}, this is {PROTOCOL_VERSION}"
            )
        parts.book.learn(domain, reply.endpoints)
        parts.catalog.note_heads(domain, reply.heads)

    async def _start_from(self, domain: str, message: control_pb2.FollowReply, state: PeerState) -> None:
        """Start a feed from a snapshot; the stream is asked anew for what comes after it, or for entries after all."""
        parts = self._parts
        try:
            await parts.take_snapshot(domain, message.snapshot_entry)
        except (Corrupt, NotFound, Unreachable) as error:
            parts.observer.event("sync.snapshot_refused", peer=domain, feed=message.feed_id.hex(), reason=error.message)
            if state.entries_only:
                return  # its entries are dropped there: another peer has what this one has not
            state.entries_only = True
        raise Gap("a feed started from a snapshot", "what follows is pulled")

    async def _take(self, domain: str, message: control_pb2.FollowReply) -> None:
        """Apply what came. A gap, or an entry whose writer is not known yet, ends the stream: it starts anew."""
        parts = self._parts

        def receive() -> None:
            for entry in message.entries:
                parts.catalog.receive(entry)

        try:
            await parts.write(receive)
        except Gap:
            raise
        except Conflict as error:
            # a fork, or a foreign entry of an own feed: that feed is taken no further, the others go on
            parts.observer.event("sync.entry_refused", peer=domain, feed=message.feed_id.hex(), reason=error.message)
        except (Corrupt, Refused, NotFound) as error:
            parts.observer.event("sync.entry_refused", peer=domain, feed=message.feed_id.hex(), reason=error.message)
            raise
        finally:
            parts.bell.ring()
        await parts.after_receive()
