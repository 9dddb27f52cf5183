"""After each change of the names, has the kernel forget what it was told wrongly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from collective.core.observe import Observer
from collective.mount.changes import Stale, ToldNames
from collective.mount.names import Names

__all__ = ["follow_changes"]

CHANGE_POLL_SECONDS = 0.5
REST_SECONDS = 0.05  # between two comparisons at least …
REST_SHARE = 3.0  # … and this many times as long as the last one took: a mount that changes much itself, moves it often
COMPARISONS_PER_TURN = 256  # between two turns of the event loop: about 10 ms


async def follow_changes(
    names: Names,
    told: ToldNames,
    note: Callable[[Stale], None],
    changes: AsyncIterator[object] | None,
    observer: Observer,
    changed: Callable[[], None] = lambda: None,
) -> None:
    """Runs until cancelled. `note` takes one thing back; it is called in a thread because it may wait for the kernel.

    `changes` yields whenever the counter may have grown; without it, and once it ended or failed, the counter is
    asked twice a second. `changed` is called before anything is compared. Nothing that goes wrong here ends the mount:
    what the kernel was told runs out by itself. Cancelled while a note is on its way, this waits for it.
    """
    seen = names.change_counter()
    clock = asyncio.get_running_loop().time
    while True:
        try:
            async for _ in changes or _regularly():
                counter = names.change_counter()
                if counter != seen:
                    seen = counter
                    changed()
                    owed: float | None = 0.0
                    while owed is not None:  # twice at most, unless more was told meanwhile
                        began = clock()
                        await _take_back(told, note)
                        owed = told.owed_in(clock())
                        await asyncio.sleep(max(REST_SECONDS, REST_SHARE * (clock() - began), owed or 0.0))
        except Exception as failure:
            observer.event("mount.changes_lost", kind=type(failure).__name__, reason=str(failure))
        changes = None


async def _take_back(told: ToldNames, note: Callable[[Stale], None]) -> None:
    batch: list[Stale] = []
    for compared, stale in enumerate(told.stale(asyncio.get_running_loop().time()), start=1):
        if stale is not None:
            batch.append(stale)
        if compared % COMPARISONS_PER_TURN == 0:
            await _send(batch, note)
            batch = []
    await _send(batch, note)


async def _send(batch: Sequence[Stale], note: Callable[[Stale], None]) -> None:
    def send() -> None:
        for stale in batch:
            note(stale)

    if not batch:
        await asyncio.sleep(0)
        return
    sending = asyncio.ensure_future(asyncio.to_thread(send))
    try:
        await asyncio.shield(sending)
    except asyncio.CancelledError:
        await sending
        raise


async def _regularly() -> AsyncIterator[None]:
    while True:
        await asyncio.sleep(CHANGE_POLL_SECONDS)
        yield None
