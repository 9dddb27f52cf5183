"""The slot pool: bounded, evicting in the promised order, never under a reader."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from collective.core.sizes import KIB, MIB
from collective.mount.cache import UNREAD_SECONDS, Slot, SlotCache, segment_mask


def obtain(cache: SlotCache, key: object, *, now: float = 0.0, ahead: bool = False, size: int = 8 * MIB) -> Slot:
    slot = cache.obtain(key, size, now, ahead=ahead)
    assert slot is not None
    return slot


def test_segments_are_valid_one_by_one() -> None:
    slot = obtain(SlotCache(16 * MIB), "a")
    slot.valid |= segment_mask(2, 3)
    assert slot.holds(segment_mask(2, 3))
    assert not slot.holds(segment_mask(1, 2))
    slot.pending |= segment_mask(5, 1)
    assert slot.absent(segment_mask(0, 7)) == segment_mask(0, 2) | segment_mask(6, 1)


def test_the_last_segment_of_a_chunk_is_short() -> None:
    slot = obtain(SlotCache(16 * MIB), "a", size=100 * KIB)
    assert len(slot.segments(1, 1)) == 36 * KIB
    assert len(slot.segments(0, 2)) == 100 * KIB


def test_the_least_recently_used_goes_first() -> None:
    cache = SlotCache(16 * MIB)
    obtain(cache, "a")
    obtain(cache, "b")
    assert cache.find("a") is not None
    obtain(cache, "c")
    assert cache.peek("a") is not None
    assert cache.peek("b") is None


def test_what_a_reader_passed_goes_before_everything() -> None:
    cache = SlotCache(16 * MIB)
    obtain(cache, "old")
    obtain(cache, "passed").passed = True
    obtain(cache, "new")
    assert cache.peek("old") is not None
    assert cache.peek("passed") is None


def test_a_pinned_slot_is_never_taken() -> None:
    cache = SlotCache(16 * MIB)
    obtain(cache, "a").pins += 1
    obtain(cache, "b").pins += 1
    assert cache.obtain("c", 8 * MIB, 0.0, ahead=False) is None


def test_read_ahead_does_not_push_out_read_ahead_but_a_waiting_reader_may() -> None:
    cache = SlotCache(16 * MIB)
    for key in "ab":
        obtain(cache, key, ahead=True).unread_since = 0.0
    assert cache.obtain("c", 8 * MIB, 1.0, ahead=True) is None
    obtain(cache, "c", now=1.0)
    assert cache.peek("a") is None


def test_prefetched_bytes_nobody_came_for_are_ordinary_after_a_while() -> None:
    cache = SlotCache(16 * MIB)
    for key in "ab":
        obtain(cache, key, ahead=True).unread_since = 0.0
    obtain(cache, "c", now=UNREAD_SECONDS + 1, ahead=True)


def test_a_small_file_does_not_cost_a_whole_slot() -> None:
    cache = SlotCache(16 * MIB)
    for index in range(100):
        obtain(cache, index, size=100 * KIB)
    assert len(cache) == 100
    assert cache.allocated_bytes <= 16 * MIB


def test_buffers_are_reused() -> None:
    cache = SlotCache(16 * MIB)
    buffers = {id(obtain(cache, index).buffer) for index in range(10)}
    assert len(buffers) == 2


def test_an_abandoned_slot_leaves_with_its_buffer() -> None:
    cache = SlotCache(16 * MIB)
    slot = obtain(cache, "a")
    cache.abandon(slot)
    assert cache.peek("a") is None
    assert cache.allocated_bytes == 0
    assert obtain(cache, "a").buffer is not slot.buffer


@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(1, 8 * MIB), st.booleans(), st.sampled_from(["pin", "unpin", "none"]))
    )
)
def test_the_pool_is_never_larger_than_allowed(steps: list[tuple[int, int, bool, str]]) -> None:
    """Any order of asking and pinning: capacity holds, pinned slots stay, buffers are never shared."""
    cache = SlotCache(32 * MIB)
    pinned: dict[int, Slot] = {}
    for now, (key, size, ahead, deed) in enumerate(steps):
        slot = cache.obtain(key, size, float(now), ahead=ahead)
        if slot is not None and deed == "pin" and key not in pinned:
            slot.pins += 1
            pinned[key] = slot
        if deed == "unpin" and key in pinned:
            pinned.pop(key).pins -= 1
        assert cache.allocated_bytes <= 32 * MIB
        assert all(cache.peek(key) is slot for key, slot in pinned.items())
        buffers = [id(cache.peek(key).buffer) for key in range(31) if cache.peek(key) is not None]  # type: ignore[union-attr]
        assert len(buffers) == len(set(buffers))
