"""Whether a change still fits the tree it meets: what its writer expected, and what any change needs.

`find_obstacle` answers what stands in the way first, with the error number a file system gives for it. Whoever waits
for the answer (an exact change) is told that; everything else is settled by catalog/conflicts.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from blake3 import blake3
from google.protobuf.message import Message

from collective.catalog.models import DataStore, Inline, Node
from collective.catalog.namespace import NUMBER_BITS
from collective.catalog.overlay import Overlay, located
from collective.catalog.tree import MAX_DEPTH, MAX_NUMBER, RENAME_EXCHANGE, RENAME_NO_REPLACE, ROOT_NUMBER
from collective.core.errors import NotFound
from collective.wire import feed_pb2

__all__ = ["NUMBER_FIELDS", "Obstacle", "Trouble", "View", "content_token", "find_obstacle", "numbers_of", "token_of"]

_NUMBER_MASK = (1 << NUMBER_BITS) - 1
NUMBER_FIELDS: dict[type[Message], tuple[str, ...]] = {  # that hold inode numbers, of changes and expectations
    feed_pb2.Create: ("inode", "parent"),
    feed_pb2.Link: ("inode", "parent"),
    feed_pb2.Unlink: ("inode", "parent"),
    feed_pb2.Rename: ("inode", "from_parent", "to_parent", "replaced_inode"),
    feed_pb2.SetAttributes: ("inode",),
    feed_pb2.SetXattr: ("inode",),
    feed_pb2.SetContent: ("inode",),
    feed_pb2.ExpectedLink: ("inode", "parent"),
    feed_pb2.ExpectedContent: ("inode",),
}


def token_of(content: feed_pb2.Content) -> bytes:
    """What an expectation names a content by: its version, or the hash of what lies inline."""
    return content.version_id or blake3(content.inline).digest()


class View:
    """One DataStore of an overlay, by inode numbers: the tree as the changes before left it."""

    def __init__(self, overlay: Overlay, store: DataStore) -> None:
        self.overlay = overlay
        self.store = store

    def node(self, number: int) -> Node | None:
        if not 0 < number < MAX_NUMBER:
            return None
        try:
            return self.overlay.get(located(self.store, number))
        except NotFound:
            return None

    def child(self, parent: int, name: bytes) -> Node | None:
        """What stands under a name; a DataStore that stands there inside this one is no part of its tree."""
        if not 0 < parent < MAX_NUMBER:
            return None
        try:
            node = self.overlay.lookup(located(self.store, parent), name)
        except NotFound:
            return None
        return node if node.store_id == self.store.feed_id else None

    def is_empty(self, number: int) -> bool:
        return not self.overlay.list(located(self.store, number), b"", 1)

    def place(self, number: int) -> tuple[int, bytes] | None:
        """(parent, name) of an inode, one of them."""
        place = self.overlay.place_of(located(self.store, number))
        return (place[0] & _NUMBER_MASK, place[1]) if place is not None else None

    def place_before(self, number: int) -> tuple[int, bytes] | None:
        """(parent, name) of an inode that lost its last name among the changes before."""
        place = self.overlay.place_before(located(self.store, number))
        return (place[0] & _NUMBER_MASK, place[1]) if place is not None else None

    def ancestors(self, number: int) -> Iterator[int]:
        """The directory itself and those above it, up to the root."""
        for _ in range(MAX_DEPTH):
            yield number
            place = self.place(number)
            if place is None:
                return
            number = place[0]

    def path(self, number: int) -> bytes:
        """The path of an inode within the DataStore, b"" for the root."""
        names: list[bytes] = []
        while number != ROOT_NUMBER and len(names) < MAX_DEPTH and (place := self.place(number)) is not None:
            names.append(place[1])
            number = place[0]
        return b"/".join(reversed(names))


def content_token(view: View, node: Node) -> bytes:
    """What an expectation names the node's content by."""
    content = view.overlay.content(node)
    return blake3(content.data).digest() if isinstance(content, Inline) else content.version_id


def numbers_of(operation: feed_pb2.TreeOperation) -> list[int]:
    """Every inode number that an operation names."""
    change = operation.WhichOneof("change")
    named = [getattr(operation, change)] if change is not None else []
    named += [one.link if one.HasField("link") else one.content for one in operation.expectations]
    return [getattr(one, field) for one in named for field in NUMBER_FIELDS[type(one)]]


class Trouble(Enum):
    """What stands in the way."""

    PARENT_GONE = "the folder is gone"
    NAME_TAKEN = "the name was taken meanwhile"
    INODE_GONE = "the file is gone"
    CONTENT_CHANGED = "the file was changed by somebody else meanwhile"
    STALE = "something else stands there now"
    HOPELESS = "it makes no sense there"


@dataclass(frozen=True)
class Obstacle:
    """`errno` and `reason` for whoever waits."""

    trouble: Trouble
    errno: int
    reason: str


def _obstacle(trouble: Trouble, number: int, reason: str = "") -> Obstacle:
    return Obstacle(trouble, number, reason or trouble.value)


def find_obstacle(view: View, operation: feed_pb2.TreeOperation) -> Obstacle | None:
    """The first thing that keeps an operation from being applied as its writer meant it."""
    match operation.WhichOneof("change"):
        case "create":
            create = operation.create
            found = _target(view, create.parent, create.name)
            if found is None and view.node(create.inode) is not None:
                found = _obstacle(Trouble.HOPELESS, errno.EEXIST, "the inode number is in use")
        case "link":
            link = operation.link
            found = _inode(view, link.inode)
            if found is None and view.node(link.inode).is_directory:  # type: ignore[union-attr]  # it is there
                found = _obstacle(Trouble.HOPELESS, errno.EPERM, "a directory has one name")
            found = found or _target(view, link.parent, link.name)
        case "unlink":
            found = _unlink(view, operation.unlink)
        case "rename":
            found = _rename(view, operation.rename)
        case "set_content":
            found = _inode(view, operation.set_content.inode)
            if found is None and not stat.S_ISREG(view.node(operation.set_content.inode).mode):  # type: ignore[union-attr]
                found = _obstacle(Trouble.HOPELESS, errno.EISDIR, "only a file has content")
        case "set_attributes":
            found = _inode(view, operation.set_attributes.inode)
        case "set_xattr":
            found = _inode(view, operation.set_xattr.inode)
        case _:
            found = _obstacle(Trouble.HOPELESS, errno.EOPNOTSUPP, "a change of a later version")
    return found or _unexpected(view, operation)


def _inode(view: View, number: int) -> Obstacle | None:
    return None if view.node(number) is not None else _obstacle(Trouble.INODE_GONE, errno.ENOENT)


def _target(view: View, parent: int, name: bytes) -> Obstacle | None:
    """A name that must be free, in a folder that must be there."""
    return _parent(view, parent) or (
        _obstacle(Trouble.NAME_TAKEN, errno.EEXIST) if view.child(parent, name) is not None else None
    )


def _parent(view: View, parent: int) -> Obstacle | None:
    folder = view.node(parent)
    if folder is None:
        return _obstacle(Trouble.PARENT_GONE, errno.ENOENT)
    if not folder.is_directory:
        return _obstacle(Trouble.HOPELESS, errno.ENOTDIR, "a file is no folder")
    return None


def _standing(view: View, parent: int, name: bytes, inode: int) -> Obstacle | None:
    node = view.child(parent, name)
    if node is None:
        return _obstacle(Trouble.STALE, errno.ENOENT, "it is not there any more")
    return _obstacle(Trouble.STALE, errno.ESTALE) if node.number != inode else None


def _unlink(view: View, change: feed_pb2.Unlink) -> Obstacle | None:
    found = _standing(view, change.parent, change.name, change.inode)
    if found is None:
        node = view.node(change.inode)
        if node is not None and node.is_directory and not view.is_empty(change.inode):
            found = _obstacle(Trouble.STALE, errno.ENOTEMPTY, "the folder is not empty any more")
    return found


def _rename(view: View, change: feed_pb2.Rename) -> Obstacle | None:
    found = _standing(view, change.from_parent, change.from_name, change.inode) or _parent(view, change.to_parent)
    if found is not None:
        return found
    if (change.from_parent, change.from_name) == (change.to_parent, change.to_name):
        return None
    moved, standing = view.node(change.inode), view.child(change.to_parent, change.to_name)
    assert moved is not None
    if moved.is_directory and change.inode in view.ancestors(change.to_parent):
        return _obstacle(Trouble.HOPELESS, errno.EINVAL, "a folder cannot be moved into itself")
    if change.flags & RENAME_EXCHANGE:
        return _exchange(view, change, standing)
    if standing is None or standing.number == moved.number:
        return None
    if change.flags & RENAME_NO_REPLACE or standing.number != change.replaced_inode:
        return _obstacle(Trouble.NAME_TAKEN, errno.EEXIST)
    if standing.is_directory != moved.is_directory:
        return _obstacle(Trouble.NAME_TAKEN, errno.EISDIR if standing.is_directory else errno.ENOTDIR)
    if standing.is_directory and not view.is_empty(standing.number):
        return _obstacle(Trouble.NAME_TAKEN, errno.ENOTEMPTY, "the folder it should replace is not empty")
    return None


def _exchange(view: View, change: feed_pb2.Rename, standing: Node | None) -> Obstacle | None:
    if standing is None:
        return _obstacle(Trouble.STALE, errno.ENOENT, "there is nothing to exchange with any more")
    if change.replaced_inode not in (0, standing.number):
        return _obstacle(Trouble.STALE, errno.ESTALE)
    if standing.is_directory and standing.number in view.ancestors(change.from_parent):
        return _obstacle(Trouble.HOPELESS, errno.EINVAL, "a folder cannot be moved into itself")
    return None


def _unexpected(view: View, operation: feed_pb2.TreeOperation) -> Obstacle | None:
    """Expectations that do not hold. What stands under names was looked at before; another's names are not."""
    for expectation in operation.expectations:
        if expectation.HasField("link"):
            link = expectation.link
            node = view.child(link.parent, link.name)
            if (node.number if node is not None else 0) == link.inode or _is_free_target(operation, link, node):
                continue
            return _obstacle(Trouble.STALE, errno.ESTALE if node is not None else errno.ENOENT)
        if expectation.HasField("content"):
            found = _unexpected_content(view, operation, expectation.content)
            if found is not None:
                return found
    return None


def _is_free_target(operation: feed_pb2.TreeOperation, link: feed_pb2.ExpectedLink, node: Node | None) -> bool:
    """What a rename was to replace went away by itself: so much the better. (Its own names were looked at.)"""
    change = operation.rename
    return (
        operation.HasField("rename")
        and not change.flags & RENAME_EXCHANGE
        and (link.parent, link.name) == (change.to_parent, change.to_name)
        and (node is None or node.number in (change.inode, change.replaced_inode))
    )


def _unexpected_content(
    view: View, operation: feed_pb2.TreeOperation, expected: feed_pb2.ExpectedContent
) -> Obstacle | None:
    node = view.node(expected.inode)
    if node is None or not stat.S_ISREG(node.mode):
        replaced = operation.HasField("rename") and expected.inode == operation.rename.replaced_inode
        return None if replaced else _obstacle(Trouble.STALE, errno.ESTALE)
    if _same(view, node, expected):
        return None
    if operation.HasField("set_content") and operation.set_content.inode == expected.inode:
        if content_token(view, node) == token_of(operation.set_content.content):
            return None  # somebody wrote the very same
        return _obstacle(Trouble.CONTENT_CHANGED, errno.ESTALE)
    if operation.HasField("rename") and operation.rename.replaced_inode == expected.inode:
        return _obstacle(Trouble.NAME_TAKEN, errno.ESTALE, "the file it should replace was changed meanwhile")
    return _obstacle(Trouble.STALE, errno.ESTALE, "the file was changed meanwhile")


def _same(view: View, node: Node, expected: feed_pb2.ExpectedContent) -> bool:
    if expected.version_id or not expected.inline_hash:
        return (node.version_id or b"") == expected.version_id
    return node.version_id is None and content_token(view, node) == expected.inline_hash
