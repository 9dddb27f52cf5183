"""The short-lived processes: put, get, and whatever reads bytes with this home's client certificate.

A reader opens the catalogue read-only, asks the holders' coordinators for tickets with its own certificate and reads
from their nodes; it needs no coordinator of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from collective.catalog import Reader, VersionReference
from collective.core.address import FederatedAddress, member_domain, member_identity, parse_address
from collective.core.clock import Clock
from collective.core.errors import CollectiveError, Unreachable
from collective.core.observe import SILENT, Observer
from collective.daemon.home import Home
from collective.identity import Credentials, Level, TrustStore
from collective.net.channels import Channels
from collective.net.endpoints import parse_host_port
from collective.net.lane import LaneConnection, LaneHandler, connect_lane
from collective.transfer.fetch import Fetcher, VersionSource
from collective.transfer.peers import PeerBook
from collective.transfer.tickets import RpcTicketProvider
from collective.wire import control_pb2

__all__ = ["ReadSide", "dial_own_coordinator", "known_domains", "open_read_side", "ping_member", "read_members"]

DIAL_TIMEOUT_SECONDS = 3.0
PING_SECONDS = 5.0


@dataclass(frozen=True)
class ReadSide:
    """Names and bytes for one process. `fetcher` is shared by everything that reads."""

    reader: Reader
    book: PeerBook
    trust: TrustStore
    channels: Channels
    credentials: Credentials
    fetcher: Fetcher
    clock: Clock

    def refresh_trust(self) -> None:
        """Take over who is a member now."""
        self.trust.set_roster(
            (member.domain, member.ca_certificate, member.removed) for member in self.reader.members()
        )

    async def open(self, reference: VersionReference) -> VersionSource:
        """A source of one version's bytes."""
        return await self.fetcher.open(reference)

    async def dial(
        self, address: FederatedAddress, lane_address: str, handlers: Mapping[int, LaneHandler] | None = None
    ) -> LaneConnection:
        host, port = parse_host_port(lane_address)
        return await connect_lane(
            host,
            port,
            credentials=self.credentials,
            trust=self.trust,
            clock=self.clock,
            expected=address,
            level=Level.FEDERATED,
            handlers=handlers,
            timeout_seconds=DIAL_TIMEOUT_SECONDS,
        )


async def dial_own_coordinator(side: ReadSide, handlers: Mapping[int, LaneHandler] | None = None) -> LaneConnection:
    """A lane to this home's coordinator, at whichever of its endpoints answers. Raises: Unreachable, Refused."""
    domain = side.credentials.identity.member_domain
    error: CollectiveError = Unreachable("this home's coordinator was never started")
    for endpoint in side.book.endpoints(domain):
        try:
            return await side.dial(FederatedAddress("coord", domain), endpoint.lane, handlers)
        except CollectiveError as failure:
            error = failure
    raise error


@contextlib.asynccontextmanager
async def open_read_side(home: Home, clock: Clock, observer: Observer = SILENT) -> AsyncIterator[ReadSide]:
    """Everything a reading process needs. Raises: Misconfigured when there is no home."""
    home.check()
    credentials = Credentials.load(home.identity, "client")
    own_domain = credentials.identity.member_domain
    reader = Reader.open(home.database, own_domain)
    trust = TrustStore(credentials.root, own_domain)
    channels = Channels(credentials, trust, clock)
    saved_since, saved = home.peers_saved_since(), home.saved_peers()
    book = PeerBook(reader, saved, own=home.listening, saved_since=saved_since)
    side: ReadSide

    async def dial(address: FederatedAddress, lane_address: str) -> LaneConnection:
        return await side.dial(address, lane_address)

    fetcher = Fetcher(
        reader=reader,
        provider=RpcTicketProvider(channels, book),
        dial=dial,
        own_domain=own_domain,
        clock=clock,
        observer=observer,
    )
    side = ReadSide(reader, book, trust, channels, credentials, fetcher, clock)
    side.refresh_trust()
    try:
        yield side
    finally:
        await fetcher.close()
        await channels.close()
        reader.close()


@dataclass(frozen=True)
class RosterRow:
    """One member for people: identity, domain, where its coordinator is reached, what it pledges."""

    identity: str
    domain: str
    removed: bool
    endpoints: list[str]
    pledge_bytes: int


def read_members(home: Home) -> list[RosterRow]:
    """The roster, from this home's database. Raises: Misconfigured when there is no home."""
    home.check()
    own_domain = Credentials.load(home.identity, "client").identity.member_domain
    reader = Reader.open(home.database, own_domain)
    try:
        return [
            RosterRow(
                identity=member_identity(member.domain),
                domain=member.domain,
                removed=member.removed,
                endpoints=[f"{end.type}:{end.grpc}" for end in (member.card.endpoints if member.card else ())],
                pledge_bytes=member.card.pledge_bytes if member.card else 0,
            )
            for member in reader.members()
        ]
    finally:
        reader.close()


def known_domains(home: Home) -> set[str]:
    """The member domains that this home knows; whatever else follows an @ is part of a name."""
    return {row.domain for row in read_members(home)}


async def ping_member(home: Home, member: str, clock: Clock) -> str:
    """Reach another member's coordinator once; its address. Raises: Unreachable, Refused."""
    async with open_read_side(home, clock) as side:
        known = {row.domain for row in read_members(home)}
        domain = member if "@" not in member else parse_address(member).domain
        if "@" in member and domain not in known:
            domain = member_domain(member)
        error: CollectiveError = Unreachable(
            f"nobody told where {domain} can be reached", "is it a member? see `federation members`"
        )
        for endpoint in side.book.endpoints(domain):
            try:
                reply = await side.channels.unary(
                    FederatedAddress("coord", domain),
                    endpoint.grpc,
                    "/collective.v1.Federation/Ping",
                    control_pb2.PingRequest(payload=b"ping"),
                    control_pb2.PingReply,
                    PING_SECONDS,
                )
            except CollectiveError as failure:
                error = failure
            else:
                return reply.federated_address
        raise error
