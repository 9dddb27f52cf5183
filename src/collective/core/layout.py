"""How a version's bytes are laid out: chunks of segments, listed in pages (design of the stored forms).

A version of `size_bytes` is cut into chunks of `chunk_size_bytes` (the last is short); 512 chunks make a page; a
chunk is sealed in segments of 65,536 plain bytes, 65,552 sealed (16 bytes of tag each). A chunk that is all zeros is
a hole: it has a size and no id. The public page lists (id, plain size); the sealed page beside it lists the keys.
Everything here is arithmetic and packing; hashing and sealing live in `chunks`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from collective.core.errors import Corrupt
from collective.core.sizes import KIB, MIB

__all__ = [
    "CHUNKS_PER_PAGE",
    "CHUNK_ID_BYTES",
    "CHUNK_SIZE_BACKUP_BYTES",
    "CHUNK_SIZE_BYTES",
    "INLINE_LIMIT_BYTES",
    "MAX_CHUNK_SIZE_BYTES",
    "MAX_SEALED_CHUNK_BYTES",
    "SEALED_SEGMENT_BYTES",
    "SEGMENT_BYTES",
    "ChunkReference",
    "VersionLayout",
    "decode_page",
    "encode_page",
    "sealed_size",
    "segment_count",
]

SEGMENT_BYTES = 64 * KIB
TAG_BYTES = 16
SEALED_SEGMENT_BYTES = SEGMENT_BYTES + TAG_BYTES
CHUNK_SIZE_BYTES = 8 * MIB  # media and hybrid
CHUNK_SIZE_BACKUP_BYTES = 4 * MIB
MAX_CHUNK_SIZE_BYTES = 8 * MIB
CHUNKS_PER_PAGE = 512
CHUNK_ID_BYTES = 32
INLINE_LIMIT_BYTES = 4096  # contents up to this live in the tree row itself

_PAGE_FORMAT = 1
_PAGE_ROW = struct.Struct(">32sI")
_HOLE_ID = bytes(CHUNK_ID_BYTES)


def segment_count(size_bytes: int) -> int:
    """Segments of a chunk of `size_bytes` plain bytes (>= 1 byte)."""
    return -(-size_bytes // SEGMENT_BYTES)


def sealed_size(size_bytes: int) -> int:
    """Sealed bytes, without the trailer, of a chunk of `size_bytes` plain bytes."""
    return size_bytes + TAG_BYTES * segment_count(size_bytes)


MAX_SEALED_CHUNK_BYTES = sealed_size(MAX_CHUNK_SIZE_BYTES)


@dataclass(frozen=True)
class ChunkReference:
    """One chunk of a version: `id` (32 bytes, None for a hole) and its plain size."""

    id: bytes | None
    size_bytes: int


@dataclass(frozen=True)
class VersionLayout:
    """The shape of a version: its size and chunk size; which chunk an offset is in."""

    size_bytes: int
    chunk_size_bytes: int

    @property
    def chunk_count(self) -> int:
        return -(-self.size_bytes // self.chunk_size_bytes)

    @property
    def page_count(self) -> int:
        return -(-self.chunk_count // CHUNKS_PER_PAGE)

    def chunk_size(self, index: int) -> int:
        """Plain bytes of chunk `index`. Raises: IndexError."""
        if not 0 <= index < self.chunk_count:
            raise IndexError(f"chunk {index} of {self.chunk_count}")
        return min(self.chunk_size_bytes, self.size_bytes - index * self.chunk_size_bytes)


def encode_page(chunks: Sequence[ChunkReference]) -> bytes:
    """The public page: one format byte, then (id, u32 plain size) per chunk, holes as 32 zero bytes."""
    if len(chunks) > CHUNKS_PER_PAGE:
        raise ValueError(f"a page holds {CHUNKS_PER_PAGE} chunks, not {len(chunks)}")
    rows = (_PAGE_ROW.pack(chunk.id or _HOLE_ID, chunk.size_bytes) for chunk in chunks)
    return bytes([_PAGE_FORMAT]) + b"".join(rows)


def decode_page(page: bytes) -> tuple[ChunkReference, ...]:
    """The chunks of a public page. Raises: Corrupt."""
    if len(page) < 1 or page[0] != _PAGE_FORMAT or (len(page) - 1) % _PAGE_ROW.size:
        raise Corrupt("a page of chunk ids has an unknown form")
    if (len(page) - 1) // _PAGE_ROW.size > CHUNKS_PER_PAGE:
        raise Corrupt("a page of chunk ids is too long")
    return tuple(
        ChunkReference(None if id_ == _HOLE_ID else id_, size_bytes)
        for id_, size_bytes in _PAGE_ROW.iter_unpack(page[1:])
    )
