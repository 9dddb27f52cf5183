"""What gossip needs to know of the catalogue, read at once on the writer's thread and looked up freely between.

Who may follow which feed and whose key signs what change only with root and member feeds, or by the clock when a
grant ends: the view is made anew when one of those feeds moved, and every `RIGHTS_SECONDS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from collective.catalog import Catalog, signing_public_key
from collective.core.errors import CollectiveError, Refused
from collective.gossip import REACHABLE, Head, State
from collective.identity import read_authority

__all__ = ["RIGHTS_SECONDS", "MemberKeys", "Moved", "PeerState", "View", "read_heads", "read_moved", "read_view"]

RIGHTS_SECONDS = 5.0  # how long after its end a grant may still let news through; pulls are judged entry by entry
NEWS_BYTES = 128 * 1024  # read along with a feed that moved; more is not pushed anyway
NEWS_ENTRIES = 256


@dataclass(frozen=True)
class View:
    """Members that are not removed with their signing certificates, who may follow what, own DataStores' paths."""

    roster: frozenset[str] = frozenset()
    removed: frozenset[str] = frozenset()
    authorities: Mapping[str, bytes] = field(default_factory=dict)
    signing: Mapping[str, bytes] = field(default_factory=dict)
    rights: Mapping[str, frozenset[bytes]] = field(default_factory=dict)
    datastores: tuple[bytes, ...] = ()

    def may_follow(self, member: str, feed: bytes) -> bool:
        return feed in self.rights.get(member, frozenset())


@dataclass(frozen=True)
class Moved:
    """A feed that got further: its head and, when they are few and small, the entries that led there."""

    feed: bytes
    head: Head
    entries: list[tuple[int, bytes]]


@dataclass(frozen=True)
class PeerState:
    """A member for `status`: `heard_seconds_ago` None before it was heard, `behind` and `ahead` None before heads were
    compared: entries that it lacks, and that are lacking here.
    """

    state: State
    endpoint: str
    heard_seconds_ago: float | None
    behind: int | None
    ahead: int | None
    reason: str

    @property
    def connected(self) -> bool:
        return self.state in REACHABLE

    @property
    def caught_up(self) -> bool:
        return self.ahead == 0


def read_view(catalog: Catalog, now: float) -> View:
    """`now` in seconds since 1970."""
    members = catalog.members()
    roster = frozenset(member.domain for member in members if not member.removed)
    own = catalog.own_domain
    return View(
        roster=roster,
        removed=frozenset(member.domain for member in members if member.removed),
        authorities={member.domain: member.ca_certificate.public_bytes(Encoding.DER) for member in members},
        signing={member.domain: member.signing_certificate for member in members if member.signing_certificate},
        rights={domain: frozenset(catalog.feeds_for(domain, now)) for domain in roster},
        datastores=tuple(sorted(store.path for store in catalog.datastores() if store.owner == own)),
    )


def read_heads(catalog: Catalog) -> dict[bytes, Head]:
    """Every feed that is here."""
    return {
        feed: Head(position.epoch_number, position.epoch_id, position.seq, position.hash)
        for feed, position in catalog.heads().items()
    }


def read_moved(catalog: Catalog, seen: Mapping[bytes, Head]) -> list[Moved]:
    """What has another head than in `seen`, in the order in which feeds depend on each other."""
    heads = {feed: head for feed, head in read_heads(catalog).items() if head != seen.get(feed)}
    moved = []
    for feed in catalog.in_dependency_order(heads):
        head, before = heads[feed], seen.get(feed)
        after = before.seq if before is not None else 0
        entries: list[tuple[int, bytes]] = []
        same_epoch = before is None or before.epoch_id == head.epoch_id
        if same_epoch and 0 < head.seq - after <= NEWS_ENTRIES:
            raws = catalog.entries_after(feed, after, max_bytes=NEWS_BYTES, max_entries=NEWS_ENTRIES)
            entries = list(enumerate(raws, after + 1))
        moved.append(Moved(feed, head, entries))
    return moved


class MemberKeys:
    """Whose signature a gossip message carries: judged by the member feeds, else by certificates up to the root."""

    def __init__(self, root: x509.Certificate, federation_domain: str) -> None:
        self.view = View()
        self._root = root
        self._federation = federation_domain
        self._keys: dict[tuple[bytes, bytes], Ed25519PublicKey] = {}
        self._brought: dict[str, tuple[bytes, bytes]] = {}

    def verify(self, domain: str, data: bytes, signature: bytes, certificates: Sequence[bytes]) -> None:
        """Raises: Refused, Corrupt."""
        if domain in self.view.removed:
            raise Refused(f"{domain} was removed from the federation")
        key = self._key(domain, certificates)
        try:
            key.verify(signature, data)
        except InvalidSignature as error:
            raise Refused(f"a gossip message of {domain} has a broken signature") from error

    def _key(self, domain: str, certificates: Sequence[bytes]) -> Ed25519PublicKey:
        authority, signing = self.view.authorities.get(domain), self.view.signing.get(domain)
        if authority is None or signing is None:
            if len(certificates) == 2:
                signing, told = certificates
                if authority is None:
                    self._check_authority(domain, told)
                    authority = told
            elif domain in self._brought:
                signing, authority = self._brought[domain]
        if authority is None or signing is None:
            raise Refused(f"the signing key of {domain} has not arrived yet")
        known = self._keys.get((signing, authority))
        if known is None:
            known = signing_public_key(signing, authority, domain)
            if len(self._keys) > 4 * len(self.view.roster) + 64:
                self._keys.clear()
            self._keys[signing, authority] = known
        if domain not in self.view.signing and len(self._brought) < len(self.view.roster) + 64:
            self._brought[domain] = signing, authority
        return known

    def _check_authority(self, domain: str, der: bytes) -> None:
        """A member whose admission has not arrived here shows its CA: the root signed it, for that member."""
        try:
            authority = x509.load_der_x509_certificate(der)
            authority.verify_directly_issued_by(self._root)
            named = read_authority(authority, self._federation)
        except CollectiveError:
            raise
        except Exception as error:
            raise Refused(f"the CA that {domain} shows is not a certificate that the root signed") from error
        if named != domain:
            raise Refused(f"{domain} shows the CA of {named}")
