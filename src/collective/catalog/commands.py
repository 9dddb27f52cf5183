"""Changes by path, for people: put, remove, move, make a folder, copy; in every DataStore one may write to.

Each function plans one request (catalog/planning); what does not hold any more, as this home sees it, is a Conflict and
nothing is planned. `commit_plan` does a plan of an own DataStore at once.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence

from collective.catalog.ledger import Ledger
from collective.catalog.models import Inline, Node
from collective.catalog.planning import Plan, Planner, expected_content, shown_path
from collective.catalog.staging import commit_operations, committed_at
from collective.core.errors import Conflict, Misconfigured, NotFound, Refused
from collective.wire import control_pb2, feed_pb2, submit_pb2

__all__ = ["commit_plan", "plan_copy", "plan_directory", "plan_move", "plan_put", "plan_remove"]

Id = feed_pb2.OperationId


def _begin(ledger: Ledger, path: bytes, owner: str, id_: Id, actor: str, now: float) -> tuple[Planner, list[bytes]]:
    """`owner`: a member domain, or empty for a path of the joined tree."""
    store, rest = ledger.datastore_at(path, owner or None)
    return Planner(ledger, store, id_, actor, now), [name for name in rest.split(b"/") if name]


def plan_put(ledger: Ledger, id_: Id, request: control_pb2.PutFile, actor: str, *, now: float) -> Plan:
    """Create a file or replace its content. Raises: Conflict, NotFound, Refused, Unreachable (no numbers)."""
    with ledger.change():
        plan, names = _begin(ledger, request.path, request.owner, id_, actor, now)
        if not names:
            raise Conflict(f"{shown_path(request.path)} is a DataStore, not a file")
        parent = plan.directory(names[:-1], make=request.make_parents)
        standing = plan.child(parent, names[-1]) if not plan.staged else None
        _check_expected(request, standing)
        if standing is None:
            mode = stat.S_IFREG | stat.S_IMODE(request.mode or 0o644)
            plan.create(parent, names[-1], mode, mtime_nanoseconds=request.mtime_nanoseconds, content=request.content)
        else:
            if request.mode and stat.S_IMODE(request.mode) != stat.S_IMODE(standing.mode):
                plan.add(set_attributes=feed_pb2.SetAttributes(inode=standing.number, mode=request.mode))
            plan.add(
                set_content=feed_pb2.SetContent(
                    inode=standing.number, content=request.content, mtime_nanoseconds=request.mtime_nanoseconds
                ),
                expectations=[expected_content(ledger, standing)],
            )
        if request.content.version_id:
            plan.staged[-1].layout.CopyFrom(request.layout)
            plan.staged[-1].pages.extend(request.pages)
            plan.staged[-1].key_pages.extend(request.key_pages)
        return plan.plan()


def _check_expected(request: control_pb2.PutFile, standing: Node | None) -> None:
    shown = shown_path(request.path)
    if standing is not None and not stat.S_ISREG(standing.mode):
        raise Conflict(f"{shown} is there and is not a file", "choose another name, or remove it first")
    found = (standing.number, standing.version_id or b"") if standing is not None else (0, b"")
    # inline content has no version: then the inode alone is what was expected
    if found != (request.expected_inode, request.expected_version_id):
        raise Conflict(f"{shown} was changed by somebody else meanwhile", "look at it and put it again")


def plan_remove(ledger: Ledger, id_: Id, request: control_pb2.RemovePath, actor: str, *, now: float) -> Plan:
    """Unlink a file, or a folder with everything below when `recursive`. Raises: Conflict, NotFound, Refused."""
    with ledger.change():
        plan, names = _begin(ledger, request.path, request.owner, id_, actor, now)
        shown = shown_path(request.path)
        if not names:
            raise Refused(f"{shown} is a DataStore", "deleting DataStores is not built yet")
        parent = plan.directory(names[:-1], make=False)
        standing = plan.child(parent, names[-1])
        if standing is None:
            raise NotFound(f"there is no {shown}")
        plan.same_store(request.path, standing)
        for child_parent, name, node in _below(plan, parent, names[-1], standing):
            if node.is_directory and not request.recursive and plan.ledger.list(node.ino, b"", 1):
                raise Conflict(f"{shown} is not empty", "remove it with rm -r")
            plan.add(unlink=feed_pb2.Unlink(parent=child_parent, name=name, inode=node.number))
        return plan.plan()


def _below(plan: Planner, parent: int, name: bytes, node: Node) -> list[tuple[int, bytes, Node]]:
    """(parent, name, node) of a node and everything below, children first."""
    found = [(parent, name, node)]
    waiting = [node] if node.is_directory else []
    while waiting:
        folder = waiting.pop()
        for child_name, child in plan.children(folder):
            found.append((folder.number, child_name, child))
            if child.is_directory:
                waiting.append(child)
    return found[::-1]


def _both_ends(
    ledger: Ledger, request: control_pb2.MovePath | control_pb2.CopyPath, id_: Id, actor: str, now: float
) -> tuple[Planner, int, bytes, Node, list[bytes]]:
    """(planner, parent, name, source, names of the destination)."""
    plan, names = _begin(ledger, request.source, request.owner, id_, actor, now)
    target, rest = ledger.datastore_at(request.destination, request.owner or None)
    if target.feed_id != plan.store.feed_id:
        raise Refused(
            "source and destination lie in different DataStores", "fetch and put it there, then remove the source"
        )
    if not names:
        raise Refused(f"{shown_path(request.source)} is a DataStore and stays where it is")
    parent = plan.directory(names[:-1], make=False)
    source = plan.child(parent, names[-1])
    if source is None:
        raise NotFound(f"there is no {shown_path(request.source)}")
    plan.same_store(request.source, source)
    return plan, parent, names[-1], source, [name for name in rest.split(b"/") if name]


def plan_move(ledger: Ledger, id_: Id, request: control_pb2.MovePath, actor: str, *, now: float) -> Plan:
    """Rename within one DataStore; into an existing folder keeps the name. Raises: Conflict, NotFound, Refused."""
    with ledger.change():
        plan, parent, name, moved, to_names = _both_ends(ledger, request, id_, actor, now)
        to_parent, to_name, replaced = plan.destination(to_names, name)
        if replaced is not None and (replaced.is_directory or moved.is_directory):
            raise Conflict(f"{shown_path(request.destination)} is there already", "remove it first")
        plan.not_inside(moved, to_parent)
        rename = feed_pb2.Rename(
            inode=moved.number,
            from_parent=parent,
            from_name=name,
            to_parent=to_parent,
            to_name=to_name,
            replaced_inode=replaced.number if replaced else 0,
        )
        expectations = []
        if replaced is not None and stat.S_ISREG(replaced.mode):
            expectations.append(expected_content(ledger, replaced))
        plan.add(rename=rename, expectations=expectations)
        return plan.plan()


def plan_directory(ledger: Ledger, id_: Id, request: control_pb2.MakeDirectory, actor: str, *, now: float) -> Plan:
    """Make a folder; with `parents` those on the way too, and one that is there is fine. Raises: Conflict, NotFound."""
    with ledger.change():
        plan, names = _begin(ledger, request.path, request.owner, id_, actor, now)
        if not request.parents:
            parent = plan.directory(names[:-1], make=False)
            if not names or plan.child(parent, names[-1]) is not None:
                raise Conflict(f"{shown_path(request.path)} is there already")
        plan.directory(names, make=True)
        return plan.plan()


def plan_copy(ledger: Ledger, id_: Id, request: control_pb2.CopyPath, actor: str, *, now: float) -> Plan:
    """Copy within one DataStore: names and attributes are new, contents are shared; no byte is moved.

    Raises: Conflict, NotFound, Refused, Unreachable (no numbers).
    """
    with ledger.change():
        plan, _, name, source, to_names = _both_ends(ledger, request, id_, actor, now)
        to_parent, to_name, standing = plan.destination(to_names, name)
        if source.is_directory and not request.recursive:
            raise Refused(f"{shown_path(request.source)} is a folder", "copy it with cp -r")
        plan.not_inside(source, to_parent)
        if standing is None:
            _copy_new(plan, source, to_parent, to_name)
        elif stat.S_ISREG(standing.mode) and stat.S_ISREG(source.mode) and standing.number != source.number:
            change = feed_pb2.SetContent(
                inode=standing.number, content=content_of(ledger, source), mtime_nanoseconds=source.mtime_ns
            )
            plan.add(set_content=change, expectations=[expected_content(ledger, standing)])
        else:
            raise Conflict(f"{shown_path(request.destination)} is there already", "remove it first")
        return plan.plan()


def _copy_new(plan: Planner, source: Node, parent: int, name: bytes) -> None:
    """A node and everything below, under a free name."""
    waiting = [(source, parent, name)]
    while waiting:
        node, to_parent, to_name = waiting.pop()
        more: dict[str, object] = {"uid": node.uid, "gid": node.gid, "mtime_nanoseconds": node.mtime_ns}
        if stat.S_ISREG(node.mode):
            more["content"] = content_of(plan.ledger, node)
        if node.symlink_target is not None:
            more["symlink_target"] = node.symlink_target
        number = plan.create(to_parent, to_name, node.mode, **more)
        for xattr, value in plan.ledger.xattrs(node.ino).items():
            plan.add(set_xattr=feed_pb2.SetXattr(inode=number, name=xattr, value=value))
        if node.is_directory:
            waiting += [(child, number, child_name) for child_name, child in plan.children(node)]


def content_of(ledger: Ledger, node: Node) -> feed_pb2.Content:
    """A file's content, for another file to have too."""
    content = ledger.content(node)
    if isinstance(content, Inline):
        return feed_pb2.Content(size_bytes=len(content.data), inline=content.data)
    return feed_pb2.Content(
        size_bytes=content.size_bytes,
        version_id=content.version_id,
        key_pages=content.key_pages,
        key_name=content.key_name,
    )


def commit_plan(ledger: Ledger, plan: Plan, *, now: float, members: Sequence[str] = ()) -> feed_pb2.Position:
    """Do a plan of an own DataStore; the position of its entry. `members`: who shall hold a version it brings.

    Raises: Conflict (somebody was faster), Refused.
    """
    if not plan.staged:
        return ledger.heads()[plan.store.feed_id]
    with ledger.change():
        outcomes, position = commit_operations(
            ledger,
            plan.store.feed_id,
            plan.staged,
            actor_domain=ledger.own_domain,
            now=now,
            exact=True,
            choose_members=lambda store, version, size, writer: list(members) or [writer],
        )
        for outcome in outcomes:
            if outcome.outcome == submit_pb2.MISSED:
                raise Conflict(outcome.reason, "look at it and try again")
            if outcome.outcome != submit_pb2.APPLIED:
                raise Refused(outcome.reason)
        if position is None:
            raise Misconfigured("a change was committed and stands in no entry")
        return position


def done_before(ledger: Ledger, id_: Id) -> feed_pb2.Position | None:
    """The entry that carries a request already."""
    return committed_at(ledger, Id(writer=ledger.own_domain, random=id_.random))
