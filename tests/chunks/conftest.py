"""Fixtures of the chunk tests: chunks made from a seed, a store on a fresh folder."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from collective.chunks import ChunkStore, SealedChunk, derive_chunk_key, seal_chunk

SECRET = bytes(range(32))
MakeChunk = Callable[[int, int], SealedChunk]


@pytest.fixture
def make_chunk() -> MakeChunk:
    """(seed, plain size) -> a sealed chunk, the same for the same seed and size."""

    def make(seed: int, size_bytes: int) -> SealedChunk:
        plain = random.Random(seed).randbytes(size_bytes)
        return seal_chunk(derive_chunk_key(SECRET, plain), plain)

    return make


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ChunkStore]:
    opened = ChunkStore.open(tmp_path / "disk", capacity_bytes=1 << 30)
    yield opened
    await opened.close()
