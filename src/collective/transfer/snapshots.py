"""Snapshots between members: made into versions by the owner, fetched by whoever starts from one, entries dropped.

A snapshot travels as two ordinary versions: sealed chunks on disks, copied to the hosts like films, fetched from any
holder and checked against the signed entry that lays them out. The public one's key pages are sealed under a key that
every follower has.
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from collective.catalog import Catalog, Offer, VersionReference, public_snapshot_key
from collective.core.clock import Clock
from collective.core.errors import CollectiveError, Corrupt, NotFound
from collective.core.layout import CHUNK_SIZE_BYTES, SEGMENT_BYTES, VersionLayout, sealed_size
from collective.core.observe import Observer
from collective.transfer.events import ChangeBell
from collective.transfer.fetch import Fetcher, VersionSource
from collective.transfer.holders import Dial, TicketProvider
from collective.transfer.nodes import NodeDirectory, TicketOffice
from collective.transfer.pages import PageMender
from collective.transfer.placing import ChooseMembers
from collective.transfer.push import Uploaded, UploadPlan, upload
from collective.transfer.slices import in_slices
from collective.wire import feed_pb2

__all__ = ["SnapshotMaker", "SnapshotTaker", "Snapshots"]

SEGMENTS_AT_ONCE = 32  # 2 MiB a read
ROUND_SECONDS = 1.0  # a busy feed changes hundreds of times a second; this need not look so often
PAUSE_SECONDS = 30.0  # after a round that failed
_LENGTH = struct.Struct(">I")
Write = Callable[[Callable[[], object]], Awaitable[object]]


def write_blocks(path: Path, blocks: Iterator[bytes]) -> None:
    """A snapshot's file: each block after its length."""
    with path.open("wb") as file:
        for block in blocks:
            file.write(_LENGTH.pack(len(block)))
            file.write(block)


def read_blocks(path: Path) -> Iterator[bytes]:
    """The blocks of a snapshot's file. Raises: Corrupt."""
    with path.open("rb") as file:
        while head := file.read(_LENGTH.size):
            size = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else -1
            block = file.read(size) if 0 <= size <= 16 << 20 else b""
            if len(block) != size:
                raise Corrupt("a snapshot ends in the middle of a block")
            yield block


@dataclass
class SnapshotMaker:
    """The owner's side: folds own DataStores that are due, and has their versions in the feed."""

    catalog: Catalog
    nodes: NodeDirectory
    tickets: TicketOffice
    dial: Dial
    store_secret: Callable[[bytes], bytes]
    choose_members: ChooseMembers
    folder: Path
    own_domain: str
    write: Write
    bell: ChangeBell
    observer: Observer
    every: int  # entries between two snapshots
    _not_before: float = 0.0

    async def tick(self, now: float) -> None:
        """One round, `now` in monotonic seconds. Raises: CollectiveError; the round is made again later."""
        if now < self._not_before:
            return
        self._not_before = now + PAUSE_SECONDS
        for store_id in self.catalog.due_for_snapshot(self.every):
            await self._make(store_id)
        self._not_before = now

    async def _make(self, store_id: bytes) -> None:
        store = self.catalog.store(store_id)
        store_key = self.catalog.store_key(store.key_name)
        if store_key is None:
            raise NotFound("the DataStore's key is missing here")
        base = await asyncio.to_thread(self.catalog.fold, store_id)
        public_key = public_snapshot_key(store_id)
        public = await self._upload(store_id, base.seq, public_key, public_key, sealed=False)
        tree = await self._upload(store_id, base.seq, self.store_secret(store_id), store_key, sealed=True)

        def point() -> None:
            for made in (public, tree):
                names = [*made.layout.pages, *made.layout.key_pages]
                self.catalog.put_pages(dict(zip(names, [*made.pages, *made.key_pages], strict=True)))
            self.catalog.point_to_snapshot(store_id, base, public.layout, tree.layout)

        await self.write(point)
        self.bell.ring()
        self.observer.event("snapshot.made", store=store_id.hex(), base=base.seq, size_bytes=tree.layout.size_bytes)

    async def _upload(self, store_id: bytes, base: int, secret: bytes, key: bytes, *, sealed: bool) -> Uploaded:
        """One part onto an own node, with the members that shall hold it in its layout."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        path = self.folder / f"{store_id.hex()[:16]}-{base}-{int(sealed)}"
        try:
            blocks = self.catalog.snapshot_blocks(store_id, base, sealed=sealed)
            await asyncio.to_thread(write_blocks, path, blocks)
            size = _sealed_bytes(path.stat().st_size)
            signed, upload_id = self.tickets.upload(self.own_domain, store_id, size)
            node = await self.nodes.for_writing(upload_id, size)
            plan = UploadPlan(store_id, secret, key, CHUNK_SIZE_BYTES, signed, [node.location()])
            made = await upload(path, plan, self.dial)
        finally:
            path.unlink(missing_ok=True)
        store = self.catalog.store(store_id)
        made.layout.members[:] = self.choose_members(store, made.layout.version_id, size, self.own_domain)
        return made


def _sealed_bytes(size_bytes: int) -> int:
    layout = VersionLayout(size_bytes, CHUNK_SIZE_BYTES)
    return sum(sealed_size(layout.chunk_size(index)) for index in range(layout.chunk_count))


@dataclass
class SnapshotTaker:
    """The follower's side: starts feeds from snapshots, fetches trees whose key came later, drops entries."""

    catalog: Catalog
    provider: TicketProvider
    dial: Dial
    folder: Path
    own_domain: str
    write: Write
    bell: ChangeBell
    observer: Observer
    clock: Clock
    _gates: dict[bytes, asyncio.Lock] = field(default_factory=dict)

    async def take(self, peer: str, entry: bytes) -> bool:
        """Start a feed from the snapshot that a peer offers; False when the feed here needs it no more.

        Raises: Corrupt, NotFound, Unreachable.
        """
        offer = self.catalog.snapshot_offer_in(entry)
        if offer is None:
            return False
        async with self._gates.setdefault(offer.store_id, asyncio.Lock()):
            offer = self.catalog.snapshot_offer_in(entry)
            if offer is None:
                return False
            told = offer
            holders = list(dict.fromkeys([peer, offer.owner, *offer.public.members]))
            await self._fetch(offer, holders, sealed=False)
            with_sealed = self.catalog.store_key(offer.key_name) is not None
            if with_sealed:
                await self._fetch(offer, holders, sealed=True)
            await in_slices(self.write, self.catalog.start_from(told, with_sealed=with_sealed))
            self.bell.ring()
            self.observer.event("snapshot.started_from", store=offer.store_id.hex(), base=offer.base_seq, peer=peer)
            return True

    async def tick(self, wall: float) -> None:
        """What is left over is swept; trees whose key is here now are opened; then entries go that may go.

        `wall` in seconds since 1970. Raises: as `take`.
        """
        while await self.write(self.catalog.sweep):
            continue
        for offer in self.catalog.unopened_offers():
            await self._fetch(offer, [offer.owner, *offer.sealed.members], sealed=True)
            await in_slices(self.write, self.catalog.open_base(offer.store_id))
            self.bell.ring()
        for offer in self.catalog.droppable(wall):
            for sealed in (False, True)[: 1 + self.catalog.opens_sealed(offer.store_id)]:
                if next(self.catalog.snapshot_blocks(offer.store_id, offer.base_seq, sealed=sealed), None) is None:
                    await self._fetch(offer, [offer.owner, *offer.public.members], sealed=sealed)
            await self.write(partial(self.catalog.drop_entries, offer))
            self.observer.event("snapshot.dropped", store=offer.store_id.hex(), up_to=offer.base_seq)

    async def _fetch(self, offer: Offer, holders: Sequence[str], *, sealed: bool) -> None:
        """One part from its holders into the database's blocks; every byte verified against the offer's layout."""
        layout = offer.sealed if sealed else offer.public
        key = self.catalog.store_key(offer.key_name) if sealed else public_snapshot_key(offer.store_id)
        if key is None:
            raise NotFound("the key of that DataStore is not here")
        others = [domain for domain in dict.fromkeys(holders) if domain != self.own_domain]
        fetcher = Fetcher(
            _OfferedVersion(layout, others), self.provider, self.dial, self.own_domain, self.clock, self.observer
        )
        reference = VersionReference(
            offer.store_id, layout.version_id, layout.size_bytes, tuple(layout.key_pages), offer.key_name
        )
        self.folder.mkdir(mode=0o700, exist_ok=True)
        path = self.folder / f"{offer.store_id.hex()[:16]}-{offer.base_seq}-{int(sealed)}.part"
        source = VersionSource(fetcher, reference, key)
        try:
            await source.prepare()
            await _save(source, path)
            blocks = read_blocks(path)
            await asyncio.to_thread(self.catalog.keep_blocks, offer.store_id, offer.base_seq, blocks, sealed=sealed)
        finally:
            path.unlink(missing_ok=True)
            await source.close()
            await fetcher.close()


async def _save(source: VersionSource, path: Path) -> None:
    """The version's plain bytes into a file, 2 MiB in memory."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    buffer = memoryview(bytearray(SEGMENTS_AT_ONCE * SEGMENT_BYTES))
    try:
        for index in range(source.layout.chunk_count):
            size = source.layout.chunk_size(index)
            for start in range(0, size, len(buffer)):
                part = buffer[: min(len(buffer), size - start)]
                await source.fill(index, start // SEGMENT_BYTES, -(-len(part) // SEGMENT_BYTES), part)
                await asyncio.to_thread(os.write, descriptor, part)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class _OfferedVersion:
    """What a fetch asks of the catalogue, for a version whose feed is not here yet."""

    offered: feed_pb2.Layout
    domains: Sequence[str]

    def layout(self, store_id: bytes, version_id: bytes) -> feed_pb2.Layout:
        return self.offered

    def holders(self, store_id: bytes, version_id: bytes) -> list[str]:
        return list(self.domains)

    def partial_holders(self, store_id: bytes, version_id: bytes) -> list[str]:
        return []

    def page(self, name: bytes) -> bytes | None:
        return None

    def store_key(self, key_name: bytes) -> bytes | None:
        return None


@dataclass(frozen=True)
class Snapshots:
    """Both sides' rounds, and pages had back first: what is folded must be readable."""

    maker: SnapshotMaker
    taker: SnapshotTaker
    pages: PageMender

    async def run(self) -> None:
        """At every change and now and then. Ends by cancellation."""
        await self.taker.bell.rounds(self._look, idle_seconds=PAUSE_SECONDS, rest_seconds=ROUND_SECONDS)

    async def _look(self) -> None:
        clock = self.taker.clock
        try:
            await self.pages.tick(clock.monotonic())
            await self.maker.tick(clock.monotonic())
            await self.taker.tick(clock.wall())
        except CollectiveError as error:  # told, and made again in the next round
            self.taker.observer.event("snapshot.failed", reason=error.message)
