"""Going on purpose: what it means is said first, in words; then everybody is told, and this home stops.

    asked --said what it means--> nothing happened
    asked again, really --noted in the home, LEAVE told to all--> left, stopped --coordinator --come-back--> here again

Nothing is deleted and nothing is signed off: a member that left is still a member, whose certificate counts until the
root holder removes it. What others see of it is the state `left` instead of `dead` (gossip/membership).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass

from collective.catalog import Catalog, HeldHere
from collective.core.address import member_identity
from collective.core.errors import CollectiveError
from collective.core.sizes import format_size
from collective.identity import ComponentKind, Level
from collective.net.rpc import Caller, Row
from collective.wire import control_pb2

__all__ = ["Goodbye", "LeaveDesk", "leave_rows"]


@dataclass(frozen=True)
class Goodbye:
    """Which members were told, and which could not be; the latter hear it from the others."""

    told: list[str]
    not_told: list[str]


@dataclass(frozen=True)
class LeaveDesk:
    """Answers `Control/Leave`. `note_left` makes it last, `take_back` forgets that, `say_goodbye` tells the others,
    `stop` ends the process."""

    catalog: Catalog
    note_left: Callable[[], None]
    take_back: Callable[[], None]
    say_goodbye: Callable[[], Awaitable[Goodbye]]
    stop: Callable[[], None]

    async def leave(self, caller: Caller, request: control_pb2.LeaveRequest) -> control_pb2.LeaveReply:
        """Say what leaving means; with `really`, leave. Raises: Unreachable while gossip does not run; nothing
        happened then."""
        reply = control_pb2.LeaveReply(means=list(self._means()))
        if request.really:
            self.note_left()
            try:
                goodbye = await self.say_goodbye()
            except CollectiveError:
                self.take_back()
                raise
            reply.left = True
            reply.told.extend(goodbye.told)
            reply.not_told.extend(goodbye.not_told)
            self.stop()
        return reply

    def _means(self) -> Iterator[str]:
        held = self.catalog.held_here()
        yield from _own_words(each for each in held if each.owner == self.catalog.own_domain)
        yield from _foreign_words(each for each in held if each.owner != self.catalog.own_domain)
        waiting: dict[str, int] = {}
        for change in self.catalog.pending():
            waiting[change.owner] = waiting.get(change.owner, 0) + 1
        for owner, count in sorted(waiting.items()):
            yield f"{count} changes for {member_identity(owner)} have not arrived there and wait until you come back"
        if self.catalog.own.root_key is not None:
            yield "the federation's root key lies in this home: until you come back nobody can be admitted or removed"
        yield "the others show this home as left and stop looking for it; nothing is deleted, here or there"


def _own_words(stores: Iterable[HeldHere]) -> Iterator[str]:
    for held in stores:
        path = held.path.decode(errors="replace")
        if held.alone:
            yield (
                f"{path}: {held.alone} of your {held.versions} files here ({format_size(held.alone_bytes)}) are in no"
                " other home: nobody can read them until you come back"
            )
        else:
            yield f"{path}: all {held.versions} files of yours here are in another home too, and stay readable there"


def _foreign_words(stores: Iterable[HeldHere]) -> Iterator[str]:
    for held in stores:
        whose = f"{held.path.decode(errors='replace')} of {member_identity(held.owner)}"
        alone = f"; {held.alone} of them are in no other home" if held.alone else ""
        yield f"{whose}: {held.versions} copies lie here ({format_size(held.size_bytes)}) and cannot be reached{alone}"


def leave_rows(desk: LeaveDesk) -> list[Row]:
    """The dispatch row of Control that this module answers."""
    return [
        Row(
            method="/collective.v1.Control/Leave",
            kinds=frozenset({ComponentKind.CLIENT}),
            local=True,
            right="admin of this member",
            level=Level.LOCAL,
            handler=desk.leave,
            capability="admin",
        )
    ]
