"""Seeds for the simulation: `--seeds N` runs N of them, `--seed K` replays one."""

from __future__ import annotations

import gc
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from simulation.ledgers import Template

SEEDS_BY_DEFAULT = 8  # … and as many more as CI has the time for in its long part
SEEDS_IN_CI = 200
MEMORY = Path("/dev/shm")  # databases and kept heads lie here: what is synced a thousand times costs nothing


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seeds", type=int, default=None, help="how many seeds the simulation runs")
    parser.addoption("--seed", type=int, default=None, help="the one seed to replay")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames and metafunc.function.__name__ == "test_a_story_ends_well":
        one = metafunc.config.getoption("--seed", default=None)
        count = metafunc.config.getoption("--seeds", default=None)
        if one is not None:
            metafunc.parametrize("seed", [one])
        elif count is not None:
            metafunc.parametrize("seed", range(count))
        else:
            more = [pytest.param(seed, marks=pytest.mark.long) for seed in range(SEEDS_BY_DEFAULT, SEEDS_IN_CI)]
            metafunc.parametrize("seed", [*range(SEEDS_BY_DEFAULT), *more])


@pytest.fixture(scope="session")
def template() -> Iterator[Template]:
    """Made once per process: keys and certificates take longer than a story."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        yield Template(Path(folder) / "federation")


@pytest.fixture
def room(template: Template) -> Iterator[Path]:
    """A folder for one test, in memory where there is such a place."""
    gc.collect()  # a seed leaves cycles of tasks and catalogues; in the middle of the next they would cost twice
    folder = template.root.parent / "room"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)
