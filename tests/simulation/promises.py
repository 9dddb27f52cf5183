"""What homes acknowledged, written down beside the simulation, and whether it was kept.

A change is promised when it is durable somewhere: committed by its owner, or staged at its writer. It counts as long as
any home that belongs to the federation has it in any form (its entry on the chain or kept aside, its content, its
staged row): only a database that is set back or lost may take the last one away, and that is nobody's fault.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from simulation.homes import Home

from collective.catalog import Catalog
from collective.catalog.staging import committed_at
from collective.wire import feed_pb2

__all__ = ["Promise", "Promises", "content_of"]


def content_of(data: bytes) -> bytes:
    """As it stands in the tables."""
    return feed_pb2.Content(size_bytes=len(data), inline=data).SerializeToString()


@dataclass
class Promise:
    """A content that was written, or (`removed`) one that was taken away."""

    owner: Home
    writer: Home
    content: bytes
    id: feed_pb2.OperationId
    entry_hash: bytes = b""
    replaces: bytes = b""  # the content that its writer saw there; b"": none, it made the file
    removed: bool = False
    counts: bool = True
    was_staged: bool = True  # at its writer; else its owner alone answers for it, like for its own
    came_back: bool = False  # its writer had its entry once, or cannot have it, or lost its database

    def __str__(self) -> str:
        what = "the removal of" if self.removed else "what"
        return f"{what} {self.writer.label} wrote to {self.owner.label}'s ({self.content.hex()})"

    def times_there(self, catalog: Catalog) -> int:
        """In how many files, or earlier contents of files, it is."""
        (count,) = catalog._all(
            "SELECT (SELECT count(*) FROM inodes WHERE content = ?) + (SELECT count(*) FROM history WHERE content = ?)",
            self.content, self.content,
        )[0]  # fmt: skip
        assert isinstance(count, int)
        return count

    def replaced(self, catalog: Catalog) -> bytes:
        """The content that it took the place of, b"" when it took none's."""
        row = catalog._one(
            "SELECT h.content FROM history h JOIN (SELECT store, number AS inode, content_change AS change FROM inodes"
            " WHERE content = ? UNION ALL SELECT store, inode, change FROM history WHERE content = ?) c"
            " ON h.store = c.store AND h.inode = c.inode AND h.replaced_change = c.change",
            self.content, self.content,
        )  # fmt: skip
        return row[0] if row is not None and isinstance(row[0], bytes) else b""

    def is_shown(self, catalog: Catalog) -> bool:
        """In a file that has a name."""
        return catalog._one("SELECT 1 FROM inodes WHERE content = ?", self.content) is not None

    def is_held_by(self, home: Home) -> bool:
        """In any form."""
        catalog = home.catalog
        if self.entry_hash:
            for table in ("entries", "abandoned"):
                if catalog._one(f"SELECT 1 FROM {table} WHERE hash = ?", self.entry_hash):
                    return True
        if home is self.writer and self.staged_state():
            return True
        return committed_at(catalog, self.id) is not None

    def staged_state(self) -> str:
        """waiting, done or refused; "" when it is not staged at its writer (any more)."""
        row = self.writer.catalog._one(
            "SELECT state FROM staged WHERE writer = ? AND random = ?", self.id.writer, self.id.random
        )
        return str(row[0]) if row else ""


@dataclass
class Promises:
    """All that was acknowledged in one story."""

    made: list[Promise] = field(default_factory=list)

    def note_entries(self) -> None:
        """Which entry carries what: so that its followers can be asked who cannot open it."""
        for promise in self.made:
            if not promise.entry_hash and promise.counts:
                position = committed_at(promise.owner.catalog, promise.id)
                if position is not None:
                    promise.entry_hash = position.hash

    def forgotten(self, honest: Iterable[Home]) -> str:
        """The first change that its writer has neither staged any more nor back as an entry, "" when there is none."""
        honest = list(honest)
        for promise in self.made:
            home = promise.writer
            if promise.came_back or not promise.was_staged or home not in honest or home is promise.owner:
                continue
            promise.came_back = committed_at(home.catalog, promise.id) is not None or not any(
                store.readable for store in home.catalog.datastores() if store.owner == promise.owner.domain
            )
            if not promise.came_back and not promise.is_held_by(home):
                return f"{promise} is staged no more, and its entry is not there"
        return ""

    def lose(self, home: Home) -> None:
        """What a home had staged went with its database."""
        for promise in self.made:
            promise.came_back = promise.came_back or promise.writer is home

    def recount(self, homes: Iterable[Home]) -> None:
        """A database was lost, or a home is none any more: what nobody else has is gone."""
        homes = list(homes)
        for promise in self.made:
            promise.counts = promise.counts and any(promise.is_held_by(home) for home in homes)

    def broken(self, honest: Iterable[Home]) -> str:
        """The first promise that was not kept, "" when all were. To be asked when everything is level."""
        honest = list(honest)
        for promise in self.made:
            if promise.owner not in honest or promise.writer not in honest:
                continue
            times = promise.times_there(promise.owner.catalog)
            if promise.removed:
                if promise.counts and promise.is_shown(promise.owner.catalog):
                    return f"{promise} was undone"
            elif times > 1:
                return f"{promise} was applied {times} times"
            elif times and promise.replaced(promise.owner.catalog) not in (b"", promise.replaces):
                return f"{promise} took the place of what its writer had not seen"
            elif times and promise.staged_state() == "refused":
                return f"{promise} was applied, and its writer was told that it was not"
            elif promise.counts and not times and promise.staged_state() != "refused":
                return f"{promise} is lost"
        return ""
