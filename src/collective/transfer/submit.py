"""Changes on their way to their owner: handed in by mounts, commands and other members, committed or staged.

    own DataStore:      recall leases -> commit with whatever else waits, one entry -> outcomes
    another member's:   stage (durable here, visible at once) -> forwarder -> outcomes, or STAGED when the owner is away
    ... when exact:     behind what is queued -> owner, nothing is staged -> outcomes, or Unreachable
    own, in doubt:      as another member's, whose owner is away until the doubt is over

Handing the same operation in twice changes nothing: its id is absorbed once, by the owner.

What cannot be committed at all is found out by itself and refused, so that it holds up nothing else. What is refused
of this home's own changes is kept where `collective pending` lists it: a mount told its programs long ago that all is
well.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from collective.catalog import Catalog, DataStore
from collective.core.clock import Clock
from collective.core.errors import CollectiveError, Conflict, NotFound, Refused
from collective.core.observe import Observer
from collective.transfer.events import ChangeBell
from collective.transfer.forward import Forwarder, Receipt
from collective.transfer.placing import ChooseMembers
from collective.transfer.serve_leases import LeaseDesk
from collective.transfer.submissions import (
    OPERATIONS_PER_SUBMIT,
    made_directories,
    pieces,
    refusal,
    touched_directories,
    verify_operation,
)
from collective.wire import feed_pb2, submit_pb2

__all__ = ["StagedChanges", "SubmitDesk"]

Staged = submit_pb2.StagedOperation
Outcome = submit_pb2.OperationOutcome
Outcomes = list[Outcome]
FOR_GOOD = (Refused, NotFound, Conflict, ValueError, TypeError, LookupError, ArithmeticError, AssertionError)
"""What is about a change itself: it will be met again. All else (a full disk, doubt, an end) may pass, and is told."""
OPERATIONS_PER_COMMIT = 512  # of batches that waited together; more would make the first wait for the last


@dataclass
class _Batch:
    """One piece that fits into an entry; `done` gets its outcomes and the entry's position."""

    operations: Sequence[Staged]
    actor_domain: str
    exact: bool
    done: asyncio.Future[tuple[Outcomes, feed_pb2.Position | None]]


@dataclass(frozen=True)
class StagedChanges:
    """Changes that are staged: whoever likes waits for the owner's word."""

    malformed: dict[int, Outcome]
    receipt: Receipt

    async def reply(self) -> submit_pb2.SubmitReply:
        """An outcome each: the owner's when it comes within 3 s, else STAGED. To be called once."""
        return _reply(self.malformed, *await self.receipt.outcomes())


@dataclass
class SubmitDesk:
    """Takes operations in. `write` runs a catalogue change on the one writer thread."""

    catalog: Catalog
    leases: LeaseDesk
    forwarder: Forwarder
    choose_members: ChooseMembers
    bell: ChangeBell
    clock: Clock
    observer: Observer
    own_domain: str
    write: Callable[[Callable[[], None]], Awaitable[None]]
    _waiting: dict[bytes, deque[_Batch]] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.forwarder.commit_own = self._commit_own

    def commits(self, store: DataStore) -> bool:
        """Whether changes are committed here, now: an own DataStore, not in doubt, with nothing staged before them."""
        if store.owner != self.own_domain or self.catalog.is_in_doubt(store.feed_id):
            return False
        return not self.catalog.has_staged_work(store.feed_id)

    async def submit(
        self, store_id: bytes, operations: Sequence[Staged], *, exact: bool, session: int | None = None
    ) -> submit_pb2.SubmitReply:
        """What this home's own mounts and commands change. `session`: the mount's, whose leases stand.

        Raises: NotFound (no such DataStore), Refused (too many), Unreachable (exact: owner or a lease's holder away).
        """
        store = self.catalog.store(store_id)
        here = self.commits(store)
        if not here and not exact:
            return await (await self.stage(store, operations, session=session)).reply()
        sound, malformed = self._sort_out(operations, self.own_domain)
        async with self._changing(session, store_id, sound, exact=exact):
            if here:
                made, position = await self._commit(store_id, sound, self.own_domain, exact=exact)
                if not exact:
                    await self._keep_refused(store_id, sound, made)
            else:
                made, position = await self.forwarder.send_exact(store, sound)
        return _reply(malformed, made, position)

    async def _keep_refused(self, store_id: bytes, operations: Sequence[Staged], outcomes: Outcomes) -> None:
        """What its makers believe to be safe stays readable, and is reported."""
        refused = [
            (staged, outcome.reason)
            for staged, outcome in zip(operations, outcomes, strict=True)
            if outcome.outcome == submit_pb2.REFUSED
        ]
        if refused:
            await self.write(lambda: self.catalog.keep_refused(store_id, refused, now=self.clock.wall()))
            self.bell.ring()

    async def stage(
        self, store: DataStore, operations: Sequence[Staged], *, session: int | None = None
    ) -> StagedChanges:
        """Keep what cannot be committed now: durable and visible here when this returns. Raises: Refused, Full."""
        sound, malformed = self._sort_out(operations, self.own_domain)
        async with self._changing(session, store.feed_id, sound, exact=False):
            return StagedChanges(malformed, await self.forwarder.stage(store, sound))

    @asynccontextmanager
    async def _changing(
        self, session: int | None, store_id: bytes, operations: Sequence[Staged], *, exact: bool
    ) -> AsyncIterator[None]:
        """No other session changes from memory what these operations touch."""
        async with self.leases.changing(session, touched_directories(store_id, operations), exact=exact):
            if session is not None:
                for parent, directory in made_directories(store_id, operations):
                    self.leases.created(session, parent, directory)
            yield

    async def receive(self, member: str, request: submit_pb2.SubmitRequest) -> submit_pb2.SubmitReply:
        """What another member changes in a DataStore of ours. Rights are judged where it is committed.

        Raises: NotFound (not a DataStore of ours), Refused.
        """
        store = self.catalog.store(request.store_id)
        if store.owner != self.own_domain:
            raise Refused(f"{self.own_domain} does not own this DataStore", f"send it to {store.owner}")
        sound, malformed = self._sort_out(request.operations, member)
        async with self._changing(None, store.feed_id, sound, exact=request.exact):
            made, position = await self._commit(store.feed_id, sound, member, exact=request.exact)
        return _reply(malformed, made, position)

    async def _commit_own(self, store: DataStore, operations: Sequence[Staged], exact: bool) -> submit_pb2.SubmitReply:
        """What had to wait for the end of a doubt. Exact ones come from `submit`, which holds their directories."""
        if exact:
            return _reply({}, *await self._commit(store.feed_id, operations, self.own_domain, exact=True))
        async with self._changing(None, store.feed_id, operations, exact=False):
            return _reply({}, *await self._commit(store.feed_id, operations, self.own_domain, exact=False))

    def _sort_out(self, operations: Sequence[Staged], writer: str) -> tuple[list[Staged], dict[int, Outcome]]:
        """The operations that are whole, and by index the outcome of those that are not."""
        if len(operations) > OPERATIONS_PER_SUBMIT:
            raise Refused(f"{len(operations)} operations in one call", f"send up to {OPERATIONS_PER_SUBMIT}")
        sound: list[Staged] = []
        outcomes: dict[int, Outcome] = {}
        for index, staged in enumerate(operations):
            try:
                verify_operation(staged, writer)
            except CollectiveError as error:
                self.observer.event("submit.malformed", writer=writer, reason=error.message)
                outcomes[index] = refusal(error)
            else:
                sound.append(staged)
        return sound, outcomes

    # ------------------------------------------------------------ committing

    async def _commit(
        self, store_id: bytes, operations: Sequence[Staged], actor_domain: str, *, exact: bool
    ) -> tuple[Outcomes, feed_pb2.Position | None]:
        """Into the own feed, together with what waits for the same DataStore; the position of the last entry."""
        waiting = self._waiting.get(store_id)
        if waiting is None:
            waiting = self._waiting[store_id] = deque()
            self._own(self._drain(store_id, waiting))
        loop = asyncio.get_running_loop()
        batches = [_Batch(piece, actor_domain, exact, loop.create_future()) for piece in pieces(operations)]
        waiting.extend(batches)
        outcomes: Outcomes = []
        last: feed_pb2.Position | None = None
        for result in await asyncio.gather(*(batch.done for batch in batches), return_exceptions=True):
            if isinstance(result, BaseException):
                raise result  # what was committed beside it is absorbed when all of it is handed in again
            outcomes += result[0]
            last = result[1] or last
        return outcomes, last

    async def _drain(self, store_id: bytes, waiting: deque[_Batch]) -> None:
        """Commit what waits, in order, until nothing waits."""
        try:
            await asyncio.sleep(0)  # whoever hands in at the same moment comes along
            while waiting:
                group = _take_group(waiting)
                try:
                    await self._commit_group(store_id, group)
                except FOR_GOOD as error:
                    await self._commit_apart(store_id, group, self._known(error))
                except Exception as error:
                    await self._commit_singly(store_id, group, error)
                finally:
                    self.bell.ring()
        finally:
            del self._waiting[store_id]
            for batch in waiting:
                batch.done.cancel()

    async def _commit_group(self, store_id: bytes, group: Sequence[_Batch]) -> None:
        operations = [staged for batch in group for staged in batch.operations]
        outcomes, position = await self._write_entry(store_id, operations, group[0])
        for batch in group:
            made, outcomes = outcomes[: len(batch.operations)], outcomes[len(batch.operations) :]
            self._answer(store_id, batch, made, position)

    async def _write_entry(
        self, store_id: bytes, operations: Sequence[Staged], like: _Batch
    ) -> tuple[Outcomes, feed_pb2.Position | None]:
        """All of it in one transaction, or nothing. Raises: what the catalogue does."""
        results: list[tuple[Outcomes, feed_pb2.Position | None]] = []

        def commit() -> None:
            results.append(
                self.catalog.commit_operations(
                    store_id,
                    operations,
                    actor_domain=like.actor_domain,
                    now=self.clock.wall(),
                    exact=like.exact,
                    choose_members=self.choose_members,
                )
            )

        await self.write(commit)
        return results[0]

    def _answer(self, store_id: bytes, batch: _Batch, made: Outcomes, position: feed_pb2.Position | None) -> None:
        self._tell(store_id, batch, made)
        if not batch.done.done():
            batch.done.set_result((made, position))

    async def _commit_singly(self, store_id: bytes, group: Sequence[_Batch], error: Exception) -> None:
        """Nothing could be written, or not so much at once; the batches that can be are."""
        for batch in group:
            if len(group) > 1:
                try:
                    await self._commit_group(store_id, [batch])
                except Exception as own_error:
                    error = own_error
                else:
                    continue
            if not batch.done.done():
                batch.done.set_exception(error)

    async def _commit_apart(self, store_id: bytes, group: Sequence[_Batch], error: CollectiveError) -> None:
        """Something in the group cannot be committed, now or later: each change by itself, what cannot be even then is
        refused. Whoever waits for an exact change is told."""
        for batch in group:
            try:
                if batch.exact:
                    raise error
                outcomes: Outcomes = []
                position: feed_pb2.Position | None = None
                for staged in batch.operations:
                    outcome, at = await self._commit_alone(store_id, staged, batch)
                    outcomes.append(outcome)
                    position = at or position
                self._answer(store_id, batch, outcomes, position)
            except Exception as failure:
                if not batch.done.done():
                    batch.done.set_exception(failure)

    async def _commit_alone(
        self, store_id: bytes, staged: Staged, batch: _Batch
    ) -> tuple[Outcome, feed_pb2.Position | None]:
        """Raises: what may pass."""
        try:
            outcomes, position = await self._write_entry(store_id, [staged], batch)
        except FOR_GOOD as error:
            return refusal(self._known(error)), None
        return outcomes[0], position

    def _known(self, error: Exception) -> CollectiveError:
        """An error of ours, of whatever it was."""
        if isinstance(error, CollectiveError):
            return error
        self.observer.event("submit.unexpected", kind=type(error).__name__, reason=str(error))
        return CollectiveError(f"it cannot be committed: {type(error).__name__}: {error}")

    def _tell(self, store_id: bytes, batch: _Batch, outcomes: Outcomes) -> None:
        for staged, outcome in zip(batch.operations, outcomes, strict=True):
            if outcome.outcome in (submit_pb2.CONFLICT, submit_pb2.REFUSED):
                self.observer.event(
                    "submit.conflict" if outcome.outcome == submit_pb2.CONFLICT else "submit.refused",
                    store=store_id.hex()[:12],
                    writer=batch.actor_domain,
                    operation=staged.operation.id.random.hex(),
                    change=staged.operation.WhichOneof("change"),
                    reason=outcome.reason,
                )

    def _own(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Commit what was taken in, then end."""
        if self._tasks:
            await asyncio.wait(self._tasks)


def _take_group(waiting: deque[_Batch]) -> list[_Batch]:
    """The first batch, and those behind it that may share its entry."""
    group = [waiting.popleft()]
    count = len(group[0].operations)
    while (
        waiting
        and (waiting[0].actor_domain, waiting[0].exact) == (group[0].actor_domain, group[0].exact)
        and count + len(waiting[0].operations) <= OPERATIONS_PER_COMMIT
    ):
        count += len(waiting[0].operations)
        group.append(waiting.popleft())
    return group


def _reply(malformed: dict[int, Outcome], made: Outcomes, position: feed_pb2.Position | None) -> submit_pb2.SubmitReply:
    """All outcomes in the order of the request."""
    rest = iter(made)
    total = len(malformed) + len(made)
    reply = submit_pb2.SubmitReply(
        outcomes=[malformed[index] if index in malformed else next(rest) for index in range(total)]
    )
    if position is not None:
        reply.position.CopyFrom(position)
    return reply
