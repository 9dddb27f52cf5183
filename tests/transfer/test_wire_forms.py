"""The bytes of what mounts and coordinators say about leases and numbers (docs/protocol/lane.md): they stay."""

from __future__ import annotations

import pytest
from google.protobuf.message import Message

from collective.wire import lane_pb2, submit_pb2

FORMS: list[tuple[Message, str]] = [
    (lane_pb2.LeaseDirectoryRequest(store_id=b"st", inode=300), "0a02737410ac02"),
    (lane_pb2.LeaseDirectoryReply(granted=True, term_milliseconds=3000), "080110b817"),
    (lane_pb2.LeaseDirectoryReply(retry_milliseconds=20), "1814"),
    (lane_pb2.RecallRequest(store_id=b"st", inode=1), "0a0273741001"),
    (lane_pb2.RenewReply(term_milliseconds=3000, total_bytes=4096, free_bytes=1), "08b8171080201801"),
    (submit_pb2.LeaseNumbersRequest(store_id=b"st", count=1024), "0a027374108008"),
    (submit_pb2.LeaseNumbersReply(first=65_536, count=1), "0880800410" + "01"),
    (submit_pb2.OperationOutcome(outcome=submit_pb2.MISSED, reason="x", errno=17), "08051201782011"),
    (submit_pb2.SubmitRequest(store_id=b"st", exact=True), "0a0273741801"),
]


@pytest.mark.parametrize(("message", "form"), FORMS, ids=lambda value: type(value).__name__)
def test_forms_stay(message: Message, form: str) -> None:
    """Field numbers and types are what older and newer versions read."""
    assert message.SerializeToString(deterministic=True).hex() == form


def test_methods_stay() -> None:
    """A mount of the version before asks by these numbers."""
    assert dict(lane_pb2.LaneMethod.items()) | {
        "LANE_SUBMIT": 12,
        "LANE_LEASE_NUMBERS": 13,
        "LANE_LEASE_DIRECTORY": 14,
        "LANE_RECALL": 15,
        "LANE_RENEW": 16,
        "LANE_BEGIN_UPLOAD": 17,
        "LANE_AWAIT_LEVEL": 18,
    } == dict(lane_pb2.LaneMethod.items())
