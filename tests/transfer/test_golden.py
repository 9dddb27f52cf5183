"""The bytes of calls that nodes and coordinators of different versions exchange stay what they are."""

from __future__ import annotations

import pytest
from google.protobuf.message import Message

from collective.wire import control_pb2, feed_pb2, lane_pb2

LAYOUT = feed_pb2.Layout(size_bytes=65_536, chunk_size_bytes=8 << 20, pages=[b"pppp"])
GOLDEN: list[tuple[Message, str]] = [
    (
        lane_pb2.ReadRequest(
            handle=1, chunk_id=b"cccc", first_segment=2, segment_count=3, with_hashes=True, check=True
        ),
        "08011204636363631802200328013001",
    ),
    (lane_pb2.NodeStatusRequest(missing_after=b"aaaa"), "0a0461616161"),
    (
        lane_pb2.NodeStatusReply(capacity_bytes=1, quarantined_count=2, missing_chunks=[b"mmmm"]),
        "080128024a046d6d6d6d",
    ),
    (
        control_pb2.ReadSegmentsRequest(
            signed_ticket=b"tttt", layout=LAYOUT, page_index=1, page=b"gggg", chunk_id=b"cccc", first_segment=2,
            segment_count=3, with_hashes=True,
        ),
        "0a0474747474120f1080800418808080042a047070707018012204676767672a0463636363300238034001",
    ),
    (control_pb2.ReadSegmentsReply(hashes=b"hhhh", sealed=b"ssss"), "0a0468686868120473737373"),
]  # fmt: skip


@pytest.mark.parametrize(("message", "golden"), GOLDEN, ids=lambda value: type(value).__name__)
def test_calls_keep_their_form(message: Message, golden: str) -> None:
    """Encoded as ever, and read back as the same."""
    assert message.SerializeToString(deterministic=True).hex() == golden
    assert type(message).FromString(bytes.fromhex(golden)) == message
