"""The changes of one DataStore on their way to the coordinator: batches, one after the other, until each is answered.

    added -> (content uploaded) -> taken into a batch -> answered -> settled

A batch goes when nothing was added for 20 ms, or at 512, or 200 ms after its first, or at once when somebody waits: a
single change is seen by others at once, and a program that makes many pays the fixed price of a batch (two syncs, a
signed entry, everybody told) rarely. It is sent again until it is answered: every operation carries its id, so the
second time changes nothing. Only an answer settles an operation; whatever error the call as a whole meets, the batch
is kept. A call that is refused is made again for each of its operations; one that is refused even then is *left*: it
stays in the journal, and is shown here, until the next mount tries it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from collective.core.errors import CollectiveError, Conflict, Corrupt, Refused, Unreachable
from collective.core.observe import Observer
from collective.mount.committing import Committer
from collective.mount.scheduling import Keys, Schedule
from collective.wire import submit_pb2

__all__ = ["Queued", "StoreQueue"]

BATCH_OPERATIONS = 512  # what the coordinator commits in one transaction
BATCH_BYTES = 4 << 20  # a lane's message holds 8 MiB, and the last operation may bring pages along
QUIET_SECONDS = 0.02
LONGEST_SECONDS = 0.2
FIRST_PAUSE_SECONDS = 0.1
LAST_PAUSE_SECONDS = 5.0
FOR_GOOD = (Refused, Corrupt, Conflict)  # of a call: about what is in it, and met again


@dataclass(eq=False, slots=True)
class Queued:
    """One operation. `seqs` are the journal's records that are settled with it; without `staged` (dropped meanwhile, or
    nothing was left to send) it passes through unsent. `answered` is told the outcome, None when it was not sent;
    `left` why nobody takes it."""

    seqs: list[int]
    staged: submit_pb2.StagedOperation | None
    answered: Callable[[submit_pb2.OperationOutcome | None], None] | None = None
    left: Callable[[CollectiveError], None] | None = None
    ticket: int = 0


class StoreQueue:
    """One DataStore's queue. `write_down` is called before anything is sent: all that is known of it must be in the
    journal then (raises: Full, Unreachable). `settled` gets the journal's seqs of a whole batch."""

    def __init__(
        self, store_id: bytes, committer: Committer, observer: Observer, write_down: Callable[[], None],
        settled: Callable[[list[int]], None],
    ) -> None:  # fmt: skip
        self._store_id = store_id
        self._committer = committer
        self._observer = observer
        self._write_down = write_down
        self._settled = settled
        self._schedule = Schedule()
        self._items: dict[int, Queued] = {}
        self._some = asyncio.Event()  # something may be taken …
        self._since = 0.0  # … since then
        self._hurry = asyncio.Event()  # … and should be, at once
        self._answered: asyncio.Future[None] | None = None
        self._waiters = 0
        self._added = 0
        self.surprises = 0
        """How many operations did not end as they were asked."""
        self.failure: CollectiveError | None = None
        """Why the last attempt to send failed, None when it did not."""
        self.left: list[str] = []
        """Why operations were left, one reason each."""

    def __len__(self) -> int:
        return len(self._items)

    # ------------------------------------------------------------ in

    def add(self, item: Queued, keys: Keys, *, ready: bool = True) -> None:
        """After everything added before. `ready`: it may be sent as it is."""
        self._added += 1
        item.ticket = self._schedule.add(keys, ready=ready)
        self._items[item.ticket] = item
        self._look()

    def make_ready(self, item: Queued) -> None:
        """`item.staged` is what it shall be."""
        self._schedule.make_ready(item.ticket)
        self._look()

    def is_waiting(self, item: Queued) -> bool:
        """Whether it can still be changed: no batch has it."""
        return self._schedule.is_waiting(item.ticket)

    def _look(self) -> None:
        count = self._schedule.takeable_count
        if count:
            if not self._some.is_set():
                self._some.set()
                self._since = asyncio.get_running_loop().time()
            if count >= BATCH_OPERATIONS or self._waiters:
                self._hurry.set()

    # ------------------------------------------------------------ waiting

    async def finished(self, tickets: Iterable[int], check: Callable[[], None] = lambda: None) -> None:
        """Return when none of these is queued any more; what may go goes at once. Raises: what `check` does, which is
        asked now and then."""
        waiting = [ticket for ticket in tickets if ticket in self._items]
        if not waiting:
            return
        self._waiters += 1
        try:
            self._look()
            while any(ticket in self._items for ticket in waiting):
                check()
                await self._next_answer()
        finally:
            self._waiters -= 1

    def check_sending(self) -> None:
        """Raises: Unreachable when the last attempt to send failed."""
        if self.failure is not None:
            raise Unreachable(self.failure.message, self.failure.hint)

    async def _next_answer(self) -> None:
        """Return when a batch was answered, or could not be sent, or somebody said `wake`."""
        if self._answered is None:
            self._answered = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._answered)

    def all_tickets(self) -> list[int]:
        return list(self._items)

    def free_tickets(self) -> list[int]:
        """Of what may be sent, or is in a batch."""
        return self._schedule.free()

    def concerning(self, keys: Keys) -> Sequence[int]:
        """What an operation with these keys must wait for."""
        return self._schedule.concerning(keys)

    def directories(self) -> Sequence[int]:
        return self._schedule.directories()

    def changing_names_in(self, directory: int) -> Sequence[int]:
        return self._schedule.changing_names_in(directory)

    # ------------------------------------------------------------ out

    async def run(self) -> None:
        """Send batches for ever."""
        while True:
            await self._some.wait()
            await self._gather()
            self._hurry.clear()
            self._some.clear()
            batch = self._take()
            self._look()
            await self._send(batch)

    async def _gather(self) -> None:
        """Return when the batch shall go: see above."""
        loop = asyncio.get_running_loop()
        latest = self._since + LONGEST_SECONDS
        seen = 0
        while not self._hurry.is_set() and self._added != seen and (left := latest - loop.time()) > 0:
            seen = self._added
            try:
                async with asyncio.timeout(min(QUIET_SECONDS, left)):
                    await self._hurry.wait()
            except TimeoutError:
                continue

    def _take(self) -> list[Queued]:
        batch: list[Queued] = []
        size = 0
        while len(batch) < BATCH_OPERATIONS and size < BATCH_BYTES:
            taken = self._schedule.take(1)
            if not taken:
                break
            item = self._items[taken[0]]
            batch.append(item)
            size += item.staged.ByteSize() if item.staged is not None else 0
        return batch

    async def _send(self, batch: list[Queued]) -> None:
        """Until each operation of the batch is answered."""
        sent = [item for item in batch if item.staged is not None]
        outcomes = await self._submit([item.staged for item in sent if item.staged is not None])
        told = dict(zip((item.ticket for item in sent), outcomes, strict=True))
        seqs: list[int] = []
        for item in batch:
            del self._items[item.ticket]
            outcome = told.get(item.ticket)
            answered, left = item.answered, item.left
            item.answered = item.left = None  # who is told holds the item: a cycle for each of thousands of files
            if isinstance(outcome, CollectiveError):
                self._leave(item, left, outcome)
                continue
            if outcome is not None:
                self._tell(item, outcome)
            if answered is not None:
                answered(outcome)
            seqs += item.seqs
        self._schedule.finish(item.ticket for item in batch)
        self._settled(seqs)
        self.wake()

    async def _submit(
        self, operations: Sequence[submit_pb2.StagedOperation]
    ) -> Sequence[submit_pb2.OperationOutcome | CollectiveError]:
        """An outcome each, or why the operation is taken by nobody."""
        pause = FIRST_PAUSE_SECONDS
        while operations:
            try:
                self._write_down()
                outcomes = await self._committer.submit(self._store_id, operations, exact=False)
            except FOR_GOOD as error:
                if len(operations) == 1:
                    return [error]
                return [answer for one in operations for answer in await self._submit([one])]
            except CollectiveError as error:
                self.failure = error
                self._observer.event("replay.waits", reason=error.message, operations=len(operations))
                self.wake()
                await asyncio.sleep(pause)
                pause = min(pause * 2, LAST_PAUSE_SECONDS)
            else:
                self.failure = None
                return outcomes
        return []

    def _leave(self, item: Queued, left: Callable[[CollectiveError], None] | None, error: CollectiveError) -> None:
        assert item.staged is not None
        change = item.staged.operation.WhichOneof("change")
        self._observer.event("replay.left", change=change, reason=error.message)
        self.left.append(error.message)
        if left is not None:
            left(error)

    def _tell(self, item: Queued, outcome: submit_pb2.OperationOutcome) -> None:
        if outcome.outcome in (submit_pb2.CONFLICT, submit_pb2.REFUSED, submit_pb2.MISSED):
            assert item.staged is not None
            self.surprises += 1
            self._observer.event(
                "replay.not_as_asked",
                outcome=submit_pb2.Outcome.Name(outcome.outcome),
                change=item.staged.operation.WhichOneof("change"),
                reason=outcome.reason,
            )

    def wake(self) -> None:
        """Whoever waits for an answer looks again."""
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(None)
        self._answered = None
