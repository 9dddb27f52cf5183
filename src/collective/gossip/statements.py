"""What members say of themselves: the newest JOIN, UPDATE or LEAVE of each, and this member's own counters.

A statement is ordered by its source's (incarnation, Lamport stamp) alone. The counters survive a restart: the
incarnation is raised at every start, stamps are reserved in blocks so that not every message needs a write. A member
that lost them learns its last incarnation from the statement that others kept, and goes on above it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from blake3 import blake3
from google.protobuf.message import DecodeError

from collective.core.address import FederatedAddress
from collective.core.errors import CollectiveError, Corrupt, Misconfigured
from collective.gossip.messages import Opened, Sign, Verify, Versions, open_statement, seal
from collective.wire.feed_pb2 import Endpoint
from collective.wire.gossip_pb2 import (
    JOIN,
    LEAVE,
    GossipMessage,
    GossipState,
    GossipType,
    SignedGossip,
    StatementStamp,
)

__all__ = ["Self", "Statements"]

FORMAT = 1
STAMP_BLOCK = 4096  # stamps reserved at once


@dataclass(frozen=True)
class Self:
    """This member as it presents itself. `certificates`: signing certificate and member CA, DER."""

    address: FederatedAddress
    certificates: Sequence[bytes] = ()
    endpoints: Sequence[Endpoint] = ()
    datastores: Sequence[bytes] = ()

    @property
    def domain(self) -> str:
        return self.address.domain


@dataclass
class Statements:
    """The newest statement of every member; `incarnation` and `lamport` are this member's own."""

    own: Self
    sign: Sign
    verify: Verify
    versions: Versions
    wall: Callable[[], float]
    incarnation: int = 0
    lamport: int = 0
    dirty: bool = False  # something here must be persisted before the next message leaves
    _reserved: int = 0
    _latest: dict[str, Opened] = field(default_factory=dict)
    _sum: int = 0

    # ------------------------------------------------------------ counters and own statements

    def load(self, saved: bytes) -> bool:
        """Take over what an earlier run kept; False when there is nothing. Raises: Misconfigured when it is broken."""
        if not saved:
            return False
        try:
            state = GossipState.FromString(saved)
        except DecodeError as error:
            raise Misconfigured(
                "the kept state of gossip is broken", "delete gossip.state; it is learned anew"
            ) from error
        self.incarnation, self.lamport = state.incarnation, state.lamport
        for signed in state.statements:
            try:
                self._keep(open_statement(signed.SerializeToString(), self.verify, self.versions))
            except CollectiveError:
                continue  # of a member that is none any more, or of a version no longer spoken: it comes again
        return True

    def saved(self) -> bytes:
        """What must survive a restart."""
        self.dirty = False
        statements = [SignedGossip.FromString(self._latest[domain].raw) for domain in sorted(self._latest)]
        state = GossipState(format=FORMAT, incarnation=self.incarnation, lamport=self._reserved, statements=statements)
        return state.SerializeToString()

    def next_stamp(self) -> int:
        """A Lamport stamp above every one used or seen."""
        self.lamport += 1
        if self.lamport > self._reserved:
            self._reserved = self.lamport + STAMP_BLOCK
            self.dirty = True
        return self.lamport

    def saw_stamp(self, stamp: int) -> None:
        self.lamport = max(self.lamport, stamp)

    def state_myself(self, kind: GossipType.ValueType, incarnation: int) -> Opened:
        """Make a new statement of this member under this incarnation (>= the current one)."""
        self.incarnation = incarnation
        self.dirty = True
        message = self.fill(GossipMessage(type=kind))
        if kind != LEAVE:
            message.endpoints.extend(self.own.endpoints)
            message.datastores.extend(self.own.datastores)
        if kind == JOIN:
            message.certificates.extend(self.own.certificates)
        opened = Opened(message, seal(message, self.sign), self.own.domain, self.versions.newest)
        self._keep(opened)
        return opened

    def fill(self, message: GossipMessage) -> GossipMessage:
        """What every message of this member says."""
        message.version, message.oldest_version = self.versions.newest, self.versions.oldest
        message.source = str(self.own.address)
        message.incarnation = self.incarnation
        message.lamport = self.next_stamp()
        message.timestamp_milliseconds = max(0, int(self.wall() * 1000))
        return message

    # ------------------------------------------------------------ others' statements

    def take(self, signed: SignedGossip) -> tuple[Opened, bool]:
        """A relayed statement, and whether it is newer than the one here. Raises: Corrupt, Refused."""
        raw = signed.SerializeToString()
        known = self._known(signed)
        if known is not None:
            return known, False
        opened = open_statement(raw, self.verify, self.versions)
        latest = self._latest.get(opened.domain)
        if latest is not None and opened.stamp <= latest.stamp:
            return latest, False
        return opened, True

    def keep(self, opened: Opened) -> None:
        """Remember a member's newest statement."""
        self._keep(opened)
        self.dirty = True

    def get(self, domain: str) -> Opened | None:
        return self._latest.get(domain)

    def retain(self, domains: Iterable[str]) -> None:
        """Forget whoever is not among these members."""
        for domain in self._latest.keys() - set(domains) - {self.own.domain}:
            self._sum ^= _number(self._latest.pop(domain))
            self.dirty = True

    def sum(self) -> bytes:
        """A hash of all stamps; equal when two members know the same statements."""
        return self._sum.to_bytes(16, "big")

    def stamps(self) -> list[StatementStamp]:
        return [
            StatementStamp(member=domain, incarnation=opened.stamp[0], lamport=opened.stamp[1])
            for domain, opened in sorted(self._latest.items())
        ]

    def differing(self, stamps: Iterable[StatementStamp], complete: bool) -> tuple[list[str], list[str]]:
        """(members whose statement the other lacks, whose is lacking here)."""
        theirs = {stamp.member: (stamp.incarnation, stamp.lamport) for stamp in stamps}
        newer = [
            domain
            for domain, opened in sorted(self._latest.items())
            if opened.stamp > theirs.get(domain, (0, 0)) and (complete or domain in theirs)
        ]
        older = [
            domain
            for domain, stamp in sorted(theirs.items())
            if domain not in self._latest or stamp > self._latest[domain].stamp
        ]
        return newer, older

    def _known(self, signed: SignedGossip) -> Opened | None:
        """The statement here when the one that came is not newer; spares checking the signature."""
        try:
            message = GossipMessage.FromString(signed.message)
        except DecodeError as error:
            raise Corrupt("a gossip message cannot be decoded") from error
        latest = self._latest.get(message.source.partition("@")[2])
        if latest is not None and (message.incarnation, message.lamport) <= latest.stamp:
            return latest
        return None

    def _keep(self, opened: Opened) -> None:
        earlier = self._latest.get(opened.domain)
        if earlier is not None:
            self._sum ^= _number(earlier)
        self._latest[opened.domain] = opened
        self._sum ^= _number(opened)


def _number(opened: Opened) -> int:
    incarnation, lamport = opened.stamp
    told = f"{opened.domain}\0{incarnation}\0{lamport}".encode()
    return int.from_bytes(blake3(told).digest(16), "big")
