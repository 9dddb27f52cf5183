"""Chance from a seed: within `seeded`, keys, ids and salts are drawn from one generator, so that a seed replays."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from random import Random
from unittest import mock

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from collective.catalog.entry import ParsedEntry, verify_signature

__all__ = ["seeded"]

_verified: set[tuple[bytes, bytes]] = set()


def _verify_once(entry: ParsedEntry, key: Ed25519PublicKey) -> None:
    """Everybody verifies everything; in one process the second time is the first."""
    if (entry.raw, key.public_bytes_raw()) not in _verified:
        verify_signature(entry, key)
        _verified.add((entry.raw, key.public_bytes_raw()))


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Everything in this process that asks `os.urandom` or makes a signing or wrapping key asks this seed."""
    random = Random(seed)

    def signing_key() -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(random.randbytes(32))

    def wrapping_key() -> X25519PrivateKey:
        return X25519PrivateKey.from_private_bytes(random.randbytes(32))

    with (
        mock.patch("collective.catalog.applier.verify_signature", _verify_once),
        mock.patch("os.urandom", random.randbytes),
        mock.patch("collective.identity.authority.generate_signing_key", signing_key),
        mock.patch("support.catalogs.generate_signing_key", signing_key),
        mock.patch("support.catalogs.generate_wrapping_key", wrapping_key),
    ):
        _verified.clear()
        yield
