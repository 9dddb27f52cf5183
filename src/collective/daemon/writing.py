"""The writing half of a coordinator, joined together: leases, numbers, submitting and forwarding, uploads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from collective.catalog import Catalog
from collective.core.address import FederatedAddress
from collective.core.clock import Clock
from collective.core.observe import Observer
from collective.daemon.runtime import Writer
from collective.daemon.tending import guarded
from collective.net.lane import LaneHandler
from collective.transfer.asking import Coordinators
from collective.transfer.events import ChangeBell
from collective.transfer.forward import Forwarder
from collective.transfer.nodes import NodeDirectory, TicketOffice
from collective.transfer.numbers import NumberStock
from collective.transfer.placing import ChooseMembers
from collective.transfer.serve_leases import LeaseDesk, lease_handlers
from collective.transfer.serve_mounts import mount_handlers
from collective.transfer.submit import SubmitDesk
from collective.transfer.uploads import UploadDesk

__all__ = ["Writing", "join_writing"]

LOOK_SECONDS = 1.0  # how often stocks of numbers, and who was met again, are looked at when nothing changes


@dataclass(frozen=True)
class Writing:
    """What takes changes in. `start` it when the coordinator serves, `close` it before the lane stops."""

    leases: LeaseDesk
    forwarder: Forwarder
    submit: SubmitDesk
    numbers: NumberStock
    uploads: UploadDesk
    bell: ChangeBell
    catalog: Catalog
    observer: Observer
    own_domain: str

    def handlers(self) -> Mapping[int, LaneHandler]:
        """What this member's own mounts may ask over the lane."""
        mounts = mount_handlers(
            self.own_domain,
            bell=self.bell,
            submit=self.submit,
            leases=self.leases,
            numbers=self.numbers,
            uploads=self.uploads,
        )
        return {**mounts, **lease_handlers(self.leases, self.own_domain)}

    async def run(self) -> None:
        """Send on what an earlier run left staged, and keep numbers in stock. Ends by cancellation."""
        while True:
            await guarded(self.observer, "forwarding", self.forwarder.tick)
            await guarded(self.observer, "numbers", self.numbers.tick)
            await self.bell.wait_past(self.catalog.change_counter(), LOOK_SECONDS)

    async def close(self) -> None:
        """Call the leases back, commit what was taken in, stop sending."""
        await self.leases.close()
        await self.forwarder.close()
        await self.submit.close()


def join_writing(
    *,
    catalog: Catalog,
    nodes: NodeDirectory,
    tickets: TicketOffice,
    coordinators: Coordinators,
    choose_members: ChooseMembers,
    store_secret: Callable[[bytes], bytes],
    reachable: Callable[[str], bool],
    writer: Writer,
    bell: ChangeBell,
    clock: Clock,
    observer: Observer,
    own_address: FederatedAddress,
    leases_out: Path,
) -> Writing:
    """`leases_out`: a file that is there while leases may be out; it outlives a crash of this process."""

    def mark(out: bool) -> None:
        if out:
            leases_out.touch(mode=0o600)
        else:
            leases_out.unlink(missing_ok=True)

    def space() -> tuple[int, int]:
        known = [node.status for node in nodes.all() if node.status is not None]
        return sum(status.capacity_bytes for status in known), sum(status.free_bytes for status in known)

    own_domain = own_address.domain
    leases = LeaseDesk(clock, observer, out_before=leases_out.exists(), mark=mark, space=space)
    forwarder = Forwarder(catalog, coordinators, bell, clock, observer, reachable, writer)
    return Writing(
        leases=leases,
        forwarder=forwarder,
        submit=SubmitDesk(catalog, leases, forwarder, choose_members, bell, clock, observer, own_domain, writer),
        numbers=NumberStock(catalog, coordinators, clock, observer, own_address, reachable, writer),
        uploads=UploadDesk(catalog, nodes, tickets, bell, clock, own_domain, store_secret),
        bell=bell,
        catalog=catalog,
        observer=observer,
        own_domain=own_domain,
    )
