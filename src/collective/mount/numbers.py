"""Inode numbers this mount may give out, borrowed from its coordinator in blocks, so that a create asks nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from collective.core.errors import Unreachable

__all__ = ["InodeNumbers"]

BLOCK_COUNT = 1024  # a second of creating at full speed; what is left of a block when the mount ends is lost


class InodeNumbers:
    """`lend(store_id, count)` gives a range, perhaps a shorter one."""

    def __init__(self, lend: Callable[[bytes, int], Awaitable[range]]) -> None:
        self._lend = lend
        self._blocks: dict[bytes, range] = {}
        self._locks: dict[bytes, asyncio.Lock] = {}

    async def take(self, store_id: bytes) -> int:
        """A number nobody else has. Waits only when the block is used up. Raises: what `lend` raises; Unreachable."""
        block = self._blocks.get(store_id)
        if not block:
            async with self._locks.setdefault(store_id, asyncio.Lock()):
                block = self._blocks.get(store_id) or await self._lend(store_id, BLOCK_COUNT)
            if not block:
                raise Unreachable("no inode numbers are to be had for this DataStore now")
        self._blocks[store_id] = block[1:]
        return block[0]
