"""What a component speaks TLS with: its leaf and key, its member's CA, the federation's root."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from collective.core.errors import Misconfigured
from collective.identity.certificates import PeerIdentity, read_identity
from collective.identity.keys import (
    check_private_directory,
    load_certificate,
    load_private_key,
    save_certificate,
    save_private_key,
)

__all__ = ["Credentials"]


@dataclass(frozen=True)
class Credentials:
    """One component's certificate, key and chain."""

    certificate: x509.Certificate
    key: EllipticCurvePrivateKey
    member_ca: x509.Certificate
    root: x509.Certificate

    @classmethod
    def load(cls, directory: Path, name: str) -> Credentials:
        """`NAME.crt`, `NAME.key`, `member-ca.crt` and `root-ca.crt` of an identity folder.

        Raises: Misconfigured when one is missing or unfit, or when the key (0600) or folder (0700) is open to others.
        """
        check_private_directory(directory)
        certificate = load_certificate(directory / f"{name}.crt")
        key = load_private_key(directory / f"{name}.key")
        if not isinstance(key, EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise Misconfigured(f"{directory / name}.key is not the key of {name}.crt")
        return cls(
            certificate, key, load_certificate(directory / "member-ca.crt"), load_certificate(directory / "root-ca.crt")
        )

    def save(self, directory: Path, name: str) -> None:
        """Write the leaf and its key (0600); the CAs' files are not touched."""
        save_private_key(directory / f"{name}.key", self.key)
        save_certificate(directory / f"{name}.crt", self.certificate)

    @cached_property
    def identity(self) -> PeerIdentity:
        """Who this component is."""
        return read_identity(self.certificate)

    @cached_property
    def chain_pem(self) -> bytes:
        """Leaf, then member CA."""
        return self.certificate.public_bytes(Encoding.PEM) + self.member_ca.public_bytes(Encoding.PEM)

    @cached_property
    def key_pem(self) -> bytes:
        """PKCS#8, unencrypted: for TLS libraries that take PEM."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @cached_property
    def root_pem(self) -> bytes:
        """The only trust anchor."""
        return self.root.public_bytes(Encoding.PEM)
