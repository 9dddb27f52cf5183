"""Real catalogues for the simulated members: one federation is made once, every seed gets copies of its databases."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from simulation.chance import seeded
from simulation.world import START, World
from support.catalogs import FEDERATION, TestFederation

from collective.catalog import Catalog, FolderHeadKeeper
from collective.gossip import Head
from collective.wire import feed_pb2

__all__ = ["NAMES", "LedgerFeeds", "Template"]

NAMES = ("alice", "bob", "carol", "dave", "erin")
HOSTS = 1  # of each DataStore, so that some members may not follow it


class _Template(TestFederation):
    """Hosts are few, so that feeds have members who may not follow them."""

    __test__ = False

    def open(self, name: str) -> Catalog:
        return open_catalog(self, name, self.folder(name), self.clock)


def open_catalog(federation: TestFederation, name: str, folder: Path, clock: object) -> Catalog:
    folder.mkdir(parents=True, exist_ok=True)
    catalog = Catalog(
        folder / "catalog.db",
        federation_domain=FEDERATION,
        root_certificate=federation.authority.certificate,
        own=federation.keys[name],
        heads=FolderHeadKeeper([folder / "heads"]),
        clock=clock,  # type: ignore[arg-type]
        choose_hosts=lambda feed, replicas, others: sorted(others)[:HOSTS],
    )
    catalog._writing.execute("PRAGMA synchronous = OFF")  # the machine under the simulation does not crash
    return catalog


@dataclass
class Template:
    """A federation of five: all but erin have a DataStore, alice's is read by bob and carol, bob's by all."""

    root: Path

    def __post_init__(self) -> None:
        with seeded(0):
            self._make()

    def _make(self) -> None:
        federation = self.federation = _Template(self.root)
        for name in NAMES:
            federation.add(name)
        for catalog in federation.catalogs.values():
            catalog._writing.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        # erin was away since then: her copy is from before there was anything
        shutil.copytree(federation.folder("erin"), self.root / "erin-early")
        for name, catalog in list(federation.catalogs.items())[:-1]:
            catalog.create_datastore(f"/{name}".encode(), feed_pb2.MEDIA, 2, {})
        alice, bob = federation.catalogs["alice"], federation.catalogs["bob"]
        for reader in ("bob", "carol"):
            alice.grant(b"/alice", [feed_pb2.READ], f"{reader}@{FEDERATION}")
        bob.grant(b"/bob", [feed_pb2.READ], "*@*.collective")
        federation.sync()
        federation.close()

    def feeds(self, world: World, name: str, folder: Path, skew: float) -> LedgerFeeds:
        source = self.root / "erin-early" if name == "erin" else self.federation.folder(name)
        shutil.copytree(source, folder)
        return LedgerFeeds(self.federation, world, name, folder, skew)


@dataclass
class _SkewedClock:
    world: World
    skew: float

    def wall(self) -> float:
        return START + self.world.now + self.skew

    def monotonic(self) -> float:
        return self.world.now


class LedgerFeeds:
    """A member's catalogue as gossip sees it."""

    def __init__(self, federation: TestFederation, world: World, name: str, folder: Path, skew: float) -> None:
        self.federation = federation
        self.name = name
        self.folder = folder
        self.clock = _SkewedClock(world, skew)
        self.catalog = open_catalog(federation, name, folder, self.clock)
        self._rights: dict[str, set[bytes]] = {}
        self._rights_of: list[tuple[bytes, int]] | None = None
        self._version = 0

    def reopen(self) -> None:
        """What a crash leaves: what was committed."""
        self.catalog.close()
        self.catalog = open_catalog(self.federation, self.name, self.folder, self.clock)

    def heads(self) -> dict[bytes, Head]:
        return {feed: Head(at.epoch_number, at.epoch_id, at.seq, at.hash) for feed, at in self.catalog.heads().items()}

    def entries_after(self, feed: bytes, seq: int) -> list[tuple[int, bytes]]:
        return list(enumerate(self.catalog.entries_after(feed, seq), seq + 1))

    def entries_beyond(self, feed: bytes, theirs: Head | None) -> list[bytes]:
        position = None
        if theirs is not None:
            position = feed_pb2.Position(
                epoch_number=theirs.epoch_number, epoch_id=theirs.epoch_id, seq=theirs.seq, hash=theirs.hash
            )
        return self.catalog.entries_beyond(feed, position)

    def receive(self, feed: bytes, entries: Sequence[bytes]) -> int:
        return sum(self.catalog.receive(raw) for raw in entries)

    def rights(self) -> int:
        """Rights follow from root and member feeds alone."""
        rows = self.catalog._all("SELECT feed_id, seq FROM feeds WHERE kind <> 'store' ORDER BY feed_id")
        if rows != self._rights_of:
            self._rights_of = rows  # type: ignore[assignment]
            self._rights.clear()
            self._version += 1
        return self._version

    def may_follow(self, member: str, feed: bytes) -> bool:
        if member not in self._rights:
            self._rights[member] = self.catalog.feeds_for(member, self.clock.wall())
        return feed in self._rights[member]

    def roster(self) -> list[str]:
        rows = self.catalog._all("SELECT domain FROM members WHERE NOT removed ORDER BY domain")
        return [str(row[0]) for row in rows]

    def in_order(self, feeds: Iterable[bytes]) -> list[bytes]:
        return self.catalog.in_dependency_order(feeds)
