"""What one call of the engine has to say, gathered by recipient, then sealed: few messages, none too large."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from google.protobuf.message import Message

from collective.gossip.messages import MAX_REPEATED
from collective.wire.gossip_pb2 import HEARTBEAT, GossipMessage

__all__ = ["Outbox"]

Single = Literal["", "probe", "digest"]  # fields of which a message has one
ROOM_BYTES = 256 * 1024  # half of what a message may have: what is not counted here is small


@dataclass
class _Open:
    message: GossipMessage
    size_bytes: int = 0
    parts: int = 0


class Outbox:
    """Messages being made, by recipient, in the order they were begun."""

    def __init__(self) -> None:
        self._open: dict[str, list[_Open]] = {}

    def to(
        self,
        peer: str,
        part: Message | None = None,
        *,
        single: Single = "",
        answer: bool = False,
    ) -> GossipMessage:
        """A message to the peer that has room for `part`, whose field `single` is not taken; the caller fills it in."""
        size = part.ByteSize() if part is not None else 0
        messages = self._open.setdefault(peer, [])
        for made in messages:
            fits = made.size_bytes + size <= ROOM_BYTES and made.parts < MAX_REPEATED
            if fits and made.message.answer == answer and not (single and made.message.HasField(single)):
                break
        else:
            made = _Open(GossipMessage(type=HEARTBEAT, recipient=peer, answer=answer))
            messages.append(made)
        made.size_bytes += size
        made.parts += 1
        return made.message

    def take(self, finish: Callable[[str, GossipMessage], bytes]) -> list[tuple[str, bytes]]:
        """All messages, sealed by `finish`; the outbox is empty afterwards."""
        taken, self._open = self._open, {}
        return [(peer, finish(peer, made.message)) for peer, messages in taken.items() for made in messages]
