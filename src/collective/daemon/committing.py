"""A mount's way out over real lanes: `mount.committing.Committer`, spoken to this home's own coordinator.

One connection, kept open: changes, numbers and uploads are asked over it, and the coordinator asks leases back over it.
It is renewed every second; the leases of its session count for two thirds of the term from the moment the last answered
renewal was *sent*. A connection that broke, or a renewal that comes too late, ends the session: the next connection is
another one, and whatever was leased before is void. First of all a connection claims the mount's journal: where
names wait to be sent, nobody else gets a lease before they are.

    dialling --claim, first renewal answered--> open --broken, late, lapsed--> dialling
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from google.protobuf.message import Message

from collective.catalog import DataStore
from collective.core.clock import Clock
from collective.core.errors import CollectiveError, Refused, Unreachable
from collective.core.observe import Observer
from collective.core.sizes import MIB
from collective.daemon.client import ReadSide, dial_own_coordinator
from collective.daemon.uploading import Uploader
from collective.mount.committing import GiveUp, PlainContent, SealedContent, Unsent
from collective.mount.names import Space
from collective.net.lane import LaneCaller, LaneConnection, LaneHandler
from collective.wire import control_pb2, feed_pb2, lane_pb2, submit_pb2

__all__ = ["LaneCommitter"]

RENEW_SECONDS = 1.0
RENEW_TIMEOUT_SECONDS = 2.0
USABLE_PART = 2 / 3  # of the term; the rest is for clocks that drift and a process that was not scheduled
FIRST_PAUSE_SECONDS = 0.05
LAST_PAUSE_SECONDS = 1.0
OPEN_SECONDS = 2.0  # a call waits this long for a connection that is being dialled
SUBMIT_TIMEOUT_SECONDS = 60.0  # recalls, two syncs, and an owner at the other end of a thin line
CALL_TIMEOUT_SECONDS = 10.0
LEVEL_GRACE_SECONDS = 5.0
PORTION_BYTES = 4 * MIB  # of operations in one call
CLAIMED_DIRECTORIES = 16_384  # in one call: 0.7 MB
OPERATION_BYTES = 8 * MIB  # what the lane carries; the pages of a file of about 900 GB
_Reply = TypeVar("_Reply", bound=Message)


class LaneCommitter:
    """See `mount.committing.Committer`; `run` keeps the connection. `journal` is the number of the mount's."""

    def __init__(self, side: ReadSide, journal: int, clock: Clock, observer: Observer) -> None:
        self._side = side
        self._journal = journal
        self._clock = clock
        self._observer = observer
        self._line: LaneConnection | None = None
        self._opened = asyncio.Event()
        self._session = 0
        self._valid_until = 0.0
        self._space = Space(0, 0)
        self._give_up: GiveUp | None = None
        self._unsent: asyncio.Future[Unsent] = asyncio.get_running_loop().create_future()
        self._uploader = Uploader(side, self._begin_upload, clock)

    async def run(self) -> None:
        """Keep a connection to the coordinator, for ever. Ends by cancellation, and closes it."""
        pause = FIRST_PAUSE_SECONDS
        unsent = await self._unsent
        try:
            while True:
                try:
                    await self._connect(unsent)
                    pause = FIRST_PAUSE_SECONDS
                    while True:
                        await asyncio.sleep(RENEW_SECONDS)
                        await self._renew()
                except CollectiveError as error:
                    self._observer.event("debug.committing.broken", reason=error.message)
                await self._disconnect()
                await asyncio.sleep(pause)
                pause = min(pause * 2, LAST_PAUSE_SECONDS)
        finally:
            await self._disconnect()
            await self._uploader.close()

    # ------------------------------------------------------------ the protocol

    async def submit(
        self, store_id: bytes, operations: Sequence[submit_pb2.StagedOperation], *, exact: bool
    ) -> Sequence[submit_pb2.OperationOutcome]:
        outcomes: list[submit_pb2.OperationOutcome] = []
        for portion in _portions(operations):
            request = submit_pb2.SubmitRequest(store_id=store_id, operations=portion, exact=exact)
            reply = await self._ask(lane_pb2.LANE_SUBMIT, request, submit_pb2.SubmitReply, SUBMIT_TIMEOUT_SECONDS)
            if len(reply.outcomes) != len(portion):
                raise Unreachable(f"the coordinator answered {len(reply.outcomes)} of {len(portion)} operations")
            outcomes += reply.outcomes
        return outcomes

    async def lease_numbers(self, store_id: bytes, count: int) -> range:
        request = submit_pb2.LeaseNumbersRequest(store_id=store_id, count=count)
        reply = await self._ask(lane_pb2.LANE_LEASE_NUMBERS, request, submit_pb2.LeaseNumbersReply)
        return range(reply.first, reply.first + reply.count)

    async def lease_directory(self, store_id: bytes, inode: int) -> float | None:
        line = await self._open_line()
        request = lane_pb2.LeaseDirectoryRequest(store_id=store_id, inode=inode).SerializeToString()
        answer = await line.call(lane_pb2.LANE_LEASE_DIRECTORY, request, timeout_seconds=CALL_TIMEOUT_SECONDS)
        reply = lane_pb2.LeaseDirectoryReply.FromString(answer.head)
        return reply.term_milliseconds / 1000 if reply.granted and line is self._line else None

    def on_connect(self, unsent: Unsent) -> None:
        self._unsent.set_result(unsent)

    def on_recall(self, give_up: GiveUp) -> None:
        self._give_up = give_up

    @property
    def session(self) -> int:
        return self._session

    def leases_valid_until(self) -> float:
        return self._valid_until

    async def await_level(self, store_id: bytes, version_id: bytes, level: str, timeout_seconds: float) -> str:
        deadline = self._clock.monotonic() + timeout_seconds
        while True:
            left = max(0.0, deadline - self._clock.monotonic())
            request = control_pb2.AwaitLevelRequest(
                store_id=store_id, version_id=version_id, level=level, timeout_milliseconds=int(left * 1000)
            )
            reply = await self._ask(
                lane_pb2.LANE_AWAIT_LEVEL, request, control_pb2.AwaitLevelReply, left + LEVEL_GRACE_SECONDS
            )
            if reply.level == level or self._clock.monotonic() >= deadline:
                return reply.level

    async def upload(self, content: PlainContent) -> SealedContent:
        return await self._uploader.upload(content)

    async def _begin_upload(self, store_id: bytes, size_bytes: int) -> control_pb2.BeginUploadReply:
        request = control_pb2.BeginUploadRequest(store_id=store_id, size_bytes=size_bytes)
        return await self._ask(lane_pb2.LANE_BEGIN_UPLOAD, request, control_pb2.BeginUploadReply)

    def may_write(self, store: DataStore, path: bytes | None) -> bool:
        own = self._side.credentials.identity.address
        return self._side.reader.may(own, feed_pb2.WRITE, store.feed_id, path, now=self._clock.wall()).allowed

    def space(self) -> Space:
        return self._space

    # ------------------------------------------------------------ the connection

    async def _ask(
        self, method: int, request: Message, reply_type: type[_Reply], timeout_seconds: float = CALL_TIMEOUT_SECONDS
    ) -> _Reply:
        """A call whose request and reply are bodies."""
        line = await self._open_line()
        answer = await line.call(method, b"", request.SerializeToString(), timeout_seconds=timeout_seconds)
        return reply_type.FromString(bytes(answer.body))

    async def _open_line(self) -> LaneConnection:
        """The connection, waited for a moment. Raises: Unreachable."""
        if self._line is None:
            try:
                async with asyncio.timeout(OPEN_SECONDS):
                    await self._opened.wait()
            except TimeoutError:
                raise Unreachable("this home's coordinator does not answer", "is it running?") from None
        if self._line is None:
            raise Unreachable("the connection to this home's coordinator was lost")
        return self._line

    async def _connect(self, unsent: Unsent) -> None:
        handlers: Mapping[int, LaneHandler] = {lane_pb2.LANE_RECALL: self._recalled}
        line = await dial_own_coordinator(self._side, handlers)
        self._line = line
        self._session += 1
        self._valid_until = 0.0
        try:
            await self._claim(line, list(unsent()))
            await self._renew(first=True)
        except BaseException:
            self._line = None
            await line.close()
            raise
        self._opened.set()

    async def _claim(self, line: LaneConnection, unsent: Sequence[tuple[bytes, int]]) -> None:
        """Say what the journal has to send; the journal counts as answered for with the last portion."""
        while True:
            portion, unsent = unsent[:CLAIMED_DIRECTORIES], unsent[CLAIMED_DIRECTORIES:]
            request = lane_pb2.ClaimRequest(
                journal=0 if unsent else self._journal,
                directories=[lane_pb2.LeaseDirectoryRequest(store_id=store, inode=inode) for store, inode in portion],
            )
            body = request.SerializeToString()
            await line.call(lane_pb2.LANE_CLAIM, b"", body, timeout_seconds=RENEW_TIMEOUT_SECONDS)
            if not unsent:
                return

    async def _renew(self, *, first: bool = False) -> None:
        """Another term. Raises: Unreachable when it comes too late, or the coordinator does not answer."""
        line = self._line
        if line is None or line.is_closed:
            raise Unreachable("the connection to this home's coordinator was lost")
        sent = self._clock.monotonic()
        if not first and sent >= self._valid_until:
            raise Unreachable("this process stood still for longer than its leases hold")
        answer = await line.call(
            lane_pb2.LANE_RENEW,
            lane_pb2.RenewRequest().SerializeToString(),
            timeout_seconds=RENEW_TIMEOUT_SECONDS,
        )
        reply = lane_pb2.RenewReply.FromString(answer.head)
        self._valid_until = sent + reply.term_milliseconds / 1000 * USABLE_PART
        self._space = Space(total_bytes=reply.total_bytes, free_bytes=reply.free_bytes)

    async def _disconnect(self) -> None:
        self._opened.clear()
        line, self._line = self._line, None
        if line is not None:
            self._session += 1
            self._valid_until = 0.0
            await line.close()

    async def _recalled(self, caller: LaneCaller, head: bytes, body: memoryview) -> tuple[bytes, Sequence[bytes]]:
        """The coordinator wants a lease back; answered when it is given up and what was changed there is submitted."""
        if caller.connection is not self._line:
            raise Refused("that lease ended with its connection")
        request = lane_pb2.RecallRequest.FromString(head)
        if self._give_up is not None:
            await self._give_up(request.store_id, request.inode)
        return lane_pb2.RecallReply().SerializeToString(), ()


def _portions(
    operations: Sequence[submit_pb2.StagedOperation],
) -> Iterator[Sequence[submit_pb2.StagedOperation]]:
    """The operations in order, in portions that a call can carry. Raises: Refused for one that no call can."""
    begin = size = 0
    for index, staged in enumerate(operations):
        more = staged.ByteSize()
        if more > OPERATION_BYTES:
            raise Refused(
                f"a file of {len(staged.pages)} pages of chunks is too large to be written through a mount",
                "store it with `collective put`",
            )
        if index > begin and size + more > PORTION_BYTES:
            yield operations[begin:index]
            begin, size = index, 0
        size += more
    if operations:
        yield operations[begin:]
