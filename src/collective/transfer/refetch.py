"""Chunks that turned out broken on an own node: the copy is no longer counted, and is made whole from another holder.

    node sets a chunk aside --status--> versions that list it are stated as exceptions ("not whole here")
        placed here: whoever sent them offers them again (*repair*), what is there is not sent twice
        written here: pulled from a member that holds them, chunk by chunk, sealed, then stated as whole again

What a node reports is a state, not an event: a coordinator that was away or restarted learns it all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from collective.catalog import Catalog
from collective.core.clock import Clock
from collective.core.errors import CollectiveError, Corrupt, Unreachable
from collective.core.layout import MAX_SEALED_CHUNK_BYTES, SEALED_SEGMENT_BYTES
from collective.core.observe import Observer
from collective.transfer.copies import chunks_of_pages
from collective.transfer.events import ChangeBell
from collective.transfer.holders import Holder, LanePool, TicketProvider
from collective.transfer.nodes import NodeDirectory, NodeRecord, TicketOffice

__all__ = ["Refetcher"]

FIRST_PAUSE_SECONDS = 1.0
LAST_PAUSE_SECONDS = 60.0
WRITE_TIMEOUT_SECONDS = 120.0
Version = tuple[bytes, bytes]  # (store, version)


@dataclass
class Refetcher:
    """Looks after what own nodes lost. One chunk at a time is in memory; nothing here deletes anything."""

    catalog: Catalog
    nodes: NodeDirectory
    tickets: TicketOffice
    provider: TicketProvider
    lanes: LanePool
    bell: ChangeBell
    clock: Clock
    observer: Observer
    own_domain: str
    write: Callable[[Callable[[], None]], Awaitable[None]]
    reasons: dict[bytes, str] = field(default_factory=dict)  # version -> why it could not be made whole yet
    _affected: dict[bytes, set[Version]] = field(default_factory=dict)  # missing chunk -> versions that list it
    _pauses: dict[bytes, tuple[float, float]] = field(default_factory=dict)  # version -> (not before, next pause)

    async def tick(self, now: float) -> None:
        """One round, `now` in monotonic seconds. Raises: Unreachable while a node that may have it does not answer."""
        if self.catalog.is_doubtful():
            return  # nothing can be stated now
        await self._state_losses()
        for version in self.catalog.versions_lost():
            not_before, pause = self._pauses.get(version[1], (0.0, FIRST_PAUSE_SECONDS))
            if not_before > now:
                continue
            try:
                await self._make_whole(version)
            except CollectiveError as error:
                self.reasons[version[1]] = error.message
                self._pauses[version[1]] = (now + pause, min(pause * 2, LAST_PAUSE_SECONDS))
                self.observer.event("refetch.failed", version=version[1].hex(), reason=error.message)
            else:
                self.reasons.pop(version[1], None)
                self._pauses.pop(version[1], None)

    async def _state_losses(self) -> None:
        missing = frozenset[bytes]().union(*(node.missing for node in self.nodes.all()))
        self._affected = {id_: versions for id_, versions in self._affected.items() if id_ in missing}
        if unknown := set(missing - self._affected.keys()):
            self._affected |= await asyncio.to_thread(self.catalog.versions_with_chunks, unknown)
        suspects: set[Version] = set().union(*self._affected.values())
        lost = [
            version
            for version in sorted(suspects)
            if self.own_domain in self.catalog.holders(*version) and await self._lacking(version)
        ]
        if lost:
            await self.write(lambda: self.catalog.lose(lost))
            self.bell.ring()
            self.observer.event("refetch.lost", versions=len(lost), chunks=len(missing))

    async def _lacking(self, version: Version) -> list[tuple[bytes, int]]:
        """(id, sealed size) of the version's chunks that none of our nodes has."""
        chunks = chunks_of_pages(self._pages(self.catalog.layout(*version).pages))
        there = await self.nodes.holding(version[0], chunks)
        return [chunk for chunk in chunks if chunk[0] not in there]

    async def _make_whole(self, version: Version) -> None:
        lacking = await self._lacking(version)
        if lacking:
            node = await self.nodes.for_writing(version[1], sum(size for _, size in lacking))
            await self._pull(version, lacking, node)
        await self.write(lambda: self.catalog.regain(*version))
        self.bell.ring()
        self.observer.event("refetch.whole", version=version[1].hex(), chunks=len(lacking))

    async def _pull(self, version: Version, lacking: list[tuple[bytes, int]], node: NodeRecord) -> None:
        """Bring chunks from other holders to a node. Raises: Unreachable with each holder's reason."""
        holders = [
            Holder(domain, *version, self.provider, self.lanes, self.clock)
            for domain in self.catalog.holders(*version)
            if domain != self.own_domain
        ]
        pages = self._pages(self.catalog.layout(*version).pages)
        page_of = {id_: index for index, page in enumerate(pages) for id_, _ in chunks_of_pages([page])}
        signed, _ = self.tickets.upload(self.own_domain, version[0], sum(size for _, size in lacking))
        buffer = memoryview(bytearray(MAX_SEALED_CHUNK_BYTES))
        for id_, size in lacking:
            reasons = []
            for holder in holders:
                index = page_of[id_]
                try:
                    segments = -(-size // SEALED_SEGMENT_BYTES)
                    _, got = await holder.read(id_, index, pages[index], 0, segments, buffer[:size], hashes=False)
                    if got != size:
                        raise Corrupt("the answer has another length than was asked for")
                    await self.nodes.store_chunk(node, signed, id_, buffer[:size], WRITE_TIMEOUT_SECONDS)
                    break
                except CollectiveError as error:
                    reasons.append(f"{holder.domain}: {error.message}")
            else:
                raise Unreachable(f"a lost chunk is nowhere to be had: {'; '.join(reasons) or 'no other copy'}")

    def _pages(self, names: Iterable[bytes]) -> list[bytes]:
        pages = [self.catalog.page(name) for name in names]
        if None in pages:
            raise Corrupt("a page of a version held here is missing from the database")
        return [page for page in pages if page is not None]

    async def close(self) -> None:
        await self.lanes.close()
