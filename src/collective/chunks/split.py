"""Where things lie: which chunk and segments an extent of a version covers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from collective.core.layout import SEGMENT_BYTES, VersionLayout

__all__ = ["Run", "runs_of"]


@dataclass(frozen=True)
class Run:
    """Consecutive segments of one chunk; `offset` of their first plain byte in the version, `size_bytes` of them."""

    chunk_index: int
    first_segment: int
    segment_count: int
    offset: int
    size_bytes: int


def runs_of(layout: VersionLayout, offset: int, size_bytes: int, max_segments: int) -> Iterator[Run]:
    """The runs, of at most `max_segments`, that cover an extent; widened to whole segments, clipped to the version."""
    position = offset - offset % SEGMENT_BYTES
    end = min(offset + size_bytes, layout.size_bytes)
    while position < end:
        chunk_index, inside = divmod(position, layout.chunk_size_bytes)
        chunk_end = chunk_index * layout.chunk_size_bytes + layout.chunk_size(chunk_index)
        count = min(max_segments, -(-(min(end, chunk_end) - position) // SEGMENT_BYTES))
        size = min(count * SEGMENT_BYTES, chunk_end - position)
        yield Run(chunk_index, inside // SEGMENT_BYTES, count, position, size)
        position += size
