"""Runs: an extent of a version is covered once, in order, by runs that end at chunks and at the limit."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from collective.chunks import runs_of
from collective.core.layout import SEGMENT_BYTES, VersionLayout

CHUNK = 4 * SEGMENT_BYTES


@given(
    size=st.integers(1, 5 * CHUNK), offset=st.integers(0, 5 * CHUNK), length=st.integers(0, 3 * CHUNK),
    limit=st.integers(1, 6),
)  # fmt: skip
def test_runs_cover_the_extent_once_and_in_order(size: int, offset: int, length: int, limit: int) -> None:
    layout = VersionLayout(size, CHUNK)
    runs = list(runs_of(layout, offset, length, limit))
    end = min(size, offset + length)
    if not runs:
        assert end <= offset - offset % SEGMENT_BYTES
        return
    assert runs[0].offset <= offset < runs[0].offset + SEGMENT_BYTES
    for before, after in itertools.pairwise(runs):
        assert before.offset + before.size_bytes == after.offset
    assert runs[-1].offset < end <= runs[-1].offset + runs[-1].size_bytes <= size
    for run in runs:
        assert run.offset == run.chunk_index * CHUNK + run.first_segment * SEGMENT_BYTES
        assert 0 < run.segment_count <= limit
        assert run.first_segment + run.segment_count <= -(-layout.chunk_size(run.chunk_index) // SEGMENT_BYTES)
        assert (run.segment_count - 1) * SEGMENT_BYTES < run.size_bytes <= run.segment_count * SEGMENT_BYTES


def test_a_whole_version_is_its_chunks() -> None:
    layout = VersionLayout(2 * CHUNK + 10, CHUNK)
    runs = list(runs_of(layout, 0, layout.size_bytes, 100))
    assert [(run.chunk_index, run.segment_count, run.size_bytes) for run in runs] == [
        (0, 4, CHUNK),
        (1, 4, CHUNK),
        (2, 1, 10),
    ]
