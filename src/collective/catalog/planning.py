"""From what a person asked, by path, to the operations that do it; checked against the tree as this home shows it.

A plan is complete: whoever has it commits it (the own DataStore) or stages it for the owner, and nothing else is
needed. Its last operation carries the id of the request, the others ids made from it: the same request planned again
is absorbed once. Each operation says what it expected to find.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field

from blake3 import blake3

from collective.catalog.ledger import Ledger
from collective.catalog.models import DataStore, Inline, Node
from collective.catalog.namespace import NUMBER_BITS
from collective.catalog.numbers import take_number
from collective.catalog.tree import MAX_DEPTH, ROOT_NUMBER
from collective.core.address import validate_name
from collective.core.errors import Conflict, NotFound
from collective.wire import feed_pb2, submit_pb2

__all__ = ["Plan", "Planner", "expected_content", "shown_path"]

DIRECTORY_MODE = stat.S_IFDIR | 0o755


@dataclass(frozen=True)
class Plan:
    """Changes of one DataStore, in order; none when all that was asked is there already."""

    store: DataStore
    staged: list[submit_pb2.StagedOperation] = field(default_factory=list)


def expected_content(ledger: Ledger, node: Node) -> feed_pb2.Expectation:
    """That a file has the content it has now."""
    expected = feed_pb2.ExpectedContent(inode=node.number, version_id=node.version_id or b"")
    if node.version_id is None:
        content = ledger.content(node)
        assert isinstance(content, Inline)
        expected.inline_hash = blake3(content.data).digest()
    return feed_pb2.Expectation(content=expected)


def shown_path(path: bytes) -> str:
    return path.decode(errors="replace")


class Planner:
    """Gathers the operations of one request. Used inside a change of the ledger: it takes inode numbers."""

    def __init__(self, ledger: Ledger, store: DataStore, id_: feed_pb2.OperationId, actor: str, now: float) -> None:
        self.ledger = ledger
        self.store = store
        self._random = id_.random
        self._actor = actor
        self._time_ns = int(now * 1e9)
        self.staged: list[submit_pb2.StagedOperation] = []

    def plan(self) -> Plan:
        """What was gathered; the last operation, the one that was asked for, carries the request's id."""
        if self.staged:
            self.staged[-1].operation.id.random = self._random
        return Plan(self.store, self.staged)

    def add(self, **change: object) -> submit_pb2.StagedOperation:
        """One more operation."""
        place = len(self.staged).to_bytes(8, "big")
        id_ = feed_pb2.OperationId(writer=self.ledger.own_domain, random=blake3(self._random + place).digest(16))
        operation = feed_pb2.TreeOperation(id=id_, actor=self._actor, time_nanoseconds=self._time_ns, **change)  # type: ignore[arg-type]
        self.staged.append(submit_pb2.StagedOperation(operation=operation))
        return self.staged[-1]

    def number(self) -> int:
        """An inode number that nobody else has. Raises: Unreachable when only the owner has more."""
        return take_number(self.ledger, self.store.feed_id)

    def ino(self, number: int) -> int:
        return self.store.inode_prefix << NUMBER_BITS | number

    def child(self, parent: int, name: bytes) -> Node | None:
        """What stands under a name now."""
        try:
            return self.ledger.lookup(self.ino(parent), name)
        except NotFound:
            return None

    def create(self, parent: int, name: bytes, mode: int, **more: object) -> int:
        """A new inode where nothing stands; its number."""
        validate_name(name)
        number = self.number()
        nothing = feed_pb2.Expectation(link=feed_pb2.ExpectedLink(parent=parent, name=name))
        create = feed_pb2.Create(parent=parent, name=name, inode=number, mode=mode, **more)  # type: ignore[arg-type]
        self.add(create=create, expectations=[nothing])
        return number

    def directory(self, names: list[bytes], *, make: bool) -> int:
        """The number of the directory at a path inside the DataStore, made on the way when asked for.

        Raises: Conflict (a file, or another DataStore, stands on the way), NotFound.
        """
        number = ROOT_NUMBER
        fresh = False
        for depth, name in enumerate(names):
            validate_name(name)
            standing = None if fresh else self.child(number, name)
            if standing is not None:
                self.same_store(name, standing)
                if not standing.is_directory:
                    raise Conflict(f"{self.shown(names[: depth + 1])} is not a folder")
                number = standing.number
                continue
            if not make:
                raise NotFound(f"there is no folder {self.shown(names[: depth + 1])}")
            number, fresh = self.create(number, name, DIRECTORY_MODE), True
        return number

    def same_store(self, name: bytes, node: Node) -> None:
        """Raises: Conflict when a name leads into another DataStore."""
        if node.store_id != self.store.feed_id:
            raise Conflict(f"{shown_path(name)} leads to another DataStore")

    def destination(self, names: list[bytes], old_name: bytes) -> tuple[int, bytes, Node | None]:
        """(parent, name, what stands there); an existing folder takes the thing in under its old name."""
        if not names:
            return ROOT_NUMBER, old_name, self.child(ROOT_NUMBER, old_name)
        validate_name(names[-1])
        parent = self.directory(names[:-1], make=False)
        standing = self.child(parent, names[-1])
        if standing is not None:
            self.same_store(names[-1], standing)
            if standing.is_directory:
                return standing.number, old_name, self.child(standing.number, old_name)
        return parent, names[-1], standing

    def not_inside(self, moved: Node, directory: int) -> None:
        """Raises: Conflict when the directory is the moved one or lies below it."""
        ino: int | None = self.ino(directory)
        for _ in range(MAX_DEPTH):
            if ino is None or not moved.is_directory:
                return
            if ino == moved.ino:
                raise Conflict("a folder cannot go into itself")
            place = self.ledger.place_of(ino)
            ino = place[0] if place is not None else None

    def children(self, directory: Node) -> list[tuple[bytes, Node]]:
        """All of a directory. Raises: Conflict when something in it leads to another DataStore."""
        found: list[tuple[bytes, Node]] = []
        after = b""
        while page := self.ledger.list(directory.ino, after, 1000):
            after = page[-1][0]
            for name, child in page:
                self.same_store(name, child)
            found += page
        return found

    def shown(self, names: list[bytes]) -> str:
        return shown_path(b"/".join([self.store.path, *names]))
