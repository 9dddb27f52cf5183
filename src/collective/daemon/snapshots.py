"""Joins snapshots together for one home: who makes them, who starts from them, where their files lie meanwhile."""

from __future__ import annotations

from collective.daemon.foundation import Foundation
from collective.transfer.pages import PageMender
from collective.transfer.snapshots import SnapshotMaker, Snapshots, SnapshotTaker
from collective.transfer.tickets import RpcTicketProvider

__all__ = ["join_snapshots"]


def join_snapshots(ground: Foundation) -> Snapshots:
    """Not running yet."""
    own_domain = ground.own.member_domain
    provider = RpcTicketProvider(ground.channels, ground.book)
    return Snapshots(
        maker=SnapshotMaker(
            catalog=ground.catalog,
            nodes=ground.nodes,
            tickets=ground.tickets,
            dial=ground.dial,
            store_secret=ground.store_secret,
            choose_members=ground.choose_members,
            folder=ground.home.snapshots,
            own_domain=own_domain,
            write=ground.writer,
            bell=ground.bell,
            observer=ground.observer,
            every=ground.config.coordinator.snapshot_entries,
        ),
        taker=SnapshotTaker(
            catalog=ground.catalog,
            provider=provider,
            dial=ground.dial,
            folder=ground.home.snapshots,
            own_domain=own_domain,
            write=ground.writer,
            bell=ground.bell,
            observer=ground.observer,
            clock=ground.clock,
        ),
        pages=PageMender(ground.catalog, provider, own_domain, ground.observer, ground.writer),
    )
