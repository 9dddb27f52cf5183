"""Real catalogues over real gossip in virtual time: what a home that was set back opens anew reaches everybody."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from simulation.chance import seeded
from simulation.ledgers import NAMES, LedgerFeeds, Template
from simulation.world import Member, Network, World
from support.catalogs import FEDERATION, put

from collective.catalog import Catalog


def feeds_of(member: Member) -> LedgerFeeds:
    assert isinstance(member.feeds, LedgerFeeds)
    return member.feeds


def catalog_of(member: Member) -> Catalog:
    return feeds_of(member).catalog


def saved(member: Member, place: Path) -> Path:
    """A copy of a member's database as it is now."""
    catalog_of(member)._writing.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy(feeds_of(member).folder / "catalog.db", place)
    return place


def set_back(member: Member, database: Path) -> None:
    """Stop it and put an older database in the place of its own; the heads beside it stay."""
    member.crash()
    catalog_of(member).close()
    for path in feeds_of(member).folder.glob("catalog.db*"):
        path.unlink()
    shutil.copy(database, feeds_of(member).folder / "catalog.db")
    feeds_of(member).reopen()


def is_level(world: World, feed: bytes) -> bool:
    """Whoever has the feed has the same of it, and is sure of it."""
    heads = [member.feeds.heads()[feed] for member in world.members.values() if feed in member.feeds.heads()]
    return len(heads) >= 4 and len(set(heads)) == 1


@pytest.mark.parametrize("seed", range(4))
def test_an_epoch_based_on_an_old_backup_reaches_everybody(seed: int, template: Template, tmp_path: Path) -> None:
    """bob is set back by forty entries, wakes up without asking anybody, and goes on: longer chains give way."""
    with seeded(seed):
        world = World(seed, network=Network(loss=0.1, most_delay=0.1))
        for name in NAMES[:4]:
            feeds = template.feeds(world, name, tmp_path / name, 0.0)
            world.add(f"{name}.{FEDERATION}", feeds)
        members = [member.start() for member in world.members.values()]
        bob = members[1]
        (store,) = [one.feed_id for one in catalog_of(bob).datastores() if one.path == b"/bob"]
        old = saved(bob, tmp_path / "old.db")
        for number in range(40):
            put(catalog_of(bob), b"/bob/lost-%d" % number)
        bob.changed()
        world.run_until(lambda: is_level(world, store), 60)
        longer = bob.feeds.heads()[store]

        set_back(bob, old)
        assert store in catalog_of(bob).doubts()
        catalog_of(bob).excuse(NAMES)
        assert catalog_of(bob).tend(feeds_of(bob).clock.wall())
        put(catalog_of(bob), b"/bob/after")
        shorter = bob.feeds.heads()[store]
        assert shorter.seq < longer.seq
        assert shorter.epoch_number > longer.epoch_number
        bob.start()
        world.run_until(lambda: is_level(world, store), 60)
        assert members[0].feeds.heads()[store] == bob.feeds.heads()[store]
        for member in members:
            if catalog_of(member).opens_sealed(store):
                assert catalog_of(member).find(b"/bob/after") is not None
                assert catalog_of(member).find(b"/bob/lost-3") is None
        parcels = [parcel for member in members for parcel in catalog_of(member).parcels()]
        assert {parcel.owner for parcel in parcels} == {bob.name}, "what gave way waits to be handed back"
        for member in members:
            catalog_of(member).close()
