"""The plain bytes of a changed file, put together from the journal and the content below."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from collective.catalog import Inline, VersionReference
from collective.chunks.split import runs_of
from collective.core.errors import NotFound
from collective.core.sizes import MIB
from collective.mount.dirty import Frozen
from collective.mount.extents import BASE, ZEROS, Piece
from collective.mount.journal import Journal
from collective.mount.names import OpenSource, Source
from collective.mount.pace import Pace

__all__ = ["FrozenBytes", "PlainReader"]

PACED_BYTES = MIB  # smaller contents are many, and each is little work
SEGMENTS_AT_ONCE = 128  # a whole chunk


class PlainReader:
    """Reads what is frozen, at the pace that leaves programs their share."""

    def __init__(self, journal: Journal, open_source: OpenSource, pace: Pace) -> None:
        self._journal = journal
        self._open_source = open_source
        self._pace = pace

    def open(self, frozen: Frozen) -> FrozenBytes:
        """Close it when done; nobody is called yet."""
        return FrozenBytes(frozen, self._journal, self._open_source, self._pace)

    def read_journal(self, pieces: Sequence[Piece]) -> bytes:
        """Small pieces without any of the base, joined. Raises: NotFound, Corrupt, Unreachable."""
        parts = []
        for piece in pieces:
            size = piece.end - piece.start
            assert piece.seq != BASE
            parts.append(bytes(size) if piece.seq == ZEROS else self._journal.read(piece.seq, piece.skip, size))
        return b"".join(parts)


class FrozenBytes:
    """The bytes of one frozen content. `read` may be called several times at once."""

    def __init__(self, frozen: Frozen, journal: Journal, open_source: OpenSource, pace: Pace) -> None:
        self._frozen = frozen
        self._pace = pace
        self._journal = journal
        self._open_source = open_source
        self._source: Source | None = None
        self._opening = asyncio.Lock()

    async def read(self, offset: int, into: memoryview) -> None:
        """Fill the view. Raises: CollectiveError."""
        if len(into) >= PACED_BYTES:
            await self._pace.give_way(len(into))
        journalled: list[tuple[int, int, memoryview]] = []
        for piece in self._frozen.plan(offset, len(into)):
            view = into[piece.start - offset : piece.end - offset]
            if piece.seq == ZEROS:
                view[:] = bytes(len(view))
            elif piece.seq == BASE:
                await self._read_base(piece.start, view)
            else:
                journalled.append((piece.seq, piece.skip, view))
        if journalled:
            await self._journal.read_many(journalled)

    async def _read_base(self, offset: int, view: memoryview) -> None:
        base = self._frozen.base
        if isinstance(base, Inline):
            view[:] = base.data[offset : offset + len(view)]
            return
        source = await self._opened(base)
        for run in runs_of(source.layout, offset, len(view), SEGMENTS_AT_ONCE):
            start, end = max(run.offset, offset), min(run.offset + run.size_bytes, offset + len(view))
            if start == run.offset and end == run.offset + run.size_bytes:
                target = view[start - offset : end - offset]
                await source.fill(run.chunk_index, run.first_segment, run.segment_count, target)
                continue
            whole = bytearray(run.size_bytes)  # the segments that only a part is wanted of
            await source.fill(run.chunk_index, run.first_segment, run.segment_count, memoryview(whole))
            view[start - offset : end - offset] = memoryview(whole)[start - run.offset : end - run.offset]

    async def _opened(self, base: VersionReference) -> Source:
        async with self._opening:
            if self._source is None:
                self._source = await self._open_source(base)
            if self._source.layout.size_bytes != base.size_bytes:
                raise NotFound("the content below has another size than it had")
            return self._source

    async def close(self) -> None:
        if self._source is not None:
            await self._source.close()
