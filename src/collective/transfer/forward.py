"""Staged changes to their owners, in order, for as long as it takes.

One task per DataStore of another member that has rows waiting. It sends the oldest, at most 256 operations and 4 MiB
a call, writes down what the owner said, and goes on; whatever is staged later queues behind. The rows stay, and are
shown at this home, until the entries that carry them have come back by the feed.

    waiting --sent, APPLIED or CONFLICT--> done --its entry applied here--> gone
       |--sent, REFUSED--> refused, kept and listed until discarded
       +--owner away--> waiting, tried again within 5 s and as soon as the owner is met again

What is done and has not come back when the owner is met again is sent once more: the owner may have been set back.

This home itself is such an owner who is away while its own DataStore is in doubt, and back when the doubt is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from collective.catalog import Catalog, DataStore
from collective.core.clock import Clock
from collective.core.errors import CollectiveError, Full, Misconfigured, Unreachable
from collective.core.observe import Observer
from collective.transfer.asking import Coordinators
from collective.transfer.events import ChangeBell
from collective.transfer.submissions import refusal
from collective.wire import feed_pb2, submit_pb2

__all__ = ["Forwarder", "Receipt"]

Staged = submit_pb2.StagedOperation
Outcome = submit_pb2.OperationOutcome
Answer = tuple[Outcome, feed_pb2.Position | None]
"""What the owner said of one operation, and the last entry of the call that carried it."""
CommitOwn = Callable[[DataStore, Sequence[Staged], bool], Awaitable[submit_pb2.SubmitReply]]
OPERATIONS_PER_CALL = 256
CALL_TIMEOUT_SECONDS = 15.0
EXACT_SECONDS = 10.0  # for what is queued before an exact change
ANSWER_SECONDS = 3.0  # a caller waits this long for an owner who answered last time
FIRST_PAUSE_SECONDS = 0.2
LAST_PAUSE_SECONDS = 5.0
LOOK_SECONDS = 0.25  # how often a pause looks whether the owner was met again


@dataclass
class _Queue:
    """One DataStore's way out. `gate` is held while something is being sent."""

    gate: asyncio.Lock = field(default_factory=asyncio.Lock)
    answered: bool = True  # the owner did, last time it was asked
    task: asyncio.Task[None] | None = None
    waiters: dict[bytes, asyncio.Future[Answer]] = field(default_factory=dict)


@dataclass(frozen=True)
class Receipt:
    """Operations that are staged; `outcomes` is to be called once, or `forget`."""

    forwarder: Forwarder
    store: DataStore
    queue: _Queue
    ids: list[bytes]
    futures: dict[bytes, asyncio.Future[Answer]]
    numbers: list[int] = field(default_factory=list)  # of the rows

    async def outcomes(self) -> tuple[list[Outcome], feed_pb2.Position | None]:
        """In order: the owner's word when it comes soon, else STAGED. The position of the last entry heard of."""
        try:
            if self.futures and self.queue.answered and self.forwarder.life(self.store):
                await asyncio.wait(self.futures.values(), timeout=ANSWER_SECONDS)
            answers = [self.forwarder.answer(self.futures[id_], self.store) for id_ in self.ids]
            positions = [position for _, position in answers if position is not None]
            return [outcome for outcome, _ in answers], max(positions, key=lambda one: one.seq, default=None)
        finally:
            self.forget()

    def forget(self) -> None:
        """Nobody waits any more."""
        for id_, future in self.futures.items():
            future.cancel()
            if self.queue.waiters.get(id_) is future:
                del self.queue.waiters[id_]


@dataclass
class Forwarder:
    """Sends what is staged. `reachable` tells a member's coordinator that can be reached now from one that cannot (0),
    and one life of it from the next: whoever was away, however shortly, is sent again what never came back.
    `commit_own` takes changes to an own DataStore (exact or not); it is given by whoever stands on this.
    """

    catalog: Catalog
    coordinators: Coordinators
    bell: ChangeBell
    clock: Clock
    observer: Observer
    reachable: Callable[[str], int]
    write: Callable[[Callable[[], None]], Awaitable[None]]
    commit_own: CommitOwn | None = None
    _queues: dict[bytes, _Queue] = field(default_factory=dict)
    _met: dict[str, int] = field(default_factory=dict)  # owner -> its life

    async def tick(self) -> None:
        """Go on with what an earlier run left, and with those who were met again."""
        stores = self.catalog.datastores()
        met = {owner: life for owner in {store.owner for store in stores} if (life := self.reachable(owner))}
        for store in stores:
            if store.owner in met and met[store.owner] != self._met.get(store.owner):
                await self.write(partial(self._send_again, store.feed_id))
        self._met = met
        for store_id in self.catalog.stores_with_staged_work():
            self._wake(store_id)

    def _send_again(self, store_id: bytes) -> None:
        self.catalog.send_staged_again(store_id)

    async def close(self) -> None:
        """Stop sending; what waits stays staged."""
        tasks = [queue.task for queue in self._queues.values() if queue.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def life(self, store: DataStore) -> int:
        """0 while nobody can commit changes to a DataStore, else a number that its owner's next life does not have."""
        if store.owner == self.catalog.own_domain:
            return 0 if self.catalog.is_in_doubt(store.feed_id) else 1
        return self.reachable(store.owner)

    # ------------------------------------------------------------ handing in

    async def stage(self, store: DataStore, operations: Sequence[Staged]) -> Receipt:
        """Durable and visible here when this returns; the receipt waits for the owner's word."""
        queue = self._queue(store.feed_id)
        loop = asyncio.get_running_loop()
        futures = {staged.operation.id.random: loop.create_future() for staged in operations}
        queue.waiters.update(futures)
        receipt = Receipt(self, store, queue, [staged.operation.id.random for staged in operations], futures)
        try:
            receipt.numbers.extend(await self._stage(store, operations))
            for staged, number in zip(operations, receipt.numbers, strict=True):
                if not number:  # its entry is here already
                    futures[staged.operation.id.random].set_result((Outcome(outcome=submit_pb2.APPLIED), None))
        except BaseException:
            receipt.forget()
            raise
        return receipt

    async def send_exact(
        self, store: DataStore, operations: Sequence[Staged]
    ) -> tuple[list[Outcome], feed_pb2.Position | None]:
        """Ask the owner directly, behind what is queued. Raises: Unreachable (away), and what the owner raises."""
        queue = self._queue(store.feed_id)
        try:
            async with asyncio.timeout(EXACT_SECONDS):
                await self._behind_the_queue(store, queue)
        except TimeoutError:
            raise self._away(store) from None
        try:
            await self._keep_pages(operations)
            reply = await self._send(store, operations, exact=True)
        finally:
            queue.gate.release()
        done = [
            staged
            for staged, outcome in zip(operations, reply.outcomes, strict=True)
            if outcome.outcome in (submit_pb2.APPLIED, submit_pb2.CONFLICT)
        ]
        if done and not await self._arrived(store, reply.position):
            # applied there and not shown here yet: staged, it is shown, and sent again it changes nothing
            await self._stage(store, done)
        return list(reply.outcomes), reply.position

    async def _behind_the_queue(self, store: DataStore, queue: _Queue) -> None:
        """Return holding the gate, with nothing waiting before us. Raises: Unreachable."""
        while True:
            if not queue.answered and not self.life(store):
                raise self._away(store)
            await queue.gate.acquire()
            if not self.catalog.staged_batch(store.feed_id, 1):
                return
            queue.gate.release()
            await self.bell.wait_past(self.catalog.change_counter(), LOOK_SECONDS)

    async def _keep_pages(self, operations: Sequence[Staged]) -> None:
        """The entry will say that the writer holds the version; its pages belong to that."""
        pages: dict[bytes, bytes] = {}
        for staged in operations:
            names = [*staged.layout.pages, *staged.layout.key_pages]
            pages.update(zip(names, [*staged.pages, *staged.key_pages], strict=True))
        if pages:
            await self.write(lambda: self.catalog.put_pages(pages))

    async def _stage(self, store: DataStore, operations: Sequence[Staged]) -> list[int]:
        numbers: list[int] = []
        await self.write(lambda: numbers.extend(self.catalog.stage(store.feed_id, operations, now=self.clock.wall())))
        self.bell.ring()
        self._wake(store.feed_id)
        return numbers

    async def _arrived(self, store: DataStore, position: feed_pb2.Position) -> bool:
        """Whether our own database soon shows the entry; at once when we do not follow that feed at all."""
        deadline = self.clock.monotonic() + ANSWER_SECONDS
        while True:
            counter = self.catalog.change_counter()
            if store.feed_id not in self.catalog.heads() or self.catalog.has_entry(store.feed_id, position):
                return True
            left = deadline - self.clock.monotonic()
            if left <= 0:
                return False
            await self.bell.wait_past(counter, left)

    # ------------------------------------------------------------ sending

    def _queue(self, store_id: bytes) -> _Queue:
        return self._queues.setdefault(store_id, _Queue())

    def _wake(self, store_id: bytes) -> None:
        queue = self._queue(store_id)
        if queue.task is None or queue.task.done():
            queue.task = asyncio.get_running_loop().create_task(self._forward(store_id, queue))

    async def _forward(self, store_id: bytes, queue: _Queue) -> None:
        """Send until nothing waits any more."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                if not await self._forward_once(store_id, queue):
                    return
                pause = FIRST_PAUSE_SECONDS
                continue
            except CollectiveError as error:
                queue.answered = False
                self.observer.event("forward.waiting", store=store_id.hex()[:12], reason=error.message)
            except Exception as error:
                # what waits must not be stuck for ever because of one surprise; it is told loudly and tried again
                queue.answered = False
                self.observer.event("forward.unexpected", error=f"{type(error).__name__}: {error}")
            await self._pause(self.catalog.store(store_id), pause)
            pause = min(pause * 2, LAST_PAUSE_SECONDS)

    async def _pause(self, store: DataStore, seconds: float) -> None:
        """Wait, but no longer than until the owner is met again."""
        until = self.clock.monotonic() + seconds
        before = self.life(store)
        while (left := until - self.clock.monotonic()) > 0:
            await self.bell.wait_past(self.catalog.change_counter(), min(left, LOOK_SECONDS))
            if (life := self.life(store)) and life != before:
                return

    async def _forward_once(self, store_id: bytes, queue: _Queue) -> bool:
        """Send one call's worth; False when nothing waits. Raises: Unreachable and others that may pass."""
        async with queue.gate:
            rows = self.catalog.staged_batch(store_id, OPERATIONS_PER_CALL)
            if not rows:
                return False
            store = self.catalog.store(store_id)
            numbers, operations = [row.number for row in rows], [row.staged for row in rows]
            try:
                reply = await self._send(store, operations, exact=False)
            except (Unreachable, Full, Misconfigured):
                raise  # the owner is away, or cannot write just now
            except CollectiveError as error:
                # the call as a whole was refused: find out which operation it is about, one at a time
                if len(operations) > 1:
                    numbers, operations = numbers[:1], operations[:1]
                    reply = await self._send_one(store, operations[0])
                else:
                    reply = submit_pb2.SubmitReply(outcomes=[refusal(error)])
            await self._write_down(store, numbers, operations, reply, queue)
            return True

    async def _send_one(self, store: DataStore, staged: Staged) -> submit_pb2.SubmitReply:
        try:
            return await self._send(store, [staged], exact=False)
        except (Unreachable, Full, Misconfigured):
            raise
        except CollectiveError as error:
            return submit_pb2.SubmitReply(outcomes=[refusal(error)])

    async def _send(self, store: DataStore, operations: Sequence[Staged], *, exact: bool) -> submit_pb2.SubmitReply:
        queue = self._queue(store.feed_id)
        try:
            reply = await self._ask_owner(store, operations, exact=exact)
        except Unreachable:
            queue.answered = False
            raise
        queue.answered = True
        if len(reply.outcomes) != len(operations):
            raise Unreachable(f"{store.owner} answered {len(reply.outcomes)} of {len(operations)} operations")
        return reply

    async def _ask_owner(
        self, store: DataStore, operations: Sequence[Staged], *, exact: bool
    ) -> submit_pb2.SubmitReply:
        if store.owner == self.catalog.own_domain:
            if not self.life(store):
                raise self._away(store)
            assert self.commit_own is not None
            return await self.commit_own(store, operations, exact)
        request = submit_pb2.SubmitRequest(store_id=store.feed_id, operations=operations, exact=exact)
        return await self.coordinators.call(
            store.owner, "Submit", request, submit_pb2.SubmitReply, CALL_TIMEOUT_SECONDS
        )

    async def _write_down(
        self,
        store: DataStore,
        numbers: Sequence[int],
        operations: Sequence[Staged],
        reply: submit_pb2.SubmitReply,
        queue: _Queue,
    ) -> None:
        await self.write(lambda: self.catalog.note_outcomes(numbers, reply.outcomes))
        self.bell.ring()
        position = reply.position if reply.position.seq else None
        for staged, outcome in zip(operations, reply.outcomes, strict=True):
            if outcome.outcome != submit_pb2.APPLIED:
                self.observer.event(
                    "forward.conflict" if outcome.outcome == submit_pb2.CONFLICT else "forward.refused",
                    owner=store.owner,
                    operation=staged.operation.id.random.hex(),
                    change=staged.operation.WhichOneof("change"),
                    reason=outcome.reason,
                )
            waiter = queue.waiters.pop(staged.operation.id.random, None)
            if waiter is not None and not waiter.done():
                waiter.set_result((outcome, position))

    def answer(self, future: asyncio.Future[Answer], store: DataStore) -> Answer:
        """What the owner said of one operation, or that it is staged and why."""
        if future.done():
            return future.result()
        return Outcome(outcome=submit_pb2.STAGED, reason=self._why_it_waits(store)), None

    def _why_it_waits(self, store: DataStore) -> str:
        if store.owner == self.catalog.own_domain:
            return f"this home is in doubt: kept here, and signed when that is over ({self.catalog.mend_doubt()})"
        return f"{store.owner}, who owns it, has not answered yet: kept here, and sent when it does"

    def _away(self, store: DataStore) -> Unreachable:
        if store.owner == self.catalog.own_domain:
            return Unreachable("this home is in doubt and signs nothing", self.catalog.mend_doubt())
        return Unreachable(f"{store.owner}, who owns this DataStore, cannot be reached", "try again when it is back")
