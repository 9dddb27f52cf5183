"""What takes simulated days or ten thousand entries."""

from __future__ import annotations

from pathlib import Path

import pytest
from simulation.chance import seeded
from simulation.homes import Home
from simulation.ledgers import LargeTemplate
from simulation.street import Street
from simulation.world import MemoryFeeds, Network, memory_world

from collective.gossip import State


@pytest.mark.long
@pytest.mark.timeout(900)
def test_nobody_is_falsely_dead_in_a_day() -> None:
    """24 simulated hours, five members, 10 % of all messages lost: many suspicions, no death."""
    world = memory_world(24, 5, network=Network(loss=0.1, duplication=0.01, most_delay=0.3))
    for member in world.members.values():
        member.start()
    world.run(60)
    world.states.clear()
    world.run(24 * 3600)
    suspicions = sum(state is State.SUSPECT for *_, state in world.states)
    assert suspicions > 1000, "the test must be hard enough"
    assert not [change for change in world.states if change[3] is State.DEAD]


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(20))
def test_ten_thousand_entries_behind(seed: int) -> None:
    """Ten members parted in halves for a minute, 10,000 entries written on one side: level in 10 s after healing."""
    world = memory_world(seed, 10)
    members = list(world.members.values())
    for member in members:
        member.start()
    world.run(10)
    world.network.block([m.name for m in members[:5]], [m.name for m in members[5:]])
    for number in range(10_000):
        feeds = members[number % 5].feeds
        assert isinstance(feeds, MemoryFeeds)
        feeds.append(bytes([number % 5]) * 32, b"entry")
    for member in members[:5]:
        member.changed()
    world.run(60)
    world.network.heal()
    carried = world.network.entry_bytes
    world.run_until(lambda: all(m.feeds.heads() == members[0].feeds.heads() for m in members), 10)
    entries = sum(len(raw) for feed in members[0].feeds.feeds.values() for raw in feed)
    assert world.network.entry_bytes - carried < 1.5 * 5 * entries, "nobody pulls the same entries from several"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> LargeTemplate:
    """Made once: it takes as long as a seed."""
    return LargeTemplate(tmp_path_factory.mktemp("federation") / "large")


@pytest.mark.byhand
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(20))
def test_ten_thousand_real_entries_behind(seed: int, large: LargeTemplate, tmp_path: Path) -> None:
    """The same with whole coordinators and real entries: what half of ten homes lack is there 10 s after healing."""
    with seeded(seed):
        street = Street(seed, Network(most_delay=0.02), real_signatures=False)
        homes = [Home(street, name, large, tmp_path / name, 0.0) for name in large.authorities]
        street.introduce()
        street.network.block([home.domain for home in homes[:5]], [home.domain for home in homes[5:]])
        for home in homes:
            home.start()
        street.run(30)
        assert entries_of(homes[0]) - entries_of(homes[5]) >= large.entries
        street.network.heal()
        took = street.run_until(lambda: "" if is_level(homes) else "the heads differ", 10)
        print(f"seed {seed}: level {took:.2f} simulated seconds after healing")
        street.close()
    assert street.surprises == []


def entries_of(home: Home) -> int:
    return sum(head.seq for head in home.catalog.heads().values())


def is_level(homes: list[Home]) -> bool:
    heads = [{feed: head.hash for feed, head in home.catalog.heads().items()} for home in homes]
    return all(one == heads[0] for one in heads)
