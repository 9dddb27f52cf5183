"""An edit of a large content sends what it changed, and the writer's node holds all of it afterwards."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

from collective.chunks import derive_chunk_key, open_key_page, open_segments, seal_chunk, verify_hashes
from collective.core.errors import Corrupt
from collective.core.layout import ChunkReference, VersionLayout, decode_page, segment_count
from collective.transfer.node_lane import UploadPlan
from collective.transfer.push import Previous, Uploaded, upload_content

CHUNK = 1 << 20
SECRET, STORE_KEY = b"x" * 32, b"k" * 32


class MemoryNodeLane:
    """A node's chunks in a dict, with the shape of NodeLane."""

    def __init__(self) -> None:
        self.chunks: dict[bytes, bytes] = {}
        self.sent: list[bytes] = []

    async def present(self, ids: Sequence[bytes], sealed_sizes: Sequence[int]) -> list[bool]:
        return [id_ in self.chunks for id_ in ids]

    async def send(self, id_: bytes, sealed: memoryview) -> bool:
        if id_ in self.chunks:
            return False
        self.chunks[id_] = bytes(sealed)
        self.sent.append(id_)
        return True


class MemoryBytes:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.reads: list[tuple[int, int]] = []

    @property
    def size_bytes(self) -> int:
        return len(self._data)

    async def read(self, offset: int, into: memoryview) -> None:
        self.reads.append((offset, len(into)))
        into[:] = self._data[offset : offset + len(into)]


def plan(secret: bytes = SECRET) -> UploadPlan:
    return UploadPlan(b"s" * 32, secret, STORE_KEY, CHUNK, b"", [])


def as_previous(uploaded: Uploaded, chunk_size: int = CHUNK) -> Previous:
    async def page(index: int) -> tuple[Sequence[ChunkReference], Sequence[bytes | None]]:
        return decode_page(uploaded.pages[index]), open_key_page(STORE_KEY, uploaded.key_pages[index])

    return Previous(VersionLayout(uploaded.layout.size_bytes, chunk_size), page)


def read_back(lane: MemoryNodeLane, uploaded: Uploaded) -> bytes:
    """The plain bytes that a reader gets from this node alone."""
    parts = []
    for page, key_page in zip(uploaded.pages, uploaded.key_pages, strict=True):
        for chunk, key in zip(decode_page(page), open_key_page(STORE_KEY, key_page), strict=True):
            out = bytearray(chunk.size_bytes)
            if chunk.id is not None:
                assert key is not None
                sealed = lane.chunks[chunk.id]
                hashes = seal_chunk(key, _open(key, sealed, out)).hashes
                verify_hashes(chunk.id, hashes, len(sealed))
            parts.append(bytes(out))
    return b"".join(parts)


def _open(key: bytes, sealed: bytes, out: bytearray) -> bytearray:
    from collective.chunks import hash_segments

    hashes = hash_segments(sealed)
    assert len(hashes) == 32 * segment_count(len(out))
    open_segments(key, sealed, hashes, first_segment=0, chunk_size_bytes=len(out), out=memoryview(out))
    return out


async def first_version(data: bytes, lane: MemoryNodeLane) -> Uploaded:
    return await upload_content(MemoryBytes(data), plan(), lane)  # type: ignore[arg-type]


async def test_only_changed_chunks_are_read_and_sent() -> None:
    """One byte in the third of five chunks: one chunk read, one sent, the others taken over with their keys."""
    lane = MemoryNodeLane()
    data = bytearray(os.urandom(5 * CHUNK - 100))
    before = await first_version(bytes(data), lane)
    lane.sent.clear()
    data[2 * CHUNK + 17] ^= 1
    source = MemoryBytes(bytes(data))
    spot = 2 * CHUNK + 17
    made = await upload_content(source, plan(), lane, changed=[(spot, spot + 1)], previous=as_previous(before))  # type: ignore[arg-type]
    assert source.reads == [(2 * CHUNK, CHUNK)]
    assert len(lane.sent) == 1
    assert made.sent_bytes == CHUNK
    assert read_back(lane, made) == data


@pytest.mark.parametrize("size", [CHUNK // 2, 3 * CHUNK, 3 * CHUNK + 5, 9 * CHUNK + 7])
async def test_a_new_size_seals_the_chunk_at_the_old_end_and_leaves_holes(size: int) -> None:
    """Shorter or longer: the chunk whose plain size changes is sealed again, what lies beyond is a hole."""
    lane = MemoryNodeLane()
    data = os.urandom(3 * CHUNK + 1000)
    before = await first_version(data, lane)
    wanted = (data + bytes(size))[:size]
    source = MemoryBytes(wanted)
    made = await upload_content(source, plan(), lane, changed=[], previous=as_previous(before))  # type: ignore[arg-type]
    assert read_back(lane, made) == wanted
    assert len(source.reads) <= 1
    assert made.layout.size_bytes == size


async def test_chunks_the_node_lacks_come_back_as_they_were() -> None:
    """What another member wrote and this node never had is read, and sealed to the very same chunk."""
    theirs, ours = MemoryNodeLane(), MemoryNodeLane()
    data = os.urandom(3 * CHUNK)
    before = await upload_content(MemoryBytes(data), plan(b"their secret".ljust(32)), theirs)  # type: ignore[arg-type]
    wanted = b"!" + data[1:]
    source = MemoryBytes(wanted)
    made = await upload_content(source, plan(), ours, changed=[(0, 1)], previous=as_previous(before))  # type: ignore[arg-type]
    assert read_back(ours, made) == wanted
    assert set(theirs.chunks) & set(ours.chunks) == {chunk.id for chunk in decode_page(before.pages[0])[1:]}


async def test_a_wrong_previous_is_noticed_before_anything_is_sent() -> None:
    """Under a key that sealed other bytes nothing may be sealed and sent: that would break both."""
    theirs, ours = MemoryNodeLane(), MemoryNodeLane()
    before = await upload_content(MemoryBytes(os.urandom(CHUNK)), plan(), theirs)  # type: ignore[arg-type]
    with pytest.raises(Corrupt):
        await upload_content(
            MemoryBytes(os.urandom(CHUNK)),
            plan(),
            ours,
            changed=[],
            previous=as_previous(before),  # type: ignore[arg-type]
        )
    assert ours.chunks == {}


async def test_without_a_previous_what_is_not_changed_is_a_hole() -> None:
    """A sparse file is sealed where it was written, and read nowhere else."""
    lane = MemoryNodeLane()
    piece = os.urandom(100)
    wanted = bytes(6 * CHUNK) + piece + bytes(4 * CHUNK)
    source = MemoryBytes(wanted)
    made = await upload_content(source, plan(), lane, changed=[(6 * CHUNK, 6 * CHUNK + 100)])  # type: ignore[arg-type]
    assert source.reads == [(6 * CHUNK, CHUNK)]
    assert read_back(lane, made) == wanted
    assert derive_chunk_key(SECRET, wanted[6 * CHUNK : 7 * CHUNK]) in open_key_page(STORE_KEY, made.key_pages[0])


async def test_another_chunk_size_seals_everything_again() -> None:
    """A DataStore whose chunk size changed: nothing can be taken over."""
    lane = MemoryNodeLane()
    data = os.urandom(2 * CHUNK)
    before = await first_version(data, lane)
    source = MemoryBytes(data)
    other = UploadPlan(b"s" * 32, SECRET, STORE_KEY, 2 * CHUNK, b"", [])
    made = await upload_content(source, other, lane, changed=[], previous=as_previous(before))  # type: ignore[arg-type]
    assert source.reads == [(0, 2 * CHUNK)]
    assert read_back(lane, made) == data
