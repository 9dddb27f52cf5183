"""The simulation can fail: bugs planted on purpose are found."""

from __future__ import annotations

from pathlib import Path

import pytest
from simulation.bugs import BUGS
from simulation.ledgers import Template
from simulation.story import Story, failing_seed

SEEDS = 30


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(name: str, template: Template, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a few seeds some checker objects; without the bug the same seeds end well (`test_stories`)."""
    BUGS[name](monkeypatch)
    found = failing_seed(lambda seed: Story(seed, template, tmp_path / str(seed)), range(SEEDS))
    assert found is not None, f"{SEEDS} seeds did not notice: {name}"
    print(f"{name}: found by seed {found}")
