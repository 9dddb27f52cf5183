"""Long work on the catalogue in turns of its one writer thread: what somebody waits for goes in between."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence

__all__ = ["by_size", "in_slices"]


async def in_slices(write: Callable[[Callable[[], bool]], Awaitable[object]], steps: Iterator[None]) -> None:
    """Take every step in a turn of its own. Raises: what a step raises."""

    def step() -> bool:
        return next(steps, False) is None

    while await write(step):
        continue


def by_size(entries: Sequence[bytes], limit_bytes: int) -> Iterator[Sequence[bytes]]:
    """Runs of entries of up to so many bytes together, each at least one."""
    start = size = 0
    for index, entry in enumerate(entries):
        if index > start and size + len(entry) > limit_bytes:
            yield entries[start:index]
            start, size = index, 0
        size += len(entry)
    if entries:
        yield entries[start:]
