"""The catalogue: everything one home knows of the federation, with the changes that its people may ask for.

`Reader` asks, `Ledger` appends and receives entries, this adds what is done with them. Each method is one
transaction; Raises lists stand with the functions that do the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from collective.catalog import commands, datastores, numbers, placements, staged, staging, versions
from collective.catalog.ledger import Ledger
from collective.catalog.models import DataStore
from collective.catalog.planning import Plan
from collective.catalog.staging import ChooseMembers
from collective.core.sizes import MIB
from collective.wire import control_pb2, feed_pb2, submit_pb2

__all__ = ["Catalog"]


PathChange = (
    control_pb2.PutFile
    | control_pb2.RemovePath
    | control_pb2.MovePath
    | control_pb2.MakeDirectory
    | control_pb2.CopyPath
    | control_pb2.RestoreVersion
)
_PLANNERS: dict[type, Callable[..., Plan]] = {
    control_pb2.PutFile: commands.plan_put,
    control_pb2.RemovePath: commands.plan_remove,
    control_pb2.MovePath: commands.plan_move,
    control_pb2.MakeDirectory: commands.plan_directory,
    control_pb2.CopyPath: commands.plan_copy,
    control_pb2.RestoreVersion: versions.plan_restore,
}


class Catalog(Ledger):
    """One home's catalogue, with the right to change it. One process at a time."""

    def create_datastore(self, path: bytes, strategy: int, replicas: int, metadata: Mapping[str, str]) -> DataStore:
        return datastores.create_datastore(self, path, strategy, replicas, dict(metadata))

    def grant(
        self, path: bytes, rights: list[int], subject: str, *, valid_until: int = 0, granted_by: str = ""
    ) -> feed_pb2.Grant:
        return datastores.grant(self, path, rights, subject, valid_until=valid_until, granted_by=granted_by)

    def tend(self, now: float) -> bool:
        """Background care; whether anything changed. `now` in seconds since 1970."""
        changed = datastores.tend(self, now)
        if self.own_is_admitted() and not self.is_doubtful():
            changed = placements.restate_holdings(self) or changed
        return changed

    # ------------------------------------------------------------ changes by path

    def plan(self, id_: feed_pb2.OperationId, change: PathChange, actor: str) -> Plan:
        """What a request by path, in any DataStore, comes down to: to be committed or staged."""
        return _PLANNERS[type(change)](self, id_, change, actor, now=self.clock.wall())

    def commit_path(
        self, id_: feed_pb2.OperationId, change: PathChange, actor: str, members: Sequence[str] = ()
    ) -> feed_pb2.Position:
        """Plan and commit a request in an own DataStore at once; repeated, it is the same entry."""
        with self.change():
            before = commands.done_before(self, id_)
            if before is not None:
                return before
            return commands.commit_plan(self, self.plan(id_, change, actor), now=self.clock.wall(), members=members)

    def put_file(self, id_: feed_pb2.OperationId, request: control_pb2.PutFile, actor: str) -> feed_pb2.Position:
        return self.commit_path(id_, request, actor, request.layout.members)

    def remove_path(self, id_: feed_pb2.OperationId, request: control_pb2.RemovePath, actor: str) -> feed_pb2.Position:
        return self.commit_path(id_, request, actor)

    def move_path(self, id_: feed_pb2.OperationId, request: control_pb2.MovePath, actor: str) -> feed_pb2.Position:
        return self.commit_path(id_, request, actor)

    def make_directory(
        self, id_: feed_pb2.OperationId, request: control_pb2.MakeDirectory, actor: str
    ) -> feed_pb2.Position:
        return self.commit_path(id_, request, actor)

    def versions(self, path: bytes, owner: str = "") -> list[control_pb2.FileVersion]:
        """What the file at a path is and was, newest first, also when it is gone."""
        return versions.list_versions(self, path, owner)

    # ------------------------------------------------------------ changes as they are staged

    def commit_operations(
        self,
        store_id: bytes,
        changes: Sequence[submit_pb2.StagedOperation],
        *,
        actor_domain: str,
        now: float,
        exact: bool,
        choose_members: ChooseMembers = staging.writer_and_owner,
    ) -> tuple[list[submit_pb2.OperationOutcome], feed_pb2.Position | None]:
        """Commit changes to an own DataStore: one outcome each, and the entry of the last."""
        return staging.commit_operations(
            self, store_id, changes, actor_domain=actor_domain, now=now, exact=exact, choose_members=choose_members
        )

    def stage(self, store_id: bytes, changes: Sequence[submit_pb2.StagedOperation], *, now: float) -> list[int]:
        """Keep changes for the owner of a foreign DataStore; their numbers here."""
        return staged.stage(self, store_id, changes, now=now)

    def staged_batch(self, store_id: bytes, limit: int = 256, max_bytes: int = 4 * MIB) -> list[staged.StagedRow]:
        """The next changes to be sent to an owner, in order."""
        return staged.staged_batch(self, store_id, limit, max_bytes)

    def stores_with_staged_work(self) -> list[bytes]:
        """The DataStores with changes that wait to be sent."""
        return staged.stores_with_work(self)

    def note_outcomes(self, rows: Sequence[int], outcomes: Sequence[submit_pb2.OperationOutcome]) -> None:
        """What the owner answered to a batch of staged changes."""
        staged.note_outcomes(self, rows, outcomes)

    def is_staged(self, id_: feed_pb2.OperationId) -> bool:
        """Whether a request of this home waits here already."""
        return staged.is_staged(self, id_)

    def send_staged_again(self, store_id: bytes) -> int:
        """Let what the owner has, but whose entry never came, be sent once more."""
        return staged.send_again(self, store_id)

    def pending(self, limit: int = 1000) -> list[staged.Pending]:
        """Staged changes that wait or were refused, the oldest first."""
        return staged.pending(self, limit)

    def discard(self, rows: Iterable[int]) -> int:
        """Drop refused staged changes for good; how many."""
        return staged.discard(self, rows)

    def conflicts(self, limit: int = 100) -> list[staging.Conflict]:
        """What was kept under another name in own DataStores, newest first."""
        return staging.list_conflicts(self, limit)

    def lease_numbers(self, store_id: bytes, domain: str, count: int) -> range:
        """Inode numbers of an own DataStore for a member, in whole blocks."""
        return numbers.lease_numbers(self, store_id, domain, count)

    def add_numbers(self, store_id: bytes, leased: range) -> None:
        """Put numbers that were leased to this home in stock."""
        numbers.add_numbers(self, store_id, leased)

    def take_numbers(self, store_id: bytes, count: int) -> range | None:
        """Up to `count` numbers out of the stock; None when it is empty (an own DataStore's never is)."""
        return numbers.take_numbers(self, store_id, count)

    def stock_count(self, store_id: bytes) -> int:
        """Numbers in stock."""
        return numbers.stock_count(self, store_id)

    def put_pages(self, pages: Mapping[bytes, bytes]) -> None:
        """Keep pages under their names; the caller has checked the names."""
        placements.put_pages(self, dict(pages))

    def hold(self, store_id: bytes, versions: list[bytes]) -> None:
        """State that versions placed on this home are all here."""
        placements.hold(self, store_id, versions)

    def lose(self, lost: list[tuple[bytes, bytes]]) -> None:
        """State that versions (store, version) are not whole on this home any more."""
        placements.lose(self, lost)

    def regain(self, store_id: bytes, version_id: bytes) -> None:
        """State that a version held by the entry is whole here again."""
        placements.regain(self, store_id, version_id)

    def versions_lost(self) -> list[tuple[bytes, bytes]]:
        """(store, version) of versions held by the entry that are not whole here."""
        return placements.versions_lost(self)

    def versions_with_chunks(self, chunk_ids: set[bytes]) -> dict[bytes, set[tuple[bytes, bytes]]]:
        """Chunk id -> versions placed on this home that list it; reads every page."""
        return placements.versions_with_chunks(self, chunk_ids)

    def copies_missing(self) -> list[tuple[bytes, bytes, str]]:
        """(store, version, member) that own DataStores still need."""
        return placements.copies_missing(self)

    def versions_short_of_members(self) -> list[tuple[bytes, bytes, int]]:
        """(store, version, plain bytes) of own live versions placed on too few members."""
        return placements.versions_short_of_members(self)

    def versions_below_target(self, store_id: bytes) -> int:
        """Live versions with fewer copies than asked for."""
        return placements.versions_below_target(self, store_id)
