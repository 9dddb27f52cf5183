"""Certificate authorities: a federation's root, and each member's own under it.

    root CA (Ed25519, 5 years) -> member CA (Ed25519, pathlen 0, 2 years) -> leaf (ECDSA P-256, 90 days)

Every certificate ends before its issuer does. The member CA carries critical name constraints: its own DNS domain
and e-mail host and nothing else.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from collective.core.address import member_identity, parse_address, validate_domain
from collective.core.errors import Conflict, Misconfigured, Refused
from collective.identity.certificates import (
    OID_FEDERATION_DOMAIN,
    OID_MEMBER_DOMAIN,
    ComponentKind,
    federation_extensions,
    read_text_extension,
)
from collective.identity.keys import generate_signing_key, load_certificate, load_private_key

__all__ = ["MemberAuthority", "RootAuthority", "check_member_domain"]

DAY_SECONDS = 86400.0
ROOT_SECONDS = 5 * 365.25 * DAY_SECONDS
MEMBER_SECONDS = 2 * 365.25 * DAY_SECONDS
LEAF_SECONDS = 90 * DAY_SECONDS
BACKDATE_SECONDS = 3600.0  # clocks of other homes may be behind
MARGIN_SECONDS = 60.0  # a clamped certificate ends this much before its issuer

DEFAULT_CAPABILITIES = {
    ComponentKind.COORDINATOR: frozenset({"read", "write", "peer"}),
    ComponentKind.NODE: frozenset({"read", "write"}),
    ComponentKind.CLIENT: frozenset({"read", "write"}),
    ComponentKind.SIGNING: frozenset[str](),
}


def check_member_domain(domain: str, federation_domain: str, existing: Iterable[str]) -> None:
    """Whether a member may have this domain; `existing` are the others', removed ones included. All canonical.

    None equals, contains or lies under another's, nor contains the federation's. Raises: Conflict, Refused.
    """
    member_identity(domain)
    if federation_domain == domain or federation_domain.endswith("." + domain):
        raise Refused(f"the member domain {domain} contains the federation's {federation_domain}")
    for other in existing:
        if domain == other or domain.endswith("." + other) or other.endswith("." + domain):
            raise Conflict(f"{domain} equals, contains or lies under the member {other}", "choose another name")


@dataclass(frozen=True)
class RootAuthority:
    """A federation's root: signs member CAs."""

    certificate: x509.Certificate
    key: Ed25519PrivateKey

    @classmethod
    def create(cls, federation_domain: str, now: float) -> RootAuthority:
        """A self-signed root for five years. `now` in seconds since 1970."""
        domain = validate_domain(federation_domain)
        key = generate_signing_key()
        name = _name(f"{domain} federation root")
        builder = _builder(name, key.public_key(), now, now + ROOT_SECONDS)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        builder = _add_all(builder, federation_extensions(domain)).add_extension(_ca_usage(), critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        return cls(builder.sign(key, None), key)

    @classmethod
    def load(cls, certificate_path: Path, key_path: Path) -> RootAuthority:
        """Raises: Misconfigured when a file is missing, wider than 0600, or the two do not belong together."""
        certificate, key = load_certificate(certificate_path), load_private_key(key_path)
        if not isinstance(key, Ed25519PrivateKey) or key.public_key() != certificate.public_key():
            raise Misconfigured(f"{key_path} is not the key of {certificate_path}")
        return cls(certificate, key)

    @property
    def federation_domain(self) -> str:
        return read_text_extension(self.certificate, OID_FEDERATION_DOMAIN)

    def sign_member(
        self, member: str, request: x509.CertificateSigningRequest | Ed25519PublicKey, now: float
    ) -> x509.Certificate:
        """A member CA for the key of a request, whatever subject the request names. Raises: Refused."""
        domain = validate_domain(member)
        check_member_domain(domain, self.federation_domain, ())
        public_key = _requested_key(request)
        builder = _builder(_name(f"{domain} member CA"), public_key, now, now + MEMBER_SECONDS, self.certificate)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_ca_usage(), critical=True)
        constraints = x509.NameConstraints([x509.DNSName(domain), x509.RFC822Name(domain)], None)
        builder = builder.add_extension(constraints, critical=True)
        builder = _add_all(builder, federation_extensions(self.federation_domain, domain))
        return _add_key_ids(builder, public_key, self.key.public_key()).sign(self.key, None)


@dataclass(frozen=True)
class MemberAuthority:
    """A member's own CA: signs its components."""

    certificate: x509.Certificate
    key: Ed25519PrivateKey
    root_certificate: x509.Certificate

    @staticmethod
    def create_request(member: str) -> tuple[Ed25519PrivateKey, x509.CertificateSigningRequest]:
        """A fresh key and the request that the root holder signs."""
        key = generate_signing_key()
        subject = _name(f"{validate_domain(member)} member CA")
        return key, x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, None)

    @property
    def member_domain(self) -> str:
        return read_text_extension(self.certificate, OID_MEMBER_DOMAIN)

    def issue(
        self,
        kind: ComponentKind,
        local_part: str,
        public_key: EllipticCurvePublicKey | Ed25519PublicKey,
        now: float,
        lifetime_seconds: float = LEAF_SECONDS,
        capabilities: frozenset[str] | None = None,
    ) -> x509.Certificate:
        """A leaf for one component, clamped to end before this CA. `now` in seconds since 1970. Raises: Refused."""
        address = parse_address(f"{local_part}@{self.member_domain}")
        if address.resource:
            raise Refused(f"{local_part!r} is a path; a component's name is one label, like node-02")
        validate_domain(address.dns_name())
        builder = _builder(_name(str(address)), public_key, now, now + lifetime_seconds, self.certificate)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_leaf_usage(), critical=True)
        if kind is not ComponentKind.SIGNING:
            usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        names = [x509.RFC822Name(str(address)), x509.DNSName(address.dns_name())]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        federation = read_text_extension(self.certificate, OID_FEDERATION_DOMAIN)
        granted = DEFAULT_CAPABILITIES[kind] if capabilities is None else capabilities
        builder = _add_all(builder, federation_extensions(federation, self.member_domain, kind, address, granted))
        return _add_key_ids(builder, public_key, self.key.public_key()).sign(self.key, None)

    def issue_signing(self, public_key: Ed25519PublicKey, now: float) -> x509.Certificate:
        """The certificate of the key that signs this member's feeds; it lives as long as the CA."""
        lifetime = self.certificate.not_valid_after_utc.timestamp() - now
        return self.issue(ComponentKind.SIGNING, "coord", public_key, now, lifetime)


def _requested_key(request: x509.CertificateSigningRequest | Ed25519PublicKey) -> Ed25519PublicKey:
    if isinstance(request, Ed25519PublicKey):
        return request
    if not request.is_signature_valid:
        raise Refused("the certificate request is not signed by its own key")
    public_key = request.public_key()
    if not isinstance(public_key, Ed25519PublicKey):
        raise Refused("a member CA has an Ed25519 key", "make the request with: openssl genpkey -algorithm ed25519")
    return public_key


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])


def _builder(
    subject: x509.Name,
    public_key: EllipticCurvePublicKey | Ed25519PublicKey,
    now: float,
    ends: float,
    issuer: x509.Certificate | None = None,
) -> x509.CertificateBuilder:
    """Names, key, serial and times; within the issuer's own time (None: it signs itself). Raises: Refused."""
    begins = now - BACKDATE_SECONDS
    if issuer is not None:
        begins = max(begins, issuer.not_valid_before_utc.timestamp())
        ends = min(ends, issuer.not_valid_after_utc.timestamp() - MARGIN_SECONDS)
        if now < begins:
            raise Refused("the issuer's certificate does not count yet", "check this machine's clock")
    if ends <= now:
        raise Refused("the issuer's certificate has ended; nothing can be signed with it", "renew the issuer first")
    utc = datetime.UTC
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime.fromtimestamp(int(begins), utc))
        .not_valid_after(datetime.datetime.fromtimestamp(int(ends), utc))
    )


def _add_all(
    builder: x509.CertificateBuilder, extensions: Iterable[x509.UnrecognizedExtension]
) -> x509.CertificateBuilder:
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder


def _add_key_ids(
    builder: x509.CertificateBuilder,
    public_key: EllipticCurvePublicKey | Ed25519PublicKey,
    issuer_key: Ed25519PublicKey,
) -> x509.CertificateBuilder:
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    return builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)


def _usage(*, sign: bool, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _ca_usage() -> x509.KeyUsage:
    return _usage(sign=False, ca=True)


def _leaf_usage() -> x509.KeyUsage:
    return _usage(sign=True, ca=False)
