"""Buffers go round, and no more of them wait than was said."""

from __future__ import annotations

import ctypes
import mmap

from collective.core.memory import BufferPool, fresh_buffer


def test_fresh_memory_is_zero_and_begins_at_a_page() -> None:
    for size in (1, 5000, 3 << 20):
        buffer = fresh_buffer(size)
        assert len(buffer) == size
        assert buffer[:] == bytes(size)
        assert ctypes.addressof(ctypes.c_char.from_buffer(buffer)) % mmap.PAGESIZE == 0


def test_a_buffer_given_back_is_taken_again_by_whoever_it_suffices() -> None:
    pool = BufferPool(10_000)
    small, large = pool.take(1_000), pool.take(5_000)
    pool.give_back(small)
    pool.give_back(large)
    assert pool.take(2_000) is large
    assert pool.take(500) is small
    assert pool.spare_bytes == 0


def test_what_is_too_small_makes_place_for_what_suffices() -> None:
    pool = BufferPool(3_000)
    for buffer in [pool.take(1_000) for _ in range(3)]:
        pool.give_back(buffer)
    large = pool.take(2_000)
    assert len(large) == 2_000
    assert pool.spare_bytes == 2_000
    pool.give_back(large)
    assert pool.spare_bytes == 2_000, "more than is to be kept goes back to the system"
    pool.rest()
    assert pool.spare_bytes == 2_000, "it was used a moment ago"
    pool.rest()
    assert pool.spare_bytes == 0
    assert pool.take(10) is not large
