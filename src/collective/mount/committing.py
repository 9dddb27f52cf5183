"""What a mount asks of its own coordinator and its own nodes, to turn what is in the journal into the library.

`Committer` is the one protocol; over real lanes it is daemon/committing.py, in tests a catalogue in memory. Nothing in
the mount knows what is behind it. Operations and contents are complete in themselves when they are handed over, and
handing one over twice changes nothing: an operation's id is absorbed once, a chunk's id comes from its bytes.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from collective.catalog import DataStore, VersionReference
from collective.mount.names import Space
from collective.wire import feed_pb2, submit_pb2

__all__ = ["Author", "Committer", "GiveUp", "PlainContent", "ReadPlain", "SealedContent", "Unsent"]

ReadPlain = Callable[[int, memoryview], Awaitable[None]]
"""Fill the view with the plain bytes from an offset on; exactly its length, never past the content's end.
May be called several times at once; the view is not touched after it returned or raised. Raises: CollectiveError."""

GiveUp = Callable[[bytes, int], Awaitable[None]]
"""(store id, inode number of the directory): returns when nothing changes there from memory any more and all that was
changed is submitted."""

Unsent = Callable[[], Iterable[tuple[bytes, int]]]
"""(store id, inode number) of each directory in which changes that wait to be sent put or take names."""


@dataclass(frozen=True)
class Author:
    """Who changes things through this mount: the member domain that operation ids carry, the federated address that
    asked, and where 16 fresh random bytes come from."""

    domain: str
    actor: str
    random_bytes: Callable[[int], bytes] = os.urandom

    def operation(self, time_ns: int) -> feed_pb2.TreeOperation:
        """A fresh operation without a change, made at wall time `time_ns`: whatever identifies it is fixed now."""
        return feed_pb2.TreeOperation(
            id=feed_pb2.OperationId(writer=self.domain, random=self.random_bytes(16)),
            actor=self.actor,
            time_nanoseconds=time_ns,
        )


@dataclass(frozen=True)
class PlainContent:
    """A file's bytes as they were frozen, to be split, sealed and stored.

    `changed` are byte ranges [start, end), sorted and disjoint, outside of which the bytes equal those of `previous`
    up to the smaller of both sizes (what lies beyond the end of `previous` is in `changed` or zeros: a hole). Chunks
    that no range touches and whose plain size stays are taken over from `previous` by id and key, provided the node
    has them; what it lacks is read and sealed again under the same key. Without `previous` (None) whatever is outside
    of `changed` is zeros.
    """

    store_id: bytes
    size_bytes: int
    read: ReadPlain
    changed: Sequence[tuple[int, int]]
    previous: VersionReference | None = None


@dataclass(frozen=True)
class SealedContent:
    """A content whose chunks are all durable at a node of this home. `content` and `layout` name the same version."""

    content: feed_pb2.Content
    layout: feed_pb2.Layout
    pages: Sequence[bytes]
    key_pages: Sequence[bytes]
    sent_bytes: int


class Committer(Protocol):
    """The way out of a mount. Every method may be called from several tasks at once.

    Raises (each async method): Unreachable when the coordinator or node cannot be reached, trying again may help;
    Full; Refused; what else is said.
    """

    async def submit(
        self, store_id: bytes, operations: Sequence[submit_pb2.StagedOperation], *, exact: bool
    ) -> Sequence[submit_pb2.OperationOutcome]:
        """Hand over up to 1,024 operations of one DataStore, in order; an outcome each, in order.

        Returns when this home's own database shows them (applied or staged), so a reader of the home sees them.
        `exact`: what no longer holds is not done (MISSED with an errno); an owner who is away is Unreachable, and
        nothing is staged.
        """
        ...

    async def lease_numbers(self, store_id: bytes, count: int) -> range:
        """Inode numbers nobody else uses; fewer than `count` may come, at least one. Raises: Unreachable when none are
        in stock and the owner is away."""
        ...

    async def lease_directory(self, store_id: bytes, inode: int) -> float | None:
        """The right to change one directory from memory: seconds of its term, None when not now. Held under `session`
        until recalled, until `leases_valid_until()` has passed, or until `session` changes."""
        ...

    def on_connect(self, unsent: Unsent) -> None:
        """Who tells what is not sent yet, at every connection before anything else is said; nobody is called before."""
        ...

    def on_recall(self, give_up: GiveUp) -> None:
        """Who is asked to give a lease up. The coordinator waits for its return."""
        ...

    @property
    def session(self) -> int:
        """Changes whenever the connection was lost: all leases of an older session are void."""
        ...

    def leases_valid_until(self) -> float:
        """Monotonic seconds until which leases of this session may be used, from the last renewal."""
        ...

    async def upload(self, content: PlainContent) -> SealedContent:
        """Split, seal and send a content under a fresh version id; returns when all of its chunks are durable.

        Everything that `content.read` raises comes through unchanged.
        """
        ...

    async def await_level(self, store_id: bytes, version_id: bytes, level: str, timeout_seconds: float) -> str:
        """Wait until a version reached `level` ("local", "two") or the time is over; the level it has. Without a
        version (b"") it is everything in the DataStore that the home's database shows."""
        ...

    def may_write(self, store: DataStore, path: bytes | None) -> bool:
        """Whether this home may change what is at a path in there (None: anything): its own, or WRITE is granted."""
        ...

    def space(self) -> Space:
        """What `df` shows: the bytes of this home's nodes, from the last renewal."""
        ...
