"""A version's plain bytes from whoever holds it: tickets ahead, failover inside the call, hedging against a stall.

Holders are asked in order: this home's own, then by how they behaved. A holder that fails or sends bytes that do not
verify is left at once for the next; one that is silent for several times its usual answer is overtaken: the next is
asked too and the first good answer counts. Only when all have failed the reader gets an error, with each reason.
Nothing unverified is ever written to the reader's memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
from collections import Counter, OrderedDict
from dataclasses import dataclass, field

from collective.catalog import VersionReference
from collective.chunks import HASH_BYTES, compute_layout_hash, open_key_page, open_segments, page_name, verify_hashes
from collective.core.clock import Clock
from collective.core.errors import CollectiveError, Corrupt, NotFound, Refused, Unreachable
from collective.core.layout import (
    CHUNKS_PER_PAGE,
    SEALED_SEGMENT_BYTES,
    SEGMENT_BYTES,
    ChunkReference,
    VersionLayout,
    decode_page,
    sealed_size,
    segment_count,
)
from collective.core.memory import BufferPool
from collective.core.observe import Observer
from collective.core.sizes import MIB
from collective.transfer.holders import Dial, Holder, LanePool, TicketProvider, VersionFacts
from collective.wire import control_pb2

__all__ = ["Fetcher", "VersionSource"]

AHEAD = 2  # tickets of so many holders are fetched ahead
HEDGE_LEAST_SECONDS = 0.3
HEDGE_MOST_SECONDS = 1.5
HEDGE_FACTOR = 6.0
COMPLAINT_SECONDS = 2.0  # a reader that is done waits so long for a holder to look at its disk
SHUNNED_SECONDS = 10.0  # a holder that failed or stalled is asked last for so long
HASH_LISTS_KEPT = 256  # 4 KiB each: a gigabyte or two of film
PAGES_KEPT = 16  # 35 KB each, 4 GiB of a version
SPARE_BYTES = 32 * MIB


@dataclass
class Fetcher:
    """Opens versions for one process. Lanes, buffers and counters are shared by all of them."""

    reader: VersionFacts
    provider: TicketProvider
    dial: Dial
    own_domain: str
    clock: Clock
    observer: Observer
    served: Counter[str] = field(default_factory=Counter)  # plain bytes by member
    shunned: dict[str, float] = field(default_factory=dict)  # member -> monotonic time until
    memory: BufferPool = field(default_factory=lambda: BufferPool(SPARE_BYTES))

    def __post_init__(self) -> None:
        self.lanes = LanePool(self.dial, self.clock)

    def bytes_by_member(self) -> dict[str, int]:
        """Plain bytes read so far, by the member that served them."""
        return dict(self.served)

    async def open(self, reference: VersionReference, *, for_bytes: bool = True) -> VersionSource:
        """A source of one version; not `for_bytes`: its pages are wanted, and no tickets are fetched ahead.

        Raises: Refused (no key here), Unreachable (nobody holds it).
        """
        key = self.reader.store_key(reference.key_name)
        if key is None:
            raise Refused("this home does not hold the key of that DataStore", "its owner gives READ")
        source = VersionSource(self, reference, key)
        if for_bytes:
            await source.prepare()
        return source

    async def close(self) -> None:
        await self.lanes.close()


class VersionSource:
    """One version, read from its holders. `fill` may be called many times at once."""

    def __init__(self, fetcher: Fetcher, reference: VersionReference, store_key: bytes) -> None:
        self._fetcher = fetcher
        self._reference = reference
        self._store_key = store_key
        self._layout = fetcher.reader.layout(reference.store_id, reference.version_id)
        if (
            self._layout.size_bytes != reference.size_bytes
            or compute_layout_hash(self._layout) != self._layout.layout_hash
        ):
            raise Corrupt("the version's layout is not the one its name leads to")
        self.layout = VersionLayout(self._layout.size_bytes, self._layout.chunk_size_bytes)
        self._holders: dict[str, Holder] = {}
        self._pages: OrderedDict[int, tuple[bytes, tuple[ChunkReference, ...], tuple[bytes | None, ...]]] = (
            OrderedDict()
        )
        self._hashes: OrderedDict[bytes, bytes] = OrderedDict()
        self._paging = asyncio.Lock()
        self._ahead: set[asyncio.Task[None]] = set()
        self._complained: set[tuple[str, bytes]] = set()
        self._complaints: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------ holders

    def _order(self) -> list[Holder]:
        """The holders, the best first; looked up anew each time, since copies come and go."""
        now = self._fetcher.clock.monotonic()
        store_id, version_id = self._reference.store_id, self._reference.version_id
        whole = self._fetcher.reader.holders(store_id, version_id)
        domains = [*whole, *self._fetcher.reader.partial_holders(store_id, version_id)]
        for domain in domains:
            if domain not in self._holders:
                self._holders[domain] = Holder(
                    domain, store_id, version_id, self._fetcher.provider, self._fetcher.lanes, self._fetcher.clock
                )
        ranked = [self._holders[domain] for domain in domains]
        shunned = self._fetcher.shunned
        own = self._fetcher.own_domain
        return sorted(
            ranked,
            key=lambda holder: (
                holder.domain not in whole,
                shunned.get(holder.domain, 0.0) > now,
                holder.domain != own,
            ),
        )

    def _shun(self, holder: Holder, reason: str) -> None:
        self._fetcher.shunned[holder.domain] = self._fetcher.clock.monotonic() + SHUNNED_SECONDS
        self._fetcher.observer.event("fetch.holder_left", holder=holder.domain, reason=reason)

    async def prepare(self) -> None:
        """Fetch the tickets of the best holders; one that answers is enough. Raises: Unreachable."""
        holders = self._order()
        if not holders:
            raise Unreachable("no member holds that version", "its copies are lost or not stated yet")
        tasks = [asyncio.create_task(self._get_ready(holder)) for holder in holders[:AHEAD]]
        self._ahead.update(tasks)
        for task in tasks:
            task.add_done_callback(self._ahead.discard)
        # waiting for the first alone would put up with its silence; whoever answers first lets the reader go on
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)

    async def _get_ready(self, holder: Holder) -> None:
        try:
            self._learn_pages(await holder.ready())
        except CollectiveError as error:
            self._shun(holder, error.message)

    async def close(self) -> None:
        if self._complaints:
            await asyncio.wait(self._complaints, timeout=COMPLAINT_SECONDS)
        for task in (tasks := [*self._ahead, *self._complaints]):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ------------------------------------------------------------ pages

    def _learn_pages(self, opened: control_pb2.OpenVersionReply) -> None:
        if opened.layout.layout_hash != self._layout.layout_hash:
            return  # a holder that names another layout teaches nothing
        for index, (page, key_page) in enumerate(zip(opened.pages, opened.key_pages, strict=False)):
            with contextlib.suppress(Corrupt):
                self._take_page(index, page, key_page)

    def _take_page(self, index: int, page: bytes, key_page: bytes) -> None:
        """Keep a page that is the one the layout names. Raises: Corrupt."""
        if index >= len(self._layout.pages) or page_name(page) != self._layout.pages[index]:
            raise Corrupt("a page is not the one the layout names")
        if page_name(key_page) != self._reference.key_pages[index]:
            raise Corrupt("a sealed page is not the one the tree names")
        chunks, keys = decode_page(page), open_key_page(self._store_key, key_page)
        if len(chunks) != len(keys):
            raise Corrupt("a page and its keys do not match")
        self._pages[index] = (page, chunks, keys)
        self._pages.move_to_end(index)
        while len(self._pages) > PAGES_KEPT:
            self._pages.popitem(last=False)

    async def chunks(self, index: int) -> tuple[tuple[ChunkReference, ...], tuple[bytes | None, ...]]:
        """The chunks of a page and their keys. Raises: Unreachable, Corrupt."""
        _, chunks, keys = await self._page(index)
        return chunks, keys

    async def _page(self, index: int) -> tuple[bytes, tuple[ChunkReference, ...], tuple[bytes | None, ...]]:
        if (found := self._pages.get(index)) is not None:
            return found
        async with self._paging:
            if (found := self._pages.get(index)) is not None:
                return found
            local = self._fetcher.reader.page(self._layout.pages[index])
            local_keys = self._fetcher.reader.page(self._reference.key_pages[index])
            if local is not None and local_keys is not None:
                self._take_page(index, local, local_keys)
                return self._pages[index]
            reasons = []
            for holder in self._order():
                try:
                    page, key_page = await self._fetcher.provider.fetch_pages(
                        holder.domain,
                        self._reference.store_id,
                        self._reference.version_id,
                        [self._layout.pages[index], self._reference.key_pages[index]],
                    )
                    self._take_page(index, page, key_page)
                    return self._pages[index]
                except CollectiveError as error:
                    self._shun(holder, error.message)
                    reasons.append(f"{holder.domain}: {error.message}")
        raise Unreachable(f"the list of chunks cannot be had: {'; '.join(reasons) or 'no holder'}")

    # ------------------------------------------------------------ bytes

    async def fill(self, chunk_index: int, first_segment: int, segment_count: int, out: memoryview) -> None:
        """Plain bytes of a run of segments into `out`, verified.

        Raises, with each holder's reason: Unreachable; Corrupt when every holder answered, and none has them whole.
        """
        page_index, inside = divmod(chunk_index, CHUNKS_PER_PAGE)
        page, chunks, keys = await self._page(page_index)
        chunk, key = chunks[inside], keys[inside]
        if chunk.id is None:
            out[:] = bytes(len(out))
            return
        if key is None:
            raise Corrupt("a chunk has no key")
        wanted = _Wanted(chunk.id, key, chunk.size_bytes, page_index, page, first_segment, segment_count)
        await self._from_holders(wanted, out)

    async def _from_holders(self, wanted: _Wanted, out: memoryview) -> None:
        waiting = self._order()
        running: dict[asyncio.Task[_Arrived], Holder] = {}
        reasons: list[str] = []
        all_know = bool(waiting)  # that they do not have it, or have it broken
        try:
            while waiting or running:
                if not running:
                    holder = waiting.pop(0)
                    running[asyncio.create_task(self._read(holder, wanted))] = holder
                done, _ = await asyncio.wait(
                    running, timeout=self._patience(running) if waiting else None, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    for holder in running.values():
                        self._shun(holder, "it is silent")
                    next_holder = waiting.pop(0)
                    running[asyncio.create_task(self._read(next_holder, wanted))] = next_holder
                for task in done:
                    holder = running.pop(task)
                    try:
                        await self._accept(task.result(), holder, wanted, out)
                        return
                    except CollectiveError as error:
                        self._shun(holder, error.message)
                        reasons.append(f"{holder.domain}: {error.message}")
                        all_know = all_know and isinstance(error, Corrupt | NotFound)
                        if isinstance(error, Corrupt):
                            self._complain(holder, wanted)
        finally:
            for task in running:
                task.cancel()
        kind = Corrupt if all_know else Unreachable  # nobody is away who might have it: there is nothing to wait for
        raise kind(f"no holder gave the bytes: {'; '.join(reasons) or 'nobody holds them'}")

    def _complain(self, holder: Holder, wanted: _Wanted) -> None:
        """Have a holder check a chunk that did not verify, once: it sets it aside and gets it anew from another."""
        key = (holder.domain, wanted.chunk_id)
        if key not in self._complained:
            self._complained.add(key)
            task = asyncio.create_task(self._ask_to_check(holder, wanted))
            self._complaints.add(task)
            task.add_done_callback(self._complaints.discard)

    async def _ask_to_check(self, holder: Holder, wanted: _Wanted) -> None:
        buffer = memoryview(bytearray(SEALED_SEGMENT_BYTES))
        try:
            await holder.read(wanted.chunk_id, wanted.page_index, wanted.page, 0, 1, buffer, hashes=False, check=True)
        except CollectiveError as error:
            self._fetcher.observer.event("fetch.holder_checked", holder=holder.domain, outcome=error.message)

    @staticmethod
    def _patience(running: dict[asyncio.Task[_Arrived], Holder]) -> float:
        usual = max(holder.latency_seconds for holder in running.values())
        return min(max(HEDGE_LEAST_SECONDS, HEDGE_FACTOR * usual), HEDGE_MOST_SECONDS)

    async def _read(self, holder: Holder, wanted: _Wanted) -> _Arrived:
        """Sealed bytes from one holder into a buffer of their own; the buffer goes with the result."""
        ask_hashes = wanted.chunk_id not in self._hashes
        list_bytes = HASH_BYTES * segment_count(wanted.size_bytes) if ask_hashes else 0
        buffer = self._fetcher.memory.take(list_bytes + wanted.sealed_bytes())
        try:
            hash_bytes, got = await holder.read(
                wanted.chunk_id,
                wanted.page_index,
                wanted.page,
                wanted.first,
                wanted.count,
                memoryview(buffer)[: list_bytes + wanted.sealed_bytes()],
                hashes=ask_hashes,
            )
        except CollectiveError:
            self._fetcher.memory.give_back(buffer)
            raise
        if hash_bytes != list_bytes or got != list_bytes + wanted.sealed_bytes():
            self._fetcher.memory.give_back(buffer)
            raise Corrupt("the answer has another length than was asked for")
        return _Arrived(buffer, list_bytes)

    async def _accept(self, arrived: _Arrived, holder: Holder, wanted: _Wanted, out: memoryview) -> None:
        """Verify, open, count. Raises: Corrupt."""
        try:
            view = memoryview(arrived.buffer)
            if arrived.list_bytes:
                hashes = bytes(view[: arrived.list_bytes])
                verify_hashes(wanted.chunk_id, hashes, sealed_size(wanted.size_bytes))
                self._hashes[wanted.chunk_id] = hashes
                while len(self._hashes) > HASH_LISTS_KEPT:
                    self._hashes.popitem(last=False)
            else:
                hashes = self._hashes.get(wanted.chunk_id, b"")
                if not hashes:
                    raise Unreachable("the chunk's hash list was dropped meanwhile; it is asked again")
            part = hashes[wanted.first * HASH_BYTES : (wanted.first + wanted.count) * HASH_BYTES]
            sealed = view[arrived.list_bytes : arrived.list_bytes + wanted.sealed_bytes()]
            await asyncio.to_thread(wanted.open, sealed, part, out)
            self._fetcher.served[holder.domain] += len(out)
        finally:
            self._fetcher.memory.give_back(arrived.buffer)


@dataclass(frozen=True)
class _Arrived:
    buffer: mmap.mmap
    list_bytes: int


@dataclass(frozen=True)
class _Wanted:
    """A run of segments of one chunk. `count` is already clipped by the caller to the chunk's end."""

    chunk_id: bytes
    key: bytes
    size_bytes: int
    page_index: int
    page: bytes
    first: int
    count: int

    def plain_bytes(self) -> int:
        return min(self.count * SEGMENT_BYTES, self.size_bytes - self.first * SEGMENT_BYTES)

    def sealed_bytes(self) -> int:
        return sealed_size(self.plain_bytes())

    def open(self, sealed: memoryview, hashes: bytes, out: memoryview) -> None:
        open_segments(self.key, sealed, hashes, first_segment=self.first, chunk_size_bytes=self.size_bytes, out=out)
