"""The one form that travels: a message signed by its source, made once and relayed verbatim.

    signature = Ed25519 by the source's signing key over TAG and the message's bytes

JOIN, UPDATE and LEAVE are statements of a member about itself and pass through anybody's hands; a HEARTBEAT goes one
hop to one recipient and carries statements, suspicions, news and comparisons. What does not verify, is too large, is
for somebody else or of a version not spoken here is refused whole. Stamps seen before are ignored (`ReplayWindow`).

Versions: a message names the newest and oldest its source speaks; the newest that both speak is used.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from collective.core.address import parse_address
from collective.core.errors import CollectiveError, Corrupt, Refused
from collective.wire.gossip_pb2 import HEARTBEAT, JOIN, LEAVE, UPDATE, GossipMessage, SignedGossip

__all__ = [
    "MAX_ACCUSERS",
    "MAX_MESSAGE_BYTES",
    "MAX_REPEATED",
    "MAX_STATEMENT_BYTES",
    "MOST_LEAP",
    "Opened",
    "ReplayWindow",
    "Sign",
    "Verify",
    "Versions",
    "open_heartbeat",
    "open_statement",
    "seal",
]

TAG = b"collective gossip 1\0"
MAX_MESSAGE_BYTES = 512 * 1024  # a digest of 1,024 feeds and 1,024 members, or 64 KiB of news with its envelope
MAX_STATEMENT_BYTES = 8 * 1024  # two certificates, some endpoints, the paths of some DataStores
MAX_REPEATED = 1024  # statements, suspicions, pushes, notices, heads, stamps in one message
MAX_ENDPOINTS = 16
MAX_DATASTORES = 64
MAX_ACCUSERS = 8
WINDOW = 256  # stamps of one source that may arrive out of order
MOST_LEAP = 1 << 40  # a Lamport stamp further ahead than that was not counted up to

Sign = Callable[[bytes], bytes]
# (member domain, what was signed, signature, certificates the message brought); raises Refused
Verify = Callable[[str, bytes, bytes, Sequence[bytes]], None]


@dataclass(frozen=True)
class Versions:
    """The protocol versions spoken: N and, while members are updated one by one, N-1."""

    newest: int = 1
    oldest: int = 1

    def agreed(self, newest: int, oldest: int) -> int:
        """The newest that both speak. Raises: Refused when there is none."""
        common = min(self.newest, newest)
        if common < max(self.oldest, oldest, 1):
            raise Refused(
                f"gossip of versions {oldest}-{newest} came, this member speaks {self.oldest}-{self.newest}",
                "update the older of the two",
            )
        return common


@dataclass(frozen=True)
class Opened:
    """A message that verified: its fields, its bytes as they came, its source's member domain, the agreed version."""

    message: GossipMessage
    raw: bytes
    domain: str
    version: int

    @property
    def stamp(self) -> tuple[int, int]:
        """Statements of one source are ordered by it."""
        return self.message.incarnation, self.message.lamport


def seal(message: GossipMessage, sign: Sign) -> bytes:
    """The signed bytes of a message. Raises: Refused when it is larger than anybody would take."""
    encoded = message.SerializeToString()
    raw = SignedGossip(message=encoded, signature=sign(TAG + encoded)).SerializeToString()
    limit = MAX_MESSAGE_BYTES if message.type == HEARTBEAT else MAX_STATEMENT_BYTES
    if len(raw) > limit:
        raise Refused(f"a gossip message of {len(raw)} bytes; the limit is {limit}")
    return raw


def open_statement(raw: bytes, verify: Verify, versions: Versions) -> Opened:
    """A JOIN, UPDATE or LEAVE, whoever relayed it. Raises: Corrupt, Refused."""
    opened = _open(raw, MAX_STATEMENT_BYTES, verify, versions)
    if opened.message.type not in (JOIN, UPDATE, LEAVE):
        raise Refused("a message for one recipient was relayed")
    return opened


def open_heartbeat(raw: bytes, sender: str, own: str, verify: Verify, versions: Versions) -> Opened:
    """A HEARTBEAT from the peer at the other end of the connection. Raises: Corrupt, Refused."""
    opened = _open(raw, MAX_MESSAGE_BYTES, verify, versions)
    message = opened.message
    if message.type != HEARTBEAT or message.recipient != own:
        raise Refused(f"a gossip message of {opened.domain} that is not for {own}")
    if opened.domain != sender:
        raise Refused(f"{sender} passes on a message of {opened.domain} as its own")
    counts = (
        len(message.statements), len(message.suspicions), len(message.pushes), len(message.notices),
        len(message.digest.heads), len(message.digest.stamps), len(message.digest.wanted),
        *(len(push.entries) for push in message.pushes),
    )  # fmt: skip
    if max(counts) > MAX_REPEATED or any(len(each.accusers) > MAX_ACCUSERS for each in message.suspicions):
        raise Refused(f"a gossip message of {sender} carries more than {MAX_REPEATED} of a kind")
    return opened


def _open(raw: bytes, limit: int, verify: Verify, versions: Versions) -> Opened:
    if len(raw) > limit:
        raise Refused(f"a gossip message of {len(raw)} bytes; the limit is {limit}")
    try:
        signed = SignedGossip.FromString(raw)
        message = GossipMessage.FromString(signed.message)
    except DecodeError as error:
        raise Corrupt("a gossip message cannot be decoded") from error
    try:
        domain = parse_address(message.source).domain
    except CollectiveError as error:
        raise Refused(f"a gossip message of nobody: {error.message}") from error
    version = versions.agreed(message.version, message.oldest_version)
    verify(domain, TAG + signed.message, signed.signature, list(message.certificates))
    if len(message.endpoints) > MAX_ENDPOINTS or len(message.datastores) > MAX_DATASTORES:
        raise Refused(f"the statement of {domain} names too many endpoints or DataStores")
    return Opened(message, raw, domain, version)


class ReplayWindow:
    """Which stamps of one source were seen: the last ones by number, all older ones by rule."""

    def __init__(self) -> None:
        self._order: deque[int] = deque()
        self._seen: set[int] = set()
        self._floor = 0
        self.highest = 0

    def take(self, stamp: int) -> bool:
        """True the first time; False for a stamp seen before, or too old to know."""
        if stamp <= self._floor or stamp in self._seen:
            return False
        self._seen.add(stamp)
        self._order.append(stamp)
        self.highest = max(self.highest, stamp)
        while len(self._order) > WINDOW:
            dropped = self._order.popleft()
            self._seen.discard(dropped)
            self._floor = max(self._floor, dropped)
        return True
