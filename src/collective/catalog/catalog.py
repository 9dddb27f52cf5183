"""The catalogue: everything one home knows of the federation, with the changes that its people may ask for.

`Reader` asks, `Ledger` appends and receives entries, this adds what is done with them. Each method is one
transaction; Raises lists stand with the functions that do the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from collective.catalog import (
    beside,
    commands,
    datastores,
    folding,
    handing,
    numbers,
    offers,
    placements,
    staged,
    staging,
    versions,
    waking,
)
from collective.catalog.database import open_for_reading
from collective.catalog.facts import as_bytes
from collective.catalog.handing import Parcel
from collective.catalog.ledger import Ledger
from collective.catalog.models import DataStore, HeldHere
from collective.catalog.offers import Offer
from collective.catalog.planning import Plan
from collective.catalog.replay import replay
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

    # ------------------------------------------------------------ waking up (catalog/waking has the rule)

    def excuse(self, domains: Iterable[str]) -> None:
        """Go on without these members' answers."""
        self.hearing.excused.update(domains)

    def note_answer(self, domain: str) -> bool:
        """A member told all it has; whether that was awaited."""
        was_awaited = bool(self.doubts()) and domain not in self.hearing.answered
        self.hearing.answered.add(domain)
        return was_awaited

    def awaited(self) -> list[str]:
        """Whose answers are awaited before anything is signed on the feeds in doubt."""
        return waking.awaited(self) if self.doubts() else []

    def unheard(self) -> list[str]:
        """Who has not told yet what it has of the feeds in doubt, awaited or excused."""
        return waking.unheard(self) if self.doubts() else []

    def mend_doubt(self) -> str:
        """What a person does about the doubt."""
        return waking.mend(self)

    def pages_wanted(self) -> bool:
        """Whether pages of versions held here may be missing, since the database was lost or old."""
        row = self._one("SELECT value FROM meta WHERE key = 'pages_wanted'")
        return bool(row and row[0])

    def pages_settled(self) -> None:
        """No page is missing any more."""
        with self.change() as connection:
            connection.execute("UPDATE meta SET value = 0 WHERE key = 'pages_wanted'")

    def versions_here(self, after: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """(store, version) that this home wrote and holds by its word, by version id above `after`."""
        rows = self._all(
            "SELECT feed_id, version_id FROM versions WHERE writer = ? AND NOT released AND version_id > ?"
            " ORDER BY version_id LIMIT ?",
            self.own_domain, after, limit,
        )  # fmt: skip
        return [(as_bytes(store), as_bytes(version)) for store, version in rows]

    def pages_missing(self, store_id: bytes, version_id: bytes) -> list[bytes]:
        """Names of a version's pages, public and sealed, that are not here."""
        layout = self.layout(store_id, version_id)
        return [name for name in (*layout.pages, *layout.key_pages) if self.page(name) is None]

    def parcels(self) -> list[Parcel]:
        """Entries that were un-applied here and go back to their owners."""
        return handing.parcels(self)

    def note_handed_over(self, parcel: Parcel) -> None:
        handing.note_handed_over(self, parcel)

    # ------------------------------------------------------------ snapshots (catalog/folding, catalog/offers)

    def note_heads(self, domain: str, heads: Iterable[feed_pb2.FeedHead]) -> None:
        """What a member told of how far it is."""
        for head in heads:
            key = (domain, head.feed_id)
            self.hearing.heads[key] = max(self.hearing.heads.get(key, 0), head.head.seq)

    def due_for_snapshot(self, every: int) -> list[bytes]:
        """Own DataStores with that many entries since their last snapshot."""
        return folding.due_for_snapshot(self, every)

    def fold(self, store_id: bytes) -> feed_pb2.Position:
        """Write a snapshot's blocks at the head as it is; its base."""
        return folding.fold(self, store_id)

    def point_to_snapshot(
        self, store_id: bytes, base: feed_pb2.Position, public: feed_pb2.Layout, sealed: feed_pb2.Layout
    ) -> None:
        """Say in the feed that the blocks at the base are these two versions; the one before the last is released."""
        folding.point_to(self, store_id, base, public, sealed)

    def snapshot_blocks(self, store_id: bytes, base_seq: int, *, sealed: bool) -> Iterator[bytes]:
        """The blocks kept here of one part, in order."""
        reading = open_for_reading(self.path)
        try:
            yield from folding.stored_blocks(reading, store_id, base_seq, sealed=sealed)
        finally:
            reading.close()

    def keep_blocks(self, store_id: bytes, base_seq: int, blocks: Iterable[bytes], *, sealed: bool) -> None:
        folding.keep_blocks(self, store_id, base_seq, blocks, sealed=sealed)

    def snapshot_offer_for(
        self, feed_id: bytes, theirs: feed_pb2.Position | None, *, entries_wanted: bool
    ) -> bytes | None:
        """The entry that points to the snapshot somebody with that head starts from, None when entries will do."""
        return offers.offer_for(self, feed_id, theirs, entries_wanted=entries_wanted)

    def snapshot_offer_in(self, entry: bytes) -> Offer | None:
        return offers.offer_in(self, entry)

    def start_from(self, offer: Offer, *, with_sealed: bool) -> Iterator[None]:
        """Start a feed from a snapshot whose blocks are here; one change at each step."""
        return folding.start_from(self, offer.store_id, offer.owner, offer.base_seq, with_sealed=with_sealed)

    def open_base(self, store_id: bytes) -> Iterator[None]:
        """Load the tree of a feed that started without it; one change at each step."""
        return folding.open_base(self, store_id)

    def unopened_offers(self) -> list[Offer]:
        return offers.unopened_offers(self)

    def droppable(self, now: float) -> list[Offer]:
        return offers.droppable(self, now)

    def drop_entries(self, offer: Offer) -> None:
        folding.drop_entries(self, offer.store_id, offer.base_seq)

    def sweep(self) -> bool:
        """Remove a slice of what nothing shows or needs any more; whether there may be more."""
        return beside.sweep(self) or folding.sweep_dropped(self)

    def opens_sealed(self, store_id: bytes) -> bool:
        """Whether this home reads the DataStore's tree."""
        feed = self._feed(store_id)
        return feed is not None and feed.opened_seq > 0

    # ------------------------------------------------------------ care

    def open_what_waits(self) -> Iterator[None]:
        """Open the entries whose keys are here; one change at each step."""
        for store in self.datastores():
            while self.open_some(store.feed_id):
                yield

    def open_some(self, store_id: bytes) -> bool:
        """Open a slice of a DataStore's entries; whether there was any."""
        if not self.waits_to_be_opened(store_id):
            return False
        with self.change() as connection:
            return self.open_waiting(connection, store_id) > 0

    def tend(self, now: float) -> bool:
        """All background care; whether anything changed. `now` in seconds since 1970."""
        changed = self.care(now)
        return self.restate() or changed

    def care(self, now: float) -> bool:
        """Epochs, replay, own DataStores, keys; whether anything changed. `now` in seconds since 1970."""
        changed = waking.open_epochs(self)
        changed = replay(self, now) or changed
        return datastores.tend(self, now) or changed

    def restate(self, *, lazily: bool = False) -> bool:
        """Say in the own feed how far this home holds what it hosts; whether anything was said."""
        if not self.own_is_admitted() or self.is_doubtful():
            return False
        return placements.restate_holdings(self, lazily=lazily)

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
        """Keep changes for a DataStore's owner, who cannot commit them now; their numbers here."""
        return staged.stage(self, store_id, changes, now=now)

    def staged_batch(self, store_id: bytes, limit: int = 256, max_bytes: int = 4 * MIB) -> list[staged.StagedRow]:
        """The next changes to be sent to an owner, in order."""
        return staged.staged_batch(self, store_id, limit, max_bytes)

    def has_staged_work(self, store_id: bytes) -> bool:
        """Whether changes to a DataStore wait to be sent."""
        return staged.has_work(self, store_id)

    def stores_with_staged_work(self) -> list[bytes]:
        """The DataStores with changes that wait to be sent."""
        return staged.stores_with_work(self)

    def note_outcomes(self, rows: Sequence[int], outcomes: Sequence[submit_pb2.OperationOutcome]) -> None:
        """What the owner answered to a batch of staged changes."""
        staged.note_outcomes(self, rows, outcomes)

    def keep_refused(
        self, store_id: bytes, refused: Sequence[tuple[submit_pb2.StagedOperation, str]], *, now: float
    ) -> None:
        """Keep changes that will not be committed, readable and listed until they are discarded."""
        staged.keep_refused(self, store_id, refused, now=now)

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

    def copies_at(self, domain: str) -> int:
        """How many versions of own DataStores a member holds."""
        return placements.copies_at(self, domain)

    def held_here(self) -> list[HeldHere]:
        """What this home holds, by DataStore, and how much of it no other member does."""
        return placements.held_here(self)

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
