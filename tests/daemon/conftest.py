"""The loop that daemons use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import uvloop
from support.networks import multicast as multicast


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, Any]:
    """Daemons run on uvloop, and so do these tests."""
    return {"uvloop": uvloop.new_event_loop}
