"""Joins gossip together for one home: its keys, its state file, its settings, the control wire."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from cryptography.hazmat.primitives.serialization import Encoding

from collective.core.address import parse_address
from collective.daemon.foundation import Foundation
from collective.daemon.neighbours import Neighbours
from collective.gossip import LAN, WAN, Self
from collective.net.dns import ServiceRecords
from collective.transfer.finding import Finder
from collective.transfer.gossip_view import MemberKeys
from collective.transfer.gossiping import Gossiping, GossipParts
from collective.transfer.sync import EntryTaker

__all__ = ["join_gossip"]


def join_gossip(ground: Foundation, taker: EntryTaker, neighbours: Neighbours) -> Gossiping:
    """The driver of this home's gossip, not running yet.

    Without `enable_gossip` it keeps to the bootstrap peers and answers who asks. Homes that name an endpoint beyond
    their own network take the slower profile.
    """
    federation, keys = ground.config.federation, ground.household.keys
    bootstrap = [parse_address(text).domain for text in ground.config.coordinator.bootstrap_peers]
    profile = WAN if any(endpoint.type != "lan" for endpoint in ground.endpoints) else LAN
    parts = GossipParts(
        catalog=ground.catalog,
        bell=ground.bell,
        book=ground.book,
        finder=Finder([("lan", neighbours.places), ("direct", ServiceRecords().places)], ground.clock),
        channels=ground.channels,
        clock=ground.clock,
        observer=ground.observer,
        own=Self(
            address=ground.own.address,
            certificates=(
                keys.signing_certificate.public_bytes(Encoding.DER),
                ground.household.coordinator.member_ca.public_bytes(Encoding.DER),
            ),
            endpoints=tuple(ground.endpoints),
        ),
        sign=keys.signing_key.sign,
        keys=MemberKeys(ground.root, ground.own.federation_domain),
        settings=replace(profile, gossip_seconds=federation.gossip_interval),
        bootstrap=bootstrap,
        only=None if federation.enable_gossip else frozenset(bootstrap),
        load=ground.home.saved_gossip,
        save=ground.home.save_gossip,
        taker=taker,
        read=ground.writer,
    )
    return Gossiping(parts, Random())
