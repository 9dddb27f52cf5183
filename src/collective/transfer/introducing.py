"""PeerConnect: who we are against who you are, once in each life of a member.

Gossip tells endpoints and heads in its own time; here they are told whole and at once when a member is met, and both
sides learn which versions the other speaks. The certificates say who is who, the messages only where to call back.

    met (life n) --asked, answered--> known (life n) --started again--> met (life n + 1)
         |--cannot be reached--> asked again in the next round
         +--refused--> told, and left alone for this life
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from collective.catalog import Catalog
from collective.core.address import parse_address
from collective.core.errors import CollectiveError, Refused, Unreachable
from collective.core.observe import Observer
from collective.identity import PeerIdentity
from collective.net.versions import CONTROL
from collective.transfer.asking import Coordinators
from collective.transfer.events import ChangeBell
from collective.transfer.peers import PeerBook
from collective.wire import control_pb2, feed_pb2

__all__ = ["Introductions"]

CALL_TIMEOUT_SECONDS = 5.0
ROUND_SECONDS = 1.0


@dataclass
class Introductions:
    """Both sides. `own` is what this member says of itself; `life` another number at each start of a member, 0 while it
    cannot be reached."""

    catalog: Catalog
    book: PeerBook
    coordinators: Coordinators
    own: Callable[[], control_pb2.PeerConnectRequest]
    life: Callable[[str], int]
    bell: ChangeBell
    observer: Observer
    _known: dict[str, int] = field(default_factory=dict)  # member -> the life in which it was asked

    async def run(self) -> None:
        """Ask whoever is met. Ends by cancellation."""
        await self.bell.rounds(self.tick, idle_seconds=ROUND_SECONDS, rest_seconds=ROUND_SECONDS)

    async def tick(self) -> None:
        """One round: a call to each member in a life that was not asked yet."""
        for domain in self.book.domains(self.catalog.own_domain):
            life = self.life(domain)
            if not life or self._known.get(domain) == life:
                continue
            try:
                await self._ask(domain)
            except Unreachable as error:
                self.observer.event("debug.peer.not_met", member=domain, reason=error.message)
                continue
            except CollectiveError as error:
                self.observer.event("peer.refused", member=domain, reason=error.message)
            self._known[domain] = life

    async def _ask(self, domain: str) -> None:
        reply = await self.coordinators.call(
            domain, "PeerConnect", self._introduce(), control_pb2.PeerConnectReply, CALL_TIMEOUT_SECONDS
        )
        if parse_address(reply.federated_address).domain != domain:
            raise Refused(f"{domain} says it is {reply.federated_address}")
        CONTROL.check(reply.version, reply.oldest_version)
        self._learn(domain, reply)

    def answer(self, identity: PeerIdentity, request: control_pb2.PeerConnectRequest) -> control_pb2.PeerConnectReply:
        """The other side's. Raises: Refused when the message and the certificate name two."""
        if parse_address(request.federated_address) != identity.address:
            raise Refused(f"{identity.address} says it is {request.federated_address}")
        if request.federation_domain != identity.federation_domain:
            raise Refused(f"{identity.address} is of {identity.federation_domain}, not {request.federation_domain}")
        CONTROL.check(request.version, request.oldest_version)
        self._learn(identity.member_domain, request)
        # the same fields under the same numbers
        return control_pb2.PeerConnectReply.FromString(self._introduce().SerializeToString())

    def _introduce(self) -> control_pb2.PeerConnectRequest:
        """With the heads and versions that are true right now."""
        request = self.own()
        request.heads.extend(
            feed_pb2.FeedHead(feed_id=feed_id, head=position) for feed_id, position in self.catalog.heads().items()
        )
        request.version, request.oldest_version = CONTROL.newest, CONTROL.oldest
        return request

    def _learn(self, domain: str, told: control_pb2.PeerConnectRequest | control_pb2.PeerConnectReply) -> None:
        self.book.learn(domain, told.endpoints)
        self.catalog.note_heads(domain, told.heads)
