"""What waits to be written: whole frames, in order, in slices, as fast as the transport takes them.

A frame's parts are never joined with each other (a small frame's are: one TLS record instead of two). The memory of a
body belongs to whoever sent it until `sent` is called; who cannot wait so long calls `give_up`: a frame of which
nothing was written yet is taken back, one that has begun keeps a copy of its rest, because a frame on the wire must
be completed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from typing_extensions import Buffer

from collective.core.sizes import KIB

__all__ = ["Outbox", "OutgoingFrame", "as_views"]

SLICE_BYTES = 64 * KIB  # at once: the reader decrypts one while the next is encrypted (1 MiB: +20 % over 256 KiB)
JOINED_BYTES = 16 * KIB  # up to one TLS record a frame is written in one piece


def as_views(body: Buffer | Sequence[Buffer]) -> list[memoryview]:
    """The body as byte views, empty ones left out."""
    parts = body if isinstance(body, list | tuple) else (body,)
    return [view for view in (memoryview(part).cast("B") for part in parts) if len(view)]


class OutgoingFrame:
    """One frame on its way; `begun` once a byte of it was handed to the transport."""

    __slots__ = ("begun", "sent", "size_bytes", "views")

    def __init__(self, front: bytes, views: list[memoryview], sent: Callable[[], None] | None) -> None:
        self.size_bytes = len(front) + sum(map(len, views))
        self.begun = False
        self.sent = sent
        if self.size_bytes <= JOINED_BYTES:
            self.views = deque((memoryview(b"".join((front, *views))),))
        else:
            self.views = deque((memoryview(front), *views))

    def next_slice(self) -> memoryview:
        """The next bytes to write; the frame is complete when `views` is empty afterwards."""
        self.begun = True
        view = self.views[0]
        if len(view) <= SLICE_BYTES:
            return self.views.popleft()
        self.views[0] = view[SLICE_BYTES:]
        return view[:SLICE_BYTES]

    def keep_copy(self) -> None:
        """Make the rest independent of the sender's memory."""
        self.views = deque(memoryview(bytes(view)) for view in self.views)


class Outbox:
    """Frames for one transport's `write`. Written bytes are encrypted at once, so they need their memory no longer."""

    def __init__(self) -> None:
        self._frames: deque[OutgoingFrame] = deque()
        self._write: Callable[[memoryview], None] | None = None
        self._paused = False
        self.backlog_bytes = 0  # of frames not written whole
        self.written_slices = 0  # grows with every write: progress

    def attach(self, write: Callable[[memoryview], None]) -> None:
        """From now on there is a transport."""
        self._write = write
        self._pump()

    def detach(self) -> None:
        """The transport is gone; nothing is written any more and all memory is let go."""
        self._write = None
        self._frames.clear()
        self.backlog_bytes = 0

    def put(self, frame: OutgoingFrame) -> OutgoingFrame:
        """Queue a frame and write what can be written now."""
        self._frames.append(frame)
        self.backlog_bytes += frame.size_bytes
        self._pump()
        return frame

    def give_up(self, frame: OutgoingFrame) -> bool:
        """Let go of the sender's memory. True when the frame was taken back whole, so that nobody will see it."""
        if frame not in self._frames:
            return False
        if frame.begun:
            frame.keep_copy()
            return False
        self._frames.remove(frame)
        self.backlog_bytes -= frame.size_bytes
        return True

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._pump()

    def _pump(self) -> None:
        while self._frames and not self._paused and self._write is not None:
            frame = self._frames[0]
            self.written_slices += 1
            self._write(frame.next_slice())
            if not frame.views and self._frames:
                self._frames.popleft()
                self.backlog_bytes -= frame.size_bytes
                if frame.sent is not None:
                    frame.sent()
