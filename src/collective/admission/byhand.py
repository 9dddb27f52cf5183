"""Joining without a network: a request file one way, a bundle file back.

    new home: make_join_request --file--> root holder: `bundle` --file--> new home: join_with_bundle

The admission is durable in the root feed before the bundle that proves it leaves. Without a request the issuer makes
the member CA's key too and puts it in the bundle: good for tests and for machines of one's own, and said loudly.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from google.protobuf.message import DecodeError

from collective.admission.found import OpenCatalog, admit, first_entries
from collective.admission.household import Household, furnish, open_household
from collective.catalog import Catalog
from collective.core.address import validate_domain
from collective.core.clock import Clock
from collective.core.errors import Conflict, Corrupt, Misconfigured, Refused
from collective.identity import (
    ComponentKind,
    Level,
    MemberAuthority,
    RootAuthority,
    TrustStore,
    check_member_domain,
    ensure_private_directory,
    load_certificate,
    load_private_key,
    save_certificate,
    save_private_key,
)
from collective.net.rpc import Caller, Row
from collective.wire import admission_pb2, control_pb2, feed_pb2

__all__ = ["AdmissionDesk", "admission_rows", "join_with_bundle", "make_join_request"]

_Form = TypeVar("_Form", admission_pb2.JoinRequest, admission_pb2.Bundle)
FORMAT = 1
ROOT_FEED_BYTES = 64 << 20


def make_join_request(
    directory: Path, member: str, endpoints: Iterable[feed_pb2.Endpoint]
) -> admission_pb2.JoinRequest:
    """Make the member CA's key in a new home and the request for its certificate.

    `member` is a whole domain, or a name that the issuer's federation completes. Raises: Misconfigured.
    """
    ensure_private_directory(directory)
    if (directory / "member-ca.key").exists():
        raise Misconfigured(f"{directory.parent} has a member CA already", "choose another --home")
    whole = "." in member
    domain = validate_domain(member) if whole else ""
    key, csr = MemberAuthority.create_request(domain or f"{member}.invalid")
    save_private_key(directory / "member-ca.key", key)
    return admission_pb2.JoinRequest(
        format=FORMAT,
        member_domain=domain,
        member_name="" if whole else member,
        csr=csr.public_bytes(Encoding.DER),
        endpoints=endpoints,
    )


@dataclass(frozen=True)
class AdmissionDesk:
    """The root holder's side. `identity_directory` holds the root's files where this home is the root holder."""

    catalog: Catalog
    identity_directory: Path
    federation_domain: str
    own_domain: str
    endpoints: Callable[[], Iterable[feed_pb2.Endpoint]]
    clock: Clock
    write: Callable[[Callable[[], None]], Awaitable[None]]
    after_change: Callable[[], None]

    async def bundle(self, caller: Caller, request: control_pb2.BundleRequest) -> control_pb2.BundleReply:
        """Admit a member and answer with its bundle. Repeating it for the same request gives the same admission."""
        if not (self.identity_directory / "root-ca.key").exists():
            raise Refused("this home does not hold the federation's root key", "ask the member who founded it")
        root = RootAuthority.load(self.identity_directory / "root-ca.crt", self.identity_directory / "root-ca.key")
        made_here: Ed25519PrivateKey | None = None
        notes: list[str] = []
        if request.join_request:
            asked = _parse(admission_pb2.JoinRequest(), request.join_request, "join request")
            domain = self._domain(asked.member_domain or asked.member_name)
            if request.member and self._domain(request.member) != domain:
                raise Refused(f"the request is for {domain}, not for {request.member}")
            csr = _request_in(asked)
        else:
            domain = self._domain(request.member)
            made_here, csr = MemberAuthority.create_request(domain)
            notes.append(
                f"the bundle carries the private key of {domain}'s CA: whoever reads the file can act as that member;"
                " carry it safely and delete it, or use `join --request` there, which keeps the key at home"
            )
        ca = await self._admitted(root, domain, csr)
        root_feed = self.catalog.root_feed()
        bundle = admission_pb2.Bundle(
            format=FORMAT,
            federation_domain=self.federation_domain,
            member_domain=domain,
            root_certificate=root.certificate.public_bytes(Encoding.DER),
            member_ca_certificate=ca.public_bytes(Encoding.DER),
            root_entries=self.catalog.entries_after(root_feed, 0, max_bytes=ROOT_FEED_BYTES, max_entries=1 << 20),
            issuer_domain=self.own_domain,
            issuer_endpoints=self.endpoints(),
        )
        if made_here is not None:
            bundle.member_ca_key = made_here.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return control_pb2.BundleReply(bundle=bundle.SerializeToString(), notes=notes)

    async def _admitted(
        self, root: RootAuthority, domain: str, csr: x509.CertificateSigningRequest
    ) -> x509.Certificate:
        for member in self.catalog.members():
            if member.domain == domain:
                if member.removed or _public(member.ca_certificate) != _public(csr):
                    raise Conflict(f"{domain} is a member already, with another key", "choose another name")
                return member.ca_certificate
        check_member_domain(domain, self.federation_domain, [member.domain for member in self.catalog.members()])
        ca = root.sign_member(domain, csr, self.clock.wall())

        def append() -> None:
            self.catalog.append_root([admit(self.own_domain, domain, ca)])

        await self.write(append)
        self.after_change()
        return ca

    def _domain(self, member: str) -> str:
        return validate_domain(member if "." in member else f"{member}.{self.federation_domain}")


def admission_rows(desk: AdmissionDesk) -> list[Row]:
    """The dispatch rows of Control that this room answers."""
    return [
        Row(
            method="/collective.v1.Control/Bundle",
            kinds=frozenset({ComponentKind.CLIENT}),
            local=True,
            right="admin of the root holder's member",
            level=Level.LOCAL,
            handler=desk.bundle,
            capability="admin",
        )
    ]


def join_with_bundle(
    directory: Path,
    bundle_bytes: bytes,
    endpoints: Iterable[feed_pb2.Endpoint],
    now: float,
    open_catalog: OpenCatalog,
) -> tuple[Household, admission_pb2.Bundle]:
    """Become the member that a bundle admits. Raises: Corrupt, Refused, Misconfigured."""
    bundle = _parse(admission_pb2.Bundle(), bundle_bytes, "bundle")
    root, ca = _certificates(bundle)
    ensure_private_directory(directory)
    key_path = directory / "member-ca.key"
    key = _member_key(bundle) if bundle.member_ca_key else load_private_key(key_path)
    if not isinstance(key, Ed25519PrivateKey) or _public(ca) != key.public_key().public_bytes_raw():
        raise Refused(
            "the bundle is for another home: its member CA is not for the key that lies here",
            "use the bundle that answers this home's own request",
        )
    if not key_path.exists():
        save_private_key(key_path, key)
    save_certificate(directory / "root-ca.crt", root)
    save_certificate(directory / "member-ca.crt", ca)
    furnish(directory, MemberAuthority(ca, key, root), now)
    household = open_household(directory)
    catalog = open_catalog(household, load_certificate(directory / "root-ca.crt"))
    try:
        for entry in bundle.root_entries:
            catalog.receive(entry)
        if bundle.member_domain not in {member.domain for member in catalog.members() if not member.removed}:
            raise Corrupt("the bundle's root feed does not admit the member it is for")
        catalog.append_member(first_entries(household, endpoints))
    finally:
        catalog.close()
    return household, bundle


def _request_in(asked: admission_pb2.JoinRequest) -> x509.CertificateSigningRequest:
    try:
        return x509.load_der_x509_csr(asked.csr)
    except ValueError as error:
        raise Corrupt("the certificate request in the join request is broken", "make it again there") from error


def _certificates(bundle: admission_pb2.Bundle) -> tuple[x509.Certificate, x509.Certificate]:
    """Root and member CA, each rightly signed, for the names the bundle gives. Raises: Corrupt, Refused."""
    try:
        root = x509.load_der_x509_certificate(bundle.root_certificate)
        ca = x509.load_der_x509_certificate(bundle.member_ca_certificate)
        root.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise Corrupt("a certificate in the bundle is broken", "have the bundle carried here again") from error
    trust = TrustStore(root, bundle.member_domain)
    trust.add_member(ca)
    if trust.federation_domain != bundle.federation_domain or trust.members() != [bundle.member_domain]:
        raise Corrupt("the bundle's certificates are for other names than it says")
    return root, ca


def _member_key(bundle: admission_pb2.Bundle) -> PrivateKeyTypes:
    try:
        return load_pem_private_key(bundle.member_ca_key, None)
    except (ValueError, TypeError) as error:
        raise Corrupt("the key in the bundle is broken", "have the bundle carried here again") from error


def _public(holder: x509.Certificate | x509.CertificateSigningRequest) -> bytes:
    from_holder = holder.public_key()
    return from_holder.public_bytes_raw() if hasattr(from_holder, "public_bytes_raw") else b""


def _parse(message: _Form, raw: bytes, what: str) -> _Form:
    try:
        message.ParseFromString(raw)
    except DecodeError as error:
        raise Corrupt(f"this is not a {what}") from error
    if message.format != FORMAT:
        raise Misconfigured(f"the {what} has form {message.format}, this version reads form {FORMAT}")
    return message
