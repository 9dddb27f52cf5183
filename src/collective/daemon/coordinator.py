"""The coordinator process: opens the home, joins the rooms together, serves until it is told to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random

from cryptography.hazmat.primitives.serialization import Encoding

from collective.admission import AdmissionDesk, Household, admission_rows, open_household
from collective.catalog import Catalog
from collective.chunks import derive_store_secret
from collective.core.address import FederatedAddress
from collective.core.clock import Clock
from collective.core.errors import CollectiveError, Misconfigured
from collective.core.observe import Observer
from collective.daemon.config import CoordinatorConfig, unbuilt_keys
from collective.daemon.home import Home
from collective.daemon.runtime import Writer, ready
from collective.daemon.supervise import NodeChild
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
from collective.transfer.peers import PeerBook
from collective.transfer.placing import ChooseMembers, member_chooser, place_again
from collective.transfer.repair import CopyMaker
from collective.transfer.serve import FederationDesk, federation_rows, membership_rows
from collective.transfer.serve_events import event_handlers
from collective.transfer.snapshots import SnapshotMaker, Snapshots, SnapshotTaker
from collective.transfer.sync import EntryServer, PeerSync, SyncParts
from collective.transfer.tickets import RpcTicketProvider
from collective.transfer.waking import HandBackDesk, HandOver, waking_rows
from collective.wire import control_pb2, feed_pb2

__all__ = ["CoordinatorSettings", "Parts", "assemble", "run_coordinator"]

TICK_SECONDS = 0.25  # copies, wraps and statements are looked after this often, and at every change
NODE_STATUS_SECONDS = 10.0
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
        catalog, nodes, tickets, bell, observer, own.member_domain, lambda: _pledge(nodes, told_bytes), writer
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
    parts = Parts(
        home, config, household, catalog, trust, channels, bell, book, nodes, writer, rows, sync, copies, hand_over,
        Snapshots(maker, taker),
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
        await _make_configured_datastores(parts)
        await _update_card(parts, settings)
        tasks.append(group.create_task(parts.sync.run(), name="sync"))
        tasks.append(group.create_task(_every_change(parts, settings), name="background"))
        tasks.append(group.create_task(_make_copies(parts), name="copies"))
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


async def _every_change(parts: Parts, settings: CoordinatorSettings) -> None:
    """Background work: each room's tick, at every change and at least every few ticks."""
    status_due = 0.0
    counter = -1
    while True:
        now = parts.clock.monotonic()
        if now >= status_due:
            status_due = now + NODE_STATUS_SECONDS
            await _guarded(parts, "nodes", parts.nodes.refresh)
            await _guarded(parts, "card", lambda: _update_card(parts, settings))
            await _guarded(parts, "datastores", lambda: _make_configured_datastores(parts))
        await _guarded(parts, "tend", lambda: _tend(parts))
        counter = await parts.bell.wait_past(max(counter, parts.catalog.change_counter()), TICK_SECONDS)


async def _make_copies(parts: Parts) -> None:
    """Copies in a loop of their own: a large one takes hours and must not hold up keys and grants."""
    counter = -1
    while True:
        await _guarded(parts, "copies", lambda: parts.copies.tick(parts.clock.monotonic()))
        counter = await parts.bell.wait_past(max(counter, parts.catalog.change_counter()), TICK_SECONDS)


async def _guarded(parts: Parts, what: str, work: Callable[[], Awaitable[None]]) -> None:
    """A failed round of background work is told and tried again; it does not end the coordinator."""
    try:
        await work()
    except CollectiveError as error:
        parts.observer.event("background.failed", what=what, reason=error.message)
    except Exception as error:
        parts.observer.event("background.unexpected", what=what, error=f"{type(error).__name__}: {error}")


async def _tend(parts: Parts) -> None:
    def care() -> bool:
        changed = parts.catalog.tend(parts.clock.wall())
        return place_again(parts.catalog, parts.choose_members) or changed

    if await parts.writer(care):
        parts.bell.ring()


async def _update_card(parts: Parts, settings: CoordinatorSettings) -> None:
    """Say in the member feed who our nodes are and where we can be reached, when that changed."""
    if parts.catalog.is_doubtful():
        return  # nothing is signed now; it is said when the doubt is over
    card = feed_pb2.Card(
        wrapping_key=parts.household.keys.wrapping_key.public_key().public_bytes_raw(),
        endpoints=parts.endpoints,
        nodes=parts.nodes.cards() if settings.storage_bytes or parts.nodes.all() else [],
        pledge_bytes=_pledge(parts.nodes, settings.storage_bytes),
    )
    own = next(m for m in parts.catalog.members() if m.domain == parts.household.member_domain)
    if own.card is not None and _nearly_equal(own.card, card):
        return
    operation = feed_pb2.MemberOperation(id=_fresh_id(parts), card=card)
    await parts.writer(lambda: parts.catalog.append_member([operation]))
    parts.bell.ring()


def _pledge(nodes: NodeDirectory, told_bytes: int) -> int:
    """What this home hosts for others at most: what was said, or what its separate nodes may hold."""
    return told_bytes or sum(node.capacity_bytes for node in nodes.all())


def _nearly_equal(one: feed_pb2.Card, other: feed_pb2.Card) -> bool:
    """Whether two cards say the same; a disk's capacity may differ by a twentieth, since other files lie on it too."""
    if len(one.nodes) != len(other.nodes):
        return False
    copy = feed_pb2.Card()
    copy.CopyFrom(other)
    for told, now in zip(one.nodes, copy.nodes, strict=True):
        if abs(told.capacity_bytes - now.capacity_bytes) * 20 <= told.capacity_bytes:
            now.capacity_bytes = told.capacity_bytes
    return one == copy


def _fresh_id(parts: Parts) -> feed_pb2.OperationId:
    return feed_pb2.OperationId(writer=parts.household.member_domain, random=Random().randbytes(16))


async def _make_configured_datastores(parts: Parts) -> None:
    """Make the DataStores of the configuration that are not there yet."""
    if parts.catalog.is_doubtful():
        return
    existing = {store.path for store in parts.catalog.datastores() if store.owner == parts.household.member_domain}
    for wanted in parts.config.datastores:
        if wanted.path.encode() in existing:
            continue
        strategy = feed_pb2.Strategy.Value(wanted.strategy.upper()) if wanted.strategy else 0

        def make(path: bytes = wanted.path.encode(), strategy: int = strategy, copies: int = wanted.replicas) -> None:
            parts.catalog.create_datastore(path, strategy, copies, {})

        await parts.writer(make)
        parts.bell.ring()
