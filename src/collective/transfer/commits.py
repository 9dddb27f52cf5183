"""Changes that a member's own people ask for by path, in every DataStore they may write to. Rows of `Control`.

The catalogue plans a request into operations; they are handed in like a mount's. A person waits for the answer, so
changes of names are asked exactly: what no longer fits is an error that says so. Files put into another member's
DataStore are staged at once, many on the way together, and the owner's word is waited for; so is everything while the
owner is away, and the reply says that. Planning and staging is one step per DataStore: the next plan sees the last.
"""

from __future__ import annotations

import asyncio
import contextlib
import stat
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from collective.catalog import Catalog, DataStore
from collective.catalog.commands import done_before
from collective.catalog.planning import Plan
from collective.core.address import FederatedAddress
from collective.core.errors import CollectiveError, Conflict, Refused, Unreachable
from collective.net.rpc import Caller, Row
from collective.transfer.commands import actor_of, admin_rows, domain_meant
from collective.transfer.numbers import NumberStock
from collective.transfer.submissions import OPERATIONS_PER_SUBMIT
from collective.transfer.submit import SubmitDesk
from collective.transfer.uploads import LEVEL_LOCAL, UploadDesk
from collective.wire import control_pb2, feed_pb2, submit_pb2

__all__ = ["PathDesk", "path_rows"]

TRIES = 3  # a plan that met somebody else's change is made again, on the tree as it is then
NOTES_TOLD = 20
TOP_DIRECTORY = 1  # the inode number of every DataStore's own


@dataclass(frozen=True)
class PathDesk:
    """Answers BeginUpload, Commit, AwaitLevel, versions and what is pending."""

    catalog: Catalog
    submit: SubmitDesk
    numbers: NumberStock
    uploads: UploadDesk
    own_address: FederatedAddress
    write: Callable[[Callable[[], None]], Awaitable[None]]
    gates: dict[bytes, asyncio.Lock] = field(
        default_factory=dict
    )  # store id -> held while a change is planned and staged

    # ------------------------------------------------------------ contents

    async def begin_upload(
        self, caller: Caller, request: control_pb2.BeginUploadRequest
    ) -> control_pb2.BeginUploadReply:
        """Everything the process that holds the plain bytes needs, and what stands at the path now."""
        owner = self._owner(request.owner)
        store, rest = self.catalog.datastore_at(request.path, owner or None)
        if not rest:
            raise Conflict(f"{request.path.decode(errors='replace')} is a DataStore, not a file")
        self._check_may_write(store, rest)
        reply = await self.uploads.begin(store, request.size_bytes)
        standing = self.catalog.find(request.path, owner or None) if store.readable else None
        if standing is not None:
            reply.current_inode = standing.number
            reply.current_version_id = standing.version_id or b""
        return reply

    async def await_level(self, caller: Caller, request: control_pb2.AwaitLevelRequest) -> control_pb2.AwaitLevelReply:
        return await self.uploads.await_level(request)

    # ------------------------------------------------------------ changes

    async def commit(self, caller: Caller, request: control_pb2.CommitRequest) -> control_pb2.CommitReply:
        """Do what was asked. The reply is the acknowledgement at level `local`.

        Raises: Conflict, NotFound, Refused, Unreachable (no numbers in stock for new files).
        """
        request.id.writer = self.own_address.domain
        actor = str(actor_of(caller, self.own_address))
        store, rest = self._place(request)
        self._check_may_write(store, rest)
        done = done_before(self.catalog, request.id)
        if done is not None:
            return self._reply(request, store, done)
        await self.numbers.fill(store)
        for attempt in range(TRIES):
            try:
                if self.submit.commits(store):
                    return await self._commit_here(request, actor)
                return await self._ask_owner(request, store, actor)
            except _NothingDone as missed:
                if attempt == TRIES - 1:
                    raise Conflict(missed.message, "somebody is changing it right now; try again") from None
        raise AssertionError("the loop ends by return or raise")

    async def _plan(self, request: control_pb2.CommitRequest, actor: str) -> Plan:
        asked = getattr(request, request.WhichOneof("change") or "")
        plans: list[Plan] = []

        def plan() -> None:
            store, rest = self._place(request)
            if store.readable:
                plans.append(self.catalog.plan(request.id, asked, actor))
            else:
                plans.append(self._drop_in(request, store, rest, actor))

        await self.write(plan)
        return plans[0]

    def _drop_in(self, request: control_pb2.CommitRequest, store: DataStore, name: bytes, actor: str) -> Plan:
        """WRITE without READ is a drop box: a new small file at its top, whatever lies there. Raises: Refused."""
        put = request.put_file
        shown = store.path.decode(errors="replace")
        if not request.HasField("put_file") or b"/" in name or put.content.version_id:
            raise Refused(
                f"{shown} cannot be read from here: only new files of up to 4 KiB can be put into it, at its top",
                f"its owner gives more: collective datastore grant {shown} read,write …",
            )
        numbers = self.catalog.take_numbers(store.feed_id, 1)
        if numbers is None:
            raise Unreachable(f"no inode numbers of {shown} are in stock", "its owner gives them when it is reached")
        operation = feed_pb2.TreeOperation(
            id=request.id,
            actor=actor,
            time_nanoseconds=int(self.uploads.clock.wall() * 1e9),
            create=feed_pb2.Create(
                parent=TOP_DIRECTORY,
                name=name,
                inode=numbers.start,
                mode=stat.S_IFREG | stat.S_IMODE(put.mode or 0o644),
                mtime_nanoseconds=put.mtime_nanoseconds,
                content=put.content,
            ),
        )
        return Plan(store, [submit_pb2.StagedOperation(operation=operation)])

    async def _commit_here(self, request: control_pb2.CommitRequest, actor: str) -> control_pb2.CommitReply:
        """In an own DataStore. Raises: _NothingDone when not one of the plan's operations fits any more."""
        plan = await self._plan(request, actor)
        reply = self._reply(request, plan.store, None)
        await self._ask(plan.store, deque(_parts(plan)), reply)
        if not plan.staged:
            reply.position.CopyFrom(self.catalog.heads()[plan.store.feed_id])  # all that was asked is there already
        return reply

    async def _ask_owner(
        self, request: control_pb2.CommitRequest, store: DataStore, actor: str
    ) -> control_pb2.CommitReply:
        """In another member's, or an own one in doubt: its owner is asked; what cannot be asked now is staged.

        Raises: _NothingDone.

        Of what is staged, the owner's word is waited for while it may come soon. What it refuses then is not kept.
        """
        reply = self._reply(request, store, None)
        async with self.gates.setdefault(store.feed_id, asyncio.Lock()):
            plan = await self._plan(request, actor)
            left = deque(_parts(plan))
            if not request.HasField("put_file"):
                with contextlib.suppress(Unreachable):
                    await self._ask(store, left, reply)
            staged = [await self.submit.stage(store, part) for part in left]
        answers = [await changes.reply() for changes in staged]
        try:
            for answer in answers:
                self._judge(answer, reply)
        except CollectiveError:
            await self._discard(number for changes in staged for number in changes.receipt.numbers)
            raise
        return reply

    async def _ask(
        self, store: DataStore, left: deque[list[submit_pb2.StagedOperation]], reply: control_pb2.CommitReply
    ) -> None:
        """Have the parts done in order; those that are leave `left`. Raises: Unreachable, and as `_judge`."""
        while left:
            answer = await self.submit.submit(store.feed_id, left[0], exact=True)
            self._judge(answer, reply)
            left.popleft()

    async def _discard(self, numbers: Iterable[int]) -> int:
        """Forget those of these rows that were refused; how many."""
        dropped: list[int] = []
        await self.write(lambda: dropped.append(self.catalog.discard(numbers)))
        self.submit.bell.ring()
        return dropped[0]

    def _judge(self, answer: submit_pb2.SubmitReply, reply: control_pb2.CommitReply) -> None:
        """Position, notes and `staged` into the reply. Raises: what kept an operation from being done."""
        begun = bool(reply.position.seq)  # something of the plan was done before
        if answer.position.seq:
            reply.position.CopyFrom(answer.position)
        failed = [one for one in answer.outcomes if one.outcome in (submit_pb2.MISSED, submit_pb2.REFUSED)]
        reply.staged = reply.staged or any(one.outcome == submit_pb2.STAGED for one in answer.outcomes)
        for one in answer.outcomes:
            if one.outcome == submit_pb2.STAGED and one.reason not in reply.notes:
                reply.notes.append(one.reason)
            if one.outcome == submit_pb2.CONFLICT and len(reply.notes) < NOTES_TOLD:
                reply.notes.append(f"kept as {one.name.decode(errors='replace')}: {one.reason}")
        if not failed:
            return
        reason = failed[0].reason
        if len(failed) < len(answer.outcomes) or begun:
            reason += " (a part of it is done)"
        elif failed[0].outcome == submit_pb2.MISSED:
            raise _NothingDone(reason)
        if failed[0].outcome == submit_pb2.MISSED:
            raise Conflict(reason, "somebody changed it meanwhile; look at it and try again")
        raise Refused(reason, "the owner of the DataStore says who may do what in it")

    def _reply(
        self, request: control_pb2.CommitRequest, store: DataStore, position: feed_pb2.Position | None
    ) -> control_pb2.CommitReply:
        reply = control_pb2.CommitReply(
            store_id=store.feed_id, version_id=request.put_file.content.version_id, level=LEVEL_LOCAL
        )
        if position is not None:
            reply.position.CopyFrom(position)
        return reply

    # ------------------------------------------------------------ versions, pending

    async def list_versions(
        self, caller: Caller, request: control_pb2.ListVersionsRequest
    ) -> control_pb2.ListVersionsReply:
        return control_pb2.ListVersionsReply(versions=self.catalog.versions(request.path, self._owner(request.owner)))

    async def list_pending(
        self, caller: Caller, request: control_pb2.ListPendingRequest
    ) -> control_pb2.ListPendingReply:
        return control_pb2.ListPendingReply(
            changes=[
                control_pb2.PendingChange(
                    number=change.number,
                    store_id=change.store_id,
                    owner=change.owner,
                    path=change.path,
                    change=change.change,
                    state=change.state,
                    reason=change.reason,
                    staged_milliseconds=change.since_milliseconds,
                )
                for change in self.catalog.pending()
            ]
        )

    async def discard_pending(
        self, caller: Caller, request: control_pb2.DiscardPendingRequest
    ) -> control_pb2.DiscardPendingReply:
        return control_pb2.DiscardPendingReply(discarded=await self._discard(request.numbers))

    # ------------------------------------------------------------ inside

    def _owner(self, owner: str) -> str:
        return domain_meant(self.catalog, self.own_address, owner) if owner else ""

    def _place(self, request: control_pb2.CommitRequest) -> tuple[DataStore, bytes]:
        """The DataStore that a request is about, and the path in it; its owner becomes a member domain."""
        change = request.WhichOneof("change")
        if change is None:
            raise Refused("the commit carries no change this version knows", "use the same version on both sides")
        asked = getattr(request, change)
        asked.owner = self._owner(asked.owner)
        path = asked.source if change in ("move_path", "copy_path") else asked.path
        return self.catalog.datastore_at(path, asked.owner or None)

    def _check_may_write(self, store: DataStore, path: bytes) -> None:
        """Raises: Refused, before anything is sealed, sent or staged for nothing."""
        if not self.numbers.may_write(store, path):
            shown = store.path.decode(errors="replace")
            raise Refused(
                f"{self.own_address.domain} may not write to {shown} of {store.owner}",
                f"its owner gives it: collective datastore grant {shown} write …",
            )


def _parts(plan: Plan) -> Iterator[list[submit_pb2.StagedOperation]]:
    """The plan in portions of one call."""
    for at in range(0, len(plan.staged), OPERATIONS_PER_SUBMIT):
        yield plan.staged[at : at + OPERATIONS_PER_SUBMIT]


class _NothingDone(CollectiveError):
    """Every operation of a plan met a tree that had changed."""


def path_rows(desk: PathDesk) -> list[Row]:
    """The dispatch rows of Control about changes by path."""
    handlers: dict[str, Callable[[Caller, Any], Any]] = {
        "BeginUpload": desk.begin_upload,
        "Commit": desk.commit,
        "AwaitLevel": desk.await_level,
        "ListVersions": desk.list_versions,
        "ListPending": desk.list_pending,
        "DiscardPending": desk.discard_pending,
    }
    return admin_rows(handlers)
