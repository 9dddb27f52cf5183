"""The node process: opens its disk, serves its lane, keeps itself registered with its coordinator."""

from __future__ import annotations

import asyncio
import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from collective.chunks import ChunkStore, Scrubber
from collective.core.address import FederatedAddress
from collective.core.clock import Clock
from collective.core.errors import CollectiveError, Corrupt
from collective.core.observe import Observer
from collective.daemon.home import Home
from collective.daemon.loopwatch import LoopWatch
from collective.daemon.runtime import ready
from collective.identity import Credentials, TrustStore
from collective.net.channels import Channels
from collective.net.endpoints import EVERYWHERE, own_address_towards, parse_host_port
from collective.net.lane import LaneConnection, LaneServer, connect_lane
from collective.transfer.serve_node import NodeDesk, node_handlers
from collective.transfer.shown import NodePolicy
from collective.wire import control_pb2, feed_pb2

__all__ = ["NodeSettings", "run_node"]

REGISTER_SECONDS = 5.0  # a restarted coordinator knows its nodes again after this
REGISTER_TIMEOUT_SECONDS = 3.0
RETRY_SECONDS = 0.3
SCRUB_SECONDS = 1.0
SCRUB_BYTES_PER_SECOND = 8e6  # 20 TB in a month
RESERVE_FRACTION = 50  # one part in this many of the disk stays free, for the file system's own good
RESERVE_LIMIT_BYTES = 5_000_000_000


@dataclass(frozen=True)
class NodeSettings:
    """`name` is the local part of the node's address; `coordinator` HOST:PORT of the coordinator's gRPC port."""

    name: str
    coordinator: str
    lane: str
    storage_path: Path
    storage_bytes: int
    labels: dict[str, str] = field(default_factory=dict)


async def run_node(home: Home, settings: NodeSettings, clock: Clock, observer: Observer, stop: asyncio.Event) -> None:
    """Serve until `stop` is set. Raises: Misconfigured (home, disk, port)."""
    credentials = Credentials.load(home.identity, settings.name)
    own = credentials.identity
    trust = TrustStore(credentials.root, own.member_domain)
    trust.add_member(credentials.member_ca)
    store = await _open_store(home, settings)
    policy = NodePolicy(member_domain=own.member_domain)
    channels = Channels(credentials, trust, clock)

    async def dial(address: FederatedAddress, lane_address: str) -> LaneConnection:
        lane_host, lane_port = parse_host_port(lane_address)
        return await connect_lane(
            lane_host, lane_port, credentials=credentials, trust=trust, clock=clock, expected=address
        )

    watch = LoopWatch(clock, observer)
    desk = NodeDesk(store, policy, clock, observer, dial, str(settings.storage_path), watch.told)
    lane = LaneServer(credentials, trust, node_handlers(desk), clock=clock, observer=observer)
    try:
        host, port = parse_host_port(settings.lane)
        port = await lane.start(host, port)
        request = control_pb2.RegisterNodeRequest(
            federated_address=str(own.address),
            capacity=settings.storage_bytes,
            labels=settings.labels,
            endpoints=[feed_pb2.Endpoint(type="lan", lane=_told_lane(host, port, settings.coordinator))],
            storage_path=str(settings.storage_path),
        )
        async with asyncio.TaskGroup() as group:
            registering = group.create_task(
                _stay_registered(channels, FederatedAddress("coord", own.member_domain), settings, request, policy,
                                 credentials, observer),
            )  # fmt: skip
            ready(f"ready: {own.address} on lane {host}:{port}, chunks in {settings.storage_path}")
            background = [
                registering,
                group.create_task(_scrub(store, clock, observer)),
                group.create_task(watch.run()),
            ]
            await stop.wait()
            for task in background:
                task.cancel()
    finally:
        await lane.stop()
        await channels.close()
        await store.close()


def _told_lane(host: str, port: int, coordinator: str) -> str:
    """Where to be dialled: as it listens; a node that listens everywhere has the address it asks its coordinator from.

    On its coordinator's own machine it says that it listens everywhere, and the coordinator knows where that is.
    """
    if host not in EVERYWHERE:
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    coordinator_host, coordinator_port = parse_host_port(coordinator)
    seen = own_address_towards(coordinator_host, coordinator_port)
    if seen is None or ipaddress.ip_address(seen).is_loopback:
        seen = host
    return f"[{seen}]:{port}" if ":" in seen else f"{seen}:{port}"


async def _scrub(store: ChunkStore, clock: Clock, observer: Observer) -> None:
    """Read every stored chunk again and again, at a rate that nobody notices; broken ones are set aside."""
    scrubber = Scrubber(store, SCRUB_BYTES_PER_SECOND)
    while True:
        for finding in await asyncio.to_thread(scrubber.tick, clock.monotonic()):
            observer.event("node.chunk_broken", chunk=finding.chunk_id.hex(), reason=finding.reason)
        await asyncio.sleep(SCRUB_SECONDS)


async def _open_store(home: Home, settings: NodeSettings) -> ChunkStore:
    """Open the disk, and remember its marker so that an unmounted disk is never written under."""
    remembered = home.path / f"{settings.name}.disk"
    expected = remembered.read_text().strip() if remembered.exists() else None
    settings.storage_path.mkdir(parents=True, exist_ok=True)
    reserve = min(settings.storage_bytes // RESERVE_FRACTION, RESERVE_LIMIT_BYTES)
    store = await asyncio.to_thread(
        ChunkStore.open,
        settings.storage_path,
        capacity_bytes=settings.storage_bytes,
        reserve_bytes=reserve,
        expected_marker=expected,
    )
    if expected is None:
        remembered.write_text(store.marker + "\n")
    return store


async def _stay_registered(
    channels: Channels,
    coordinator: FederatedAddress,
    settings: NodeSettings,
    request: control_pb2.RegisterNodeRequest,
    policy: NodePolicy,
    credentials: Credentials,
    observer: Observer,
) -> None:
    """Register now and then; each answer brings the key and epoch that tickets are judged by."""
    registered = False
    while True:
        try:
            reply = await channels.unary(
                coordinator,
                settings.coordinator,
                "/collective.v1.Membership/RegisterNode",
                request,
                control_pb2.RegisterNodeReply,
                REGISTER_TIMEOUT_SECONDS,
            )
            policy.update(_signing_key(reply.signing_certificate, credentials), reply.policy_epoch)
        except CollectiveError as error:
            if registered:
                observer.event("node.coordinator_lost", reason=error.message)
            registered = False
            await asyncio.sleep(RETRY_SECONDS)
        else:
            if not registered:
                observer.event("node.registered", coordinator=str(coordinator))
            registered = True
            await asyncio.sleep(REGISTER_SECONDS)


def _signing_key(certificate_der: bytes, credentials: Credentials) -> Ed25519PublicKey:
    """The key of a signing certificate that our own member CA issued. Raises: Corrupt."""
    certificate = x509.load_der_x509_certificate(certificate_der)
    try:
        certificate.verify_directly_issued_by(credentials.member_ca)
    except Exception as error:
        raise Corrupt("the coordinator's signing certificate is not from this member's CA") from error
    key = certificate.public_key()
    if not isinstance(key, Ed25519PublicKey):
        raise Corrupt("the coordinator's signing certificate holds no Ed25519 key")
    return key
