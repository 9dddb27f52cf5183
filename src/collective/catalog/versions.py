"""What a file was: every content it ever had, and bringing one back.

A path's versions are those of the file that stands there, and of the files that stood there until they were removed or
replaced by a rename: programs that save by writing beside and renaming over make a new file each time. A version's name
is the place of the change that made it in the DataStore's feed.
"""

from __future__ import annotations

import stat

from collective.catalog.facts import as_bytes, as_int
from collective.catalog.ledger import Ledger
from collective.catalog.models import DataStore, Node
from collective.catalog.planning import Plan, Planner, expected_content, shown_path
from collective.catalog.tree import ROOT_NUMBER
from collective.core.errors import Conflict, NotFound
from collective.wire import control_pb2, feed_pb2

__all__ = ["list_versions", "plan_restore"]


def list_versions(ledger: Ledger, path: bytes, owner: str) -> list[control_pb2.FileVersion]:
    """Newest first, the current one at the top. Raises: NotFound when nothing ever stood there."""
    store, names = _split(ledger, path, owner)
    node = ledger.find(path, owner or None)
    found = _of_current(ledger, store, node) if node is not None and stat.S_ISREG(node.mode) else []
    for inode in _inodes_at(ledger, store, names, node):
        rows = ledger._all(
            "SELECT change, size_bytes, mtime_ns, replaced_ns, actor, removed FROM history"
            " WHERE store = ? AND inode = ?",
            store.store_number, inode,
        )  # fmt: skip
        found += [
            control_pb2.FileVersion(
                seq=as_int(change), size_bytes=as_int(size), mtime_nanoseconds=as_int(mtime),
                replaced_nanoseconds=as_int(replaced), actor=str(actor), removed=bool(removed),
            )
            for change, size, mtime, replaced, actor, removed in rows
        ]  # fmt: skip
    if not found:
        raise NotFound(f"no file ever stood at {shown_path(path)}")
    return sorted(found, key=lambda version: (version.current, version.seq), reverse=True)


def _split(ledger: Ledger, path: bytes, owner: str) -> tuple[DataStore, list[bytes]]:
    store, rest = ledger.datastore_at(path, owner or None)
    return store, [name for name in rest.split(b"/") if name]


def _of_current(ledger: Ledger, store: DataStore, node: Node) -> list[control_pb2.FileVersion]:
    row = ledger._one(
        "SELECT content_change, content_actor, version_id, mtime_ns FROM inodes WHERE store = ? AND number = ?",
        store.store_number, node.number,
    )  # fmt: skip
    current = control_pb2.FileVersion(size_bytes=node.size_bytes, mtime_nanoseconds=node.mtime_ns, current=True)
    if row is not None and (row[2], row[3]) == (node.version_id, node.mtime_ns):
        current.seq, current.actor = as_int(row[0]), str(row[1])
    return [current]  # without a name while it is only staged here


def _inodes_at(ledger: Ledger, store: DataStore, names: list[bytes], node: Node | None) -> list[int]:
    """The file that stands at a path and those that stood there to their end, in folders that are gone too."""
    found = {ROOT_NUMBER}
    for name in names:
        inside: set[int] = set()
        for folder in found:
            for query in (
                "SELECT inode FROM links WHERE store = ? AND parent = ? AND name = ?",
                "SELECT inode FROM gone WHERE store = ? AND parent = ? AND name = ?",
            ):
                inside |= {as_int(inode) for (inode,) in ledger._all(query, store.store_number, folder, name)}
        found = inside
    return sorted(found | ({node.number} if node is not None else set()))


def plan_restore(
    ledger: Ledger, id_: feed_pb2.OperationId, request: control_pb2.RestoreVersion, actor: str, *, now: float
) -> Plan:
    """Bring a version back: over what stands there (which becomes a version itself), or to another path.

    `seq` 0: the newest that is not current. Folders that are gone are made. Raises: NotFound, Conflict, Unreachable.
    """
    with ledger.change():
        store, names = _split(ledger, request.path, request.owner)
        content, mtime_ns = _content(ledger, store, names, request)
        if request.destination:
            to_store, names = _split(ledger, request.destination, request.owner)
            if to_store.feed_id != store.feed_id:
                raise Conflict("a version is restored within its DataStore", "restore it there and copy it")
        if not names:
            raise Conflict(f"{shown_path(request.destination or request.path)} is a DataStore, not a file")
        plan = Planner(ledger, store, id_, actor, now)
        parent = plan.directory(names[:-1], make=True)
        standing = plan.child(parent, names[-1]) if not plan.staged else None
        if standing is None:
            plan.create(parent, names[-1], stat.S_IFREG | 0o644, mtime_nanoseconds=mtime_ns, content=content)
            return plan.plan()
        plan.same_store(names[-1], standing)
        if not stat.S_ISREG(standing.mode):
            raise Conflict(f"{plan.shown(names)} is there and is not a file", "restore it under another name")
        change = feed_pb2.SetContent(inode=standing.number, content=content, mtime_nanoseconds=mtime_ns)
        plan.add(set_content=change, expectations=[expected_content(ledger, standing)])
        return plan.plan()


def _content(
    ledger: Ledger, store: DataStore, names: list[bytes], request: control_pb2.RestoreVersion
) -> tuple[feed_pb2.Content, int]:
    """(content, mtime) of the version asked for."""
    known = [one for one in list_versions(ledger, request.path, request.owner) if not one.current]
    wanted = [one for one in known if one.seq == request.seq] if request.seq else known[:1]
    if not wanted:
        raise NotFound(
            f"{shown_path(request.path)} has no such earlier version",
            f"see them: collective versions {shown_path(request.path)}",
        )
    inodes = _inodes_at(ledger, store, names, ledger.find(request.path, request.owner or None))
    marks = ", ".join("?" * len(inodes))
    row = ledger._one(
        f"SELECT content, mtime_ns FROM history WHERE store = ? AND change = ? AND inode IN ({marks})",
        store.store_number, wanted[0].seq, *inodes,
    )  # fmt: skip
    if row is None:
        raise NotFound(f"{shown_path(request.path)} has no such earlier version")
    content = feed_pb2.Content.FromString(as_bytes(row[0])) if row[0] is not None else feed_pb2.Content()
    return content, as_int(row[1])
