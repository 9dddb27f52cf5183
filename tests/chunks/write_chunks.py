"""A small process that puts chunks, for the tests that kill it or make its disk fail.

    python write_chunks.py DIRECTORY FIRST_SEED COUNT [FEW_FILES]

Chunks are made from their seeds, as `make_chunk` does. It writes a line per answer: `kept SEED`, or
`failed SEED KIND here|absent`, where the last word is what the store says it has.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from collective.chunks import ChunkStore, durability
from collective.chunks.seal import derive_chunk_key, seal_chunk
from collective.core.errors import CollectiveError

SECRET = bytes(range(32))
SIZES = (1, 1000, 65_536, 200_000, 1_000_000)
AT_ONCE = 12


async def write(store: ChunkStore, seeds: Iterator[int]) -> None:
    for seed in seeds:
        plain = random.Random(seed).randbytes(SIZES[seed % len(SIZES)])
        chunk = seal_chunk(derive_chunk_key(SECRET, plain), plain)
        try:
            await store.put(chunk.id, chunk.sealed)
        except CollectiveError as error:
            answer = f"failed {seed} {type(error).__name__} {'here' if store.has(chunk.id) else 'absent'}"
        else:
            answer = f"kept {seed}"
        print(answer, flush=True)


async def main() -> None:
    directory, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    if len(sys.argv) > 4:
        durability.FEW_FILES = int(sys.argv[4])
    store = ChunkStore.open(directory, capacity_bytes=1 << 40)
    print("open", flush=True)
    seeds = iter(range(first, first + count))
    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(write(store, seeds))
    await store.close()


if __name__ == "__main__":
    asyncio.run(main())
