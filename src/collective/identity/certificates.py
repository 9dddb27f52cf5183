"""What a certificate says of its holder: the federation's extensions, written and read.

Extensions under 1.3.6.1.4.1.99999, each a DER UTF8String, never critical: .1 federation domain, .2 member domain,
.3 component type, .4 federated address, .5 capabilities joined by commas.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from collective.core.address import FederatedAddress, parse_address, validate_domain
from collective.core.errors import Corrupt, Refused

__all__ = [
    "ComponentKind",
    "PeerIdentity",
    "federation_extensions",
    "fingerprint",
    "read_authority",
    "read_identity",
    "read_text_extension",
    "root_hash",
]

_ARC = "1.3.6.1.4.1.99999"
OID_FEDERATION_DOMAIN = x509.ObjectIdentifier(f"{_ARC}.1")
OID_MEMBER_DOMAIN = x509.ObjectIdentifier(f"{_ARC}.2")
OID_COMPONENT_TYPE = x509.ObjectIdentifier(f"{_ARC}.3")
OID_FEDERATED_ADDRESS = x509.ObjectIdentifier(f"{_ARC}.4")
OID_CAPABILITIES = x509.ObjectIdentifier(f"{_ARC}.5")
_UTF8_STRING = 0x0C


class ComponentKind(StrEnum):
    """What a leaf is for. `signing` certifies a feed's key and never speaks TLS."""

    COORDINATOR = "coordinator"
    NODE = "node"
    CLIENT = "client"
    SIGNING = "signing"


@dataclass(frozen=True)
class PeerIdentity:
    """Who a leaf is for; `fingerprint` is SHA-256 of its DER, `not_after` seconds since 1970."""

    address: FederatedAddress
    member_domain: str
    federation_domain: str
    kind: ComponentKind
    capabilities: frozenset[str]
    fingerprint: bytes
    not_after: float


def encode_text(text: str) -> bytes:
    """A DER UTF8String (X.690 8.23), up to 65,535 bytes."""
    raw = text.encode()
    if len(raw) < 0x80:
        length = bytes([len(raw)])
    elif len(raw) < 0x100:
        length = bytes([0x81, len(raw)])
    else:
        length = bytes([0x82]) + len(raw).to_bytes(2, "big")
    return bytes([_UTF8_STRING]) + length + raw


def decode_text(der: bytes) -> str:
    """Back again; only the canonical encoding is taken. Raises: Corrupt."""
    header = 2 if len(der) > 1 and der[1] < 0x80 else 3 if len(der) > 1 and der[1] == 0x81 else 4
    try:
        text = der[header:].decode()
    except UnicodeDecodeError as error:
        raise Corrupt("a certificate extension is not UTF-8") from error
    if encode_text(text) != der:
        raise Corrupt("a certificate extension is not a DER UTF8String")
    return text


def federation_extensions(
    federation_domain: str,
    member: str = "",
    kind: ComponentKind | None = None,
    address: FederatedAddress | None = None,
    capabilities: Iterable[str] = (),
) -> list[x509.UnrecognizedExtension]:
    """The extensions to put into a certificate; empty ones are left out."""
    texts = (
        (OID_FEDERATION_DOMAIN, federation_domain),
        (OID_MEMBER_DOMAIN, member),
        (OID_COMPONENT_TYPE, kind.value if kind else ""),
        (OID_FEDERATED_ADDRESS, str(address) if address else ""),
        (OID_CAPABILITIES, ",".join(sorted(capabilities))),
    )
    return [x509.UnrecognizedExtension(oid, encode_text(text)) for oid, text in texts if text]


def read_text_extension(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> str:
    """The text of one extension, "" when it is not there. Raises: Corrupt."""
    try:
        value = certificate.extensions.get_extension_for_oid(oid).value
    except x509.ExtensionNotFound:
        return ""
    except ValueError as error:
        raise Corrupt(f"a certificate's extensions cannot be read: {error}") from error
    if not isinstance(value, x509.UnrecognizedExtension):
        raise Corrupt(f"extension {oid.dotted_string} has an unexpected form")
    return decode_text(value.value)


def read_identity(certificate: x509.Certificate) -> PeerIdentity:
    """Who a leaf says it is for; its SANs must say the same. Raises: Corrupt, Refused. Trust is judged elsewhere."""
    kind_text = read_text_extension(certificate, OID_COMPONENT_TYPE)
    address_text = read_text_extension(certificate, OID_FEDERATED_ADDRESS)
    if not kind_text or not address_text:
        raise Refused("the certificate is not a component's: it carries no component type or address")
    try:
        kind = ComponentKind(kind_text)
    except ValueError:
        raise Refused(f"the certificate's component type {kind_text!r} is unknown") from None
    address = parse_address(address_text)
    member = validate_domain(read_text_extension(certificate, OID_MEMBER_DOMAIN))
    if address.resource or address.domain != member:
        raise Refused(f"the certificate's address {address} does not lie in its member {member}")
    _check_names(certificate, address)
    capabilities = read_text_extension(certificate, OID_CAPABILITIES)
    return PeerIdentity(
        address=address,
        member_domain=member,
        federation_domain=validate_domain(read_text_extension(certificate, OID_FEDERATION_DOMAIN)),
        kind=kind,
        capabilities=frozenset(capabilities.split(",")) if capabilities else frozenset(),
        fingerprint=fingerprint(certificate),
        not_after=certificate.not_valid_after_utc.timestamp(),
    )


def _check_names(certificate: x509.Certificate, address: FederatedAddress) -> None:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise Refused("the certificate carries no alternative names") from None
    if len(names) != 2:
        raise Refused("the certificate carries other names beside its address and its DNS name")
    if names.get_values_for_type(x509.RFC822Name) != [str(address)]:
        raise Refused("the certificate's e-mail name is not its address")
    if names.get_values_for_type(x509.DNSName) != [address.dns_name()]:
        raise Refused("the certificate's DNS name is not its component's")


def read_authority(authority: x509.Certificate, federation_domain: str) -> str:
    """The member a CA speaks for, when it is a member CA of the federation and bound to that member's names.

    Raises: Refused. Who signed it, and until when it counts, is judged elsewhere.
    """
    try:
        domain = read_text_extension(authority, OID_MEMBER_DOMAIN)
        federation = read_text_extension(authority, OID_FEDERATION_DOMAIN)
        basic = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
        names = authority.extensions.get_extension_for_class(x509.NameConstraints)
    except (Corrupt, ValueError, x509.ExtensionNotFound) as error:
        raise Refused(f"the certificate is not a member CA: {error}") from error
    if not domain:
        raise Refused("the certificate is not a member CA: it names no member domain")
    if federation != federation_domain:
        raise Refused(f"the CA of {domain} is of the federation {federation or 'nobody'}, not {federation_domain}")
    if not basic.ca or basic.path_length != 0:
        raise Refused(f"the CA of {domain} may make further CAs, or is none")
    permitted = set(names.value.permitted_subtrees or ())
    if not names.critical or permitted != {x509.DNSName(domain), x509.RFC822Name(domain)}:
        raise Refused(f"the CA of {domain} is not bound to the names of its member")
    return domain


def fingerprint(certificate: x509.Certificate) -> bytes:
    """SHA-256 of the DER, 32 bytes."""
    return certificate.fingerprint(hashes.SHA256())


def root_hash(certificate: x509.Certificate) -> bytes:
    """H(root): SHA-256 of the root certificate's DER; what binds a join to one federation."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(certificate.public_bytes(Encoding.DER))
    return digest.finalize()
