"""The coordinator's side of the lane: what this member's own mounts ask beside leases (`serve_leases`).

Changes handed in, numbers lent, uploads begun, levels and events waited for. Requests are small messages; those that
may be large travel as the call's body.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from collective.core.errors import Refused
from collective.net.lane import LaneCaller, LaneHandler
from collective.transfer.events import ChangeBell
from collective.transfer.numbers import NumberStock
from collective.transfer.serve_leases import LeaseDesk
from collective.transfer.submit import SubmitDesk
from collective.transfer.uploads import UploadDesk
from collective.wire import control_pb2, lane_pb2, submit_pb2

__all__ = ["mount_handlers"]

EVENT_WAIT_SECONDS = 20.0  # then the same counter is answered; shorter than any idle limit on the way
LEVEL_WAIT_SECONDS = 20.0  # whoever waits longer asks again

Answer = tuple[bytes, Sequence[bytes]]


def mount_handlers(
    own_domain: str,
    *,
    bell: ChangeBell,
    submit: SubmitDesk,
    leases: LeaseDesk,
    numbers: NumberStock,
    uploads: UploadDesk,
) -> Mapping[int, LaneHandler]:
    """The handlers, for components of `own_domain` alone."""

    async def events(caller: LaneCaller, head: bytes, body: memoryview) -> Answer:
        request = lane_pb2.EventsRequest.FromString(head)
        counter = await bell.wait_past(request.after, EVENT_WAIT_SECONDS)
        return lane_pb2.EventsReply(counter=counter).SerializeToString(), ()

    async def hand_in(caller: LaneCaller, head: bytes, body: memoryview) -> Answer:
        request = submit_pb2.SubmitRequest.FromString(bytes(body))
        session = leases.session_of(caller)
        reply = await submit.submit(request.store_id, request.operations, exact=request.exact, session=session)
        return b"", (reply.SerializeToString(),)

    async def lease_numbers(caller: LaneCaller, head: bytes, body: memoryview) -> Answer:
        request = submit_pb2.LeaseNumbersRequest.FromString(bytes(body))
        taken = await numbers.take(request.store_id, request.count)
        return b"", (submit_pb2.LeaseNumbersReply(first=taken.start, count=len(taken)).SerializeToString(),)

    async def begin_upload(caller: LaneCaller, head: bytes, body: memoryview) -> Answer:
        request = control_pb2.BeginUploadRequest.FromString(bytes(body))
        store = uploads.catalog.store(request.store_id)
        return b"", ((await uploads.begin(store, request.size_bytes)).SerializeToString(),)

    async def await_level(caller: LaneCaller, head: bytes, body: memoryview) -> Answer:
        request = control_pb2.AwaitLevelRequest.FromString(bytes(body))
        request.timeout_milliseconds = min(request.timeout_milliseconds, int(LEVEL_WAIT_SECONDS * 1000))
        return b"", ((await uploads.await_level(request)).SerializeToString(),)

    return {
        method: _for_own(own_domain, handler)
        for method, handler in (
            (lane_pb2.LANE_EVENTS, events),
            (lane_pb2.LANE_SUBMIT, hand_in),
            (lane_pb2.LANE_LEASE_NUMBERS, lease_numbers),
            (lane_pb2.LANE_BEGIN_UPLOAD, begin_upload),
            (lane_pb2.LANE_AWAIT_LEVEL, await_level),
        )
    }


def _for_own(own_domain: str, handler: Callable[[LaneCaller, bytes, memoryview], Awaitable[Answer]]) -> LaneHandler:
    async def judged(caller: LaneCaller, head: bytes, body: memoryview) -> Answer:
        if caller.peer.member_domain != own_domain:
            raise Refused("this is for this member's own components")
        return await handler(caller, head, body)

    return judged
