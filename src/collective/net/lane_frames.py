r"""Frames of the lane, without a socket: bytes in arbitrary pieces become frames, bodies land where they belong.

    header (16 bytes, big-endian):  u32 head length | u32 body length | u8 version | u8 kind | u16 method | u32 call id
    head                            a protobuf message of at most MAX_HEAD_BYTES
    body                            raw bytes, at most MAX_BODY_BYTES

    waiting for header --16 bytes--> waiting for head --all of it--> [body empty] frame received, wait for header
                                                                 +--> filling body --all of it--> frame received

The reader owns one small buffer for headers and heads. As soon as a body is known, its receiver names the memory it
goes to, and the next bytes are read straight into that memory; a receiver that wants a body no more clears the
destination, and the rest falls into the small buffer. At most one TLS record of a body (16 KiB) is copied.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple, Protocol

from collective.core.errors import Corrupt
from collective.core.layout import MAX_SEALED_CHUNK_BYTES
from collective.core.sizes import KIB

__all__ = [
    "HEADER_BYTES",
    "MAX_BODY_BYTES",
    "MAX_HEAD_BYTES",
    "Destination",
    "FrameHeader",
    "FrameKind",
    "FrameReader",
    "FrameReceiver",
    "pack_header",
]

HEADER = struct.Struct(">IIBBHI")
HEADER_BYTES = HEADER.size
MAX_HEAD_BYTES = 64 * KIB  # the largest head, a PushRequest, names 512 chunks of 34 bytes: 18 KiB, with room to grow
MAX_BODY_BYTES = MAX_SEALED_CHUNK_BYTES + 64 * KIB  # one whole sealed chunk and its hash list (4 KiB)
MAX_GREETING_BYTES = 4 * KIB  # a head before the peer has said hello
READ_AHEAD_BYTES = 16 * KIB  # one TLS record: what may be read past a header, and so must be copied into its body
_BUFFER_BYTES = HEADER_BYTES + MAX_HEAD_BYTES + READ_AHEAD_BYTES


class FrameKind(IntEnum):
    """What a frame is; call id 0 in an ERROR means the connection itself."""

    REQUEST = 1
    REPLY = 2
    ERROR = 3
    HELLO = 4
    CANCEL = 5


class FrameHeader(NamedTuple):
    """The 16 bytes before every frame, in their order on the wire."""

    head_bytes: int
    body_bytes: int
    version: int
    kind: int
    method: int
    call_id: int


class Destination:
    """Where one body goes: `view` has exactly the body's size; None lets the (rest of the) body fall."""

    __slots__ = ("view",)

    def __init__(self, view: memoryview | None) -> None:
        self.view = view


class FrameReceiver(Protocol):
    """Takes what the reader found. Both calls may raise Corrupt, which ends the stream."""

    def body_destination(self, header: FrameHeader, head: bytes) -> Destination: ...

    def frame_received(self, header: FrameHeader, head: bytes, body: memoryview | None) -> None: ...


def pack_header(kind: FrameKind, version: int, method: int, call_id: int, head_bytes: int, body_bytes: int) -> bytes:
    """The header's 16 bytes."""
    return HEADER.pack(head_bytes, body_bytes, version, kind, method, call_id)


_KINDS = frozenset(int(kind) for kind in FrameKind)
_EMPTY = memoryview(b"")


class FrameReader:
    """Bytes in by `get_buffer` and `buffer_updated`, frames out to the receiver, in order.

    Starts in greeting mode (small heads, no bodies); `open_wide` lifts that to the lane's limits. After an exception
    the reader must not be used again. Its memory is there from the first bytes until `let_go`: what refers to a
    connection that has ended, or never came about, refers to little.
    """

    def __init__(self, receiver: FrameReceiver) -> None:
        self._receiver = receiver
        self._max_head_bytes = MAX_GREETING_BYTES
        self._max_body_bytes = 0
        self._buffer = _EMPTY
        self._start = 0
        self._end = 0
        self._header: FrameHeader | None = None
        self._head = b""
        self._destination: Destination | None = None  # set while a body is being filled
        self._filled_bytes = 0

    def open_wide(self) -> None:
        """From the next header on the lane's full limits count."""
        self._max_head_bytes = MAX_HEAD_BYTES
        self._max_body_bytes = MAX_BODY_BYTES

    @property
    def in_frame(self) -> bool:
        """Whether a frame has begun and is not complete."""
        return self._header is not None or self._end > self._start

    def get_buffer(self) -> memoryview:
        """Writable memory for the next bytes; valid until `buffer_updated`."""
        if self._destination is not None and self._header is not None:
            view = self._destination.view
            if view is not None:
                return view[self._filled_bytes :]
            return self._buffer[: self._header.body_bytes - self._filled_bytes]
        if self._buffer is _EMPTY:
            self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        wanted = READ_AHEAD_BYTES
        if self._header is not None:
            wanted = max(wanted, self._header.head_bytes - (self._end - self._start))
        return self._buffer[self._end : self._end + wanted]

    def let_go(self) -> None:
        """No more bytes will come."""
        self._buffer = _EMPTY
        self._destination = None

    def buffer_updated(self, count: int) -> None:
        """`count` bytes were written into the memory given last. Raises: Corrupt (no frame of this lane)."""
        if self._destination is not None and self._header is not None:
            self._filled_bytes += count
            if self._filled_bytes == self._header.body_bytes:
                self._deliver(self._header, self._destination.view)
            return
        self._end += count
        while self._parse():
            pass
        remaining = self._end - self._start
        if self._start and remaining:
            self._buffer[:remaining] = bytes(self._buffer[self._start : self._end])
        self._start, self._end = 0, remaining

    def _parse(self) -> bool:
        """Take the next piece out of the buffer; False when it holds too little (or a body takes the rest)."""
        if self._header is None:
            if self._end - self._start < HEADER_BYTES:
                return False
            self._header = self._checked(FrameHeader(*HEADER.unpack_from(self._buffer, self._start)))
            self._start += HEADER_BYTES
        header = self._header
        if self._end - self._start < header.head_bytes:
            return False
        self._head = bytes(self._buffer[self._start : self._start + header.head_bytes])
        self._start += header.head_bytes
        if not header.body_bytes:
            self._deliver(header, _EMPTY)
            return True
        return self._begin_body(header)

    def _begin_body(self, header: FrameHeader) -> bool:
        destination = self._receiver.body_destination(header, self._head)
        here = min(header.body_bytes, self._end - self._start)
        if destination.view is not None:
            destination.view[:here] = self._buffer[self._start : self._start + here]
        self._start += here
        if here == header.body_bytes:
            self._deliver(header, destination.view)
            return True
        self._destination = destination
        self._filled_bytes = here
        return False

    def _deliver(self, header: FrameHeader, body: memoryview | None) -> None:
        head = self._head
        self._header, self._destination, self._head = None, None, b""
        self._receiver.frame_received(header, head, body)

    def _checked(self, header: FrameHeader) -> FrameHeader:
        if header.kind not in _KINDS or not header.version:
            raise Corrupt("this is not the lane's protocol")
        if header.head_bytes > self._max_head_bytes:
            raise Corrupt(f"a head of {header.head_bytes} bytes is over the limit of {self._max_head_bytes}")
        if header.body_bytes > self._max_body_bytes:
            raise Corrupt(f"a body of {header.body_bytes} bytes is over the limit of {self._max_body_bytes}")
        return header
