"""A federation in memory: a root, three members' CAs, leaves of any kind; time is a number."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from collective.identity import ComponentKind, MemberAuthority, RootAuthority, TrustStore, generate_leaf_key

NOW = 1_790_000_000.0
FEDERATION = "collective.local"


@dataclass
class InMemoryFederation:
    """`members`: name -> its CA; `now` is when everything was made."""

    now: float = NOW
    root: RootAuthority = field(default_factory=lambda: RootAuthority.create(FEDERATION, NOW))
    members: dict[str, MemberAuthority] = field(default_factory=dict)

    def admit(self, name: str) -> MemberAuthority:
        """A member CA; a second one for the same name is its next (rotation)."""
        domain = f"{name}.{FEDERATION}"
        key, request = MemberAuthority.create_request(domain)
        authority = MemberAuthority(self.root.sign_member(domain, request, self.now), key, self.root.certificate)
        self.members[name] = authority
        return authority

    def leaf(
        self, name: str, local_part: str = "coord", kind: ComponentKind = ComponentKind.COORDINATOR
    ) -> x509.Certificate:
        """A component's certificate, by the member's newest CA."""
        return self.members[name].issue(kind, local_part, generate_leaf_key().public_key(), self.now)

    def trust(self, own: str = "alice", *known: str) -> TrustStore:
        """A trust store at `own`, which knows the CAs of `known` (none named: all)."""
        store = TrustStore(self.root.certificate, f"{own}.{FEDERATION}")
        for name in known or self.members:
            store.add_member(self.members[name].certificate)
        return store

    def forge(
        self,
        issuer: MemberAuthority,
        names: Sequence[x509.GeneralName],
        extensions: Sequence[x509.UnrecognizedExtension] = (),
        public_key: Any = None,
        ca: bool = False,
    ) -> x509.Certificate:
        """A certificate that the house itself would never make, rightly signed by `issuer`."""
        utc = datetime.UTC
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "forged")]))
            .issuer_name(issuer.certificate.subject)
            .public_key(public_key or generate_leaf_key().public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime.datetime.fromtimestamp(self.now - 60, utc))
            .not_valid_after(datetime.datetime.fromtimestamp(self.now + 86400, utc))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if public_key is not None:
            builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(issuer.key, None)


@pytest.fixture
def federation() -> InMemoryFederation:
    made = InMemoryFederation()
    for name in ("alice", "bob", "carol"):
        made.admit(name)
    return made
