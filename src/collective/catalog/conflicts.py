"""Never overwritten: where a change goes that does not fit the tree any more (decision 0007).

    name taken, parent gone, target taken   the same change under a conflict name, at the nearest living folder
    content changed meanwhile               the new content becomes a file beside it
    file gone                               recreated where it stood, under a conflict name
    file or folder that nobody knows        (an older database) the same at the top, a file as `nameless 17`
    stale removal or move                   refused, with the reason

A conflict name is `name (conflict bob 2026-11-22 1f3a).ext`: the writer's member, the day, the start of the
operation's id. Later changes of the same writer that still name what it wanted find it through detours.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass

from collective.catalog.facts import as_bytes, as_int
from collective.catalog.ledger import Ledger
from collective.catalog.naming import conflict_name
from collective.catalog.numbers import take_number
from collective.catalog.obstacles import Obstacle, Trouble, View, token_of
from collective.catalog.tree import ROOT_NUMBER
from collective.wire import feed_pb2

__all__ = ["Kept", "Repair"]

MAX_WALK = 1024
DETOUR_SECONDS = 365 * 86_400


@dataclass(frozen=True)
class Kept:
    """A change that found another place than its writer wanted: for the report, paths within the DataStore."""

    wanted: bytes
    parent: int
    name: bytes
    reason: str


class Repair:
    """Finds another place for the changes of one writer that meet an obstacle. One transaction long."""

    def __init__(self, ledger: Ledger, view: View, writer: str, now: float) -> None:
        self._ledger = ledger
        self._view = view
        self._writer = writer
        self._now = now

    # ------------------------------------------------------------ detours

    def follow_detour(self, operation: feed_pb2.TreeOperation) -> bool:
        """Point an operation at where an earlier one of its writer was kept; whether it changed."""
        match operation.WhichOneof("change"):
            case "unlink":
                change = operation.unlink
                to = self._name_detour(change.parent, change.name, change.inode)
                if to is not None:
                    change.parent, change.name = to
            case "rename":
                rename = operation.rename
                to = self._name_detour(rename.from_parent, rename.from_name, rename.inode)
                if to is not None:
                    rename.from_parent, rename.from_name = to
            case "set_content":
                expected = [one.content for one in operation.expectations if one.HasField("content")]
                named = (expected[0].version_id or expected[0].inline_hash) if expected else b""
                number = self._inode_detour(operation.set_content.inode, named)
                if number is None:
                    return False
                self._add_inode_detour(
                    operation.set_content.inode, token_of(operation.set_content.content), number, forget=named
                )
                operation.set_content.inode = number
                for one in expected:
                    one.inode = number
                return True
            case "set_attributes" | "set_xattr" | "link" as kind:
                change_of_inode = getattr(operation, kind)
                number = self._inode_detour(change_of_inode.inode, b"")
                if number is None:
                    return False
                change_of_inode.inode = number
                return True
            case _:
                return False
        if to is None:
            return False
        del operation.expectations[:]  # they named the old place; the inode still has to stand at the new one
        return True

    def _name_detour(self, parent: int, name: bytes, inode: int) -> tuple[int, bytes] | None:
        row = self._ledger._one(
            "SELECT to_parent, to_name FROM name_detours WHERE feed_id = ? AND writer = ? AND parent = ? AND name = ?"
            " AND inode = ?",
            self._view.store.feed_id, self._writer, parent, name, inode,
        )  # fmt: skip
        if row is None:
            return None
        place = as_int(row[0]), as_bytes(row[1])
        standing = self._view.child(*place)
        return place if standing is not None and standing.number == inode and place != (parent, name) else None

    def _inode_detour(self, inode: int, content: bytes) -> int | None:
        """The conflict file that stands for an inode: of this content, or in place of an inode that is gone."""
        rows = self._ledger._all(
            "SELECT to_inode FROM inode_detours WHERE feed_id = ? AND writer = ? AND inode = ? AND content IN (?, ?)"
            " ORDER BY length(content) DESC",
            self._view.store.feed_id, self._writer, inode, content, b"",
        )  # fmt: skip
        for (number,) in rows:
            if self._view.node(as_int(number)) is not None:
                return as_int(number)
        return None

    def _add_inode_detour(self, inode: int, content: bytes, to: int, *, forget: bytes = b"") -> None:
        with self._ledger.change() as connection:
            key = (self._view.store.feed_id, self._writer, inode)
            if forget:
                connection.execute(
                    "DELETE FROM inode_detours WHERE feed_id = ? AND writer = ? AND inode = ? AND content = ?",
                    (*key, forget),
                )
            connection.execute(
                "INSERT OR REPLACE INTO inode_detours VALUES (?, ?, ?, ?, ?, ?)",
                (*key, content, to, int(self._now * 1000)),
            )

    def _add_name_detour(self, parent: int, name: bytes, inode: int, to: tuple[int, bytes]) -> None:
        with self._ledger.change() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO name_detours VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (self._view.store.feed_id, self._writer, parent, name, inode, *to, int(self._now * 1000)),
            )

    def forget_old_detours(self) -> None:
        """A writer that comes back after so long finds one more conflict file, and nothing is missing."""
        before_ms = int((self._now - DETOUR_SECONDS) * 1000)
        with self._ledger.change() as connection:
            for table in ("name_detours", "inode_detours"):
                connection.execute(f"DELETE FROM {table} WHERE at_ms < ?", (before_ms,))

    # ------------------------------------------------------------ repairs

    def repair(self, operation: feed_pb2.TreeOperation, obstacle: Obstacle) -> Kept | None:
        """Give an operation another place, in place; None when it must be refused."""
        kind = operation.WhichOneof("change")
        kept = None
        if obstacle.trouble in (Trouble.NAME_TAKEN, Trouble.PARENT_GONE):
            match kind:
                case "create":
                    create = operation.create
                    kept = self._elsewhere(operation, create.parent, create.name, create.inode, obstacle)
                    if kept is not None:
                        create.parent, create.name = kept.parent, kept.name
                case "link":
                    link = operation.link
                    kept = self._elsewhere(operation, link.parent, link.name, link.inode, obstacle)
                    if kept is not None:
                        link.parent, link.name = kept.parent, kept.name
                case "rename":
                    rename = operation.rename
                    kept = self._elsewhere(operation, rename.to_parent, rename.to_name, rename.inode, obstacle)
                    if kept is not None:
                        rename.to_parent, rename.to_name = kept.parent, kept.name
                        rename.flags = rename.replaced_inode = 0
            return kept
        if kind == "set_content" and obstacle.trouble is Trouble.CONTENT_CHANGED:
            return self._beside(operation, obstacle)
        if kind == "set_content" and obstacle.trouble is Trouble.INODE_GONE:
            return self._recreated(operation, obstacle)
        return None

    def _elsewhere(
        self, operation: feed_pb2.TreeOperation, parent: int, name: bytes, inode: int, obstacle: Obstacle
    ) -> Kept | None:
        """A conflict name at the nearest living folder for what should have been called (parent, name)."""
        living = self._living(parent)
        if living is None:
            return None
        kept = Kept(self._wanted_path(parent, name), living, self._free_name(living, name, operation), obstacle.reason)
        del operation.expectations[:]
        self._add_name_detour(parent, name, inode, (kept.parent, kept.name))
        return kept

    def _beside(self, operation: feed_pb2.TreeOperation, obstacle: Obstacle) -> Kept | None:
        """The content becomes a file of its own beside the one that was changed."""
        change = feed_pb2.SetContent()
        change.CopyFrom(operation.set_content)
        node, place = self._view.node(change.inode), self._view.place(change.inode)
        if node is None or place is None:
            return None
        like = feed_pb2.Create(mode=node.mode, uid=node.uid, gid=node.gid)
        return self._new_file(operation, change, place, like, token_of(change.content), obstacle)

    def _recreated(self, operation: feed_pb2.TreeOperation, obstacle: Obstacle) -> Kept | None:
        change = feed_pb2.SetContent()
        change.CopyFrom(operation.set_content)
        place = self._stood(change.inode) or (ROOT_NUMBER, b"nameless %d" % change.inode)
        return self._new_file(operation, change, place, feed_pb2.Create(mode=stat.S_IFREG | 0o644), b"", obstacle)

    def _new_file(
        self,
        operation: feed_pb2.TreeOperation,
        change: feed_pb2.SetContent,
        place: tuple[int, bytes],
        like: feed_pb2.Create,
        token: bytes,
        obstacle: Obstacle,
    ) -> Kept | None:
        """Turn a SetContent into the creation of a file at (or near) a place, with the attributes of `like`."""
        parent = self._living(place[0])
        if parent is None:
            return None
        number = take_number(self._ledger, self._view.store.feed_id)
        name = self._free_name(parent, place[1], operation)
        made = feed_pb2.Create(
            parent=parent,
            name=name,
            inode=number,
            mtime_nanoseconds=change.mtime_nanoseconds if change.HasField("mtime_nanoseconds") else None,
            content=change.content,
        )
        like.MergeFrom(made)
        operation.create.CopyFrom(like)
        del operation.expectations[:]
        self._add_inode_detour(change.inode, token, number)
        return Kept(self._wanted_path(*place), parent, name, obstacle.reason)

    # ------------------------------------------------------------ places

    def _free_name(self, parent: int, name: bytes, operation: feed_pb2.TreeOperation) -> bytes:
        time_ns = operation.time_nanoseconds or int(self._now * 1e9)
        for digits in (4, 8, 16, 32):
            found = conflict_name(name, self._writer, time_ns, operation.id.random, digits)
            if self._view.child(parent, found) is None:
                break
        return found

    def _stood(self, number: int) -> tuple[int, bytes] | None:
        """Where an inode stands or stood when it was last seen."""
        found = self._view.place(number) or self._view.place_before(number)
        if found is not None:
            return found
        row = self._ledger._one(
            "SELECT parent, name FROM gone WHERE store = ? AND inode = ?", self._view.store.store_number, number
        )
        return (as_int(row[0]), as_bytes(row[1])) if row is not None else None

    def _living(self, number: int) -> int | None:
        """The directory, or the nearest one above where it stood that is there; the top for what was never seen; None
        for what is no directory."""
        for _ in range(MAX_WALK):
            node = self._view.node(number)
            if node is not None:
                return number if node.is_directory else None
            place = self._stood(number)
            if place is None:
                break
            number = place[0]
        return ROOT_NUMBER

    def _wanted_path(self, parent: int, name: bytes) -> bytes:
        names = [name]
        number = parent
        for _ in range(MAX_WALK):
            if number == ROOT_NUMBER:
                break
            place = self._stood(number)
            if place is None:
                break
            names.append(place[1])
            number = place[0]
        return b"/".join(reversed(names))
