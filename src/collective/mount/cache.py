"""Plain bytes on their way to readers: a bounded pool of slots, one slot a chunk, valid segment by segment.

Theory: a slot is one reusable buffer (an anonymous mapping: fresh pages are the dearest part of a read path, so
buffers go round instead of being freed). Its size is the chunk's, rounded up to a power of two, so small files
do not cost 8 MiB each. A segment is *absent*, *pending* (somebody is filling it) or *valid*; sets of segments are bit
masks. Who uses a slot across an `await` pins it; a pinned slot is never reused.

    who asks for room      may take the slot of
    a reader who waits     anybody unpinned: passed ones first, then the least recently used, then unread prefetch
    read-ahead             the same, but never prefetched bytes that their reader has not come to yet

Pure: no event loop, no clock; `now` comes in.
"""

from __future__ import annotations

import mmap
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field

from collective.core.layout import SEGMENT_BYTES
from collective.core.memory import fresh_buffer

__all__ = ["Slot", "SlotCache", "segment_mask"]

UNREAD_SECONDS = 30.0  # prefetched bytes nobody came for in this time are ordinary ones


def segment_mask(first: int, count: int) -> int:
    """The set of segments `first` … `first + count - 1`."""
    return ((1 << count) - 1) << first


@dataclass(eq=False, slots=True)
class Slot:
    """One chunk's plain bytes. `valid` and `pending` are masks of segments.

    `unread_since` is when a prefetch put bytes here that no reader has touched (None: none); `passed` says a sequential
    reader is beyond it; an `abandoned` slot has left the cache. `flights` belong to whoever fills.
    """

    key: Hashable
    size_bytes: int
    buffer: mmap.mmap
    view: memoryview
    valid: int = 0
    pending: int = 0
    pins: int = 0
    passed: bool = False
    abandoned: bool = False
    unread_since: float | None = None
    flights: list[object] = field(default_factory=list)

    def segments(self, first: int, count: int) -> memoryview:
        """Where the bytes of these segments belong; the chunk's last segment may be short."""
        return self.view[first * SEGMENT_BYTES : min(self.size_bytes, (first + count) * SEGMENT_BYTES)]

    def absent(self, mask: int) -> int:
        return mask & ~(self.valid | self.pending)

    def holds(self, mask: int) -> bool:
        return not mask & ~self.valid


class SlotCache:
    """At most `capacity_bytes` of slots. Not thread-safe: one event loop owns it."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._allocated_bytes = 0
        self._slots: OrderedDict[Hashable, Slot] = OrderedDict()  # least recently used first
        self._spare: dict[int, list[mmap.mmap]] = {}

    @property
    def capacity_bytes(self) -> int:
        return self._capacity_bytes

    @property
    def allocated_bytes(self) -> int:
        """Buffers in use and spare; never more than the capacity."""
        return self._allocated_bytes

    def __len__(self) -> int:
        return len(self._slots)

    def find(self, key: Hashable) -> Slot | None:
        """The slot of this chunk, now the most recently used."""
        slot = self._slots.get(key)
        if slot is not None:
            self._slots.move_to_end(key)
        return slot

    def obtain(self, key: Hashable, size_bytes: int, now: float, *, ahead: bool) -> Slot | None:
        """The slot of this chunk of `size_bytes`, made when there is none; None when no room can be made now.

        `ahead` asks as read-ahead (see the table above).
        """
        slot = self.find(key)
        if slot is not None:
            return slot
        buffer = self._buffer(size_bytes, now, ahead=ahead)
        if buffer is None:
            return None
        slot = Slot(key, size_bytes, buffer, memoryview(buffer)[:size_bytes])
        self._slots[key] = slot
        return slot

    def abandon(self, slot: Slot) -> None:
        """Forget the slot and never reuse its buffer: a fill that was broken off might still write into it."""
        slot.abandoned = True
        if self._slots.get(slot.key) is slot:
            del self._slots[slot.key]
            self._allocated_bytes -= len(slot.buffer)

    def peek(self, key: Hashable) -> Slot | None:
        """The slot of this chunk, without using it."""
        return self._slots.get(key)

    def _buffer(self, size_bytes: int, now: float, *, ahead: bool) -> mmap.mmap | None:
        wanted = max(SEGMENT_BYTES, 1 << (size_bytes - 1).bit_length())
        while True:
            if spare := self._spare.get(wanted):
                return spare.pop()
            if self._allocated_bytes + wanted <= self._capacity_bytes:
                self._allocated_bytes += wanted
                return fresh_buffer(wanted)
            if self._free_spare():
                continue
            victim = self._victim(now, ahead=ahead)
            if victim is None:
                return None
            self._evict(victim)

    def _free_spare(self) -> bool:
        """Give back one spare buffer of whatever size (the right size was looked for before)."""
        for buffers in self._spare.values():
            if buffers:
                self._allocated_bytes -= len(buffers.pop())
                return True
        return False

    def _victim(self, now: float, *, ahead: bool) -> Slot | None:
        ordinary, unread = None, None
        for slot in self._slots.values():
            if slot.pins:
                continue
            if slot.passed:
                return slot
            if slot.unread_since is not None and now - slot.unread_since < UNREAD_SECONDS:
                unread = unread or slot
            else:
                ordinary = ordinary or slot
        return ordinary or (None if ahead else unread)

    def _evict(self, slot: Slot) -> None:
        del self._slots[slot.key]
        slot.view.release()
        self._spare.setdefault(len(slot.buffer), []).append(slot.buffer)
