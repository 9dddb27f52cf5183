"""Changes reach the kernel whatever becomes of whoever announces them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from memory_library import ROOT_INO, MemoryNames, until

from collective.mount import keeper
from collective.mount.changes import Stale, ToldNames


async def announced_once() -> AsyncIterator[None]:
    yield None
    raise ConnectionError("the announcer died")


async def test_a_lost_announcer_is_told_and_the_counter_asked_instead(
    names: MemoryNames, observer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "CHANGE_POLL_SECONDS", 0.0)
    ino = names.make_file(b"film", b"1")
    told = ToldNames(names, 3600.0)
    told.tell(names.get(ino), asyncio.get_running_loop().time(), ROOT_INO, b"film")
    notes: list[Stale] = []
    following = asyncio.create_task(
        keeper.follow_changes(names, told, notes.append, announced_once(), observer)  # type: ignore[arg-type]
    )
    await until(lambda: observer.named("mount.changes_lost"))  # type: ignore[attr-defined]
    names.remove(b"film")
    await until(lambda: len(notes) == 2)
    assert notes == [Stale(ino), Stale(ROOT_INO, b"film")]
    following.cancel()
    await asyncio.wait({following})
    assert following.cancelled()
