"""Fixtures of the catalogue's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.catalogs import TestFederation


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[TestFederation]:
    """alice, who founds; more by `add`."""
    made = TestFederation(tmp_path)
    made.add("alice")
    try:
        yield made
    finally:
        made.close()
