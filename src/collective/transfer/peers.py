"""Who can be dialled where: one book of endpoints per member.

Endpoints come from three places, the freshest first: what a peer said when it connected, its card in its member
feed, and what the bundle or the configuration named. The book is kept across restarts through `save`.
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

    def __init__(self, catalog: Reader, saved: Saved, save: Callable[[Saved], None]) -> None:
        self._catalog = catalog
        self._save = save
        self._told: dict[str, list[feed_pb2.Endpoint]] = {domain: list(ends) for domain, ends in saved.items()}

    def learn(self, domain: str, endpoints: Iterable[feed_pb2.Endpoint]) -> None:
        """Keep what a member said of itself; an empty list teaches nothing."""
        fresh = list(endpoints)
        if fresh and self._told.get(domain) != fresh:
            self._told[domain] = fresh
            self._save(self._told)

    def endpoints(self, domain: str) -> list[feed_pb2.Endpoint]:
        """Where to dial this member's coordinator, best first, without repetition."""
        candidates = list(self._told.get(domain, ()))
        for member in self._catalog.members():
            if member.domain == domain and member.card is not None:
                candidates.extend(member.card.endpoints)
        unique: dict[str, feed_pb2.Endpoint] = {}
        for endpoint in ordered(candidates):
            unique.setdefault(endpoint.grpc, endpoint)
        return list(unique.values())

    def domains(self, own_domain: str) -> list[str]:
        """Every other member that is not removed and that we know where to dial, or were told of."""
        known = {member.domain: member.removed for member in self._catalog.members()}
        names = {domain for domain, removed in known.items() if not removed} | set(self._told)
        return sorted(
            domain
            for domain in names
            if domain != own_domain and not known.get(domain, False) and self.endpoints(domain)
        )
