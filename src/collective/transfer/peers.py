"""Who can be dialled where: one book of endpoints per member.

Endpoints come from three places, the freshest first: what a peer said when it connected, its card in its member
feed, and what the bundle or the configuration named. Where a member answered that told nothing of it (transfer/finding)
stands before these, until it fails to. The book is kept across restarts through `save`; other processes of the home
look into what the coordinator saved since (`saved_since`). Where this home's own coordinator listens is known without
anybody's word (`own`), and stands first for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from collective.catalog import Reader
from collective.wire import feed_pb2

__all__ = ["PeerBook", "ordered"]

_TYPE_ORDER = {"lan": 0, "direct": 1, "vpn": 2}
Saved = Mapping[str, Iterable[feed_pb2.Endpoint]]


def ordered(endpoints: Iterable[feed_pb2.Endpoint]) -> list[feed_pb2.Endpoint]:
    """LAN, then direct, then VPN; inside a type by the owner's preference, highest first."""
    return sorted(endpoints, key=lambda endpoint: (_TYPE_ORDER.get(endpoint.type, 3), -endpoint.preference))


class PeerBook:
    """Endpoints by member domain. Nobody is forgotten here: the dead are dialled for ever."""

    def __init__(
        self,
        catalog: Reader,
        saved: Saved,
        save: Callable[[Saved], None] = lambda book: None,
        own: Callable[[], Iterable[feed_pb2.Endpoint]] = tuple,
        saved_since: Callable[[], Saved | None] = lambda: None,
    ) -> None:
        self._catalog = catalog
        self._save = save
        self._own = own
        self._saved_since = saved_since
        self._told: dict[str, list[feed_pb2.Endpoint]] = {domain: list(ends) for domain, ends in saved.items()}
        self._met: dict[str, feed_pb2.Endpoint] = {}

    def learn(self, domain: str, endpoints: Iterable[feed_pb2.Endpoint]) -> None:
        """Keep what a member said of itself; an empty list teaches nothing."""
        fresh = list(endpoints)
        if fresh and self._told.get(domain) != fresh:
            self._told[domain] = fresh
            if domain in self._met and any(told.grpc == self._met[domain].grpc for told in fresh):
                del self._met[domain]
            self._keep()

    def met(self, domain: str, endpoint: feed_pb2.Endpoint) -> None:
        """It answered there, as itself."""
        known = self._met.get(domain)
        if known is not None and known.grpc == endpoint.grpc:
            return
        if all(told.grpc != endpoint.grpc for told in self._named(domain)):
            self._met[domain] = endpoint
        elif known is not None:
            del self._met[domain]
        else:
            return
        self._keep()

    def missed(self, domain: str, place: str) -> None:
        """It does not answer there: what nobody told is forgotten."""
        if domain in self._met and self._met[domain].grpc == place:
            del self._met[domain]
            self._keep()

    def endpoints(self, domain: str) -> list[feed_pb2.Endpoint]:
        """Where to dial this member's coordinator, best first, without repetition."""
        if (saved := self._saved_since()) is not None:
            self._told = {domain: list(ends) for domain, ends in saved.items()}
        met = [self._met[domain]] if domain in self._met else []
        if domain == self._catalog.own_domain:
            met += self._own()
        unique: dict[str, feed_pb2.Endpoint] = {}
        for endpoint in [*met, *ordered(self._named(domain))]:
            unique.setdefault(endpoint.grpc, endpoint)
        return list(unique.values())

    def domains(self, own_domain: str) -> list[str]:
        """Every other member that is not removed and that we know where to dial, or were told of."""
        known = {member.domain: member.removed for member in self._catalog.members()}
        names = {domain for domain, removed in known.items() if not removed} | set(self._told) | set(self._met)
        return sorted(
            domain
            for domain in names
            if domain != own_domain and not known.get(domain, False) and self.endpoints(domain)
        )

    def _named(self, domain: str) -> list[feed_pb2.Endpoint]:
        """What somebody told of it, the freshest first."""
        named = list(self._told.get(domain, ()))
        for member in self._catalog.members():
            if member.domain == domain and member.card is not None:
                named.extend(member.card.endpoints)
        return named

    def _keep(self) -> None:
        met = {domain: [endpoint, *self._told.get(domain, ())] for domain, endpoint in self._met.items()}
        self._save(self._told | met)
