"""Fixtures of the transfer room's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.catalogs import TestFederation
from support.writing import World


@pytest.fixture
async def members(tmp_path: Path) -> AsyncIterator[World]:
    """alice, bob and carol, whose coordinators answer each other."""
    federation = TestFederation(tmp_path)
    made = World(federation)
    made.add("alice")
    made.add("bob")
    made.add("carol")
    try:
        yield made
    finally:
        await made.close()
        federation.close()
