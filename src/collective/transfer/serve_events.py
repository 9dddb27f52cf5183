"""The coordinator's side of the lane: mounts of this member wait here for the catalogue to move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from collective.core.errors import Refused
from collective.net.lane import LaneCaller, LaneHandler
from collective.transfer.events import ChangeBell
from collective.wire import lane_pb2

__all__ = ["event_handlers"]

WAIT_SECONDS = 20.0  # then the same counter is answered; shorter than any idle limit on the way


def event_handlers(bell: ChangeBell, own_domain: str) -> Mapping[int, LaneHandler]:
    """LANE_EVENTS for components of `own_domain`: answered when the counter passed the caller's, or after a while."""

    async def events(caller: LaneCaller, head: bytes, body: memoryview) -> tuple[bytes, Sequence[bytes]]:
        if caller.peer.member_domain != own_domain:
            raise Refused("events are for this member's own components")
        request = lane_pb2.EventsRequest.FromString(head)
        counter = await bell.wait_past(request.after, WAIT_SECONDS)
        return lane_pb2.EventsReply(counter=counter).SerializeToString(), ()

    return {lane_pb2.LANE_EVENTS: events}
