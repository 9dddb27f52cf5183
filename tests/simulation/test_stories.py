"""A federation of real catalogues and real coordinators in virtual time, from one seed each."""

from __future__ import annotations

from pathlib import Path

from simulation.ledgers import Template
from simulation.story import Story


def test_a_story_ends_well(seed: int, template: Template, room: Path) -> None:
    """Changes at home and in others' DataStores, while networks, machines and members misbehave: all checkers hold."""
    Story(seed, template, room / str(seed)).run()


def test_a_seed_is_one_story(template: Template, room: Path) -> None:
    """The same seed is the same story to the last event: what failed can be looked at."""
    first, second = (Story(7, template, room / name) for name in ("first", "second"))
    for story in (first, second):
        story.run()
    assert len(first.mishaps.events) > 5
    assert first.mishaps.events == second.mishaps.events
    assert first.street.now == second.street.now
    assert first.street.network.bytes == second.street.network.bytes > 10_000
