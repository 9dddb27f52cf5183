"""A federation of real catalogues and real gossip in virtual time, from one seed each."""

from __future__ import annotations

from pathlib import Path

from simulation.ledgers import Template
from simulation.story import Story


def test_a_story_ends_well(seed: int, template: Template, tmp_path: Path) -> None:
    """Writes, partitions, one-way links, crashes, flapping, leaving, clocks years apart: then all checkers hold."""
    Story(seed, template, tmp_path).run()
