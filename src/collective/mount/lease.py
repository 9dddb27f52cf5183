"""Directory leases, the holder's side: which directories this mount may change from memory.

Theory: while a mount holds the lease of a directory nobody else changes its names, so what the mount knows of them is
true and a change needs no call. A lease ends when it is recalled (the coordinator asks back, this side stops at once,
submits what it changed there, then answers), when the connection it was granted on is gone (`session` moves), or when
the renewals stop (`leases_valid_until` passes). A change needs all its directories at the same moment, checked with
no `await` before it is journalled; whoever lost one meanwhile starts again.

    state      begins with                        ends with
    asked      nobody holds it here               granted; refused (asked again); recalled before the answer came
    held       the grant                          recalled; the session's end; the renewals' end
    given up   the recall                         what was changed there is submitted, the recall is answered

What is known of a held directory: all its names when this mount made it (`made`), else the names that were looked for
and not found. Both end with the lease.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from math import inf
from typing import Protocol

from collective.core.errors import Unreachable

__all__ = ["DirectoryKey", "LeaseBook", "LeaseSource", "Leases"]

DirectoryKey = tuple[bytes, int]  # store id, inode number within the store

RETRY_SECONDS = 0.02
"""Between two requests for a lease that was not granted: others hold it for 10 ms at least."""

PATIENCE_SECONDS = 5.0
"""After this long without a lease the change is asked of the coordinator as one call. Longer than a term, because a
coordinator that crashed grants nothing for that long."""

MAXIMUM_KNOWN_NAMES = 65_536  # names remembered as absent in one directory; beyond it the catalogue is asked again


class LeaseSource(Protocol):
    """Where leases come from; `Committer` has this shape."""

    @property
    def session(self) -> int: ...
    def leases_valid_until(self) -> float: ...
    async def lease_directory(self, store_id: bytes, inode: int) -> float | None: ...
    def on_recall(self, give_up: Callable[[bytes, int], Awaitable[None]]) -> None: ...


class _Held:
    __slots__ = ("absent", "certain_since", "names", "session")

    def __init__(self, session: int, now: float, names: set[bytes] | None = None) -> None:
        self.session = session
        self.certain_since = now  # what the catalogue said from then on is still true
        self.names = names  # all of them, where this mount made the directory
        self.absent: set[bytes] = set()


class LeaseBook:
    """The brain: what is held, what is known of it. `now` is the clock of `valid_until`."""

    def __init__(self) -> None:
        self._held: dict[DirectoryKey, _Held] = {}
        self._recalled: set[DirectoryKey] = set()
        self._asked: set[DirectoryKey] = set()
        self.session = 0
        self.valid_until = 0.0

    def holds(self, key: DirectoryKey, now: float) -> bool:
        """Whether the directory may be changed from memory at this moment."""
        held = self._held.get(key)
        return held is not None and held.session == self.session and now < self.valid_until

    def renew(self, session: int, valid_until: float) -> None:
        """What the connection says now; a new session voids all older leases."""
        if session != self.session:
            self._held.clear()
            self.session = session
        self.valid_until = valid_until

    def ask(self, key: DirectoryKey) -> None:
        """A request is on its way."""
        self._asked.add(key)

    def answer(self, key: DirectoryKey, session: int, now: float, *, granted: bool) -> bool:
        """The answer came. Whether the lease is held now: not if it was recalled, or its session ended, meanwhile."""
        self._asked.discard(key)
        recalled = key in self._recalled
        self._recalled.discard(key)
        if granted and not recalled and session == self.session:
            self._held.setdefault(key, _Held(session, now))
            return True
        return False

    def made(self, key: DirectoryKey, now: float, parent: DirectoryKey) -> None:
        """This mount made the directory under a lease of its parent: it has the new one's lease, which is empty."""
        if self.holds(parent, now):
            self._held[key] = _Held(self.session, now, set())

    def give_up(self, key: DirectoryKey) -> None:
        """Recalled: not held from this moment on. May be repeated."""
        self._held.pop(key, None)
        if key in self._asked:
            self._recalled.add(key)

    # ------------------------------------------------------------------ names in held directories

    def knows_absent(self, key: DirectoryKey, name: bytes, now: float) -> bool:
        """Whether it is certain, without asking anybody, that the directory has no such name."""
        held = self._held.get(key)
        if held is None or held.session != self.session or now >= self.valid_until:
            return False
        return name not in held.names if held.names is not None else name in held.absent

    def found_absent(self, key: DirectoryKey, name: bytes) -> None:
        """The catalogue says so, and the lease keeps it true."""
        held = self._held.get(key)
        if held is not None and held.names is None and len(held.absent) < MAXIMUM_KNOWN_NAMES:
            held.absent.add(name)

    def certain_since(self, key: DirectoryKey, now: float) -> float:
        """Since when nobody else can have changed the directory; infinite when they may have just now."""
        return self._held[key].certain_since if self.holds(key, now) else inf

    def doubt_names(self, now: float) -> None:
        """Something happened that no lease covers; the catalogue is asked again. The leases stay."""
        for held in self._held.values():
            held.certain_since = now
            held.names = None
            held.absent.clear()

    def added(self, key: DirectoryKey, name: bytes) -> None:
        """This mount made a name."""
        held = self._held.get(key)
        if held is not None:
            held.absent.discard(name)
            if held.names is not None:
                held.names.add(name)

    def removed(self, key: DirectoryKey, name: bytes) -> None:
        """This mount took a name away."""
        held = self._held.get(key)
        if held is not None:
            if held.names is not None:
                held.names.discard(name)
            elif len(held.absent) < MAXIMUM_KNOWN_NAMES:
                held.absent.add(name)


class Leases:
    """The driver: asks for leases, answers recalls. `settle(store_id, inode)` submits what was changed in a directory
    and returns when the coordinator has it."""

    def __init__(
        self,
        source: LeaseSource,
        settle: Callable[[bytes, int], Awaitable[None]],
        now: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._source = source
        self._settle = settle
        self._now = now
        self._sleep = sleep
        self._asking: dict[DirectoryKey, asyncio.Future[None]] = {}
        self.book = LeaseBook()
        source.on_recall(self._recalled)

    def holds(self, keys: Sequence[DirectoryKey]) -> bool:
        """Whether all of them are held at this moment; true until the caller's next `await`."""
        book, source = self.book, self._source
        book.renew(source.session, source.leases_valid_until())
        now = self._now()
        return all(book.holds(key, now) for key in keys)

    def knows_absent(self, key: DirectoryKey, name: bytes) -> bool:
        """As the book's, at this moment."""
        self.book.renew(self._source.session, self._source.leases_valid_until())
        return self.book.knows_absent(key, name, self._now())

    def certain_since(self, key: DirectoryKey) -> float:
        """As the book's, at this moment."""
        self.book.renew(self._source.session, self._source.leases_valid_until())
        return self.book.certain_since(key, self._now())

    def doubt_names(self) -> None:
        """As the book's, at this moment."""
        self.book.doubt_names(self._now())

    def made(self, key: DirectoryKey, parent: DirectoryKey) -> None:
        """This mount just made a directory."""
        self.book.made(key, self._now(), parent)

    async def acquire(self, keys: Sequence[DirectoryKey]) -> bool:
        """Wait until all are held at one moment. False when they are not to be had now: ask for the change itself.

        Raises: Unreachable while the coordinator is away; the caller asks again until its deadline.
        """
        patience_until = self._now() + PATIENCE_SECONDS
        while not self.holds(keys):
            if self._now() >= patience_until:
                return False
            for key in keys:
                if not self.holds((key,)) and not await self._ask(key):
                    await self._sleep(RETRY_SECONDS)
        return True

    async def _ask(self, key: DirectoryKey) -> bool:
        """One request at a time for a directory; who comes meanwhile waits for its answer."""
        asking = self._asking.get(key)
        if asking is not None:
            await asyncio.wait([asking])
            return self.holds((key,))
        asking = self._asking[key] = asyncio.get_running_loop().create_future()
        session = self._source.session
        granted = False
        self.book.ask(key)
        try:
            granted = await self._source.lease_directory(*key) is not None
        finally:
            self.book.renew(self._source.session, self._source.leases_valid_until())
            held = self.book.answer(key, session, self._now(), granted=granted)
            del self._asking[key]
            asking.set_result(None)
        return held

    async def _recalled(self, store_id: bytes, inode: int) -> None:
        """Stop using the lease now; return when everything changed under it is with the coordinator."""
        self.book.give_up((store_id, inode))
        await self._settle(store_id, inode)


async def until_reachable(
    attempt: Callable[[], Awaitable[bool]], sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> bool:
    """Repeat `attempt` while the coordinator is away; the caller's deadline ends it."""
    while True:
        try:
            return await attempt()
        except Unreachable:
            await sleep(RETRY_SECONDS * 10)
