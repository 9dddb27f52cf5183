"""Real catalogues for the simulated homes: one federation is made once, every seed gets copies of its databases."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding
from simulation.chance import seeded
from support.catalogs import FEDERATION, TestFederation, operation_id

from collective.catalog import Catalog, FolderHeadKeeper
from collective.catalog.heads import HeadKeeper
from collective.core.clock import Clock
from collective.core.observe import SILENT, Observer
from collective.wire import feed_pb2

__all__ = ["NAMES", "LargeTemplate", "Template"]

NAMES = ("alice", "bob", "carol", "dave", "erin")
HOSTS = 1  # of each DataStore, so that some members may not follow it
READ, WRITE, DELETE = feed_pb2.READ, feed_pb2.WRITE, feed_pb2.DELETE


class _Template(TestFederation):
    """Hosts are few, so that feeds have members who may not follow them."""

    __test__ = False

    def open(self, name: str) -> Catalog:
        return open_catalog(
            self, name, self.folder(name), FolderHeadKeeper([self.folder(name) / "heads"]), self.clock, SILENT
        )


def open_catalog(
    federation: TestFederation, name: str, folder: Path, heads: HeadKeeper, clock: Clock, observer: Observer
) -> Catalog:
    folder.mkdir(parents=True, exist_ok=True)
    catalog = Catalog(
        folder / "catalog.db",
        federation_domain=FEDERATION,
        root_certificate=federation.authority.certificate,
        own=federation.keys[name],
        heads=heads,
        clock=clock,
        observer=observer,
        choose_hosts=lambda feed, replicas, others: sorted(others)[:HOSTS],
    )
    catalog._writing.execute("PRAGMA synchronous = OFF")  # the machine under the simulation does not crash
    return catalog


@dataclass
class Template:
    """A federation of five: all but erin have a DataStore. alice's is read by bob and carol and written to by bob,
    bob's is read by all and written to by carol and dave.
    """

    root: Path

    def __post_init__(self) -> None:
        with seeded(0):
            self._make()
        self.domain = FEDERATION
        self.root_certificate = self.federation.authority.certificate

    def _admit(self, names: Sequence[str]) -> TestFederation:
        """The members, with nothing in their homes yet."""
        federation = self.federation = _Template(self.root)
        for name in names:
            federation.add(name)
        self.authorities = {
            member.domain.partition(".")[0]: member.ca_certificate.public_bytes(Encoding.DER)
            for member in federation.catalogs[names[0]].members()
        }
        return federation

    def _make(self) -> None:
        federation = self._admit(NAMES)
        for catalog in federation.catalogs.values():
            catalog._writing.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        # erin was away since then: her copy is from before there was anything
        shutil.copytree(federation.folder("erin"), self.root / "erin-early")
        for name, catalog in list(federation.catalogs.items())[:-1]:
            catalog.create_datastore(f"/{name}".encode(), feed_pb2.MEDIA, 2, {})
        alice, bob = federation.catalogs["alice"], federation.catalogs["bob"]
        alice.grant(b"/alice", [READ, WRITE, DELETE], f"bob@{FEDERATION}")
        alice.grant(b"/alice", [READ], f"carol@{FEDERATION}")
        bob.grant(b"/bob", [READ], "*@*.collective")
        for writer in ("carol", "dave"):
            bob.grant(b"/bob", [WRITE], f"{writer}@{FEDERATION}")
        federation.sync()
        federation.close()

    def copy(self, name: str, folder: Path) -> Path:
        """A home's folder for one seed."""
        early = self.root / f"{name}-early"
        source = early if early.exists() else self.federation.folder(name)
        shutil.copytree(source, folder)
        return folder

    def open(self, name: str, folder: Path, heads: HeadKeeper, clock: Clock, observer: Observer) -> Catalog:
        return open_catalog(self.federation, name, folder, heads, clock, observer)


class LargeTemplate(Template):
    """Ten members, each with a DataStore that all may read; half of them have entries that the others lack."""

    entries = 10_000

    def _make(self) -> None:
        names = [f"m{number}" for number in range(10)]
        federation = self._admit(names)
        for name, catalog in federation.catalogs.items():
            catalog.create_datastore(f"/{name}".encode(), feed_pb2.MEDIA, 2, {})
            catalog.grant(f"/{name}".encode(), [READ], "*@*.collective")
        federation.sync()
        change = feed_pb2.SetAttributes(inode=1, mode=0o755)
        for name in names[:5]:
            catalog = federation.catalogs[name]
            (store,) = [store for store in catalog.datastores() if store.owner == catalog.own_domain]
            for _ in range(self.entries // 5):
                operation = feed_pb2.TreeOperation(id=operation_id(catalog.own_domain), set_attributes=change)
                catalog.append_store(store.feed_id, operations=[operation])
        federation.exchange(*names[:5])
        federation.close()
