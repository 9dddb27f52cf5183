"""Fixtures of the integration tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.homes import Federation
from support.networks import multicast as multicast


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    """An empty federation; whatever a test starts in it is stopped."""
    made = Federation(tmp_path)
    try:
        yield made
    finally:
        made.close()
