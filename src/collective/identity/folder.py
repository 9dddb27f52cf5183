"""Certificate authorities by hand: the files that `federation ca …` reads and writes in plain folders.

    root-ca.crt, root-ca.key                        a federation's root
    LABEL-ca.crt, LABEL-ca.key, LABEL-ca.csr        a member's CA, named by the first label of its domain
    LABEL-cert.crt, LABEL-cert.key                  its coordinator's leaf
    NAME.crt, NAME.key (member-ca.crt, root-ca.crt) a further component, in a form that a home's identity folder takes

Nothing that is there is overwritten; all names are looked at before the first is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from collective.core.address import member_domain, validate_domain
from collective.core.errors import Conflict, Misconfigured, Refused
from collective.identity.authority import MemberAuthority, RootAuthority, check_member_domain
from collective.identity.certificates import OID_MEMBER_DOMAIN, ComponentKind, read_identity, read_text_extension
from collective.identity.keys import (
    ensure_private_directory,
    generate_leaf_key,
    load_certificate,
    load_private_key,
    save_certificate,
    save_private_key,
)

__all__ = ["Written", "init_root", "renew_component", "request_member", "sign_component", "sign_member"]

COORDINATOR_NAME = "coord"
RESERVED_NAMES = ("card", "signing")  # and all that end in -ca: other files of an identity folder
CSR_LIMIT_BYTES = 64 * 1024
KEEP_HINT = "whoever lost a CA's key cannot sign again; move it away first, or choose another folder with --out"
RENEW_HINT = "--renew gives the key that is there a new certificate; for another component choose another --name"


@dataclass(frozen=True)
class Written:
    """Whom it is for (domain or address), the files in the order written, and when the certificate ends (seconds)."""

    subject: str
    files: tuple[Path, ...]
    not_after: float


def init_root(directory: Path, federation_domain: str, now: float) -> Written:
    """Make a federation's root. Raises: Refused (domain), Conflict (there is one), Misconfigured."""
    certificate_path, key_path = directory / "root-ca.crt", directory / "root-ca.key"
    root = RootAuthority.create(federation_domain, now)
    _make_room(directory, (certificate_path, key_path))
    save_private_key(key_path, root.key)
    save_certificate(certificate_path, root.certificate)
    return _written(root.federation_domain, root.certificate, certificate_path, key_path)


def request_member(directory: Path, member: str) -> Written:
    """Make the key of a member CA and the request that the root holder signs. Raises: as `init_root`."""
    domain = member_domain(member) if "@" in member else validate_domain(member)
    request_path, key_path = (directory / f"{_label(domain)}-ca.{ending}" for ending in ("csr", "key"))
    key, request = MemberAuthority.create_request(domain)
    _make_room(directory, (request_path, key_path))
    save_private_key(key_path, key)
    request_path.write_bytes(request.public_bytes(Encoding.PEM))
    return Written(domain, (request_path, key_path), 0.0)


def sign_member(
    directory: Path, root_directory: Path, member: str, now: float, request_file: Path | None = None
) -> list[Written]:
    """Sign a member's CA with the root in `root_directory`, and a first leaf for its coordinator.

    With a request the key is elsewhere: the CA's certificate alone comes out. `member` is a domain, an identity, or a
    name under the federation. Raises: Refused, Conflict, Misconfigured.
    """
    root = _load_root(root_directory)
    domain = _complete(member, root.federation_domain)
    label = _label(domain)
    ca_path, ca_key_path = directory / f"{label}-ca.crt", directory / f"{label}-ca.key"
    leaf_path, leaf_key_path = directory / f"{label}-cert.crt", directory / f"{label}-cert.key"
    wanted = (ca_path, ca_key_path, leaf_path, leaf_key_path) if request_file is None else (ca_path,)
    request = None if request_file is None else _load_request(request_file)
    _check_absent(wanted)
    check_member_domain(domain, root.federation_domain, _members_in({root_directory, directory}))
    if request is not None:
        ca = root.sign_member(domain, request, now)
        _make_room(directory, wanted)
        save_certificate(ca_path, ca)
        return [_written(domain, ca, ca_path)]
    ca_key, made = MemberAuthority.create_request(domain)
    authority = MemberAuthority(root.sign_member(domain, made, now), ca_key, root.certificate)
    leaf_key = generate_leaf_key()
    leaf = authority.issue(ComponentKind.COORDINATOR, COORDINATOR_NAME, leaf_key.public_key(), now)
    _make_room(directory, wanted)
    save_private_key(ca_key_path, ca_key)
    save_certificate(ca_path, authority.certificate)
    save_private_key(leaf_key_path, leaf_key)
    save_certificate(leaf_path, leaf)
    return [
        _written(domain, authority.certificate, ca_path, ca_key_path),
        _written(f"{COORDINATOR_NAME}@{domain}", leaf, leaf_path, leaf_key_path),
    ]


def sign_component(
    directory: Path,
    authority_directory: Path,
    kind: ComponentKind,
    name: str,
    now: float,
    member: str = "",
    capabilities: frozenset[str] | None = None,
) -> Written:
    """A leaf and its key for one more component, by the member CA in `authority_directory`.

    In another folder than the CA's the two CA certificates are laid beside them, so that the folder is the identity
    folder of a home. Raises: Refused, Conflict, Misconfigured.
    """
    if name in RESERVED_NAMES or name.endswith("-ca"):
        raise Refused(f"{name!r} is the name of another file of an identity folder", "name it like node-02")
    authority = _load_authority(authority_directory, member)
    key = generate_leaf_key()
    leaf = authority.issue(kind, name, key.public_key(), now, capabilities=capabilities)
    name = read_identity(leaf).address.local_part
    leaf_path, key_path = directory / f"{name}.crt", directory / f"{name}.key"
    beside: list[tuple[Path, x509.Certificate]] = []
    if directory.resolve() != authority_directory.resolve():
        pairs = (("member-ca.crt", authority.certificate), ("root-ca.crt", authority.root_certificate))
        beside = [(directory / file, certificate) for file, certificate in pairs]
    for path, certificate in beside:
        if path.exists() and load_certificate(path) != certificate:
            raise Conflict(f"{path} is of another member or federation", "choose another folder with --out")
    _make_room(directory, (leaf_path, key_path), RENEW_HINT)
    for path, certificate in beside:
        save_certificate(path, certificate)
    save_private_key(key_path, key)
    save_certificate(leaf_path, leaf)
    return _written(str(read_identity(leaf).address), leaf, leaf_path, key_path, *(path for path, _ in beside))


def renew_component(directory: Path, authority_directory: Path, name: str, now: float, member: str = "") -> Written:
    """A new certificate for the key and with the kind and capabilities that `name` has. Raises: as `sign_component`."""
    authority = _load_authority(authority_directory, member)
    path = directory / f"{name}.crt"
    identity = read_identity(load_certificate(path))
    key = load_private_key(directory / f"{name}.key")
    if identity.member_domain != authority.member_domain or not isinstance(key, EllipticCurvePrivateKey):
        raise Refused(f"{path} is not a component of {authority.member_domain}", "name its CA's folder with --ca")
    leaf = authority.issue(
        identity.kind, identity.address.local_part, key.public_key(), now, capabilities=identity.capabilities
    )
    save_certificate(path, leaf)
    return _written(str(identity.address), leaf, path)


def _written(subject: str, certificate: x509.Certificate, *files: Path) -> Written:
    return Written(subject, files, certificate.not_valid_after_utc.timestamp())


def _label(domain: str) -> str:
    return domain.partition(".")[0]


def _complete(member: str, federation_domain: str) -> str:
    if "@" in member:
        return member_domain(member)
    return validate_domain(member if "." in member else f"{member}.{federation_domain}")


def _check_absent(files: Iterable[Path], hint: str = KEEP_HINT) -> None:
    for path in files:
        if path.exists() or path.is_symlink():
            raise Conflict(f"{path} is there already and is not overwritten", hint)


def _make_room(directory: Path, files: Iterable[Path], hint: str = KEEP_HINT) -> None:
    _check_absent(files, hint)
    if not directory.exists():
        ensure_private_directory(directory)
    elif not directory.is_dir():
        raise Misconfigured(f"{directory} is not a folder", "choose another with --out")


def _load_root(directory: Path) -> RootAuthority:
    if not (directory / "root-ca.crt").exists():
        raise Misconfigured(
            f"there is no root-ca.crt in {directory.absolute()}",
            "make a root with `collective federation ca init --domain D`, or name its folder with --root DIR",
        )
    return RootAuthority.load(directory / "root-ca.crt", directory / "root-ca.key")


def _load_authority(directory: Path, member: str) -> MemberAuthority:
    """The member CA of a folder whose key lies there too; `member` says which when there are several."""
    found = {}
    for key_path in sorted(directory.glob("*-ca.key")):
        certificate_path = key_path.with_suffix(".crt")
        if key_path.name == "root-ca.key" or not certificate_path.exists():
            continue
        certificate = load_certificate(certificate_path)
        found[read_text_extension(certificate, OID_MEMBER_DOMAIN)] = (certificate, certificate_path, key_path)
    root_certificate = load_certificate(directory / "root-ca.crt") if found else None
    if root_certificate is None:
        raise Misconfigured(
            f"there is no member CA with its key in {directory.absolute()}",
            "name the folder that holds it with --ca DIR, or the home with --home",
        )
    if not member and len(found) > 1:
        raise Refused(f"{directory.absolute()} holds the CAs of {', '.join(found)}", "say which with --member DOMAIN")
    domain = member_domain(member) if "@" in member else member.lower() or next(iter(found))
    matching = [known for known in found if domain in (known, _label(known))]
    if len(matching) != 1:
        raise Refused(f"{directory.absolute()} holds the CAs of {', '.join(found)}, not one of {member}")
    certificate, certificate_path, key_path = found[matching[0]]
    key = load_private_key(key_path)
    if not isinstance(key, Ed25519PrivateKey) or key.public_key() != certificate.public_key():
        raise Misconfigured(f"{key_path} is not the key of {certificate_path}")
    return MemberAuthority(certificate, key, root_certificate)


def _load_request(path: Path) -> x509.CertificateSigningRequest:
    try:
        with path.open("rb") as file:
            raw = file.read(CSR_LIMIT_BYTES)
        return x509.load_pem_x509_csr(raw) if b"-----BEGIN" in raw else x509.load_der_x509_csr(raw)
    except FileNotFoundError:
        raise Misconfigured(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise Misconfigured(
            f"{path} holds no certificate request that can be read",
            "make one with `collective federation ca request --member D`",
        ) from error


def _members_in(directories: Iterable[Path]) -> Iterator[str]:
    """Domains of the members whose CAs lie in these folders."""
    for directory in directories:
        for path in sorted(directory.glob("*-ca.crt")):
            domain = read_text_extension(load_certificate(path), OID_MEMBER_DOMAIN)
            if domain:
                yield domain
