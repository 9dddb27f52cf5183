"""Leaving: said first, done once, and nothing of it when nobody can be told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from support.catalogs import TestFederation

from collective.admission import Goodbye, LeaveDesk
from collective.core.errors import Unreachable
from collective.net.rpc import Caller
from collective.wire import control_pb2


def desk(folder: Path, log: list[str], say_goodbye: Callable[[], Awaitable[Goodbye]]) -> LeaveDesk:
    catalog = TestFederation(folder).add("alice")
    steps = [lambda step=step: log.append(step) for step in ("noted", "taken back", "stopped")]
    return LeaveDesk(catalog, steps[0], steps[1], say_goodbye, steps[2])


async def test_nothing_is_noted_when_gossip_does_not_run(tmp_path: Path) -> None:
    """Else the next start would be refused although nobody was told."""
    log: list[str] = []

    async def say_goodbye() -> Goodbye:
        raise Unreachable("this coordinator is starting or stopping")

    with pytest.raises(Unreachable):
        await desk(tmp_path, log, say_goodbye).leave(Caller(None), control_pb2.LeaveRequest(really=True))
    assert log == ["noted", "taken back"]


async def test_it_is_noted_before_anybody_is_told(tmp_path: Path) -> None:
    log: list[str] = []

    async def say_goodbye() -> Goodbye:
        log.append("told")
        return Goodbye(["bob.media.collective"], [])

    reply = await desk(tmp_path, log, say_goodbye).leave(Caller(None), control_pb2.LeaveRequest(really=True))
    assert reply.left
    assert log == ["noted", "told", "stopped"]
