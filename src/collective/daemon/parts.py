"""The rooms of one coordinator, joined together; also what a command uses when no coordinator runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from collective.admission import AdmissionDesk, Goodbye, LeaveDesk, admission_rows, leave_rows
from collective.daemon.foundation import CoordinatorSettings, Foundation
from collective.daemon.gossip import join_gossip
from collective.daemon.loopwatch import LoopWatch
from collective.daemon.neighbours import Neighbours
from collective.daemon.snapshots import join_snapshots
from collective.daemon.tending import Tending, pledge
from collective.daemon.writing import Writing, join_writing
from collective.health import StatusDesk, status_rows
from collective.net.lane import LaneHandler
from collective.net.rpc import Row
from collective.transfer.asking import Coordinators
from collective.transfer.commands import CommandDesk, control_rows
from collective.transfer.commits import PathDesk, path_rows
from collective.transfer.copies import CopyDesk
from collective.transfer.gossiping import Gossiping
from collective.transfer.holders import LanePool
from collective.transfer.introducing import Introductions
from collective.transfer.refetch import Refetcher
from collective.transfer.relay import RelayDesk, relay_handlers, relay_rows
from collective.transfer.repair import CopyMaker
from collective.transfer.serve import FederationDesk, federation_rows, membership_rows
from collective.transfer.serve_changes import change_rows
from collective.transfer.shown import NodePolicy
from collective.transfer.snapshots import Snapshots
from collective.transfer.sync import EntryServer, EntryTaker
from collective.transfer.tickets import RpcTicketProvider
from collective.transfer.waking import HandBackDesk, HandOver, Recall, waking_rows

__all__ = ["Parts", "assemble"]


@dataclass(frozen=True)
class Parts:
    """What stands on the foundation. Nothing runs yet."""

    foundation: Foundation
    neighbours: Neighbours
    gossiping: Gossiping
    introductions: Introductions
    recall: Recall
    hand_over: HandOver
    snapshots: Snapshots
    copies: CopyMaker
    writing: Writing
    relay: RelayDesk
    refetch: Refetcher
    watch: LoopWatch
    stop: Callable[[], None]

    def rows(self) -> list[Row]:
        """The dispatch table: what other members, own components and own people may ask."""
        ground, writing = self.foundation, self.writing
        federation = self._federation()
        paths = PathDesk(
            ground.catalog, writing.submit, writing.numbers, writing.uploads, ground.own.address, ground.writer
        )
        return [
            *federation_rows(federation),
            *relay_rows(self.relay),
            *membership_rows(federation),
            *control_rows(CommandDesk(ground.catalog, ground.bell, ground.clock, ground.own.address, ground.writer)),
            *change_rows(writing.submit, writing.numbers),
            *path_rows(paths),
            *admission_rows(self._admission()),
            *leave_rows(self._leaving()),
            *status_rows(self._status()),
            *waking_rows(HandBackDesk(ground.catalog, ground.bell, ground.observer, ground.writer)),
        ]

    def lane_handlers(self) -> Mapping[int, LaneHandler]:
        """What is answered on the coordinator's lane."""
        return {**self.writing.handlers(), **relay_handlers(self.relay)}

    def tending(self, settings: CoordinatorSettings) -> Tending:
        """The background work."""
        ground = self.foundation
        return Tending(
            catalog=ground.catalog,
            household=ground.household,
            nodes=ground.nodes,
            copies=self.copies,
            refetch=self.refetch,
            choose_members=ground.choose_members,
            endpoints=ground.endpoints,
            writer=ground.writer,
            bell=ground.bell,
            clock=ground.clock,
            observer=ground.observer,
            storage_bytes=settings.storage_bytes,
        )

    async def close(self) -> None:
        """Stop sending, hand in what was taken, close everything."""
        await self.writing.close()
        await self.relay.close()
        await self.refetch.close()
        await self.foundation.close()

    def _federation(self) -> FederationDesk:
        ground = self.foundation
        return FederationDesk(
            catalog=ground.catalog,
            entries=EntryServer(ground.catalog, ground.clock),
            gossip=self.gossiping.handle,
            copies=CopyDesk(
                ground.catalog, ground.nodes, ground.tickets, ground.bell, ground.observer, ground.own.member_domain,
                lambda: pledge(ground.nodes, ground.told_bytes), ground.writer,
            ),
            introductions=self.introductions,
            nodes=ground.nodes,
            tickets=ground.tickets,
            clock=ground.clock,
            observer=ground.observer,
            own_address=ground.own.address,
            signing_certificate=ground.household.keys.signing_certificate,
            endpoints=ground.endpoints,
        )  # fmt: skip

    def _admission(self) -> AdmissionDesk:
        ground = self.foundation
        return AdmissionDesk(
            catalog=ground.catalog,
            identity_directory=ground.home.identity,
            federation_domain=ground.own.federation_domain,
            own_domain=ground.own.member_domain,
            endpoints=lambda: ground.endpoints,
            clock=ground.clock,
            write=ground.writer,
            after_change=ground.after_change,
        )

    def _leaving(self) -> LeaveDesk:
        async def say_goodbye() -> Goodbye:
            return Goodbye(*await self.gossiping.leave())

        ground = self.foundation
        return LeaveDesk(ground.catalog, ground.home.note_left, ground.home.come_back, say_goodbye, self.stop)

    def _status(self) -> StatusDesk:
        ground = self.foundation
        return StatusDesk(
            catalog=ground.catalog,
            nodes=ground.nodes,
            peers=self.gossiping.states,
            copies=self.copies,
            refetch=self.refetch,
            clock=ground.clock,
            own=ground.own,
            endpoints=lambda: ground.endpoints,
            relayed_bytes=lambda: self.relay.relayed_bytes,
            loop=self.watch.told,
        )


def assemble(ground: Foundation, stop: Callable[[], None] = lambda: None) -> Parts:
    """Join the rooms. `stop` ends the process that serves."""
    own_domain = ground.own.member_domain
    snapshots = join_snapshots(ground)
    taker = EntryTaker(
        ground.catalog, ground.bell, ground.channels, ground.observer, ground.writer, ground.after_receive,
        snapshots.taker.take,
    )  # fmt: skip
    neighbours = Neighbours(own_domain, ground.root, ground.home.path / "mdns.log", ground.clock, ground.observer)
    gossiping = join_gossip(ground, taker, neighbours)
    policy = NodePolicy(own_domain, ground.household.keys.signing_key.public_key(), ground.tickets.policy_epoch)
    return Parts(
        foundation=ground,
        neighbours=neighbours,
        gossiping=gossiping,
        introductions=Introductions(
            ground.catalog, ground.book, Coordinators(ground.channels, ground.book), ground.introduction,
            gossiping.life, ground.bell, ground.observer,
        ),
        recall=Recall(ground.catalog, taker, ground.book, ground.bell, ground.clock, ground.observer),
        hand_over=HandOver(
            ground.catalog, ground.book, ground.channels, ground.bell, ground.clock, ground.observer, ground.writer
        ),
        snapshots=snapshots,
        copies=CopyMaker(
            ground.catalog, ground.nodes, ground.book, ground.channels, ground.observer, own_domain
        ),
        writing=join_writing(ground, gossiping.life),
        relay=RelayDesk(ground.nodes, LanePool(ground.dial, ground.clock), policy, ground.clock),
        refetch=Refetcher(
            ground.catalog, ground.nodes, ground.tickets, RpcTicketProvider(ground.channels, ground.book),
            LanePool(ground.dial, ground.clock), ground.bell, ground.clock, ground.observer, own_domain, ground.writer,
        ),
        watch=LoopWatch(ground.clock, ground.observer),
        stop=stop,
    )  # fmt: skip
