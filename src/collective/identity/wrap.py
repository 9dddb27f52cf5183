"""Wrapping a DataStore key to a member's card key: HPKE base mode.

Source: RFC 9180; DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM. The info binds the wrap to its store feed and
to the key's name, so that a wrap moved elsewhere does not open.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from collective.core.errors import Corrupt

__all__ = ["unwrap_key", "wrap_key"]

_TAG = b"collective key wrap 1"


def _suite() -> Suite:
    return Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


def _info(feed_id: bytes, key_name: bytes) -> bytes:
    return _TAG + len(feed_id).to_bytes(2, "big") + feed_id + key_name


def wrap_key(recipient_public: bytes, key: bytes, *, feed_id: bytes, key_name: bytes) -> bytes:
    """Encapsulated key (32 bytes), then the ciphertext. Raises: Corrupt when the public key is none."""
    try:
        public = X25519PublicKey.from_public_bytes(recipient_public)
        return bytes(_suite().encrypt(key, public, info=_info(feed_id, key_name)))
    except ValueError as error:  # of another length, or a point that gives the same secret to everybody
        raise Corrupt("a card's wrapping key is not an X25519 public key") from error


def unwrap_key(private: X25519PrivateKey, wrapped: bytes, *, feed_id: bytes, key_name: bytes) -> bytes:
    """The key again. Raises: Corrupt when it was not wrapped for this key, feed and name."""
    try:
        return bytes(_suite().decrypt(wrapped, private, info=_info(feed_id, key_name)))
    except (InvalidTag, ValueError) as error:
        raise Corrupt("a wrapped key does not open with this home's card key") from error
