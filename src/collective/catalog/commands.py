"""Changes by path in one's own DataStores: from what a person asked to tree operations, checked against what stands.

Each carries the id of its request: asked again, it is the same entry. What the writer expected to find is checked
here, where the owner orders everything; what does not hold any more is a Conflict, never an overwrite.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field

from collective.catalog.datastores import operation_id
from collective.catalog.ledger import Ledger
from collective.catalog.models import DataStore, Node
from collective.catalog.namespace import NUMBER_BITS
from collective.catalog.tree import ROOT_NUMBER
from collective.core.address import validate_name
from collective.core.errors import Conflict, NotFound, Refused
from collective.wire import control_pb2, feed_pb2

__all__ = ["make_directory", "move_path", "put_file", "remove_path"]

MAX_REMOVED_PER_ENTRY = 1000
DIRECTORY_MODE = stat.S_IFDIR | 0o755


@dataclass
class _Plan:
    """Operations being gathered for one DataStore; `next_number` is the next inode number to give out."""

    ledger: Ledger
    store: DataStore
    actor: str
    next_number: int
    operations: list[feed_pb2.TreeOperation] = field(default_factory=list)
    made: dict[tuple[int, bytes], int] = field(default_factory=dict)

    def add(self, **change: object) -> None:
        """One operation with an id of its own."""
        operation = feed_pb2.TreeOperation(id=operation_id(self.ledger), actor=self.actor, **change)  # type: ignore[arg-type]
        self.operations.append(operation)

    def number(self) -> int:
        self.next_number += 1
        return self.next_number - 1

    def child(self, parent: int, name: bytes) -> Node | None:
        """What stands under a name now."""
        try:
            return self.ledger.lookup(self.store.inode_prefix << NUMBER_BITS | parent, name)
        except NotFound:
            return None

    def directory(self, names: list[bytes], *, make: bool) -> int:
        """The inode number of the directory at a path inside the store, made on the way when asked for."""
        number = ROOT_NUMBER
        fresh = False
        for depth, name in enumerate(names):
            validate_name(name)
            standing = None if fresh else self.child(number, name)
            if standing is not None and standing.store_id != self.store.feed_id:
                raise Conflict(f"{name.decode(errors='replace')} leads to another DataStore")
            if standing is not None:
                if not standing.is_directory:
                    raise Conflict(f"{_shown(self.store, names[: depth + 1])} is not a folder")
                number = standing.number
                continue
            if not make:
                raise NotFound(f"there is no folder {_shown(self.store, names[: depth + 1])}")
            made = self.number()
            self.add(create=feed_pb2.Create(parent=number, name=name, inode=made, mode=DIRECTORY_MODE))
            number, fresh = made, True
        return number


def _shown(store: DataStore, names: list[bytes]) -> str:
    return b"/".join([store.path, *names]).decode(errors="replace")


def _plan(ledger: Ledger, path: bytes, owner: str, actor: str) -> tuple[_Plan, list[bytes]]:
    store, rest = ledger.datastore_at(path, owner or ledger.own_domain)
    row = ledger._one("SELECT next_number FROM store_numbers WHERE store = ?", store.store_number)
    next_number = row[0] if row else ROOT_NUMBER + 1
    assert isinstance(next_number, int)
    return _Plan(ledger, store, actor, next_number), [name for name in rest.split(b"/") if name]


def _done_before(ledger: Ledger, id_: feed_pb2.OperationId) -> feed_pb2.Position | None:
    """The entry that carries this id already."""
    row = ledger._one(
        "SELECT f.epoch_number, f.epoch_id, o.seq, coalesce(e.hash, x'') FROM operations o"
        " JOIN feeds f ON f.id = o.feed LEFT JOIN entries e ON e.feed = o.feed AND e.seq = o.seq"
        " WHERE o.writer = ? AND o.random = ?",
        id_.writer, id_.random,
    )  # fmt: skip
    if row is None:
        return None
    return feed_pb2.Position(epoch_number=row[0], epoch_id=row[1], seq=row[2], hash=row[3])  # type: ignore[arg-type]


def _commit(plan: _Plan, id_: feed_pb2.OperationId, layouts: list[feed_pb2.Layout] | None = None) -> feed_pb2.Position:
    """Append the plan; its last operation, the one that was asked for, carries the request's id."""
    plan.operations[-1].id.CopyFrom(id_)
    return plan.ledger.append_store(plan.store.feed_id, layouts=layouts or (), operations=plan.operations)


def put_file(ledger: Ledger, id_: feed_pb2.OperationId, request: control_pb2.PutFile, actor: str) -> feed_pb2.Position:
    """Create a file or replace its content. Raises: Conflict, NotFound, Refused."""
    with ledger.change():
        if (before := _done_before(ledger, id_)) is not None:
            return before
        plan, names = _plan(ledger, request.path, request.owner, actor)
        if not names:
            raise Conflict(f"{request.path.decode(errors='replace')} is a DataStore, not a file")
        validate_name(names[-1])
        parent = plan.directory(names[:-1], make=request.make_parents)
        standing = plan.child(parent, names[-1]) if not plan.operations else None
        _check_expected(request, standing)
        layouts = [request.layout] if request.content.version_id else []
        if standing is None:
            plan.add(
                create=feed_pb2.Create(
                    parent=parent,
                    name=names[-1],
                    inode=plan.number(),
                    mode=stat.S_IFREG | stat.S_IMODE(request.mode or 0o644),
                    mtime_nanoseconds=request.mtime_nanoseconds,
                    content=request.content,
                ),
                expectations=[feed_pb2.Expectation(link=feed_pb2.ExpectedLink(parent=parent, name=names[-1]))],
            )
        else:
            content = feed_pb2.ExpectedContent(inode=standing.number, version_id=standing.version_id or b"")
            if request.mode and stat.S_IMODE(request.mode) != stat.S_IMODE(standing.mode):
                plan.add(set_attributes=feed_pb2.SetAttributes(inode=standing.number, mode=request.mode))
            plan.add(
                set_content=feed_pb2.SetContent(
                    inode=standing.number, content=request.content, mtime_nanoseconds=request.mtime_nanoseconds
                ),
                expectations=[feed_pb2.Expectation(content=content)],
            )
        return _commit(plan, id_, layouts)


def _check_expected(request: control_pb2.PutFile, standing: Node | None) -> None:
    shown = request.path.decode(errors="replace")
    if standing is not None and not stat.S_ISREG(standing.mode):
        raise Conflict(f"{shown} is there and is not a file", "choose another name, or remove it first")
    found = (standing.number, standing.version_id or b"") if standing is not None else (0, b"")
    # inline content has no version: then the inode alone is what was expected
    if found != (request.expected_inode, request.expected_version_id):
        raise Conflict(f"{shown} was changed by somebody else meanwhile", "look at it and put it again")


def remove_path(
    ledger: Ledger, id_: feed_pb2.OperationId, request: control_pb2.RemovePath, actor: str
) -> feed_pb2.Position:
    """Unlink a file, or a folder with everything below when `recursive`. Raises: Conflict, NotFound, Refused."""
    with ledger.change():
        if (before := _done_before(ledger, id_)) is not None:
            return before
        plan, names = _plan(ledger, request.path, request.owner, actor)
        if not names:
            raise Refused(
                f"{request.path.decode(errors='replace')} is a DataStore", "deleting DataStores is not built yet"
            )
        parent = plan.directory(names[:-1], make=False)
        standing = plan.child(parent, names[-1])
        if standing is None:
            raise NotFound(f"there is no {request.path.decode(errors='replace')}")
        if standing.store_id != plan.store.feed_id:
            raise Conflict(f"{request.path.decode(errors='replace')} leads to another DataStore")
        for child_parent, name, number, is_directory in _below(plan, parent, names[-1], standing):
            if (
                is_directory
                and not request.recursive
                and plan.ledger.list(plan.store.inode_prefix << NUMBER_BITS | number, b"", 1)
            ):
                raise Conflict(f"{request.path.decode(errors='replace')} is not empty", "remove it with rm -r")
            plan.add(unlink=feed_pb2.Unlink(parent=child_parent, name=name, inode=number))
        # one transaction, several entries; the last one carries the request's id
        while len(plan.operations) > MAX_REMOVED_PER_ENTRY:
            ledger.append_store(plan.store.feed_id, operations=plan.operations[:MAX_REMOVED_PER_ENTRY])
            del plan.operations[:MAX_REMOVED_PER_ENTRY]
        return _commit(plan, id_)


def _below(plan: _Plan, parent: int, name: bytes, node: Node) -> list[tuple[int, bytes, int, bool]]:
    """(parent, name, inode, is directory) of a node and everything below, children first."""
    found = [(parent, name, node.number, node.is_directory)]
    waiting = [node] if node.is_directory else []
    while waiting:
        folder = waiting.pop()
        after = b""
        while page := plan.ledger.list(folder.ino, after, 1000):
            after = page[-1][0]
            for child_name, child in page:
                if child.store_id != plan.store.feed_id:
                    raise Conflict(f"{child_name.decode(errors='replace')} below it leads to another DataStore")
                found.append((folder.number, child_name, child.number, child.is_directory))
                if child.is_directory:
                    waiting.append(child)
    return found[::-1]


def move_path(
    ledger: Ledger, id_: feed_pb2.OperationId, request: control_pb2.MovePath, actor: str
) -> feed_pb2.Position:
    """Rename within one DataStore; into an existing folder keeps the name. Raises: Conflict, NotFound, Refused."""
    with ledger.change():
        if (before := _done_before(ledger, id_)) is not None:
            return before
        plan, names = _plan(ledger, request.source, request.owner, actor)
        target, target_rest = ledger.datastore_at(request.destination, request.owner or ledger.own_domain)
        if target.feed_id != plan.store.feed_id:
            raise Refused(
                "source and destination lie in different DataStores", "fetch and put it there, then remove the source"
            )
        if not names:
            raise Refused(f"{request.source.decode(errors='replace')} is a DataStore and stays where it is")
        from_parent = plan.directory(names[:-1], make=False)
        moved = plan.child(from_parent, names[-1])
        if moved is None:
            raise NotFound(f"there is no {request.source.decode(errors='replace')}")
        to_names = [name for name in target_rest.split(b"/") if name]
        to_parent, to_name, replaced = _destination(plan, to_names, names[-1])
        if replaced is not None and (replaced.is_directory or moved.is_directory):
            raise Conflict(f"{request.destination.decode(errors='replace')} is there already", "remove it first")
        _check_not_inside(plan, moved, to_parent)
        plan.add(
            rename=feed_pb2.Rename(
                inode=moved.number,
                from_parent=from_parent,
                from_name=names[-1],
                to_parent=to_parent,
                to_name=to_name,
                replaced_inode=replaced.number if replaced else 0,
            )
        )
        return _commit(plan, id_)


def _destination(plan: _Plan, names: list[bytes], old_name: bytes) -> tuple[int, bytes, Node | None]:
    """(parent, name, what stands there); an existing folder takes the thing in under its old name."""
    if not names:
        return ROOT_NUMBER, old_name, plan.child(ROOT_NUMBER, old_name)
    validate_name(names[-1])
    parent = plan.directory(names[:-1], make=False)
    standing = plan.child(parent, names[-1])
    if standing is not None and standing.store_id != plan.store.feed_id:
        raise Conflict(f"{names[-1].decode(errors='replace')} leads to another DataStore")
    if standing is not None and standing.is_directory:
        return standing.number, old_name, plan.child(standing.number, old_name)
    return parent, names[-1], standing


def _check_not_inside(plan: _Plan, moved: Node, to_parent: int) -> None:
    number = to_parent
    while moved.is_directory and number != ROOT_NUMBER:
        if number == moved.number:
            raise Conflict("a folder cannot be moved into itself")
        row = plan.ledger._one(
            "SELECT parent FROM links WHERE store = ? AND inode = ?", plan.store.store_number, number
        )
        if row is None or not isinstance(row[0], int):
            return
        number = row[0]


def make_directory(
    ledger: Ledger, id_: feed_pb2.OperationId, request: control_pb2.MakeDirectory, actor: str
) -> feed_pb2.Position:
    """Make a folder; with `parents` those on the way too, and one that is there is fine. Raises: Conflict, NotFound."""
    with ledger.change():
        if (before := _done_before(ledger, id_)) is not None:
            return before
        plan, names = _plan(ledger, request.path, request.owner, actor)
        if names and not request.parents:
            parent = plan.directory(names[:-1], make=False)
            if plan.child(parent, names[-1]) is not None:
                raise Conflict(f"{request.path.decode(errors='replace')} is there already")
        elif not names and not request.parents:
            raise Conflict(f"{request.path.decode(errors='replace')} is there already")
        plan.directory(names, make=True)
        if not plan.operations:
            return ledger.heads()[plan.store.feed_id]
        return _commit(plan, id_)
