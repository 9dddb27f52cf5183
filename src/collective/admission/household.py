"""The keys and certificates of one home: issued once from its member CA, opened at every start."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from collective.catalog import OwnKeys
from collective.core.errors import Misconfigured
from collective.identity import (
    ComponentKind,
    Credentials,
    MemberAuthority,
    ensure_private_directory,
    generate_leaf_key,
    generate_signing_key,
    generate_wrapping_key,
    load_certificate,
    load_private_key,
    read_private,
    save_certificate,
    save_private_key,
    write_private,
)

__all__ = ["Household", "furnish", "open_household"]

SECRET_BYTES = 32
COMPONENTS = (
    ("coord", ComponentKind.COORDINATOR, frozenset({"read", "write", "peer"})),
    ("node-01", ComponentKind.NODE, frozenset({"read", "write"})),
    ("client", ComponentKind.CLIENT, frozenset({"read", "write", "admin"})),
)


@dataclass(frozen=True)
class Household:
    """What a home's coordinator holds: its TLS credentials, feed keys and the secret that chunk keys derive from."""

    coordinator: Credentials
    keys: OwnKeys
    chunk_secret: bytes

    @property
    def member_domain(self) -> str:
        return self.keys.member_domain


def furnish(directory: Path, authority: MemberAuthority, now: float) -> None:
    """Issue everything one home needs into `directory` (made 0700). The member CA's own files must be there already.

    Raises: Misconfigured when the home is furnished already.
    """
    ensure_private_directory(directory)
    if (directory / "coord.crt").exists():
        raise Misconfigured(f"{directory.parent} is the home of a member already", "choose another --home")
    for name, kind, capabilities in COMPONENTS:
        key = generate_leaf_key()
        certificate = authority.issue(kind, name, key.public_key(), now, capabilities=capabilities)
        Credentials(certificate, key, authority.certificate, authority.root_certificate).save(directory, name)
    signing_key = generate_signing_key()
    save_private_key(directory / "signing.key", signing_key)
    save_certificate(directory / "signing.crt", authority.issue_signing(signing_key.public_key(), now))
    save_private_key(directory / "card.key", generate_wrapping_key())
    write_private(directory / "chunk.secret", os.urandom(SECRET_BYTES))


def open_household(directory: Path) -> Household:
    """Read them back. Raises: Misconfigured when there is no home, or a key's mode is wider than 0600."""
    if not (directory / "coord.crt").exists():
        raise Misconfigured(
            f"{directory.parent} is not the home of a member",
            "make one with `collective federation init` or `collective federation join`, or name it with --home",
        )
    coordinator = Credentials.load(directory, "coord")
    signing_key = load_private_key(directory / "signing.key")
    wrapping_key = load_private_key(directory / "card.key")
    root_key = load_private_key(directory / "root-ca.key") if (directory / "root-ca.key").exists() else None
    if not isinstance(signing_key, Ed25519PrivateKey) or not isinstance(wrapping_key, X25519PrivateKey):
        raise Misconfigured(f"a key in {directory} is of another type than its name says")
    if root_key is not None and not isinstance(root_key, Ed25519PrivateKey):
        raise Misconfigured(f"{directory}/root-ca.key is not an Ed25519 key")
    keys = OwnKeys(
        member_domain=coordinator.identity.member_domain,
        signing_key=signing_key,
        signing_certificate=load_certificate(directory / "signing.crt"),
        wrapping_key=wrapping_key,
        root_key=root_key,
        coordinator_address=coordinator.identity.address,
    )
    return Household(coordinator, keys, read_private(directory / "chunk.secret"))
