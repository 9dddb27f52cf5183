"""What the kernel was told lately, and what of that is not true any more.

The kernel may use a name or attribute for `names_timeout_seconds` without asking, so only answers younger than that
can be stale: this remembers exactly those, and after a change compares each with the names as they are now. Pure:
`now` comes in, `stale` says what to take back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from collective.core.errors import CollectiveError
from collective.mount.names import Names, Node

__all__ = ["Stale", "ToldNames"]

MAXIMUM_TOLD = 50_000  # beyond it the oldest are left to their timeout


@dataclass(frozen=True, slots=True)
class Stale:
    """Take back what the kernel knows of inode `ino`, or, with a `name`, of that entry of the directory `ino`."""

    ino: int
    name: bytes | None = None


class ToldNames:
    """The answers given within the last `timeout_seconds`."""

    def __init__(self, names: Names, timeout_seconds: float) -> None:
        self._names = names
        self._timeout_seconds = timeout_seconds
        self._nodes: OrderedDict[int, tuple[Node, float]] = OrderedDict()
        self._entries: OrderedDict[tuple[int, bytes], tuple[int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._nodes) + len(self._entries)

    def tell(self, node: Node, now: float, parent_ino: int = 0, name: bytes = b"") -> None:
        """The kernel hears of `node`, as the entry `name` of `parent_ino` when given."""
        self._nodes[node.ino] = (node, now)
        self._nodes.move_to_end(node.ino)
        if name:
            self._entries[parent_ino, name] = (node.ino, now)
            self._entries.move_to_end((parent_ino, name))
        for told in (self._nodes, self._entries):
            if len(told) > MAXIMUM_TOLD:
                told.popitem(last=False)

    def stale(self, now: float) -> Iterator[Stale | None]:
        """What is not true any more, and forget it; None for each that still is, so that the caller can pause."""
        self._forget(now)
        for ino, (node, _) in list(self._nodes.items()):
            if self._current(ino) == node:
                yield None
            else:
                self._nodes.pop(ino, None)
                yield Stale(ino)
        for (parent_ino, name), (ino, _) in list(self._entries.items()):
            if self._entry(parent_ino, name) == ino:
                yield None
            else:
                self._entries.pop((parent_ino, name), None)
                yield Stale(parent_ino, name)

    def _forget(self, now: float) -> None:
        oldest = now - self._timeout_seconds
        while self._nodes and next(iter(self._nodes.values()))[1] < oldest:
            self._nodes.popitem(last=False)
        while self._entries and next(iter(self._entries.values()))[1] < oldest:
            self._entries.popitem(last=False)

    def _current(self, ino: int) -> Node | None:
        try:
            return self._names.get(ino)
        except CollectiveError:
            return None

    def _entry(self, parent_ino: int, name: bytes) -> int | None:
        try:
            return self._names.lookup(parent_ino, name).ino
        except CollectiveError:  # gone, or not readable any more: the kernel must ask again
            return None
