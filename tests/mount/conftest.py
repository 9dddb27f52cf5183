"""Fixtures of the mount's tests: a library in memory, and real mounts of it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # memory_library, shared by these tests and their child processes

from memory_library import MemoryNames, MemorySources
from replay_world import World, world_in_memory

from collective.core.sizes import MIB
from collective.mount.settings import MountSettings

Mounted = Callable[..., AbstractAsyncContextManager[Path]]


class RecordingObserver:
    """Keeps every event, so that a test can ask what was told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []

    def event(self, name: str, **fields: object) -> None:
        self.events.append((name, fields))

    def named(self, name: str) -> list[dict[str, object]]:
        return [fields for event, fields in self.events if event == name]


@pytest.fixture
def names() -> MemoryNames:
    return MemoryNames()


@pytest.fixture
async def sources(names: MemoryNames) -> MemorySources:
    return MemorySources(names)


@pytest.fixture
def observer() -> RecordingObserver:
    return RecordingObserver()


@pytest.fixture
def need_fuse() -> None:
    """Real mounts need /dev/fuse and the right to mount; a machine that builds for others must have them."""
    if os.geteuid() == 0 and os.access("/dev/fuse", os.R_OK | os.W_OK):
        return
    reason = "real mounts need root and /dev/fuse"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
def mounted(
    need_fuse: None, tmp_path: Path, names: MemoryNames, sources: MemorySources, observer: RecordingObserver
) -> Mounted:
    """`async with mounted(**settings) as directory`: the library, mounted; touch it from threads or children only."""
    from collective.mount.fuse import run_mount

    @asynccontextmanager
    async def mount(changes: AsyncIterator[object] | None = None, **settings: object) -> AsyncIterator[Path]:
        directory = tmp_path / "library"
        directory.mkdir(exist_ok=True)
        chosen = MountSettings(directory, **{"cache_size_bytes": 32 * MIB, **settings})  # type: ignore[arg-type]
        ready = asyncio.Event()
        running = asyncio.create_task(
            run_mount(names, sources.open, chosen, observer, on_ready=ready.set, changes=changes)
        )
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if running.done():
            running.result()
        try:
            yield directory
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running

    return mount


@pytest.fixture
def world() -> Iterator[World]:
    """A home, for the replays of its mounts."""
    with world_in_memory() as made:
        yield made
