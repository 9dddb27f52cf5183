"""This member's own storage nodes as its coordinator sees them: where they are, tickets for them, calls to them.

A node registers over gRPC with its own certificate; the coordinator then dials the node's lane when it needs it. The
tickets it signs are the only policy a node ever sees.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import Message

from collective.chunks import CandidateNode, rank_nodes
from collective.core.address import FederatedAddress, parse_address
from collective.core.clock import Clock
from collective.core.errors import CollectiveError, Full, Unreachable
from collective.core.observe import Observer
from collective.identity import mint_read_ticket, mint_upload_ticket
from collective.net.endpoints import EVERYWHERE, parse_host_port
from collective.net.lane import LaneConnection
from collective.wire import control_pb2, feed_pb2, lane_pb2

__all__ = ["NodeDirectory", "NodeRecord", "TicketOffice"]

TICKET_SECONDS = 600.0  # long enough for a chunk on a thin line, short enough to forget
UPLOAD_BYTES_PER_SECOND = 256 * 1024  # an upload's ticket holds longer by the time it takes at 2 Mbit/s
CALL_TIMEOUT_SECONDS = 10.0
HAS_PER_CALL = 512
PUSH_TIMEOUT_SECONDS = 900.0  # up to 512 chunks of 8 MiB over a thin line
Dial = Callable[[FederatedAddress, str], Awaitable[LaneConnection]]


@dataclass(frozen=True)
class TicketOffice:
    """Signs tickets for this member's nodes. `policy_epoch` voids older ones when raised."""

    member_domain: str
    signing_key: Ed25519PrivateKey
    clock: Clock
    policy_epoch: int = 1

    def read(self, bearer: str, layout_hash: bytes) -> tuple[bytes, int]:
        """A ticket for the chunks of one layout, and when it ends (milliseconds since 1970)."""
        expires = self._expires()
        signed = mint_read_ticket(
            self.signing_key,
            issuer=self.member_domain,
            bearer=bearer,
            layout_hash=layout_hash,
            expires_milliseconds=expires,
            policy_epoch=self.policy_epoch,
        )
        return signed, expires

    def upload(self, bearer: str, store_id: bytes, byte_limit: int) -> tuple[bytes, bytes]:
        """A ticket to write up to `byte_limit` sealed bytes for one DataStore, and its upload id."""
        upload_id = os.urandom(16)
        signed = mint_upload_ticket(
            self.signing_key,
            issuer=self.member_domain,
            bearer=bearer,
            store_id=store_id,
            upload_id=upload_id,
            byte_limit=byte_limit,
            expires_milliseconds=self._expires(byte_limit / UPLOAD_BYTES_PER_SECOND),
            policy_epoch=self.policy_epoch,
        )
        return signed, upload_id

    def _expires(self, more_seconds: float = 0.0) -> int:
        return int((self.clock.wall() + TICKET_SECONDS + more_seconds) * 1000)


@dataclass
class NodeRecord:
    """One registered node. `places`: where this coordinator dials it; `lane`: the open connection, when it is open."""

    address: FederatedAddress
    capacity_bytes: int
    labels: dict[str, str]
    endpoints: list[feed_pb2.Endpoint]
    places: list[str]
    lane: LaneConnection | None = None
    status: lane_pb2.NodeStatusReply | None = None
    missing: frozenset[bytes] = frozenset()  # ids of chunks it set aside as broken and does not have again
    gate: asyncio.Lock = field(default_factory=asyncio.Lock)
    told_silent: bool = False

    @property
    def lane_addresses(self) -> list[str]:
        """Where anybody may try to dial it; last the places that may mean something on this machine alone."""
        return list(dict.fromkeys([*(endpoint.lane for endpoint in self.endpoints), *self.places]))

    def location(self) -> control_pb2.NodeLocation:
        return control_pb2.NodeLocation(address=str(self.address), lane_addresses=self.lane_addresses)


def reachable_lanes(told: Iterable[feed_pb2.Endpoint], own: Sequence[feed_pb2.Endpoint]) -> list[feed_pb2.Endpoint]:
    """Where others dial a node: as it told; a node that listens everywhere (0.0.0.0) wherever its coordinator is."""
    lanes = []
    for endpoint in told:
        host, port = parse_host_port(endpoint.lane)
        if host not in EVERYWHERE or not own:
            lanes.append(endpoint)
            continue
        for other in own:
            own_host = other.grpc.rpartition(":")[0]
            lanes.append(feed_pb2.Endpoint(type=other.type, lane=f"{own_host}:{port}", preference=other.preference))
    return lanes


class NodeDirectory:
    """The member's nodes, and calls to them with one reconnect. Raises Unreachable when a node does not answer."""

    def __init__(self, dial: Dial, observer: Observer) -> None:
        self._dial = dial
        self._observer = observer
        self._nodes: dict[str, NodeRecord] = {}
        self._registered = asyncio.Event()

    def register(
        self, request: control_pb2.RegisterNodeRequest, own_endpoints: Sequence[feed_pb2.Endpoint] = ()
    ) -> NodeRecord:
        """Take a node in, or what it says of itself now; the same node stays the same record."""
        address = parse_address(request.federated_address)
        places = [endpoint.lane for endpoint in request.endpoints]
        endpoints = reachable_lanes(request.endpoints, own_endpoints)
        record = self._nodes.get(str(address))
        if record is None:
            record = NodeRecord(address, request.capacity, dict(request.labels), endpoints, places)
            self._nodes[str(address)] = record
            self._observer.event("nodes.registered", node=str(address), capacity_bytes=request.capacity)
        elif record.places != places:
            record.lane = record.status = None  # it is dialled anew where it is now
        record.capacity_bytes, record.labels = request.capacity, dict(request.labels)
        record.endpoints, record.places = endpoints, places
        self._registered.set()
        return record

    def all(self) -> list[NodeRecord]:
        return list(self._nodes.values())

    async def wait_registered(self, timeout_seconds: float) -> bool:
        """True as soon as one node is registered, False when the time is over."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._registered.wait()
        except TimeoutError:
            return False
        return True

    async def for_writing(self, key: bytes, needed_bytes: int, strategy: int = 0) -> NodeRecord:
        """The best of our nodes for new chunks. Raises: Unreachable (none, or none answers), Full (none has room)."""
        if not self._nodes:
            raise Unreachable(
                "this home has no storage node", "start the coordinator with --storage SIZE, or a node beside it"
            )
        if any(node.status is None for node in self._nodes.values()):
            await self.refresh()
        candidates = [
            CandidateNode(
                name=name,
                capacity_bytes=node.capacity_bytes,
                free_bytes=node.status.free_bytes if node.status else 0,
                labels=node.labels,
                alive=node.status is not None,
            )
            for name, node in self._nodes.items()
        ]
        ranked = rank_nodes(key, needed_bytes, strategy, candidates)
        if not any(candidate.alive for candidate in candidates):
            raise Unreachable("no storage node of this home answers", "look at its log; it is started again by itself")
        if not ranked:
            free = max(candidate.free_bytes for candidate in candidates)
            raise Full(
                f"the storage of this home is full: {needed_bytes} bytes wanted, at most {free} free on one node",
                "make room, raise --storage, or add a node",
            )
        return self._nodes[ranked[0]]

    async def holding(self, store_id: bytes, chunks: Sequence[tuple[bytes, int]]) -> dict[bytes, NodeRecord]:
        """Which of our nodes has each chunk (id, sealed size); those that nobody has are left out.

        Raises: Unreachable when something is on none that answers, and one does not answer.
        """
        found: dict[bytes, NodeRecord] = {}
        silent: Unreachable | None = None
        for node in self.all():
            missing = [chunk for chunk in chunks if chunk[0] not in found]
            try:
                for start in range(0, len(missing), HAS_PER_CALL):
                    part = missing[start : start + HAS_PER_CALL]
                    request = lane_pb2.HasRequest(
                        store_id=store_id, chunk_ids=[id_ for id_, _ in part], sealed_sizes=[size for _, size in part]
                    )
                    reply = lane_pb2.HasReply.FromString(await self.call(node, lane_pb2.LANE_HAS, request))
                    found.update((id_, node) for (id_, _), there in zip(part, reply.present, strict=True) if there)
            except Unreachable as error:
                silent = error
        if silent is not None and len(found) < len({id_ for id_, _ in chunks}):
            raise silent  # it may have what the others do not have
        return found

    def locations(self) -> list[control_pb2.NodeLocation]:
        return [node.location() for node in self._nodes.values()]

    def cards(self) -> list[feed_pb2.NodeCard]:
        """What the member's card says of its nodes."""
        return [
            feed_pb2.NodeCard(
                address=str(node.address),
                capacity_bytes=node.status.capacity_bytes if node.status else node.capacity_bytes,
                labels=node.labels,
                endpoints=node.endpoints,
            )
            for node in self._nodes.values()
        ]

    async def refresh(self) -> None:
        """Ask every node how it is; a silent one keeps no status."""
        for node in self.all():
            try:
                node.status, node.missing = await self._ask_status(node)
                node.told_silent = False
            except CollectiveError as error:
                node.status = None
                if not node.told_silent:  # said once, however often it is asked
                    self._observer.event("nodes.silent", node=str(node.address), reason=error.message)
                node.told_silent = True

    async def _ask_status(self, node: NodeRecord) -> tuple[lane_pb2.NodeStatusReply, frozenset[bytes]]:
        """Its figures, and all that it is missing, in as many answers as that takes."""
        missing: list[bytes] = []
        while True:
            request = lane_pb2.NodeStatusRequest(missing_after=missing[-1] if missing else b"")
            reply = lane_pb2.NodeStatusReply.FromString(await self.call(node, lane_pb2.LANE_NODE_STATUS, request))
            if not reply.missing_chunks:
                return reply, frozenset(missing)
            missing.extend(reply.missing_chunks)

    async def push(self, node: NodeRecord, request: lane_pb2.PushRequest) -> lane_pb2.PushReply:
        """Have a node send chunks to another member's node."""
        reply = await self.call(node, lane_pb2.LANE_PUSH, request, timeout_seconds=PUSH_TIMEOUT_SECONDS)
        return lane_pb2.PushReply.FromString(reply)

    async def store_chunk(
        self, node: NodeRecord, signed_ticket: bytes, chunk_id: bytes, sealed: memoryview, timeout_seconds: float
    ) -> None:
        """Put a sealed chunk on a node; it is durable there when this returns. Raises: Corrupt (not the id's), Full."""
        lane = await self._lane(node)
        shown = lane_pb2.PresentRequest(signed_ticket=signed_ticket).SerializeToString()
        reply = await lane.call(lane_pb2.LANE_PRESENT, shown, timeout_seconds=CALL_TIMEOUT_SECONDS)
        request = lane_pb2.WriteRequest(handle=lane_pb2.PresentReply.FromString(reply.head).handle, chunk_id=chunk_id)
        await lane.call(lane_pb2.LANE_WRITE, request.SerializeToString(), sealed, timeout_seconds=timeout_seconds)

    async def call(
        self,
        node: NodeRecord,
        method: int,
        request: Message,
        timeout_seconds: float = CALL_TIMEOUT_SECONDS,
    ) -> bytes:
        """One call on the node's lane; the reply's head."""
        lane = await self._lane(node)
        try:
            return (await lane.call(method, request.SerializeToString(), timeout_seconds=timeout_seconds)).head
        except Unreachable:
            node.lane = None
            raise

    async def _lane(self, node: NodeRecord) -> LaneConnection:
        async with node.gate:
            if node.lane is not None and not node.lane.is_closed:
                return node.lane
            last: CollectiveError = Unreachable(f"{node.address} told no lane address")
            for lane_address in node.places:
                try:
                    node.lane = await self._dial(node.address, lane_address)
                except CollectiveError as error:
                    last = error
                else:
                    return node.lane
            raise last

    async def close(self) -> None:
        for node in self.all():
            if node.lane is not None:
                await node.lane.close()
