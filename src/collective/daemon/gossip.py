"""Joins gossip together for one home: its keys, its state file, its settings, the control wire."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from random import Random

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from collective.admission import Household
from collective.catalog import Catalog
from collective.core.address import parse_address
from collective.core.clock import Clock
from collective.core.observe import Observer
from collective.daemon.config import CoordinatorConfig
from collective.daemon.home import Home
from collective.daemon.runtime import Writer
from collective.gossip import LAN, WAN, Self
from collective.net.channels import Channels
from collective.transfer.events import ChangeBell
from collective.transfer.gossip_view import MemberKeys
from collective.transfer.gossiping import Gossiping, GossipParts
from collective.transfer.peers import PeerBook
from collective.transfer.sync import EntryTaker
from collective.wire import feed_pb2

__all__ = ["assemble_gossip"]


def assemble_gossip(
    *,
    home: Home,
    config: CoordinatorConfig,
    household: Household,
    root: x509.Certificate,
    catalog: Catalog,
    channels: Channels,
    bell: ChangeBell,
    book: PeerBook,
    writer: Writer,
    clock: Clock,
    observer: Observer,
    endpoints: list[feed_pb2.Endpoint],
    after_receive: Callable[[], Awaitable[None]],
) -> Gossiping:
    """The driver of this home's gossip, not running yet.

    Without `enable_gossip` it keeps to the bootstrap peers and answers who asks. Homes that name an endpoint beyond
    their own network take the slower profile.
    """
    own = household.coordinator.identity
    bootstrap = [parse_address(text).domain for text in config.coordinator.bootstrap_peers]
    profile = WAN if any(endpoint.type != "lan" for endpoint in endpoints) else LAN
    parts = GossipParts(
        catalog=catalog,
        bell=bell,
        book=book,
        channels=channels,
        clock=clock,
        observer=observer,
        own=Self(
            address=own.address,
            certificates=(
                household.keys.signing_certificate.public_bytes(Encoding.DER),
                household.coordinator.member_ca.public_bytes(Encoding.DER),
            ),
            endpoints=tuple(endpoints),
        ),
        sign=household.keys.signing_key.sign,
        keys=MemberKeys(root, own.federation_domain),
        settings=replace(profile, gossip_seconds=config.federation.gossip_interval),
        bootstrap=bootstrap,
        only=None if config.federation.enable_gossip else frozenset(bootstrap),
        load=home.saved_gossip,
        save=home.save_gossip,
        taker=EntryTaker(catalog, bell, channels, observer, writer, after_receive),
        read=writer,
    )
    return Gossiping(parts, Random())
