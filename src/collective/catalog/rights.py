"""What a writing member may do where it is committed: WRITE to change, DELETE to take away what another made.

Removing, replacing by rename and renaming away need DELETE when another member made the thing; one's own needs WRITE.
Overwriting needs WRITE alone: versions are kept. A right on the whole DataStore is looked up once; rights on folders
inside are judged by the path as it stands.
"""

from __future__ import annotations

from collective.catalog.ledger import Ledger
from collective.catalog.models import Node
from collective.catalog.obstacles import View
from collective.catalog.permissions import Verdict
from collective.core.address import FederatedAddress, parse_address
from collective.core.errors import Refused
from collective.wire import feed_pb2

__all__ = ["WritersRights"]

_ALLOWED = Verdict(True, "")


class WritersRights:
    """The rights of one member in one DataStore, for the length of a batch."""

    def __init__(self, ledger: Ledger, view: View, domain: str, now: float) -> None:
        self._ledger = ledger
        self._view = view
        self._domain = domain
        self._now = now
        self._whole: dict[tuple[FederatedAddress, int], Verdict] = {}

    def check(self, operation: feed_pb2.TreeOperation) -> str:
        """ "" or why the writer may not make this change, which fits the tree as it stands."""
        if self._domain == self._view.store.owner:
            return ""
        subject = self._subject(operation.actor)
        for right, directory in self._needed(operation):
            verdict = self._judge(subject, right, directory)
            if not verdict.allowed:
                return verdict.reason
        return ""

    def _subject(self, actor: str) -> FederatedAddress:
        """The component that asked, as its own coordinator tells; anything else counts as the coordinator."""
        try:
            address = parse_address(actor)
        except Refused:
            address = None
        if address is None or address.domain != self._domain:
            return FederatedAddress("coord", self._domain)
        return address

    def _needed(self, operation: feed_pb2.TreeOperation) -> list[tuple[int, int]]:
        """(right, number of the directory it is needed in)."""
        match operation.WhichOneof("change"):
            case "create":
                return [(feed_pb2.WRITE, operation.create.parent)]
            case "link":
                return [(feed_pb2.WRITE, operation.link.parent), *self._at(operation.link.inode)]
            case "unlink":
                change = operation.unlink
                return self._taking(change.parent, self._view.node(change.inode))
            case "rename":
                rename = operation.rename
                needed = self._taking(rename.from_parent, self._view.node(rename.inode))
                replaced = self._view.child(rename.to_parent, rename.to_name)
                if replaced is not None and replaced.number != rename.inode:
                    return needed + self._taking(rename.to_parent, replaced)
                return [*needed, (feed_pb2.WRITE, rename.to_parent)]
            case "set_content":
                return self._at(operation.set_content.inode)
            case "set_attributes":
                return self._at(operation.set_attributes.inode)
            case _:
                return self._at(operation.set_xattr.inode)

    def _at(self, number: int) -> list[tuple[int, int]]:
        place = self._view.place(number)
        return [(feed_pb2.WRITE, place[0] if place is not None else number)]

    def _taking(self, parent: int, node: Node | None) -> list[tuple[int, int]]:
        needed = [(int(feed_pb2.WRITE), parent)]
        if node is not None and node.creator != self._domain:
            needed.append((feed_pb2.DELETE, parent))
        return needed

    def _judge(self, subject: FederatedAddress, right: int, directory: int) -> Verdict:
        whole = self._whole.get((subject, right))
        if whole is None:
            whole = self._ledger.may(subject, right, self._view.store.feed_id, now=self._now)
            self._whole[subject, right] = whole
        if whole.allowed:
            return _ALLOWED
        path = self._view.path(directory)
        if not path:
            return whole
        return self._ledger.may(subject, right, self._view.store.feed_id, path, now=self._now)
