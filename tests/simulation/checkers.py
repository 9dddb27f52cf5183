"""What must hold of every story, while it goes on and when all has healed. Each check raises AssertionError.

A hostile member, and one that was removed, are members of the story but not of the honest: of their feeds and their
homes nothing is asked but that they harm nobody.
"""

from __future__ import annotations

from pathlib import Path

from simulation.homes import Home
from simulation.promises import Promises
from simulation.street import Street
from support.catalogs import DERIVED, rebuild, state_of

from collective.catalog import Catalog
from collective.catalog.keyring import readers_of
from collective.core.address import FederatedAddress
from collective.gossip import State
from collective.transfer.numbers import STOCK_COUNT
from collective.wire import feed_pb2

__all__ = ["Checkers"]

SETTLE_SECONDS = 15.0
REBUILT_EVERY = 3  # a third of the stories: it costs as much as the story


class Checkers:
    """`honest` and `removed` change with the story."""

    def __init__(self, street: Street, promises: Promises) -> None:
        self.street = street
        self.promises = promises
        self.homes = list(street.homes.values())
        self.hostile: Home | None = None
        self.removed: Home | None = None
        self.forked_on_purpose: dict[bytes, tuple[bytes, bytes]] = {}  # feed -> hashes of two entries for one place
        self._barred: dict[tuple[Home, Home, bytes], set[object]] = {}
        self._committed: dict[tuple[Home, Home, bytes], set[object]] = {}
        self._allowed_once: set[tuple[Home, bytes]] = set()
        self._rights: dict[tuple[Home, Home], tuple[Catalog, int, set[bytes]]] = {}
        self._signed: set[bytes] = set()
        self._signed_up_to: dict[bytes, tuple[bytes, int]] = {}

    @property
    def honest(self) -> list[Home]:
        return [home for home in self.homes if home not in (self.hostile, self.removed)]

    # ------------------------------------------------------------ what happened

    def note_withdrawal(self, owner: Home, store_id: bytes) -> None:
        """From now on nothing more is committed of whoever may not write any more."""
        for writer in self.homes:
            if writer is not owner and not self._may_write(owner, writer, store_id):
                key = owner, writer, store_id
                self._barred[key] = self._absorbed(*key) | self._committed.get(key, set())

    def note_allowed(self) -> None:
        """Before a right is taken away: who may have the beginning of what."""
        for feed, owner in self._owners().items():
            self._allowed_once.update((home, feed) for home in self.homes if self._allowed(owner, home, feed))

    def note_committed(self, owner: Home) -> None:
        """Before its database is set back: what it committed of others rightly comes back, handed in or replayed."""
        for store in owner.catalog.datastores():
            for writer in self.homes:
                if store.owner == owner.domain and writer is not owner:
                    key = owner, writer, store.feed_id
                    self._committed.setdefault(key, set()).update(self._absorbed(*key))

    def forgive(self, owner: Home) -> None:
        """Its database was set back: it may not know what it withdrew."""
        self._barred = {key: known for key, known in self._barred.items() if key[0] is not owner}

    def _may_write(self, owner: Home, writer: Home, store_id: bytes) -> bool:
        address = FederatedAddress("coord", writer.domain)
        return owner.catalog.may(address, feed_pb2.WRITE, store_id, now=owner.wall()).allowed

    def _absorbed(self, owner: Home, writer: Home, store_id: bytes) -> set[object]:
        rows = owner.catalog._all(
            "SELECT o.random FROM operations o JOIN feeds f ON f.id = o.feed WHERE f.feed_id = ? AND o.writer = ?",
            store_id, writer.domain,
        )  # fmt: skip
        return {random for (random,) in rows}

    # ------------------------------------------------------------ at any time

    def note_signed(self) -> None:
        """Remember every entry that its writer has: what others have must be among them."""
        for home in self.homes:
            if home is self.hostile:
                continue
            for feed, head in home.catalog.heads().items():
                epoch, seq = self._signed_up_to.get(feed, (b"", 0))
                if (epoch, seq) == (head.epoch_id, head.seq) or not home.catalog.is_own(feed):
                    continue
                start = seq if epoch == head.epoch_id and seq <= head.seq else 0
                self._signed.update(
                    hash_  # type: ignore[misc]  # a column of bytes
                    for (hash_,) in home.catalog._all(
                        "SELECT e.hash FROM entries e JOIN feeds f ON f.id = e.feed WHERE f.feed_id = ? AND e.seq > ?",
                        feed, start,
                    )
                )  # fmt: skip
                self._signed_up_to[feed] = head.epoch_id, head.seq

    def check_always(self) -> None:
        """Nobody has or believes what others did not sign; nothing happened that no part of the program expects."""
        assert not self.street.surprises, "\n".join(self.street.surprises[:3])
        self.note_signed()
        owners = self._owners()
        for home in self.honest:
            for feed, head in home.catalog.heads().items():
                owner = owners.get(feed)
                if owner not in (None, self.hostile):
                    assert owner is not None
                    if (home, feed) not in self._allowed_once and not owner.catalog.doubts():
                        self._allowed_once.add((home, feed))
                        assert self._allowed(owner, home, feed), (
                            f"{home.label} got a feed of {owner.label} it may not follow"
                        )
                    assert head.hash in self._signed, (
                        f"{home.label} has an entry {head.seq} that {owners[feed].label} never signed"
                    )
            for feed in home.catalog.forked_feeds():
                assert feed in self.forked_on_purpose, f"{home.label} saw a fork of a feed that was not forked"
            for other in self.homes if home.life is not None else []:
                statement = home.life.gossiping._engine.statements.get(other.domain)
                assert statement is None or other.has_said(statement.raw), (
                    f"{home.label} believes a statement that {other.label} never made"
                )
            self._check_prefixes(home)
        forgotten = self.promises.forgotten(self.honest)
        assert not forgotten, forgotten

    def _check_prefixes(self, home: Home) -> None:
        """Of every feed, a hostile member's too, a home has the first entries, without a gap."""
        gaps = home.catalog._all(
            "SELECT f.feed_id, f.owner FROM feeds f WHERE f.seq <> (SELECT count(*) FROM entries e WHERE e.feed = f.id)"
        )
        assert not gaps, f"{home.label} lacks entries in the middle of a feed of {gaps[0][1] or 'the root'}"

    def _owners(self) -> dict[bytes, Home]:
        """Of every feed that anybody has."""
        founder = self.homes[0]
        owners = {founder.catalog.root_feed(): founder}
        for home in self.homes:
            for feed, owner in home.catalog._all("SELECT feed_id, owner FROM feeds WHERE owner <> ''"):
                owners[feed] = self.street.homes[str(owner)]  # type: ignore[index]  # a column of bytes
        return owners

    # ------------------------------------------------------------ after healing

    def behind(self) -> str:
        """Why not every follower has the whole of every feed it may follow; "" when all have."""
        honest = self.honest
        heads = {home: home.catalog.heads() for home in honest}
        for feed, owner in self._owners().items():
            if owner not in honest:
                continue
            full = heads[owner].get(feed)
            for home in honest:
                if full is None or (self._allowed(owner, home, feed) and heads[home].get(feed) != full):
                    return f"{home.label} does not have all of feed {feed.hex()[:12]} of {owner.label}"
        return ""

    def unlevel(self) -> str:
        """Why somebody is behind, unsure of its own feeds or of others, or has something on its way; "" when nobody."""
        if behind := self.behind():
            return behind
        honest = self.honest
        for home in honest:
            assert home.life is not None
            if home.catalog.doubts():
                return f"{home.label} doubts: {home.catalog.doubts()}"
            if self._under_way(home):
                return f"{home.label} has changes or entries on their way"
            for other in honest:
                if other is not home and home.life.state_of(other.domain) is not State.ALIVE:
                    return f"{home.label} takes {other.label} for {home.life.state_of(other.domain)}"
        return ""

    def _under_way(self, home: Home) -> bool:
        """Staged work that its owner could have answered, numbers that are fetched from one (each block is an entry),
        entries that go back to their writer or wait for it.
        """
        strangers = [other.domain for other in self.homes if other not in self.honest]
        assert home.life is not None
        if any(
            home.life.writing.numbers.may_write(store, None) and home.catalog.stock_count(store.feed_id) < STOCK_COUNT
            for store in home.catalog.datastores()
            if store.owner not in (home.domain, *strangers)
        ):
            return True
        for owner in {store.owner: None for store in home.catalog.datastores()}:
            if owner not in strangers and home.catalog._one(
                "SELECT 1 FROM staged s JOIN datastores d USING (feed_id) WHERE s.state <> 'refused' AND d.owner = ?",
                owner,
            ):
                return True
        if any(parcel.owner not in strangers for parcel in home.catalog.parcels()):
            return True
        return (
            home.catalog._one(
                "SELECT 1 FROM abandoned a JOIN feeds f USING (feed_id) WHERE NOT a.replayed AND f.owner = ?",
                home.domain,
            )
            is not None
        )

    def _allowed(self, owner: Home, home: Home, feed: bytes) -> bool:
        """What the writer's own catalogue says; nothing of what gossip was told."""
        counter = owner.catalog.change_counter()
        known = self._rights.get((owner, home))
        if known is None or known[0] is not owner.catalog or known[1] != counter:
            known = owner.catalog, counter, owner.catalog.feeds_for(home.domain, owner.wall())
            self._rights[owner, home] = known
        return feed in known[2]

    def check_healed(self, healthy_since: float, heads_then: dict[Home, dict[bytes, bytes]], folder: Path) -> None:
        unlevel = self.unlevel()
        assert not unlevel, f"not level any more: {unlevel}"
        self.check_always()
        self._check_states(healthy_since)
        self._check_followers(heads_then)
        self._check_secrets()
        self._check_barred()
        self._check_forks()
        self._check_trees()
        self._check_shown()
        self._check_operations()
        self._check_statements()
        broken = self.promises.broken(self.honest)
        assert not broken, broken
        chosen = int(healthy_since * 1000) % (REBUILT_EVERY * len(self.honest))
        if chosen < len(self.honest):
            self._check_rebuilt(self.honest[chosen], folder)

    def heads(self) -> dict[Home, dict[bytes, bytes]]:
        """Hashes of all heads, to see later who got further."""
        return {home: {feed: head.hash for feed, head in home.catalog.heads().items()} for home in self.homes}

    def _check_states(self, healthy_since: float) -> None:
        known = {home.domain for home in self.honest}
        for when, who, whom, state in self.street.states:
            if when < healthy_since or not {who, whom} <= known:
                continue
            # a probe that was lost before the healing may still make a suspect, which answers
            late = when > healthy_since + SETTLE_SECONDS
            assert state != State.DEAD, f"{who} took {whom} for dead at {when:.2f}, in a healthy network"
            assert state != State.SUSPECT or not late, f"{who} suspected {whom} at {when:.2f}, in a healthy network"

    def _check_followers(self, heads_then: dict[Home, dict[bytes, bytes]]) -> None:
        """What was written since all was level came to nobody who may not follow it."""
        for feed, owner in self._owners().items():
            if owner not in self.honest:
                continue
            for home in self.homes:
                if home is not owner and not self._allowed(owner, home, feed):
                    head = home.catalog.heads().get(feed)
                    assert (head.hash if head else None) == heads_then[home].get(feed), (
                        f"{home.label} still gets a feed of {owner.label} that it may not follow"
                    )

    def _check_secrets(self) -> None:
        """Nobody without READ has the key of what is written now, nor a name in that DataStore's newest entry."""
        for owner in self.honest:
            for store in owner.catalog.datastores():
                if store.owner != owner.domain:
                    continue
                readers = self._readers(owner, store.feed_id)
                for home in self.homes:
                    has_key = home.catalog.store_key(store.key_name) is not None
                    assert has_key <= (home.domain in readers), (
                        f"{home.label} may not read {store.path!r} and has its key"
                    )

    def _readers(self, owner: Home, store_id: bytes) -> set[str]:
        store = owner.catalog.store(store_id)
        return {owner.domain} | {domain for domain, _ in readers_of(owner.catalog, store, owner.wall())}

    def _check_barred(self) -> None:
        """Whoever lost WRITE committed nothing since."""
        for (owner, writer, store_id), known in self._barred.items():
            if owner in self.honest and not self._may_write(owner, writer, store_id):
                assert self._absorbed(owner, writer, store_id) <= known, (
                    f"{writer.label} changed {owner.label}'s DataStore after it lost WRITE"
                )

    def _check_forks(self) -> None:
        """Two histories of one feed are noticed where they meet, and kept as evidence. When the only home that had one
        of them lost its database, or was removed, they never meet: nobody asks it for anything.
        """
        members = [home for home in self.homes if home is not self.removed]
        for feed, hashes in self.forked_on_purpose.items():
            known = [home for home in self.honest if home.catalog.is_forked(feed)]
            meet = all(any(self._has_entry(home, hash_) for home in members) for hash_ in hashes)
            assert known or not meet, "nobody noticed a fork"
            for home in known:
                assert home.catalog._one("SELECT 1 FROM forks WHERE feed_id = ?", feed), (
                    f"{home.label} kept no evidence"
                )

    @staticmethod
    def _has_entry(home: Home, hash_: bytes) -> bool:
        return home.catalog._one("SELECT 1 FROM entries WHERE hash = ?", hash_) is not None

    def _check_trees(self) -> None:
        """Rows of a DataStore are the same wherever it is readable."""
        for home in self.honest:
            for store in home.catalog.datastores():
                owner = self.street.homes[store.owner]
                if not store.readable or owner is home or owner not in self.honest:
                    continue
                if home.domain not in self._readers(owner, store.feed_id):
                    continue
                for table in ("inodes", "links", "numbers", "history", "number_leases"):
                    query = f"SELECT * FROM ({DERIVED[table]}) WHERE feed_id = ?"
                    mine, theirs = (sorted(each.catalog._all(query, store.feed_id), key=repr) for each in (home, owner))
                    assert mine == theirs, f"the {table} of {store.path!r} differ at {home.label} and {owner.label}"

    def _check_shown(self) -> None:
        """What a home shows in a DataStore, with what is staged, is what its owner has when nothing is staged."""
        for home in self.honest:
            if home.catalog._one("SELECT 1 FROM staged"):
                continue
            for store in home.catalog.datastores():
                owner = self.street.homes[store.owner]
                if owner in self.honest and home.domain in self._readers(owner, store.feed_id):
                    mine, theirs = (self._shown(each, store.path, store.owner) for each in (home, owner))
                    assert mine == theirs, f"{home.label} shows {store.path!r} otherwise than {owner.label}"
                    assert not [name for name, _ in theirs if name.startswith(b"evil")], "a change nobody may make"

    def _shown(self, home: Home, path: bytes, owner: str) -> list[tuple[bytes, int]]:
        directory = home.catalog.resolve(path, owner)
        return [(name, node.number) for name, node in home.catalog.list(directory.ino, limit=10_000)]

    def _check_operations(self) -> None:
        """Nothing that was signed was in vain: no operation twice, no number twice."""
        for home in self.honest:
            refused = home.catalog._all(
                "SELECT f.feed_id, r.reason FROM refused_operations r JOIN feeds f ON f.id = r.feed WHERE f.owner = ?",
                home.domain,
            )
            assert not refused, f"{home.label} signed what makes no sense: {refused[0]}"
            doubled = home.catalog._all("SELECT reason FROM staged WHERE state = 'refused' AND reason LIKE '%number%'")
            assert not doubled, f"what {home.label} staged was refused for its number: {doubled[0]}"
            for feed in home.catalog.own_heads():
                kept = home.catalog.heads_kept.newest(feed)
                assert kept is not None, f"{home.label} keeps no head of a feed of its own"
                assert kept.hash == home.catalog.heads()[feed].hash, f"{home.label} keeps an old head of its own feed"

    def _check_statements(self) -> None:
        """Everybody knows everybody's newest statement, and that all is level."""
        for home in self.honest:
            for other in self.honest:
                mine, own = (each.life.gossiping._engine.statements.get(other.domain) for each in (home, other))  # type: ignore[union-attr]
                assert mine is not None, f"{home.label} knows no statement of {other.label}"
                assert own is not None
                assert mine.raw == own.raw, f"{home.label} does not know the newest statement of {other.label}"

    def _check_rebuilt(self, home: Home, folder: Path) -> None:
        """The tables are what the entries say."""
        fresh = rebuild(home.template.federation, home.catalog, folder)
        try:
            for table, rows in state_of(home.catalog).items():
                if table == "feeds" and self.forked_on_purpose:
                    continue  # that a feed is forked does not stand in it
                assert state_of(fresh)[table] == rows, f"{table} of {home.label} is not what its entries say"
        finally:
            fresh.close()
