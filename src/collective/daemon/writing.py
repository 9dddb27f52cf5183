"""The writing half of a coordinator, joined together: leases, numbers, submitting and forwarding, uploads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from collective.catalog import Catalog
from collective.core.observe import Observer
from collective.daemon.foundation import Foundation
from collective.daemon.tending import guarded
from collective.mount.journal_folder import unfinished_journals
from collective.net.lane import LaneHandler
from collective.transfer.asking import Coordinators
from collective.transfer.events import ChangeBell
from collective.transfer.forward import Forwarder
from collective.transfer.numbers import NumberStock
from collective.transfer.serve_leases import LeaseDesk, lease_handlers
from collective.transfer.serve_mounts import mount_handlers
from collective.transfer.submit import SubmitDesk
from collective.transfer.uploads import UploadDesk

__all__ = ["Writing", "join_writing"]

REST_SECONDS = 0.25  # between two looks
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

        async def look() -> None:
            await guarded(self.observer, "forwarding", self.forwarder.tick)
            await guarded(self.observer, "numbers", self.numbers.tick)

        await self.bell.rounds(look, idle_seconds=LOOK_SECONDS, rest_seconds=REST_SECONDS)

    async def close(self) -> None:
        """Call the leases back, commit what was taken in, stop sending."""
        await self.leases.close()
        await self.forwarder.close()
        await self.submit.close()


def join_writing(ground: Foundation, life: Callable[[str], int]) -> Writing:
    """`life` is another one of a member's at each of its starts, 0 while it cannot be reached.

    The file `leases-out` is in the home while leases may be out; it outlives a crash of this process.
    """
    leases_out = ground.home.path / "leases-out"

    def mark(out: bool) -> None:
        if out:
            leases_out.touch(mode=0o600)
        else:
            leases_out.unlink(missing_ok=True)

    def space() -> tuple[int, int]:
        known = [node.status for node in ground.nodes.all() if node.status is not None]
        return sum(status.capacity_bytes for status in known), sum(status.free_bytes for status in known)

    catalog, bell, clock, observer, writer = ground.catalog, ground.bell, ground.clock, ground.observer, ground.writer
    own_domain = ground.own.member_domain
    coordinators = Coordinators(ground.channels, ground.book)
    leases = LeaseDesk(
        clock, observer, out_before=leases_out.exists(), mark=mark, space=space,
        journals=lambda: unfinished_journals(ground.home.mounts),
    )  # fmt: skip
    forwarder = Forwarder(catalog, coordinators, bell, clock, observer, life, writer)
    return Writing(
        leases=leases,
        forwarder=forwarder,
        submit=SubmitDesk(catalog, leases, forwarder, ground.choose_members, bell, clock, observer, own_domain, writer),
        numbers=NumberStock(catalog, coordinators, bell, clock, observer, ground.own.address, life, writer),
        uploads=UploadDesk(catalog, ground.nodes, ground.tickets, bell, clock, own_domain, ground.store_secret),
        bell=bell,
        catalog=catalog,
        observer=observer,
        own_domain=own_domain,
    )
