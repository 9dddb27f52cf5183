"""Sealing: what is sealed opens to itself, whatever was changed on the way is Corrupt."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collective.chunks import (
    HASH_BYTES,
    SealedChunk,
    chunk_id,
    derive_chunk_key,
    derive_store_secret,
    hash_segments,
    open_segments,
    seal_chunk,
    verify_hashes,
)
from collective.core.errors import Corrupt
from collective.core.layout import MAX_CHUNK_SIZE_BYTES, SEALED_SEGMENT_BYTES, SEGMENT_BYTES, sealed_size, segment_count

SECRET = bytes(range(32))
SIZES = st.one_of(
    st.integers(1, 400),
    st.sampled_from([SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1, 3 * SEGMENT_BYTES, 3 * SEGMENT_BYTES + 5]),
)


def sealed_from(seed: int, size: int) -> tuple[bytes, bytes, SealedChunk]:
    plain = random.Random(seed).randbytes(size)
    key = derive_chunk_key(SECRET, plain)
    return plain, key, seal_chunk(key, plain)


def open_all(key: bytes, id_: bytes, sealed: bytes | bytearray | memoryview, hashes: bytes, size: int) -> bytes:
    """As a reader does it: the list against the id, the segments against the list, then the key."""
    verify_hashes(id_, hashes, len(sealed))
    out = bytearray(size)
    got = open_segments(key, sealed, hashes, first_segment=0, chunk_size_bytes=size, out=memoryview(out))
    assert got == size
    return bytes(out)


@given(seed=st.integers(0, 2**32), size=SIZES)
@settings(max_examples=60, deadline=None)
def test_what_is_sealed_opens_to_itself(seed: int, size: int) -> None:
    plain, key, chunk = sealed_from(seed, size)
    assert len(chunk.sealed) == sealed_size(size)
    assert len(chunk.hashes) == HASH_BYTES * segment_count(size)
    assert hash_segments(chunk.sealed) == chunk.hashes
    assert chunk_id(chunk.hashes) == chunk.id
    assert open_all(key, chunk.id, chunk.sealed, chunk.hashes, size) == plain


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_run_of_segments_opens_by_itself(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 5 * SEGMENT_BYTES))
    first = data.draw(st.integers(0, segment_count(size) - 1))
    count = data.draw(st.integers(1, segment_count(size) - first))
    plain, key, chunk = sealed_from(size, size)
    sealed = chunk.sealed[first * SEALED_SEGMENT_BYTES : (first + count) * SEALED_SEGMENT_BYTES]
    hashes = chunk.hashes[first * HASH_BYTES : (first + count) * HASH_BYTES]
    out = bytearray(count * SEGMENT_BYTES)
    got = open_segments(key, sealed, hashes, first_segment=first, chunk_size_bytes=size, out=memoryview(out))
    assert out[:got] == plain[first * SEGMENT_BYTES : (first + count) * SEGMENT_BYTES]


def test_every_flipped_byte_of_a_chunk_is_corrupt() -> None:
    size = 300
    _, key, chunk = sealed_from(1, size)
    for at in range(len(chunk.sealed)):
        broken = bytearray(chunk.sealed)
        broken[at] ^= 1
        with pytest.raises(Corrupt):
            open_all(key, chunk.id, broken, chunk.hashes, size)
        # A host that forges the list to fit is found by the id; one that could forge the id too, by the key.
        with pytest.raises(Corrupt):
            open_all(key, chunk.id, broken, hash_segments(broken), size)
        with pytest.raises(Corrupt):
            open_all(key, chunk_id(hash_segments(broken)), broken, hash_segments(broken), size)
    for at in range(len(chunk.hashes)):
        hashes = bytearray(chunk.hashes)
        hashes[at] ^= 0x80
        with pytest.raises(Corrupt):
            open_all(key, chunk.id, chunk.sealed, bytes(hashes), size)


def test_a_chunk_cut_short_or_made_longer_is_corrupt() -> None:
    size = 3 * SEGMENT_BYTES
    _, key, chunk = sealed_from(2, size)
    for length in (0, 1, SEALED_SEGMENT_BYTES, 2 * SEALED_SEGMENT_BYTES, len(chunk.sealed) - 1):
        cut = chunk.sealed[:length]
        with pytest.raises(Corrupt):
            open_all(key, chunk.id, cut, chunk.hashes, size)
        with pytest.raises(Corrupt):
            open_all(key, chunk.id, cut, hash_segments(cut), size)
    with pytest.raises(Corrupt):
        open_all(key, chunk.id, bytes(chunk.sealed) + b"\0", chunk.hashes, size)


def test_a_shorter_chunk_does_not_pass_for_the_whole_even_to_the_holder_of_the_key() -> None:
    size = 3 * SEGMENT_BYTES
    _, key, chunk = sealed_from(3, size)
    two = chunk.sealed[: 2 * SEALED_SEGMENT_BYTES]
    hashes = hash_segments(two)
    with pytest.raises(Corrupt):  # the second segment was not sealed as the last one
        open_all(key, chunk_id(hashes), two, hashes, 2 * SEGMENT_BYTES)


def test_segments_moved_within_or_between_chunks_are_corrupt() -> None:
    size = 2 * SEGMENT_BYTES
    _, key, chunk = sealed_from(4, size)
    _, _, other = sealed_from(5, size)
    first, second = chunk.sealed[:SEALED_SEGMENT_BYTES], chunk.sealed[SEALED_SEGMENT_BYTES:]
    for moved in (bytes(second) + bytes(first), bytes(first) + bytes(other.sealed[SEALED_SEGMENT_BYTES:])):
        with pytest.raises(Corrupt):
            open_all(key, chunk.id, moved, chunk.hashes, size)
        forged = hash_segments(moved)
        with pytest.raises(Corrupt):  # also if the list and the id were made to fit
            open_all(key, chunk_id(forged), moved, forged, size)


def test_a_host_that_holds_the_key_cannot_forge() -> None:
    """It seals other bytes rightly, under the right number; only the list, and the id over it, tell."""
    size = 2 * SEGMENT_BYTES
    _, key, chunk = sealed_from(9, size)
    forged = seal_chunk(key, b"forged" * 30_000).sealed[:SEALED_SEGMENT_BYTES]
    sealed = bytes(forged) + bytes(chunk.sealed[SEALED_SEGMENT_BYTES:])
    with pytest.raises(Corrupt):
        open_all(key, chunk.id, sealed, chunk.hashes, size)
    with pytest.raises(Corrupt):
        open_all(key, chunk.id, sealed, hash_segments(sealed), size)


def test_a_segment_asked_for_by_another_number_is_corrupt() -> None:
    size = 3 * SEGMENT_BYTES
    _, key, chunk = sealed_from(6, size)
    out = memoryview(bytearray(SEGMENT_BYTES))
    with pytest.raises(Corrupt):
        open_segments(
            key,
            chunk.sealed[:SEALED_SEGMENT_BYTES],
            chunk.hashes[:HASH_BYTES],
            first_segment=1,
            chunk_size_bytes=size,
            out=out,
        )
    for first in (-1, 3, 2**32):
        with pytest.raises(Corrupt):
            open_segments(
                key,
                chunk.sealed[:SEALED_SEGMENT_BYTES],
                chunk.hashes[:HASH_BYTES],
                first_segment=first,
                chunk_size_bytes=size,
                out=out,
            )


def test_nothing_of_a_segment_that_does_not_open_is_left_in_the_buffer() -> None:
    _, _, chunk = sealed_from(7, 5000)
    out = bytearray(5000)
    with pytest.raises(Corrupt):
        open_segments(
            bytes(32), chunk.sealed, chunk.hashes, first_segment=0, chunk_size_bytes=5000, out=memoryview(out)
        )
    assert out == bytes(5000)


def test_equal_content_of_one_writer_gives_equal_chunks_and_of_another_does_not() -> None:
    plain = b"the same film" * 1000
    one = seal_chunk(derive_chunk_key(SECRET, plain), plain)
    again = seal_chunk(derive_chunk_key(SECRET, plain), plain, bytearray(20_000))
    assert (one.id, bytes(one.sealed)) == (again.id, bytes(again.sealed))
    other = derive_store_secret(SECRET, b"another store")
    assert other != SECRET
    assert seal_chunk(derive_chunk_key(other, plain), plain).id != one.id


def test_sizes_that_are_no_chunk_and_buffers_that_are_too_small_are_refused() -> None:
    for size in (0, MAX_CHUNK_SIZE_BYTES + 1):
        with pytest.raises(ValueError, match="bytes"):
            seal_chunk(bytes(32), bytes(size))
    with pytest.raises(ValueError, match="room"):
        seal_chunk(bytes(32), bytes(100), bytearray(115))
    _, key, chunk = sealed_from(8, 100)
    with pytest.raises(ValueError, match="room"):
        open_segments(
            key, chunk.sealed, chunk.hashes, first_segment=0, chunk_size_bytes=100, out=memoryview(bytearray(99))
        )
