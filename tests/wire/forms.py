"""Every message of the contract, filled by rule: what the golden bytes are made from.

    python tests/wire/forms.py      writes the bytes of messages and fields that have none; what is there stays

Run it after adding to a .proto file. It never changes bytes: versions before sent and stored them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from collective.wire import admission_pb2, control_pb2, feed_pb2, gossip_pb2, lane_pb2, submit_pb2, ticket_pb2

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "wire" / "messages.json"
MODULES: tuple[ModuleType, ...] = (
    admission_pb2, control_pb2, feed_pb2, gossip_pb2, lane_pb2, submit_pb2, ticket_pb2,
)  # fmt: skip
Told = dict[str, dict[str, object]]


def messages() -> Iterator[Descriptor]:
    """All of them, nested ones too; map entries go with their field."""
    for module in MODULES:
        waiting = list(module.DESCRIPTOR.message_types_by_name.values())
        while waiting:
            described = waiting.pop(0)
            if not described.GetOptions().map_entry:
                yield described
            waiting += described.nested_types


def fields() -> Iterator[tuple[str, Descriptor, FieldDescriptor]]:
    """`Message.field` with where it stands."""
    for described in messages():
        for field in described.fields:
            yield f"{described.full_name.removeprefix('collective.v1.')}.{field.name}", described, field


def filled(described: Descriptor, field: FieldDescriptor) -> Message:
    """A message with that one field set, to something that is not its default."""
    message: Message = message_factory.GetMessageClass(described)()
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        getattr(message, field.name)["key"] = "value"
    elif field.message_type is not None:
        inner = getattr(message, field.name)
        (inner.add() if field.is_repeated else inner).SetInParent()
    else:
        value = _value(field)
        if field.is_repeated:
            getattr(message, field.name).extend([value, value])
        else:
            setattr(message, field.name, value)
    return message


def _value(field: FieldDescriptor) -> object:
    if field.enum_type is not None:
        return field.enum_type.values[-1].number
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            return b"\x00\xff bytes" if field.type == FieldDescriptor.TYPE_BYTES else "text ä"
        case FieldDescriptor.CPPTYPE_BOOL:
            return True
        case FieldDescriptor.CPPTYPE_INT64 | FieldDescriptor.CPPTYPE_INT32:
            return -3
        case _:
            return 300


def told(message: Message) -> dict[str, object]:
    """What the bytes mean, by names."""
    return MessageToDict(message, preserving_proto_field_name=True, use_integers_for_enums=True)


@cache
def read_golden() -> Told:
    golden: Told = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    return golden


def main() -> None:
    golden = dict(read_golden())
    for name, described, field in fields():
        if name not in golden:
            message = filled(described, field)
            golden[name] = {"bytes": message.SerializeToString(deterministic=True).hex(), "means": told(message)}
            print(f"new: {name}", file=sys.stderr)
    GOLDEN.parent.mkdir(exist_ok=True)
    rows = [f"{json.dumps(name)}: {json.dumps(golden[name], sort_keys=True)}" for name in sorted(golden)]
    GOLDEN.write_text("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    main()
