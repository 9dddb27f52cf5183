"""Frames in arbitrary pieces, without a socket."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collective.core.errors import Corrupt
from collective.net.lane_frames import (
    HEADER_BYTES,
    MAX_BODY_BYTES,
    MAX_GREETING_BYTES,
    MAX_HEAD_BYTES,
    Destination,
    FrameHeader,
    FrameKind,
    FrameReader,
    pack_header,
)


class Collector:
    """Takes every frame; bodies of calls in `unwanted` fall, those in `dropped_midway` fall after their first bytes."""

    def __init__(self, unwanted=(), dropped_midway=()):
        self.frames = []
        self.destinations = {}
        self.unwanted, self.dropped_midway = set(unwanted), set(dropped_midway)

    def body_destination(self, header: FrameHeader, head: bytes) -> Destination:
        view = None if header.call_id in self.unwanted else memoryview(bytearray(header.body_bytes))
        self.destinations[header.call_id] = Destination(view)
        return self.destinations[header.call_id]

    def frame_received(self, header: FrameHeader, head: bytes, body: memoryview | None) -> None:
        self.frames.append((header.kind, header.method, header.call_id, head, None if body is None else bytes(body)))


def encode(call_id: int, head: bytes, body: bytes, kind: FrameKind = FrameKind.REPLY, method: int = 3) -> bytes:
    return pack_header(kind, 1, method, call_id, len(head), len(body)) + head + body


def feed(reader: FrameReader, stream: bytes, cuts, collector: Collector | None = None) -> None:
    """Give the reader the stream as a transport would: at most as much as it has memory for, cut anywhere."""
    position = 0
    for cut in [*sorted(cuts), len(stream)]:
        while position < cut:
            memory = reader.get_buffer()
            assert len(memory) > 0
            count = min(len(memory), cut - position)
            memory[:count] = stream[position : position + count]
            reader.buffer_updated(count)
            position += count
            if collector is not None:
                for call_id in collector.dropped_midway & collector.destinations.keys():
                    collector.destinations[call_id].view = None


def wide(collector: Collector) -> FrameReader:
    reader = FrameReader(collector)
    reader.open_wide()
    return reader


sizes = st.one_of(st.integers(0, 40), st.integers(0, 70_000))
frames = st.lists(st.tuples(st.binary(max_size=300), sizes), min_size=1, max_size=6)


@given(frames=frames, data=st.data())
@settings(deadline=None, max_examples=150)
def test_any_split_gives_the_same_frames(frames, data):
    """However the bytes are cut, the same frames come out, in order, whole; unwanted bodies fall without a trace."""
    bodies = [bytes([number % 251 + 1]) * size for number, (_, size) in enumerate(frames)]
    stream = b"".join(encode(number + 1, head, bodies[number]) for number, (head, _) in enumerate(frames))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=40))
    unwanted = data.draw(st.sets(st.integers(1, len(frames))))
    midway = data.draw(st.sets(st.integers(1, len(frames))))
    collector = Collector(unwanted, midway)
    reader = wide(collector)
    feed(reader, stream, cuts, collector)
    assert not reader.in_frame
    assert [frame[:4] for frame in collector.frames] == [
        (FrameKind.REPLY, 3, number + 1, head) for number, (head, _) in enumerate(frames)
    ]
    for number, frame in enumerate(collector.frames):
        if number + 1 not in unwanted | midway or not bodies[number]:
            assert frame[4] == bodies[number]
        elif number + 1 in unwanted:
            assert frame[4] is None


def test_byte_by_byte():
    """One byte at a time is enough."""
    collector = Collector()
    stream = encode(1, b"head", b"body") + encode(2, b"", b"") + encode(3, b"x" * 100, b"")
    feed(wide(collector), stream, range(len(stream)))
    assert [frame[2:] for frame in collector.frames] == [(1, b"head", b"body"), (2, b"", b""), (3, b"x" * 100, b"")]


def test_a_large_body_is_read_into_its_memory():
    """After at most one record's worth of it, the reader hands out the destination itself."""
    collector = Collector()
    reader = wide(collector)
    feed(reader, encode(1, b"h", bytes(MAX_BODY_BYTES))[:1000], [])
    memory = reader.get_buffer()
    assert memory.obj is collector.destinations[1].view.obj
    assert len(memory) == MAX_BODY_BYTES - (1000 - HEADER_BYTES - 1)
    assert reader.in_frame


@given(garbage=st.binary(min_size=HEADER_BYTES, max_size=200))
def test_garbage_is_corrupt_or_a_frame(garbage):
    """Whatever comes, the reader either takes frames, waits for more within the limits, or says Corrupt."""
    collector = Collector()
    reader = FrameReader(collector)
    try:
        feed(reader, garbage, [])
    except Corrupt:
        return
    assert collector.frames or int.from_bytes(garbage[:4]) <= MAX_GREETING_BYTES


@pytest.mark.parametrize(
    "header",
    [
        pack_header(FrameKind.REQUEST, 1, 1, 1, MAX_HEAD_BYTES + 1, 0),
        pack_header(FrameKind.REQUEST, 1, 1, 1, 0, MAX_BODY_BYTES + 1),
        pack_header(FrameKind.REQUEST, 1, 1, 1, 0xFFFFFFFF, 0xFFFFFFFF),
        pack_header(FrameKind.REQUEST, 0, 1, 1, 0, 0),
        bytes(16),
        b"GET / HTTP/1.1\r\n",
        b"\x00\x00\x00\x00\x00\x00\x00\x00\x01\x09\x00\x01\x00\x00\x00\x01",
    ],
)
def test_headers_beyond_the_protocol_are_corrupt(header):
    """Too large, no version, unknown kind, another protocol: refused before a byte of memory is given."""
    with pytest.raises(Corrupt):
        feed(wide(Collector()), header, [])


def test_before_the_greeting_frames_are_small():
    """A stranger gets 4 KiB and no body."""
    for front in (encode(1, bytes(MAX_GREETING_BYTES + 1), b""), encode(1, b"", b"x")):
        with pytest.raises(Corrupt):
            feed(FrameReader(Collector()), front, [])
    collector = Collector()
    feed(FrameReader(collector), encode(1, bytes(MAX_GREETING_BYTES), b""), [])
    assert len(collector.frames) == 1
