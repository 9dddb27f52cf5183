"""Private keys and other secrets on disk: made, written 0600 whole or not at all, refused at load when wider."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from collective.core.errors import Misconfigured

__all__ = [
    "PrivateKey",
    "check_private_directory",
    "ensure_private_directory",
    "generate_leaf_key",
    "generate_signing_key",
    "generate_wrapping_key",
    "load_certificate",
    "load_private_key",
    "read_private",
    "save_certificate",
    "save_private_key",
    "write_private",
]

PrivateKey = Ed25519PrivateKey | EllipticCurvePrivateKey | X25519PrivateKey


def generate_signing_key() -> Ed25519PrivateKey:
    """For CAs and feeds."""
    return Ed25519PrivateKey.generate()


def generate_leaf_key() -> EllipticCurvePrivateKey:
    """For TLS leaves: P-256, since the gRPC library's TLS refuses Ed25519 leaves."""
    return ec.generate_private_key(ec.SECP256R1())


def generate_wrapping_key() -> X25519PrivateKey:
    """For the card: DataStore keys are wrapped to its public half."""
    return X25519PrivateKey.generate()


def ensure_private_directory(path: Path) -> None:
    """Make it 0700, or check that it is. Raises: Misconfigured when others may look in."""
    try:
        path.mkdir(parents=True, mode=0o700, exist_ok=True)
        status = path.stat()
    except OSError as error:
        raise Misconfigured(f"cannot make the folder {path}: {error.strerror}") from error
    if status.st_uid != os.geteuid():
        raise Misconfigured(f"{path} belongs to another user", f"chown it, or choose another home (uid {os.geteuid()})")
    if stat.S_IMODE(status.st_mode) & 0o077:
        if any(path.iterdir()):
            raise Misconfigured(f"{path} can be read by others", f"chmod 700 {path}")
        path.chmod(0o700)


def check_private_directory(path: Path) -> None:
    """Refuse a folder of keys that others may look into; one that is missing is its reader's to tell.

    Raises: Misconfigured.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return
    except OSError as error:
        raise Misconfigured(f"cannot look into {path}: {error.strerror}") from error
    if mode & 0o077:
        raise Misconfigured(f"the folder of keys {path} has mode {mode:04o}, open to others", f"chmod 700 {path}")


def write_private(path: Path, content: bytes) -> None:
    """Write a secret 0600: a temporary file, synced, then renamed; the folder synced too."""
    _write_synced(path, content, 0o600)


def read_private(path: Path) -> bytes:
    """Read a secret. Raises: Misconfigured when it is missing or wider than 0600."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Misconfigured(f"{path} is missing", "restore it from a backup of the home") from None
    except OSError as error:
        raise Misconfigured(f"cannot read {path}: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        if mode & 0o077:
            raise Misconfigured(f"the secret {path} has mode {mode:04o} and can be read by others", f"chmod 600 {path}")
        return file.read()


def save_private_key(path: Path, key: PrivateKey) -> None:
    """PKCS#8 PEM, 0600."""
    write_private(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def load_private_key(path: Path) -> PrivateKey:
    """Raises: Misconfigured when missing, wider than 0600, or not such a key."""
    raw = read_private(path)
    try:
        key = load_pem_private_key(raw, None)
    except (ValueError, TypeError) as error:
        raise Misconfigured(f"{path} holds no private key that can be read") from error
    if not isinstance(key, Ed25519PrivateKey | EllipticCurvePrivateKey | X25519PrivateKey):
        raise Misconfigured(f"{path} holds a key of a type that is not used here")
    return key


def save_certificate(path: Path, certificate: x509.Certificate) -> None:
    """PEM, readable by everybody: it is public."""
    _write_synced(path, certificate.public_bytes(Encoding.PEM), 0o644)


def load_certificate(path: Path) -> x509.Certificate:
    """The first certificate of a PEM file. Raises: Misconfigured."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except FileNotFoundError:
        raise Misconfigured(f"{path} is missing", "restore it from a backup of the home") from None
    except (OSError, ValueError) as error:
        raise Misconfigured(f"{path} holds no certificate that can be read: {error}") from error


def _write_synced(path: Path, content: bytes, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise Misconfigured(f"cannot write {path}: {error.strerror}") from error
