"""What other members' coordinators ask in order to write here: changes to DataStores of ours, inode numbers in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from collective.identity import ComponentKind, Level
from collective.net.rpc import Caller, Row
from collective.transfer.numbers import NumberStock
from collective.transfer.serve import caller_identity
from collective.transfer.submit import SubmitDesk
from collective.wire import submit_pb2

__all__ = ["change_rows"]


def change_rows(desk: SubmitDesk, numbers: NumberStock) -> list[Row]:
    """The dispatch rows of Federation that take changes in. The caller's member is the writer of all it hands in."""

    async def submit(caller: Caller, request: submit_pb2.SubmitRequest) -> submit_pb2.SubmitReply:
        return await desk.receive(caller_identity(caller).member_domain, request)

    async def lease_numbers(caller: Caller, request: submit_pb2.LeaseNumbersRequest) -> submit_pb2.LeaseNumbersReply:
        return await numbers.lease(caller_identity(caller).member_domain, request)

    def row(name: str, handler: Callable[[Caller, Any], Any]) -> Row:
        return Row(
            method=f"/collective.v1.Federation/{name}",
            kinds=frozenset({ComponentKind.COORDINATOR}),
            local=False,
            right="WRITE, and DELETE for what others made",
            level=Level.FEDERATED,
            handler=handler,
        )

    return [row("Submit", submit), row("LeaseNumbers", lease_numbers)]
