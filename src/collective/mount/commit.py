"""How a change is done: under leases from memory, as one exact call, or journalled for its owner.

    DataStore of    change                                       goes
    this home       names                                        under leases, else as one exact call
    this home       attributes                                   journal
    another member  create, mkdir, link, symlink, no-replace     exact call; its owner away: journal
    another member  all else                                     journal

A *plan* looks at the tree as this mount shows it, refuses, or gives the operation. Under leases the look, the journal's
record and the view's change have no `await` between them, so what the plan saw is what is changed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from collective.catalog.models import DataStore
from collective.core.errors import Full, Unreachable
from collective.mount.lease import DirectoryKey, Leases, until_reachable
from collective.wire import feed_pb2, submit_pb2

__all__ = ["Commits", "ExactSubmit", "LeasesWanted", "Plan", "Planned", "Recorder"]

Planned = tuple[feed_pb2.TreeOperation, bool] | None
"""The operation, and whether it makes, moves or removes a directory; None: there is nothing to do."""

Plan = Callable[[], Planned]

LeasesWanted = Callable[[], Sequence[DirectoryKey]]
"""The directories that must not change under the plan, as far as they can be seen now."""


class Recorder(Protocol):
    """The journal as this module needs it."""

    def record(self, store: DataStore, operation: feed_pb2.TreeOperation, *, of_directory: bool) -> None:
        """One record, kept by the operating system when this returns, and shown by the view from then on.

        Raises: Full; then nothing was recorded.
        """
        ...

    async def room(self) -> None:
        """Return when the journal takes another record. Raises: Full."""
        ...

    async def before(self, store_id: bytes, operation: feed_pb2.TreeOperation, *, of_directory: bool) -> None:
        """Return when nothing that is on its way concerns what the operation names. Raises: Unreachable."""
        ...


class ExactSubmit(Protocol):
    async def submit(
        self, store_id: bytes, operations: Sequence[submit_pb2.StagedOperation], *, exact: bool
    ) -> Sequence[submit_pb2.OperationOutcome]: ...


class Commits:
    """The three ways of a change. `own_domain` is the member whose DataStores are changed under leases."""

    def __init__(
        self,
        own_domain: str,
        recorder: Recorder,
        leases: Leases,
        committer: ExactSubmit,
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._own_domain = own_domain
        self._recorder = recorder
        self._leases = leases
        self._committer = committer
        self._sleep = sleep

    async def commit(
        self, store: DataStore, leased: LeasesWanted, plan: Plan, *, exclusive: bool = False
    ) -> feed_pb2.TreeOperation | None:
        """Plan with everything held that makes the plan true, and do it. None when there was nothing to do."""
        own = store.owner == self._own_domain
        while True:
            keys = leased() if own else ()
            if not self._leases.holds(keys):
                if not await self._acquire(keys):
                    return await self._exact_until_reachable(store, plan)
                continue  # what is seen now may ask for another one
            if not own and exclusive:
                try:
                    return await self._exact(store, plan())
                except Unreachable:
                    exclusive = False  # its owner is away: staged, and not exclusive (docs/guide/mount.md)
            planned = plan()
            if planned is None:
                return None
            try:
                self._recorder.record(store, planned[0], of_directory=planned[1])
            except Full:
                await self._recorder.room()
                continue
            return planned[0]

    async def _acquire(self, keys: Sequence[DirectoryKey]) -> bool:
        return await until_reachable(lambda: self._leases.acquire(keys), self._sleep)

    async def _exact_until_reachable(self, store: DataStore, plan: Plan) -> feed_pb2.TreeOperation | None:
        planned = plan()

        async def attempt() -> bool:
            await self._exact(store, planned)
            return True

        await until_reachable(attempt, self._sleep)
        return planned[0] if planned is not None else None

    async def _exact(self, store: DataStore, planned: Planned) -> feed_pb2.TreeOperation | None:
        """Have the coordinator do it now. Raises: OSError when it does not hold any more; Unreachable."""
        if planned is None:
            return None
        operation, of_directory = planned
        await self._recorder.before(store.feed_id, operation, of_directory=of_directory)
        staged = submit_pb2.StagedOperation(operation=operation)
        (outcome,) = await self._committer.submit(store.feed_id, [staged], exact=True)
        if outcome.outcome in (submit_pb2.MISSED, submit_pb2.REFUSED):
            raise OSError(outcome.errno or errno.EACCES, outcome.reason or os.strerror(outcome.errno))
        return operation
