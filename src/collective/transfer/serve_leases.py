"""Directory leases over the lane: the driver of `leases.LeaseTable`.

A mount asks LANE_LEASE_DIRECTORY; when another session holds the directory it is asked back over its own connection
(LANE_RECALL), and answers when everything it did there is submitted. Whoever changes a directory without its lease
(a command, another member, a mount's single call) wraps the change in `changing`, which recalls first.

An `exact` change waits for the holder and gives up in the end; a change that was promised already (a replay) waits a
term at most and is then made all the same: whatever does not fit is kept under a conflict name.

While what a dead mount left is nobody's (`legacies`), leases and exact changes wait for its heir.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager

from collective.core.clock import Clock
from collective.core.errors import CollectiveError, Refused, Unreachable
from collective.core.observe import Observer
from collective.net.lane import LaneCaller, LaneHandler
from collective.net.lane_asking import Asker
from collective.transfer.leases import TERM_SECONDS, Directory, LeaseTable
from collective.transfer.legacies import Legacies
from collective.wire import lane_pb2

__all__ = ["LeaseDesk", "lease_handlers"]

WAIT_SECONDS = 2.0  # a request for a lease is answered after this long, granted or not
RETRY_MILLISECONDS = 20
EXACT_WAIT_SECONDS = 10.0
RECALL_SECONDS = 15.0  # a holder that renews and does not answer for so long has its connection cut
STOP_SECONDS = 2.0
_SESSION = "lease session"


class LeaseDesk:
    """Lends directories to this member's own mounts.

    `out_before`: an earlier run ended with leases out. `mark(True)` is called before the first lease goes out,
    `mark(False)` when none is out any more, and must survive a crash of this process. `space` is (total, free) bytes
    of this home's nodes. `journals` are those on the disk that are not empty: whether somebody has each one's lock.
    """

    def __init__(
        self,
        clock: Clock,
        observer: Observer,
        *,
        out_before: bool,
        mark: Callable[[bool], None],
        space: Callable[[], tuple[int, int]],
        journals: Callable[[], Mapping[int, bool]],
    ) -> None:
        self._clock = clock
        self._observer = observer
        self._mark = mark
        self._marked = out_before
        self._space = space
        self._journals = journals
        self.legacies = Legacies()
        self._doubt_until = clock.monotonic() + TERM_SECONDS if out_before else 0.0
        self.table = LeaseTable(self._doubt_until)
        self._numbers = itertools.count(1)
        self._lines: dict[int, Asker] = {}
        self._recalls: dict[tuple[int, Directory], asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._moved = asyncio.Event()
        self._closing = False

    # ------------------------------------------------------------ what mounts ask

    async def lease_directory(
        self, caller: LaneCaller, request: lane_pb2.LeaseDirectoryRequest
    ) -> lane_pb2.LeaseDirectoryReply:
        """Grant, recalling from another session first; after a while "not now". Raises: Unreachable (lapsed)."""
        session = self.session_of(caller)
        directory = (request.store_id, request.inode)
        deadline = self._clock.monotonic() + WAIT_SECONDS
        while not self._closing:
            now = self._clock.monotonic()
            if self.legacies.open:
                if now >= deadline:
                    break
                await self._wait_moved(deadline - now)
                continue
            answer = self.table.ask(session, directory, now)
            if answer.granted:
                self._note_out()
                return lane_pb2.LeaseDirectoryReply(granted=True, term_milliseconds=int(TERM_SECONDS * 1000))
            if answer.lapsed:
                raise _lapsed()
            if answer.recall is None and answer.retry_seconds > WAIT_SECONDS:
                return lane_pb2.LeaseDirectoryReply(retry_milliseconds=int(answer.retry_seconds * 1000) + 1)
            if now >= deadline:
                break
            if answer.recall is not None:
                self._start_recall(answer.recall, directory)
                await self._wait_moved(deadline - now)
            else:
                await self._wait_moved(min(answer.retry_seconds, deadline - now))
        return lane_pb2.LeaseDirectoryReply(retry_milliseconds=RETRY_MILLISECONDS)

    def claim(self, caller: LaneCaller, request: lane_pb2.ClaimRequest) -> None:
        """The caller's mount answers for a journal; where it has names to send, nobody else comes first."""
        session, now = self.session_of(caller), self._clock.monotonic()
        for directory in request.directories:
            self.table.claim(session, (directory.store_id, directory.inode), now)
        for oldest in self.table.over_limit(session):
            self._start_recall(session, oldest)
        if request.journal:
            self.legacies.claim(session, request.journal)
            self.look()

    def look(self) -> None:
        """See which journals have somebody who answers for them; to be repeated, since a lock ends by itself."""
        before = self.legacies.open
        try:
            self.legacies.look(self._journals(), self._clock.monotonic())
        except CollectiveError as error:  # what was seen the last time stands
            self._observer.event("leases.journals_not_seen", reason=error.message)
        if before and not self.legacies.open:
            self._wake()

    async def renew(self, caller: LaneCaller) -> lane_pb2.RenewReply:
        """Another term for all leases of the connection. Raises: Unreachable when they lapsed."""
        if not self.table.renew(self.session_of(caller), self._clock.monotonic()):
            raise _lapsed()
        total_bytes, free_bytes = self._space()
        return lane_pb2.RenewReply(
            term_milliseconds=int(TERM_SECONDS * 1000), total_bytes=total_bytes, free_bytes=free_bytes
        )

    def session_of(self, caller: LaneCaller) -> int:
        """The session that this connection is."""
        session: int | None = caller.state.get(_SESSION)
        if session is None:
            session = caller.state[_SESSION] = next(self._numbers)
            self.table.open(session, self._clock.monotonic())
            self._lines[session] = caller.connection
            self._own(self._watch(session, caller.connection))
        return session

    # ------------------------------------------------------------ changes

    @asynccontextmanager
    async def changing(
        self, session: int | None, directories: Iterable[Directory], *, exact: bool
    ) -> AsyncIterator[None]:
        """Nobody else changes these directories from memory meanwhile. Raises: Unreachable (exact, holder silent)."""
        touched = set(directories)
        self.table.begin(touched)
        try:
            if exact and self._closing:
                raise Unreachable("this home's coordinator is stopping", "try again when it is back")
            if exact and (quiet := self.table.quiet_until - self._clock.monotonic()) > 0:
                await asyncio.sleep(quiet)
            await self._clear(session, touched, exact=exact)
            while exact and self.legacies.open:
                await self._until_inherited()
                await self._clear(session, touched, exact=exact)
            yield
        finally:
            self.table.finish(touched)
            self._wake()

    def created(self, session: int, parent: Directory, directory: Directory) -> None:
        """A directory made under a lease belongs to the same session, from before anybody else can see it."""
        if self.table.created(session, parent, directory, self._clock.monotonic()):
            for oldest in self.table.over_limit(session):
                self._start_recall(session, oldest)

    async def _until_inherited(self) -> None:
        """Return when somebody answers for every journal. Raises: Unreachable."""
        deadline = self._clock.monotonic() + EXACT_WAIT_SECONDS
        while self.legacies.open:
            left = deadline - self._clock.monotonic()
            if left <= 0:
                raise Unreachable(
                    "what a mount that died had not sent is being taken up",
                    "try again in a moment; mount.log says more",
                )
            await self._wait_moved(left)

    async def _clear(self, session: int | None, touched: set[Directory], *, exact: bool) -> None:
        deadline = self._clock.monotonic() + (EXACT_WAIT_SECONDS if exact else TERM_SECONDS)
        while True:
            now = self._clock.monotonic()
            held = self.table.in_the_way(session, touched, now)
            if not held:
                return
            if now >= deadline:
                self._observer.event("leases.not_given_up", directories=len(held), exact=exact)
                if exact:
                    raise Unreachable(
                        "another mount of this home holds the folder and does not answer", "try again in a moment"
                    )
                return
            for directory in held:
                holder = self.table.holder(directory, now)
                if holder is not None:
                    self._start_recall(holder, directory)
            await self._wait_moved(deadline - now)

    # ------------------------------------------------------------ recalls

    def _start_recall(self, session: int, directory: Directory) -> asyncio.Task[None]:
        """One recall per lease is on the way, however many wait for it."""
        standing = self._recalls.get((session, directory))
        if standing is not None:
            return standing
        task = self._own(self._recall(session, directory))
        self._recalls[session, directory] = task
        task.add_done_callback(lambda _: self._recalls.pop((session, directory), None))
        return task

    async def _recall(self, session: int, directory: Directory) -> None:
        """Until the session has the lease no more: given up, or lapsed."""
        await asyncio.sleep(self.table.hold_left(directory, self._clock.monotonic()))
        try:
            line = self._lines.get(session)
            self.table.recall(session, directory)
            if line is not None:
                await self._ask_back(line, session, directory)
            while self.table.holder(directory, self._clock.monotonic()) == session:
                await self._wait_moved(self.table.lapses_in(session, self._clock.monotonic()) + 0.001)
        finally:
            self._wake()

    async def _ask_back(self, line: Asker, session: int, directory: Directory) -> None:
        """Recall over the holder's connection; a holder that does not do its part is cut off."""
        request = lane_pb2.RecallRequest(store_id=directory[0], inode=directory[1]).SerializeToString()
        call = asyncio.ensure_future(line.call(lane_pb2.LANE_RECALL, request, timeout_seconds=RECALL_SECONDS))
        try:
            while not call.done() and self.table.holder(directory, self._clock.monotonic()) == session:
                left = self.table.lapses_in(session, self._clock.monotonic())
                await asyncio.wait({call}, timeout=left + 0.001)
            if not call.done():
                return  # it lapsed while we asked
            call.result()
        except CollectiveError as error:
            self._observer.event("leases.recall_failed", session=session, reason=error.message)
            line.refuse(Unreachable("a recalled lease was not given up"))
        else:
            self.table.give_up(session, directory)
        finally:
            if not call.done():
                call.cancel()
                await asyncio.wait({call})

    async def _watch(self, session: int, line: Asker) -> None:
        """The session ends with its connection."""
        await line.closed.wait()
        self._lines.pop(session, None)
        self.legacies.leave(session)
        self.look()  # before its leases are free
        now = self._clock.monotonic()
        self.table.end(session, now, known_there=line.was_closed_by_peer)
        self._note_in(now)
        self._wake()

    # ------------------------------------------------------------ inside

    async def close(self) -> None:
        """Call everything back before the coordinator stops; what comes back in time is no leftover."""
        self._closing = True
        self.table.quiet_until = float("inf")
        recalls = [
            self._start_recall(session, directory)
            for session, directory in self.table.all_held(self._clock.monotonic())
        ]
        if recalls:
            await asyncio.wait(recalls, timeout=STOP_SECONDS)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._note_in(self._clock.monotonic())

    def _own(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _note_out(self) -> None:
        if not self._marked:
            self._marked = True
            self._mark(True)

    def _note_in(self, now: float) -> None:
        """Take the mark away when nothing is out, of this run or the one before."""
        if self._marked and now >= self._doubt_until and not self.table.all_held(now):
            self._marked = False
            self._mark(False)

    def _wake(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    async def _wait_moved(self, seconds: float) -> None:
        moved = self._moved
        try:
            async with asyncio.timeout(seconds):
                await moved.wait()
        except TimeoutError:
            return


def _lapsed() -> Unreachable:
    return Unreachable("the leases of this connection have lapsed", "connect anew")


def lease_handlers(desk: LeaseDesk, own_domain: str) -> Mapping[int, LaneHandler]:
    """LANE_CLAIM, LANE_LEASE_DIRECTORY and LANE_RENEW, for mounts of `own_domain`."""

    async def claim(caller: LaneCaller, head: bytes, body: memoryview) -> tuple[bytes, Sequence[bytes]]:
        _check_own(caller, own_domain)
        desk.claim(caller, lane_pb2.ClaimRequest.FromString(bytes(body)))
        return lane_pb2.ClaimReply().SerializeToString(), ()

    async def lease(caller: LaneCaller, head: bytes, body: memoryview) -> tuple[bytes, Sequence[bytes]]:
        _check_own(caller, own_domain)
        reply = await desk.lease_directory(caller, lane_pb2.LeaseDirectoryRequest.FromString(head))
        return reply.SerializeToString(), ()

    async def renew(caller: LaneCaller, head: bytes, body: memoryview) -> tuple[bytes, Sequence[bytes]]:
        _check_own(caller, own_domain)
        return (await desk.renew(caller)).SerializeToString(), ()

    return {lane_pb2.LANE_CLAIM: claim, lane_pb2.LANE_LEASE_DIRECTORY: lease, lane_pb2.LANE_RENEW: renew}


def _check_own(caller: LaneCaller, own_domain: str) -> None:
    if caller.peer.member_domain != own_domain:
        raise Refused("leases are for this member's own mounts")
