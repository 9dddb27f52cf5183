"""The coordinator process: opens the home, joins the rooms together, serves until it is told to stop."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from random import Random

from cryptography.hazmat.primitives.serialization import Encoding

from collective.admission import AdmissionDesk, Household, admission_rows, open_household
from collective.catalog import Catalog
from collective.chunks import derive_store_secret
from collective.core.address import FederatedAddress
from collective.core.clock import Clock
from collective.core.errors import Misconfigured
from collective.core.observe import Observer
from collective.daemon.config import CoordinatorConfig, unbuilt_keys
from collective.daemon.home import Home
from collective.daemon.runtime import Writer, ready
from collective.daemon.supervise import NodeChild
from collective.daemon.tending import Tending, pledge
from collective.health import StatusDesk, status_rows
from collective.identity import Level, TrustStore, load_certificate
from collective.net.channels import Channels
from collective.net.endpoints import parse_host_port
from collective.net.lane import LaneConnection, LaneServer, connect_lane
from collective.net.rpc import Row, RpcServer
from collective.transfer.commands import CommandDesk, control_rows
from collective.transfer.copies import CopyDesk
from collective.transfer.events import ChangeBell
from collective.transfer.nodes import NodeDirectory, TicketOffice
from collective.transfer.pages import PageMender
from collective.transfer.peers import PeerBook
from collective.transfer.placing import ChooseMembers, member_chooser
from collective.transfer.repair import CopyMaker
from collective.transfer.serve import FederationDesk, federation_rows, membership_rows
from collective.transfer.serve_events import event_handlers
from collective.transfer.snapshots import SnapshotMaker, Snapshots, SnapshotTaker
from collective.transfer.sync import EntryServer, PeerSync, SyncParts
from collective.transfer.tickets import RpcTicketProvider
from collective.transfer.waking import HandBackDesk, HandOver, waking_rows
from collective.wire import control_pb2, feed_pb2

__all__ = ["CoordinatorSettings", "Parts", "assemble", "run_coordinator"]

NODE_START_SECONDS = 20.0
STOP_GRACE_SECONDS = 2.0
DIAL_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True)
class CoordinatorSettings:
    """`listen` and `lane` are HOST:PORT (port 0: a free one); `storage_bytes` 0: no embedded node."""

    listen: str
    lane: str
    node_lane: str
    storage_bytes: int
    storage_path: str
    debug: bool = False
    without: tuple[str, ...] = ()  # members whose answer is not awaited when this home wakes up in doubt


@dataclass(frozen=True)
class Parts:
    """The rooms of one coordinator, joined together; also what a command uses when no coordinator runs."""

    home: Home
    config: CoordinatorConfig
    household: Household
    catalog: Catalog
    trust: TrustStore
    channels: Channels
    bell: ChangeBell
    book: PeerBook
    nodes: NodeDirectory
    writer: Writer
    rows: list[Row]
    sync: PeerSync
    copies: CopyMaker
    hand_over: HandOver
    snapshots: Snapshots
    clock: Clock
    observer: Observer
    endpoints: list[feed_pb2.Endpoint]
    choose_members: ChooseMembers

    def refresh_trust(self) -> None:
        """Tell the trust store who is a member now."""
        for member in self.catalog.members():
            if member.removed:
                self.trust.remove_member(member.domain)
            else:
                self.trust.add_member(member.ca_certificate)

    async def close(self) -> None:
        await self.channels.close()
        await self.nodes.close()
        self.writer.close()
        self.catalog.close()


def assemble(home: Home, clock: Clock, observer: Observer, settings: CoordinatorSettings | None = None) -> Parts:
    """Open the home (its lock must be held) and join the rooms. Raises: Misconfigured."""
    config = home.config()
    household = open_household(home.identity)
    root = load_certificate(home.identity / "root-ca.crt")
    catalog = home.catalog_opener(clock, observer)(household, root)
    own = household.coordinator.identity
    trust = TrustStore(root, own.member_domain)
    trust.set_peers(config.federation.trusted_domains)
    channels = Channels(household.coordinator, trust, clock)
    bell = ChangeBell(catalog.change_counter)
    book = PeerBook(catalog, home.saved_peers(), home.save_peers)
    writer = Writer()
    endpoints = [
        feed_pb2.Endpoint(type=endpoint.type, grpc=endpoint.address, lane=endpoint.lane)
        for endpoint in config.network.endpoints
    ]

    async def dial(address: FederatedAddress, lane_address: str, level: Level = Level.LOCAL) -> LaneConnection:
        host, port = parse_host_port(lane_address)
        return await connect_lane(
            host,
            port,
            credentials=household.coordinator,
            trust=trust,
            clock=clock,
            expected=address,
            level=level,
            timeout_seconds=DIAL_TIMEOUT_SECONDS,
        )

    async def dial_others(address: FederatedAddress, lane_address: str) -> LaneConnection:
        return await dial(address, lane_address, Level.FEDERATED)

    nodes = NodeDirectory(dial, observer)
    tickets = TicketOffice(own.member_domain, household.keys.signing_key, clock)
    parts: Parts

    def introduction() -> control_pb2.PeerConnectRequest:
        return control_pb2.PeerConnectRequest(
            federated_address=str(own.address),
            federation_domain=own.federation_domain,
            member_ca_cert=household.coordinator.member_ca.public_bytes(Encoding.DER),
            nodes=[
                control_pb2.NodeInfo(
                    federated_address=card.address,
                    capacity=card.capacity_bytes,
                    labels=card.labels,
                    endpoints=card.endpoints,
                )
                for card in nodes.cards()
            ],
            endpoints=endpoints,
        )

    async def after_receive() -> None:
        parts.refresh_trust()

    def after_change() -> None:
        parts.refresh_trust()
        bell.ring()

    told_bytes = settings.storage_bytes if settings else config.coordinator.storage_capacity
    copy_desk = CopyDesk(
        catalog, nodes, tickets, bell, observer, own.member_domain, lambda: pledge(nodes, told_bytes), writer
    )
    federation = FederationDesk(
        catalog=catalog,
        entries=EntryServer(catalog, bell, clock),
        copies=copy_desk,
        book=book,
        nodes=nodes,
        tickets=tickets,
        clock=clock,
        observer=observer,
        own_address=own.address,
        introduction=introduction,
        signing_certificate=household.keys.signing_certificate,
    )
    choose_members = member_chooser(catalog, nodes, own.member_domain)
    commands = CommandDesk(
        catalog=catalog,
        nodes=nodes,
        tickets=tickets,
        bell=bell,
        clock=clock,
        own_address=own.address,
        store_secret=lambda store_id: derive_store_secret(household.chunk_secret, store_id),
        choose_members=choose_members,
        write=writer,
    )
    provider = RpcTicketProvider(channels, book)
    taker = SnapshotTaker(
        catalog, provider, dial_others, home.snapshots, own.member_domain, writer, bell, observer, clock
    )
    maker = SnapshotMaker(
        catalog, nodes, tickets, dial, lambda store_id: derive_store_secret(household.chunk_secret, store_id),
        choose_members, home.snapshots, own.member_domain, writer, bell, observer,
        config.coordinator.snapshot_entries,
    )  # fmt: skip
    sync = PeerSync(
        SyncParts(
            catalog=catalog,
            bell=bell,
            book=book,
            channels=channels,
            clock=clock,
            observer=observer,
            own_domain=own.member_domain,
            introduction=introduction,
            write=writer,
            after_receive=after_receive,
            take_snapshot=taker.take,
        ),
        Random(),
    )
    copies = CopyMaker(catalog, nodes, book, channels, observer, own.member_domain)
    admission = AdmissionDesk(
        catalog=catalog,
        identity_directory=home.identity,
        federation_domain=own.federation_domain,
        own_domain=own.member_domain,
        endpoints=lambda: endpoints,
        clock=clock,
        write=writer,
        after_change=after_change,
    )
    status = StatusDesk(catalog, nodes, sync, copies, clock, own, lambda: endpoints)
    rows = [
        *federation_rows(federation),
        *membership_rows(federation),
        *control_rows(commands),
        *admission_rows(admission),
        *status_rows(status),
        *waking_rows(HandBackDesk(catalog, bell, observer, writer)),
    ]
    hand_over = HandOver(catalog, book, channels, bell, clock, observer, writer)
    pages = PageMender(catalog, provider, own.member_domain, observer, writer)
    parts = Parts(
        home, config, household, catalog, trust, channels, bell, book, nodes, writer, rows, sync, copies, hand_over,
        Snapshots(maker, taker, pages),
        clock, observer, endpoints, choose_members,
    )  # fmt: skip
    parts.refresh_trust()
    return parts


async def run_coordinator(
    home: Home, settings: CoordinatorSettings, clock: Clock, observer: Observer, stop: asyncio.Event
) -> None:
    """Serve until `stop` is set. Raises: Misconfigured, Conflict (home or port in use)."""
    with home.locked():
        parts = assemble(home, clock, observer, settings)
        parts.catalog.excuse(settings.without)
        for warning in unbuilt_keys(parts.config):
            observer.event("config.warning", message=warning)
        server = RpcServer(parts.rows, parts.trust, parts.household.coordinator, clock, observer)
        lane = LaneServer(
            parts.household.coordinator,
            parts.trust,
            event_handlers(parts.bell, parts.household.member_domain),
            clock=clock,
            observer=observer,
        )
        try:
            grpc_port = await server.start(settings.listen)
            lane_host, lane_port = parse_host_port(settings.lane)
            lane_port = await lane.start(lane_host, lane_port)
            await server.start_unix(home.socket)
            await _serve(parts, settings, f"{parse_host_port(settings.listen)[0]}:{grpc_port}", stop)
        finally:
            await server.stop(STOP_GRACE_SECONDS)
            await lane.stop()
            await parts.close()
            home.socket.unlink(missing_ok=True)


async def _serve(parts: Parts, settings: CoordinatorSettings, grpc_address: str, stop: asyncio.Event) -> None:
    async with asyncio.TaskGroup() as group:
        tasks: list[asyncio.Task[None]] = []
        if settings.storage_bytes:
            child = NodeChild(_node_arguments(parts, settings, grpc_address), parts.home.path / "node.log",
                              parts.clock, parts.observer)  # fmt: skip
            tasks.append(group.create_task(child.run(), name="node"))
            if not await parts.nodes.wait_registered(NODE_START_SECONDS):
                for task in tasks:
                    task.cancel()
                raise Misconfigured(
                    f"the storage node did not start within {NODE_START_SECONDS:.0f} s",
                    f"its log says why: {parts.home.path / 'node.log'}",
                )
            await parts.nodes.refresh()
        tending = _tending(parts, settings)
        await tending.make_datastores(parts.config.datastores)
        await tending.update_card()
        tasks.append(group.create_task(parts.sync.run(), name="sync"))
        tasks.append(group.create_task(tending.every_change(), name="background"))
        tasks.append(group.create_task(tending.make_copies(), name="copies"))
        tasks.append(group.create_task(parts.hand_over.run(), name="hand over"))
        tasks.append(group.create_task(parts.snapshots.run(), name="snapshots"))
        ready(f"ready: {parts.household.coordinator.identity.address} on {grpc_address}")
        await stop.wait()
        for task in tasks:
            task.cancel()


def _node_arguments(parts: Parts, settings: CoordinatorSettings, grpc_address: str) -> list[str]:
    arguments = ["--home", str(parts.home.path), "node", "--embedded", "--coordinator", grpc_address]
    arguments += ["--storage", str(settings.storage_bytes), "--storage-path", settings.storage_path]
    return [*arguments, "--lane", settings.node_lane]


def _tending(parts: Parts, settings: CoordinatorSettings) -> Tending:
    return Tending(
        catalog=parts.catalog,
        household=parts.household,
        nodes=parts.nodes,
        copies=parts.copies,
        choose_members=parts.choose_members,
        endpoints=parts.endpoints,
        writer=parts.writer,
        bell=parts.bell,
        clock=parts.clock,
        observer=parts.observer,
        storage_bytes=settings.storage_bytes,
    )
