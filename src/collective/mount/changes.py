"""What the kernel was told lately, and what of that is not true any more.

The kernel may use a name or attribute for `names_timeout_seconds` without asking, so only answers younger than that
can be stale: this remembers exactly those, and after a change compares each with the names as they are now. Pure:
`now` comes in, `stale` says what to take back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf

from collective.core.errors import CollectiveError
from collective.mount.names import Names, Node

__all__ = ["Stale", "ToldNames"]

MAXIMUM_TOLD = 50_000  # beyond it the oldest are left to their timeout
ATTRIBUTES_SECONDS = 1.0  # how often attributes are compared where names need not be: a lease covers names alone


@dataclass(frozen=True, slots=True)
class Stale:
    """Take back what the kernel knows of inode `ino`, or, with a `name`, of that entry of the directory `ino`."""

    ino: int
    name: bytes | None = None


class ToldNames:
    """The answers given within the last `timeout_seconds`.

    `certain_since(parent_ino)` says since when nobody else can have changed a name in that directory: younger answers
    are not compared (in a folder where this mount makes thousands of files, that is all of them), their attributes once
    a second. What this mount changes itself the kernel knows already: `changed_here` takes it out.
    """

    def __init__(
        self, names: Names, timeout_seconds: float, certain_since: Callable[[int], float] = lambda parent: inf
    ) -> None:
        self._names = names
        self._timeout_seconds = timeout_seconds
        self._certain_since = certain_since
        self._attributes_due = 0.0
        self._owed = False
        self._nodes: OrderedDict[int, tuple[Node, float, int]] = OrderedDict()  # ino -> node, told at, parent or 0
        self._entries: OrderedDict[tuple[int, bytes], tuple[int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._nodes) + len(self._entries)

    def tell(self, node: Node, now: float, parent_ino: int = 0, name: bytes = b"") -> None:
        """The kernel hears of `node`, as the entry `name` of `parent_ino` when given."""
        nodes, entries = self._nodes, self._entries
        before = nodes.pop(node.ino, None)
        nodes[node.ino] = (node, now, parent_ino or (before[2] if before is not None else 0))
        if len(nodes) > MAXIMUM_TOLD:
            nodes.popitem(last=False)
        if name:
            entries.pop((parent_ino, name), None)
            entries[parent_ino, name] = (node.ino, now)
            if len(entries) > MAXIMUM_TOLD:
                entries.popitem(last=False)

    def tell_entries(self, listed: Sequence[tuple[bytes, Node]], now: float, parent_ino: int) -> None:
        """As `tell` of each entry of a page of a listing."""
        nodes, entries = self._nodes, self._entries
        for name, node in listed:
            ino = node.ino
            nodes.pop(ino, None)
            nodes[ino] = (node, now, parent_ino)
            entry = (parent_ino, name)
            entries.pop(entry, None)
            entries[entry] = (ino, now)
        while len(nodes) > MAXIMUM_TOLD:
            nodes.popitem(last=False)
        while len(entries) > MAXIMUM_TOLD:
            entries.popitem(last=False)

    def changed_here(self, ino: int) -> None:
        """The kernel asked for a change of this inode, and asks again for what it needs to know."""
        self._nodes.pop(ino, None)

    def forget_entry(self, parent_ino: int, name: bytes) -> None:
        """The kernel asked for this name to go, or to stand for something else."""
        self._entries.pop((parent_ino, name), None)

    def stale(self, now: float) -> Iterator[Stale | None]:
        """What is not true any more, and forget it; None for each comparison, so that the caller can pause."""
        self._forget(now)
        certain = _OncePerDirectory(self._certain_since)  # what changes after a lease's end is looked at after that
        all_nodes = now >= self._attributes_due
        if all_nodes:
            self._attributes_due = now + ATTRIBUTES_SECONDS
        nodes = [
            (ino, node)
            for ino, (node, told_at, parent) in self._nodes.items()
            if all_nodes or told_at < certain[parent]
        ]
        self._owed = len(nodes) < len(self._nodes)
        entries = [(entry, ino) for entry, (ino, told_at) in self._entries.items() if told_at < certain[entry[0]]]
        for ino, node in nodes:
            if self._same(ino, node):
                yield None
            elif self._nodes.pop(ino, None) is not None:
                yield Stale(ino)
        for (parent_ino, name), ino in entries:
            if self._entry(parent_ino, name) == ino:
                yield None
            else:
                self._entries.pop((parent_ino, name), None)
                yield Stale(parent_ino, name)

    def owed_in(self, now: float) -> float | None:
        """In how many seconds what the last comparison left out is to be compared; None when it left nothing out."""
        return max(0.0, self._attributes_due - now) if self._owed else None

    def _forget(self, now: float) -> None:
        oldest = now - self._timeout_seconds
        while self._nodes and next(iter(self._nodes.values()))[1] < oldest:
            self._nodes.popitem(last=False)
        while self._entries and next(iter(self._entries.values()))[1] < oldest:
            self._entries.popitem(last=False)

    def _same(self, ino: int, told: Node) -> bool:
        try:
            current = self._names.get(ino)
        except CollectiveError:
            return False
        return current == told or _attributes(current) == _attributes(told)

    def _entry(self, parent_ino: int, name: bytes) -> int | None:
        try:
            return self._names.lookup(parent_ino, name).ino
        except CollectiveError:  # gone, or not readable any more: the kernel must ask again
            return None


class _OncePerDirectory(dict[int, float]):
    """Since when each directory is certain, asked once."""

    def __init__(self, certain_since: Callable[[int], float]) -> None:
        self._certain_since = certain_since

    def __missing__(self, ino: int) -> float:
        since = self[ino] = self._certain_since(ino) if ino else inf
        return since


def _attributes(node: Node) -> tuple[object, ...]:
    """What the kernel is told and programs go by; a content that was only sealed anew is the same file to them."""
    return (
        node.mode, node.link_count, node.uid, node.gid, node.rdev, node.size_bytes, node.mtime_ns, node.ctime_ns,
    )  # fmt: skip
