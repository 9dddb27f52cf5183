"""Whom to believe: the federation's root, the members' CAs, and a verdict per certificate.

    LOCAL      leaf of the own member
    PEER       leaf of a member named as a peer
    FEDERATED  leaf of any member; of one not heard of yet when its chain leads to the root
    STRICT     leaf whose whole chain to the root was presented or is known, its member in the roster

Chains are checked by OpenSSL (signatures, times, name constraints), then the federation's own rules: the member
domain of leaf and CA are the same, the CA's domain is not a removed one's, the component's kind is one of those
asked for, nothing was revoked. A CA that is only presented counts when it is not older than the ones the roster has
of its member: a rotation not heard of yet, never one that is over. Verdicts are cached until they could change.
"""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable, Iterable, Sequence
from enum import Enum

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from OpenSSL import crypto

from collective.core.errors import Corrupt, Refused
from collective.identity.certificates import (
    OID_FEDERATION_DOMAIN,
    OID_MEMBER_DOMAIN,
    ComponentKind,
    PeerIdentity,
    fingerprint,
    read_authority,
    read_identity,
    read_text_extension,
)

__all__ = ["Level", "TrustStore"]

SPEAKING_KINDS = frozenset({ComponentKind.COORDINATOR, ComponentKind.NODE, ComponentKind.CLIENT})
MAX_INTERMEDIATES = 8  # one is needed, two during a rotation; a chain search over more is somebody's attack
CACHE_ENTRIES = 4096  # ten members' components many times over; bounded against a flood of fresh leaves


class Level(Enum):
    """How far trust reaches; see the module."""

    STRICT = "strict"
    FEDERATED = "federated"
    PEER = "peer"
    LOCAL = "local"


class TrustStore:
    """The root, the members' CAs and the verdicts. Every change drops the cache and tells the subscribers.

    A member may have several CAs at once while it rotates. Safe to use from several threads.
    """

    def __init__(self, root: x509.Certificate, own_domain: str) -> None:
        self.root = root
        self.own_domain = own_domain
        self.federation_domain = read_text_extension(root, OID_FEDERATION_DOMAIN)
        self._authorities: dict[str, dict[bytes, x509.Certificate]] = {}
        self._removed: set[str] = set()
        self._peers: frozenset[str] = frozenset()
        self._revoked: set[bytes] = set()
        self._verdicts: dict[tuple[bytes, Level], tuple[PeerIdentity, float, float]] = {}
        self._changes = 0  # a verdict reached across a change is not cached
        self._subscribers: list[Callable[[], None]] = []
        self._lock = threading.RLock()

    # ------------------------------------------------------------ changes

    def add_member(self, authority: x509.Certificate) -> None:
        """Take in a member's CA, beside those it has (rotation); a member or CA removed before is believed again.

        Doing so twice changes nothing. Raises: Refused when the root did not sign it, or its constraints are wrong.
        """
        domain = read_authority(authority, self.federation_domain)
        name = fingerprint(authority)
        with self._lock:
            if name in self._authorities.get(domain, {}) and domain not in self._removed:
                return
            try:
                authority.verify_directly_issued_by(self.root)
            except (InvalidSignature, TypeError, ValueError) as error:
                raise Refused(f"the CA of {domain} is not signed by the root of {self.federation_domain}") from error
            self._authorities.setdefault(domain, {})[name] = authority
            self._removed.discard(domain)
            self._revoked.discard(name)
        self._changed()

    def set_roster(self, roster: Iterable[tuple[str, x509.Certificate, bool]]) -> None:
        """Take over the roster as it stands now: (member domain, its one CA, whether it was removed) of each member.

        The CA takes the place of every one the member had before: a rotation ends here. Members that are not named
        keep what they have (the own one, before its admission has arrived). Raises: Refused, as `add_member`.
        """
        for domain, authority, removed in roster:
            if removed:
                self.remove_member(domain)
                continue
            self.add_member(authority)
            with self._lock:
                over = [known for known in self._authorities[domain].values() if known != authority]
            for old in over:
                self.remove_authority(old)

    def remove_authority(self, authority: x509.Certificate) -> None:
        """Forget one CA of a member that has another now (the end of a rotation)."""
        domain = read_text_extension(authority, OID_MEMBER_DOMAIN)
        with self._lock:
            self._authorities.get(domain, {}).pop(fingerprint(authority), None)
            self._revoked.add(fingerprint(authority))
        self._changed()

    def remove_member(self, domain: str) -> None:
        """The member is out: nothing of it is believed at any level."""
        with self._lock:
            if domain in self._removed:
                return
            self._removed.add(domain)
            self._authorities.pop(domain, None)
        self._changed()

    def set_peers(self, domains: Iterable[str]) -> None:
        """Whom PEER means."""
        with self._lock:
            self._peers = frozenset(domains)
        self._changed()

    def revoke(self, leaf_fingerprint: bytes) -> None:
        """One leaf is void from now on."""
        with self._lock:
            self._revoked.add(leaf_fingerprint)
        self._changed()

    def subscribe(self, callback: Callable[[], None]) -> None:
        """Call back after every change; used to cut connections that are no longer trusted."""
        with self._lock:
            self._subscribers.append(callback)

    def unsubscribe(self, callback: Callable[[], None]) -> None:
        """Call back no more; doing so twice is fine."""
        with self._lock:
            if callback in self._subscribers:
                self._subscribers.remove(callback)

    def is_removed(self, domain: str) -> bool:
        """Whether a member was removed."""
        with self._lock:
            return domain in self._removed

    def members(self) -> list[str]:
        """Domains whose CA is known."""
        with self._lock:
            return sorted(domain for domain, known in self._authorities.items() if known)

    def _changed(self) -> None:
        with self._lock:
            self._verdicts.clear()
            self._changes += 1
            subscribers = list(self._subscribers)
        for callback in subscribers:  # outside the lock: they ask for new verdicts
            callback()

    # ------------------------------------------------------------ verdicts

    def verify(
        self,
        leaf: x509.Certificate,
        intermediates: Sequence[x509.Certificate] = (),
        *,
        level: Level,
        now: float,
        kinds: frozenset[ComponentKind] | None = None,
    ) -> PeerIdentity:
        """Who holds this leaf, if it may be believed. `now` in seconds since 1970.

        `kinds` None: any that speaks TLS, not `signing`. Raises: Refused with the reason.
        """
        kinds = SPEAKING_KINDS if kinds is None else kinds
        key = (fingerprint(leaf), level)
        with self._lock:
            cached = self._verdicts.get(key)
            changes = self._changes
        if cached is not None and cached[1] <= now < cached[2]:
            identity = cached[0]
        else:
            identity, begins, ends = self._judge(leaf, intermediates, level, now)
            with self._lock:
                if len(self._verdicts) >= CACHE_ENTRIES:
                    self._verdicts.clear()
                if changes == self._changes:
                    self._verdicts[key] = (identity, begins, ends)
        if identity.kind not in kinds:
            allowed = " or ".join(sorted(kinds))
            raise Refused(f"{identity.address} is a {identity.kind}, this is for a {allowed}")
        return identity

    def _judge(
        self, leaf: x509.Certificate, intermediates: Sequence[x509.Certificate], level: Level, now: float
    ) -> tuple[PeerIdentity, float, float]:
        if len(intermediates) > MAX_INTERMEDIATES:
            raise Refused(
                f"{len(intermediates)} intermediate certificates were presented, {MAX_INTERMEDIATES} are taken"
            )
        try:
            identity = read_identity(leaf)
        except Corrupt as error:
            raise Refused(f"the certificate cannot be read: {error.message}") from error
        with self._lock:
            known = list(self._authorities.get(identity.member_domain, {}).values())
            removed = identity.member_domain in self._removed
            revoked = identity.fingerprint in self._revoked
            presented = [ca for ca in intermediates if fingerprint(ca) not in self._revoked]
            if known:  # the roster forgets which CAs a member had before; their dates tell, also after a restart
                newest = max(ca.not_valid_before_utc for ca in known)
                presented = [ca for ca in presented if ca.not_valid_before_utc >= newest]
            peers = self._peers
        if removed:
            raise Refused(f"{identity.member_domain} was removed from the federation")
        if revoked:
            raise Refused(f"the certificate of {identity.address} was revoked")
        if identity.federation_domain != self.federation_domain:
            raise Refused(
                f"{identity.address} belongs to the federation {identity.federation_domain},"
                f" not {self.federation_domain}"
            )
        if level is Level.LOCAL and identity.member_domain != self.own_domain:
            raise Refused(f"{identity.address} is not a component of {self.own_domain}")
        if level is Level.PEER and identity.member_domain not in peers and identity.member_domain != self.own_domain:
            raise Refused(f"{identity.member_domain} is not one of the configured peers")
        if level is Level.STRICT and not known:
            raise Refused(f"{identity.member_domain} is not in the roster")
        chain = self._verify_chain(leaf, [*known, *presented], identity, now)
        begins = max(certificate.not_valid_before_utc.timestamp() for certificate in chain)
        ends = min(certificate.not_valid_after_utc.timestamp() for certificate in chain)
        return identity, begins, ends

    def _verify_chain(
        self, leaf: x509.Certificate, authorities: Sequence[x509.Certificate], identity: PeerIdentity, now: float
    ) -> list[x509.Certificate]:
        """Leaf, member CA, root; by OpenSSL, then by our own rules."""
        if not authorities:
            raise Refused(f"the CA that issued {identity.address} is unknown")
        store = crypto.X509Store()
        store.add_cert(crypto.X509.from_cryptography(self.root))
        store.set_flags(crypto.X509StoreFlags.X509_STRICT)
        store.set_time(datetime.datetime.fromtimestamp(now, datetime.UTC).replace(tzinfo=None))
        context = crypto.X509StoreContext(
            store,
            crypto.X509.from_cryptography(leaf),
            [crypto.X509.from_cryptography(authority) for authority in authorities],
        )
        try:
            chain = [certificate.to_cryptography() for certificate in context.get_verified_chain()]
        except crypto.X509StoreContextError as error:
            raise Refused(f"the certificate of {identity.address} is not trusted: {error.args[0]}") from error
        if len(chain) != 3:
            raise Refused(
                f"the chain of {identity.address} is {len(chain)} certificates long, not leaf, member CA, root"
            )
        check_constraints(identity, chain[1])
        return chain


def check_constraints(identity: PeerIdentity, authority: x509.Certificate) -> None:
    """Our own check of what the name constraints say: a CA speaks for its member alone. Raises: Refused.

    That a leaf's names lie in its member was seen when its identity was read.
    """
    domain = read_authority(authority, identity.federation_domain)
    if domain != identity.member_domain:
        raise Refused(f"the CA of {domain} issued a certificate for {identity.address}")
