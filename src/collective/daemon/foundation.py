"""What every part of a running coordinator stands on: the opened home, its trust, its ways out, its own nodes."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from collective.admission import Household, open_household
from collective.catalog import Catalog
from collective.chunks import derive_store_secret
from collective.core.address import FederatedAddress
from collective.core.clock import Clock
from collective.core.observe import Observer
from collective.daemon.config import CoordinatorConfig
from collective.daemon.home import Home
from collective.daemon.runtime import Writer
from collective.identity import PeerIdentity, TrustStore, load_certificate
from collective.net.channels import Channels
from collective.net.endpoints import parse_host_port
from collective.net.lane import LaneConnection, connect_lane
from collective.transfer.events import ChangeBell
from collective.transfer.node_heads import NodeHeads, compare_heads
from collective.transfer.nodes import NodeDirectory, TicketOffice
from collective.transfer.peers import PeerBook
from collective.transfer.placing import ChooseMembers, member_chooser
from collective.wire import control_pb2, feed_pb2

__all__ = ["CoordinatorSettings", "Dialer", "Foundation", "open_foundation"]

HEARING_SECONDS = 6.0
CARRIED_NODE = "node-01"
DIAL_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True)
class CoordinatorSettings:
    """`listen` and `lane` are HOST:PORT (port 0: a free one); `storage_bytes` 0: no embedded node.

    `without`: members whose answer is not awaited when this home wakes up in doubt. `come_back`: though it left.
    """

    listen: str
    lane: str
    node_lane: str
    storage_bytes: int
    storage_path: str
    debug: bool = False
    without: tuple[str, ...] = ()
    come_back: bool = False


@dataclass(frozen=True)
class Dialer:
    """Opens lanes to components of any member."""

    household: Household
    trust: TrustStore
    clock: Clock

    async def __call__(self, address: FederatedAddress, place: str) -> LaneConnection:
        host, port = parse_host_port(place)
        return await connect_lane(
            host, port, credentials=self.household.coordinator, trust=self.trust, clock=self.clock, expected=address,
            timeout_seconds=DIAL_TIMEOUT_SECONDS,
        )  # fmt: skip


@dataclass(frozen=True)
class Foundation:
    """An opened home. `told_bytes` is what was said of its storage, 0 for nothing."""

    home: Home
    config: CoordinatorConfig
    household: Household
    root: x509.Certificate
    catalog: Catalog
    clock: Clock
    observer: Observer
    told_bytes: int
    trust: TrustStore
    channels: Channels
    bell: ChangeBell
    book: PeerBook
    dial: Dialer
    nodes: NodeDirectory
    tickets: TicketOffice
    writer: Writer
    choose_members: ChooseMembers
    endpoints: list[feed_pb2.Endpoint]

    @property
    def own(self) -> PeerIdentity:
        """The coordinator, by its certificate."""
        return self.household.coordinator.identity

    def store_secret(self, store_id: bytes) -> bytes:
        """What this member seals a DataStore's contents with."""
        return derive_store_secret(self.household.chunk_secret, store_id)

    def introduction(self) -> control_pb2.PeerConnectRequest:
        """Who and where this home is, for a peer."""
        return control_pb2.PeerConnectRequest(
            federated_address=str(self.own.address),
            federation_domain=self.own.federation_domain,
            member_ca_cert=self.household.coordinator.member_ca.public_bytes(Encoding.DER),
            nodes=[
                control_pb2.NodeInfo(
                    federated_address=card.address,
                    capacity=card.capacity_bytes,
                    labels=card.labels,
                    endpoints=card.endpoints,
                )
                for card in self.nodes.cards()
            ],
            endpoints=self.endpoints,
        )

    def refresh_trust(self) -> None:
        """Tell the trust store who is a member now."""
        self.trust.set_roster(
            (member.domain, member.ca_certificate, member.removed) for member in self.catalog.members()
        )

    async def after_receive(self) -> None:
        """Entries of others were applied."""
        self.refresh_trust()

    def after_change(self) -> None:
        """Something was changed here."""
        self.refresh_trust()
        self.bell.ring()

    async def hear_separate_nodes(self) -> None:
        """Ask the nodes on the card, where they were last, for the heads they keep; before anything is signed."""
        own = next((member for member in self.catalog.members() if member.domain == self.own.member_domain), None)
        cards = own.card.nodes if own is not None and own.card is not None else ()
        nodes = NodeDirectory(self.dial, self.observer)
        for card in cards:
            if card.address.partition("@")[0] != CARRIED_NODE:
                nodes.register(
                    control_pb2.RegisterNodeRequest(federated_address=card.address, endpoints=card.endpoints)
                )
        with contextlib.suppress(TimeoutError):  # a node that is away holds up the start no longer than this
            async with asyncio.timeout(HEARING_SECONDS):
                await compare_heads(self.catalog, nodes, self.observer, self.writer)
        await nodes.close()

    async def close(self) -> None:
        """Last of all parts."""
        await self.channels.close()
        await self.nodes.close()
        self.writer.close()
        self.catalog.close()


def open_foundation(
    home: Home, clock: Clock, observer: Observer, settings: CoordinatorSettings | None = None
) -> Foundation:
    """Open the home; its lock must be held. Raises: Misconfigured."""
    config = home.config()
    household = open_household(home.identity)
    root = load_certificate(home.identity / "root-ca.crt")
    heads = NodeHeads(home.head_keeper(settings.storage_path if settings else ""), observer)
    catalog = home.catalog_opener(clock, observer, heads=heads)(household, root)
    own_domain = household.coordinator.identity.member_domain
    trust = TrustStore(root, own_domain)
    trust.set_peers(config.federation.trusted_domains)
    dial = Dialer(household, trust, clock)
    nodes = NodeDirectory(dial, observer)
    carried = settings is not None and settings.storage_bytes and Path(settings.storage_path).is_dir()
    heads.attach(nodes, frozenset({f"{CARRIED_NODE}@{own_domain}"} if carried else ()))
    foundation = Foundation(
        home=home,
        config=config,
        household=household,
        root=root,
        catalog=catalog,
        clock=clock,
        observer=observer,
        told_bytes=settings.storage_bytes if settings else config.coordinator.storage_capacity,
        trust=trust,
        channels=Channels(household.coordinator, trust, clock),
        bell=ChangeBell(catalog.change_counter),
        book=PeerBook(catalog, home.saved_peers(), home.save_peers),
        dial=dial,
        nodes=nodes,
        tickets=TicketOffice(own_domain, household.keys.signing_key, clock),
        writer=Writer(),
        choose_members=member_chooser(catalog, nodes, own_domain),
        endpoints=[
            feed_pb2.Endpoint(type=endpoint.type, grpc=endpoint.address, lane=endpoint.lane)
            for endpoint in config.network.endpoints
        ],
    )
    foundation.refresh_trust()
    return foundation
