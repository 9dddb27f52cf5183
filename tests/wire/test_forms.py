"""What is sent and stored keeps its bytes, and what a later version adds harms nobody who does not know it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from wire.forms import MODULES, fields, filled, messages, read_golden, told

PAGES = Path(__file__).resolve().parents[2] / "docs" / "protocol"
HINT = "run tests/wire/forms.py, and say in docs/protocol what the field is for"
ENUMS = {
    "Outcome": {
        "OUTCOME_UNSPECIFIED": 0, "APPLIED": 1, "CONFLICT": 2, "STAGED": 3, "REFUSED": 4, "MISSED": 5,
    },
    "Strategy": {"STRATEGY_UNSPECIFIED": 0, "MEDIA": 1, "BACKUP": 2, "HYBRID": 3},
    "Right": {"RIGHT_UNSPECIFIED": 0, "READ": 1, "WRITE": 2, "DELETE": 3, "SHARE": 4},
    "GossipType": {"GOSSIP_TYPE_UNSPECIFIED": 0, "JOIN": 1, "LEAVE": 2, "UPDATE": 3, "HEARTBEAT": 4},
    "LaneMethod": {
        "LANE_METHOD_UNSPECIFIED": 0, "LANE_PRESENT": 1, "LANE_PRESENT_PAGE": 2, "LANE_READ": 3, "LANE_WRITE": 4,
        "LANE_HAS": 5, "LANE_PUSH": 6, "LANE_NODE_STATUS": 7, "LANE_KEEP_HEAD": 8, "LANE_HEADS": 9, "LANE_EVENTS": 10,
        "LANE_SUBMIT": 12, "LANE_LEASE_NUMBERS": 13, "LANE_LEASE_DIRECTORY": 14, "LANE_RECALL": 15, "LANE_RENEW": 16,
        "LANE_BEGIN_UPLOAD": 17, "LANE_AWAIT_LEVEL": 18, "LANE_CLAIM": 19,
    },
}  # fmt: skip


@pytest.mark.parametrize(("name", "described", "field"), list(fields()), ids=[name for name, _, _ in fields()])
def test_every_field_keeps_its_bytes(name: str, described: Descriptor, field: FieldDescriptor) -> None:
    """The bytes that a version before wrote mean what they meant, and are written the same."""
    golden = read_golden()
    assert name in golden, HINT
    raw = bytes.fromhex(str(golden[name]["bytes"]))
    read = message_factory.GetMessageClass(described).FromString(raw)
    assert told(read) == golden[name]["means"]
    assert filled(described, field).SerializeToString(deterministic=True) == raw


def test_every_message_has_its_place_in_the_protocol_pages() -> None:
    """By name; a reply with its request, and both under the name of their call."""
    pages = "\n".join(page.read_text() for page in PAGES.glob("*.md"))
    for described in messages():
        call = described.name.removesuffix("Request").removesuffix("Reply")
        assert re.search(rf"\b({described.name}|{call}|{call}Request)s?\b", pages), f"{described.name}: {HINT}"


def test_no_field_that_was_sent_is_gone() -> None:
    """What is no longer used stays, or its number is reserved and its bytes leave the golden file by hand."""
    assert set(read_golden()) == {name for name, _, _ in fields()}, HINT


def test_enum_values_keep_their_numbers() -> None:
    """Names are for people; numbers are sent."""
    found: dict[str, EnumDescriptor] = {}
    for module in MODULES:
        found |= module.DESCRIPTOR.enum_types_by_name
    assert {name: {v.name: v.number for v in enum.values} for name, enum in found.items()} == ENUMS


@pytest.mark.parametrize("described", list(messages()), ids=lambda described: described.name)
def test_what_a_later_version_adds_is_passed_over_and_passed_on(described: Descriptor) -> None:
    """A field and an enum value of N+1: known fields read the same, and whoever hands the message on loses nothing."""
    made: Message = message_factory.GetMessageClass(described)()
    for field in described.fields:
        if field.containing_oneof is None:
            made.MergeFrom(filled(described, field))
    later = made.SerializeToString(deterministic=True) + b"\xf2\xac\x04\x06later!"  # field 9,806, length-delimited
    read = message_factory.GetMessageClass(described).FromString(later)
    assert told(read) == told(made)
    assert b"later!" in read.SerializeToString()
    copy = message_factory.GetMessageClass(described)()
    copy.CopyFrom(read)
    assert b"later!" in copy.SerializeToString()
