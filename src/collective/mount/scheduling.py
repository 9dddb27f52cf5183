"""In which order changes may be sent: as they were made, but for what waits for a content that is not uploaded yet.

Pure. Operations of one DataStore are *added* in order, *taken* into batches that are sent one after the other, and
*finished* when their batch was answered. One that is not ready (its content is on its way) is passed over, and with it
whatever shares a key with it; everything independent goes on. Within a batch the order is that of adding, so a change
and what depends on it may travel together.

    key                what uses it
    inode number       what changes this inode or its names; alone
    (parent, name)     what puts, takes or replaces this name; alone
    ~inode number      the directory as holder of names: made, removed, given times alone; shared by changes of names
    ALL_DIRECTORIES    moves of directories: alone, so that none ends up below itself
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from collective.wire import feed_pb2

__all__ = ["ALL_DIRECTORIES", "Key", "Keys", "Schedule", "keys_of"]

Key = int | tuple[int, bytes]
ALL_DIRECTORIES = 0  # no inode has this number


class Keys(NamedTuple):
    """What an operation needs for itself, and what it shares."""

    alone: tuple[Key, ...]
    shared: tuple[Key, ...] = ()


def keys_of(operation: feed_pb2.TreeOperation, *, of_directory: bool) -> Keys:
    """`of_directory`: what it makes, moves, removes or gives attributes to is a directory."""
    match operation.WhichOneof("change"):
        case "create":
            create = operation.create
            number = create.inode
            alone: tuple[Key, ...] = (number, (create.parent, create.name))
            return Keys((*alone, ~number) if of_directory else alone, (~create.parent,))
        case "link":
            link = operation.link
            return Keys((link.inode, (link.parent, link.name)), (~link.parent,))
        case "unlink":
            unlink = operation.unlink
            alone = (unlink.inode, (unlink.parent, unlink.name))
            return Keys((*alone, ~unlink.inode) if of_directory else alone, (~unlink.parent,))
        case "rename":
            return _keys_of_rename(operation.rename, of_directory)
        case "set_attributes":
            number = operation.set_attributes.inode
            # a directory's times are what was set only if no name came or went later than it did here
            return Keys((number, ~number)) if of_directory else Keys((number,))
        case "set_xattr":
            return Keys((operation.set_xattr.inode,))
        case "set_content":
            return Keys((operation.set_content.inode,))
    raise ValueError("an operation without a change")


def _keys_of_rename(rename: feed_pb2.Rename, of_directory: bool) -> Keys:
    source, target = (rename.from_parent, rename.from_name), (rename.to_parent, rename.to_name)
    alone: list[Key] = [rename.inode, source]
    if target != source:
        alone.append(target)
    if rename.replaced_inode and rename.replaced_inode != rename.inode:
        alone += [rename.replaced_inode, ~rename.replaced_inode]
    if of_directory:
        alone.append(ALL_DIRECTORIES)
    return Keys(tuple(alone), tuple({~rename.from_parent, ~rename.to_parent}))


@dataclass(slots=True)
class _Entry:
    """`waits` counts what must be taken before, and one more while the operation itself is not ready."""

    keys: Keys
    waits: int = 0
    followers: list[int] = field(default_factory=list)
    taken: bool = False


class Schedule:
    """The order of one DataStore's changes. Tickets are positive and grow with each `add`.

    Laws: two operations that share a key (one of them alone) are taken in the order of adding; what is ready and
    depends on nothing that is not, is taken; nothing is taken twice. An operation costs a few dict lookups, however
    many are queued.
    """

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}  # added and not finished
        self._alone: dict[Key, int] = {}  # who used a key alone last …
        self._sharing: dict[Key, dict[int, None]] = {}  # … and who shared it since
        self._takeable: list[int] = []  # a heap
        self._last = 0

    def __len__(self) -> int:
        """Added and not finished."""
        return len(self._entries)

    @property
    def takeable_count(self) -> int:
        return len(self._takeable)

    def add(self, keys: Keys, *, ready: bool = True) -> int:
        """The ticket of an operation that comes after all that were added before."""
        self._last = ticket = self._last + 1
        entry = _Entry(keys, 0 if ready else 1)
        before: set[int] = set()
        for key in keys.alone:
            if (other := self._alone.get(key)) is not None:
                before.add(other)
            if key in self._sharing:
                before.update(self._sharing.pop(key))
            self._alone[key] = ticket
        for key in keys.shared:
            if (other := self._alone.get(key)) is not None:
                before.add(other)
            if (sharing := self._sharing.get(key)) is None:
                sharing = self._sharing[key] = {}
            sharing[ticket] = None
        for other in before:
            found = self._entries.get(other)
            if found is not None and not found.taken and other != ticket:
                found.followers.append(ticket)
                entry.waits += 1
        self._entries[ticket] = entry
        if not entry.waits:
            heapq.heappush(self._takeable, ticket)
        return ticket

    def make_ready(self, ticket: int) -> None:
        """An operation added as not ready may be taken now; once."""
        self._release(ticket)

    def is_waiting(self, ticket: int) -> bool:
        """Whether it was not taken yet."""
        entry = self._entries.get(ticket)
        return entry is not None and not entry.taken

    def take(self, limit: int) -> list[int]:
        """Up to `limit` operations, to be sent in this order."""
        taken: list[int] = []
        while self._takeable and len(taken) < limit:
            ticket = heapq.heappop(self._takeable)
            entry = self._entries[ticket]
            entry.taken = True
            taken.append(ticket)
            for follower in entry.followers:
                self._release(follower)
            entry.followers = []
        return taken

    def finish(self, tickets: Iterable[int]) -> None:
        """They are answered."""
        for ticket in tickets:
            keys = self._entries.pop(ticket).keys
            for key in keys.alone:
                if self._alone.get(key) == ticket:
                    del self._alone[key]
            for key in keys.shared:
                if (sharing := self._sharing.get(key)) is not None:
                    sharing.pop(ticket, None)
                    if not sharing:
                        del self._sharing[key]

    def concerning(self, keys: Keys) -> Sequence[int]:
        """What must be finished before an operation with these keys may be sent past the queue."""
        found: set[int] = set()
        for key in keys.alone:
            found.update(self._using(key))
        for key in keys.shared:
            if (other := self._alone.get(key)) is not None:
                found.add(other)
        return sorted(found)

    def _using(self, key: Key) -> Iterator[int]:
        if (other := self._alone.get(key)) is not None:
            yield other
        yield from self._sharing.get(key, ())

    def free(self) -> list[int]:
        """What may be taken together now, with whatever follows from it, and what was taken and is not finished."""
        found = {ticket for ticket, entry in self._entries.items() if entry.taken}
        waits: dict[int, int] = {}
        ready = list(self._takeable)
        while ready:
            ticket = ready.pop()
            found.add(ticket)
            for follower in self._entries[ticket].followers:
                waits[follower] = waits.get(follower, self._entries[follower].waits) - 1
                if not waits[follower]:
                    ready.append(follower)
        return sorted(found)

    def directories(self) -> Sequence[int]:
        """The inode numbers of all directories in which something queued puts or takes names."""
        used = {**self._alone, **self._sharing}
        return [~key for key in used if isinstance(key, int) and key < ALL_DIRECTORIES]

    def changing_names_in(self, directory: int) -> Sequence[int]:
        """What is queued that puts or takes names in a directory (its inode number)."""
        return sorted(self._using(~directory))

    def _release(self, ticket: int) -> None:
        entry = self._entries[ticket]
        entry.waits -= 1
        if not entry.waits:
            heapq.heappush(self._takeable, ticket)
