"""Inode numbers for new files: leased from the owner in blocks, kept in stock, lent on to mounts and commands.

With numbers in stock a home creates files in another member's DataStore while its owner is away, and every file keeps
its number for ever. The owner notes each block in the feed and gives no number twice.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from collective.catalog import Catalog, DataStore
from collective.core.address import FederatedAddress
from collective.core.clock import Clock
from collective.core.errors import CollectiveError, Refused, Unreachable
from collective.core.observe import Observer
from collective.transfer.asking import Coordinators
from collective.transfer.events import ChangeBell
from collective.wire import feed_pb2, submit_pb2

__all__ = ["NumberStock"]

BLOCK_COUNT = 65_536
STOCK_COUNT = 4096  # at least as many files can be made in each DataStore while its owner is away
COMMAND_COUNT = 1024  # what a command that makes many files finds at least
LENT_AT_MOST = 16_384  # to one mount or command at a time
CALL_TIMEOUT_SECONDS = 5.0
PAUSE_SECONDS = 5.0  # between two askings of an owner who gave none


@dataclass(frozen=True)
class NumberStock:
    """Numbers of every DataStore this home may write to. `write` runs a change on the one writer thread."""

    catalog: Catalog
    coordinators: Coordinators
    bell: ChangeBell
    clock: Clock
    observer: Observer
    own_address: FederatedAddress
    reachable: Callable[[str], int]
    write: Callable[[Callable[[], None]], Awaitable[None]]
    _not_before: dict[bytes, float] = field(default_factory=dict)

    async def tick(self) -> None:
        """Fill up what runs low, where the owner can be reached."""
        for store in self.catalog.datastores():
            if store.owner == self.own_address.domain or not self.reachable(store.owner):
                continue
            if self.clock.monotonic() < self._not_before.get(store.feed_id, 0.0):
                continue
            if self.may_write(store, None) and self.catalog.stock_count(store.feed_id) < STOCK_COUNT:
                await self._try_fetch(store)

    async def fill(self, store: DataStore) -> None:
        """See to it that a command finds numbers, if that is possible now."""
        own = store.owner == self.own_address.domain
        if own or self.catalog.stock_count(store.feed_id) >= COMMAND_COUNT or not self.reachable(store.owner):
            return
        await self._try_fetch(store)

    async def take(self, store_id: bytes, count: int) -> range:
        """Up to `count` numbers, at least one, that nobody else gets. Raises: Unreachable, Refused, NotFound."""
        store = self.catalog.store(store_id)
        wanted = max(1, min(count, LENT_AT_MOST))
        taken = await self._take(store_id, wanted)
        if taken is None:
            await self._fetch(store)
            taken = await self._take(store_id, wanted)
        if taken is None:
            raise Unreachable(f"no inode numbers of {store.path.decode(errors='replace')} are in stock")
        return taken

    async def lease(self, member: str, request: submit_pb2.LeaseNumbersRequest) -> submit_pb2.LeaseNumbersReply:
        """The owner's side: a block of an own DataStore's numbers for another member. Raises: Refused, NotFound."""
        store = self.catalog.store(request.store_id)
        if store.owner != self.own_address.domain:
            raise Refused(f"{self.own_address.domain} does not own this DataStore", f"ask {store.owner}")
        verdict = self.catalog.may(
            FederatedAddress("coord", member), feed_pb2.WRITE, store.feed_id, None, now=self.clock.wall()
        )
        if not verdict.allowed:
            self.observer.event("access.refused", caller=member, right="WRITE", reason=verdict.reason)
            raise Refused(verdict.reason)
        leased: list[range] = []
        await self.write(lambda: leased.append(self.catalog.lease_numbers(store.feed_id, member, request.count)))
        self.bell.ring()  # it is an entry as any other: followers hear of it now
        return submit_pb2.LeaseNumbersReply(first=leased[0].start, count=len(leased[0]))

    def may_write(self, store: DataStore, path: bytes | None) -> bool:
        """Whether this home may change what is at a path in a DataStore (None: anything), as far as is known here."""
        return self.catalog.may(self.own_address, feed_pb2.WRITE, store.feed_id, path, now=self.clock.wall()).allowed

    # ------------------------------------------------------------ inside

    async def _take(self, store_id: bytes, count: int) -> range | None:
        taken: list[range | None] = []
        await self.write(lambda: taken.append(self.catalog.take_numbers(store_id, count)))
        return taken[0]

    async def _try_fetch(self, store: DataStore) -> None:
        try:
            await self._fetch(store)
        except CollectiveError as error:
            self._not_before[store.feed_id] = self.clock.monotonic() + PAUSE_SECONDS
            self.observer.event("numbers.not_leased", owner=store.owner, reason=error.message)

    async def _fetch(self, store: DataStore) -> None:
        """A fresh block from the owner into the stock. Raises: Unreachable, and what the owner raises."""
        request = submit_pb2.LeaseNumbersRequest(store_id=store.feed_id, count=BLOCK_COUNT)
        reply = await self.coordinators.call(
            store.owner, "LeaseNumbers", request, submit_pb2.LeaseNumbersReply, CALL_TIMEOUT_SECONDS
        )
        block = range(reply.first, reply.first + reply.count)
        await self.write(lambda: self.catalog.add_numbers(store.feed_id, block))
