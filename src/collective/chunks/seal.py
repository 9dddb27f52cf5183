"""Sealing a chunk, and opening any run of its segments.

    key      = BLAKE3 keyed by the writer's store secret, over (format byte, plain bytes)
    segment  = AES-256-GCM(key, nonce = 7 zero bytes, u32 segment number, u8 last mark; 65,536 plain bytes)
    hashes   = BLAKE3 of each sealed segment, joined
    chunk id = BLAKE3, in its own context, of the hashes

Equal content of one writer gives equal chunks; without the secret nobody can confirm a guess. A node checks sealed
bytes against the id without the key; a reader checks before it opens, so that a host that holds the key cannot
forge. The last mark makes truncation at a segment boundary visible (as in STREAM, Hoang et al. 2015).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from typing_extensions import Buffer

from collective.core.errors import Corrupt
from collective.core.layout import MAX_CHUNK_SIZE_BYTES, SEALED_SEGMENT_BYTES, SEGMENT_BYTES, sealed_size, segment_count

__all__ = [
    "HASH_BYTES",
    "SealedChunk",
    "chunk_id",
    "derive_chunk_key",
    "derive_store_secret",
    "hash_segments",
    "open_segments",
    "seal_chunk",
    "verify_hashes",
]

HASH_BYTES = 32
FORMAT = b"\x01"
_ID_CONTEXT = "collective 2026 chunk id 1"
_SECRET_CONTEXT = b"collective store secret 1\0"
_NONCE = struct.Struct(">7xIB")


@dataclass(frozen=True)
class SealedChunk:
    """`sealed` without trailer, `hashes` 32 bytes per segment, `id` of 32 bytes."""

    id: bytes
    sealed: memoryview
    hashes: bytes


def derive_store_secret(member_secret: bytes, store_id: bytes) -> bytes:
    """The secret of one (writer, DataStore) from the member's own 32 bytes. Losing it costs deduplication alone."""
    return blake3(_SECRET_CONTEXT + store_id, key=member_secret).digest()


def derive_chunk_key(secret: bytes, plain: Buffer) -> bytes:
    """32 bytes; `secret` is the store's, of 32 bytes."""
    hasher = blake3(FORMAT, key=secret)
    hasher.update(plain)
    return hasher.digest()


def seal_chunk(key: bytes, plain: Buffer, into: bytearray | memoryview | None = None) -> SealedChunk:
    """Seal 1 byte to a whole chunk. `into` is a buffer of at least `sealed_size(len(plain))` to write to.

    A key must never seal two different contents: take it from `derive_chunk_key`. Raises: ValueError (sizes).
    """
    source = memoryview(plain).cast("B")
    if not 0 < len(source) <= MAX_CHUNK_SIZE_BYTES:
        raise ValueError(f"a chunk has 1 to {MAX_CHUNK_SIZE_BYTES} bytes, not {len(source)}")
    count = segment_count(len(source))
    size = sealed_size(len(source))
    target = memoryview(bytearray(size) if into is None else into)[:size]
    if len(target) < size:
        raise ValueError(f"{len(target)} bytes of room for {size} sealed")
    cipher = AESGCM(key)
    hashes = []
    for number in range(count):
        segment = source[number * SEGMENT_BYTES : (number + 1) * SEGMENT_BYTES]
        start = number * SEALED_SEGMENT_BYTES
        sealed = target[start : start + SEALED_SEGMENT_BYTES]
        cipher.encrypt_into(_NONCE.pack(number, number == count - 1), segment, None, sealed)
        hashes.append(blake3(sealed).digest())
    joined = b"".join(hashes)
    return SealedChunk(chunk_id(joined), target, joined)


def hash_segments(sealed: Buffer) -> bytes:
    """The hash list of sealed bytes that begin at a segment's start."""
    view = memoryview(sealed).cast("B")
    return b"".join(
        blake3(view[start : start + SEALED_SEGMENT_BYTES]).digest()
        for start in range(0, len(view), SEALED_SEGMENT_BYTES)
    )


def chunk_id(hashes: bytes) -> bytes:
    """The id that a hash list names."""
    return blake3(hashes, derive_key_context=_ID_CONTEXT).digest()


def verify_hashes(id_: bytes, hashes: bytes, sealed_size_bytes: int) -> None:
    """That a hash list is the one of this chunk, with a hash per segment. Raises: Corrupt."""
    if len(hashes) != HASH_BYTES * -(-sealed_size_bytes // SEALED_SEGMENT_BYTES) or chunk_id(hashes) != id_:
        raise Corrupt("a chunk's hash list is not the one its id names")


def open_segments(
    key: bytes,
    sealed: Buffer,
    hashes_of_these: bytes,
    *,
    first_segment: int,
    chunk_size_bytes: int,
    out: memoryview,
) -> int:
    """Verify and open a run of segments into `out`; the number of plain bytes.

    `hashes_of_these` is the verified list's part for this run, `chunk_size_bytes` the chunk's plain size. The segments
    before a broken one are in `out` and good; nothing of the broken one is. Raises: Corrupt, ValueError (no room).
    """
    source = memoryview(sealed).cast("B")
    last = segment_count(chunk_size_bytes) - 1
    count = len(hashes_of_these) // HASH_BYTES
    if not 0 < count <= last + 1 - first_segment or first_segment < 0 or len(hashes_of_these) % HASH_BYTES:
        raise Corrupt(f"{count} segments from {first_segment} are not in a chunk of {last + 1}")
    plain_bytes = min(count * SEGMENT_BYTES, chunk_size_bytes - first_segment * SEGMENT_BYTES)
    if len(source) != sealed_size(plain_bytes):
        raise Corrupt(f"{len(source)} sealed bytes where {sealed_size(plain_bytes)} are due")
    if len(out) < plain_bytes:
        raise ValueError(f"{len(out)} bytes of room for {plain_bytes}")
    cipher = AESGCM(key)
    for index in range(count):
        number = first_segment + index
        sealed_segment = source[index * SEALED_SEGMENT_BYTES : (index + 1) * SEALED_SEGMENT_BYTES]
        target = out[index * SEGMENT_BYTES : min((index + 1) * SEGMENT_BYTES, plain_bytes)]
        if blake3(sealed_segment).digest() != hashes_of_these[index * HASH_BYTES : (index + 1) * HASH_BYTES]:
            raise Corrupt(f"segment {number} is not the one that was sealed")
        try:
            cipher.decrypt_into(_NONCE.pack(number, number == last), sealed_segment, None, target)
        except InvalidTag as error:
            target[:] = bytes(len(target))
            raise Corrupt(f"segment {number} does not open with its key") from error
    return plain_bytes
