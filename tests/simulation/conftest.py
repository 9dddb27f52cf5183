"""Seeds for the simulation: `--seeds N` runs N of them, `--seed K` replays one."""

from __future__ import annotations

from pathlib import Path

import pytest
from simulation.ledgers import Template

SEEDS_BY_DEFAULT = 8


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seeds", type=int, default=SEEDS_BY_DEFAULT, help="how many seeds the simulation runs")
    parser.addoption("--seed", type=int, default=None, help="the one seed to replay")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames and metafunc.function.__name__ == "test_a_story_ends_well":
        one = metafunc.config.getoption("--seed", default=None)
        count = metafunc.config.getoption("--seeds", default=SEEDS_BY_DEFAULT)
        metafunc.parametrize("seed", range(count) if one is None else [one])


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    """Made once per process: keys and certificates take longer than a story."""
    path: Path = tmp_path_factory.mktemp("federation")
    return Template(path)
