"""Key wraps open for their recipient, feed and key name, and for nothing else."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from collective.core.errors import Corrupt
from collective.identity import generate_wrapping_key, unwrap_key, wrap_key

FEED, NAME, KEY = b"f" * 32, b"n" * 32, bytes(range(32))

# Made by this code's first version: format golden, so that wraps in old feeds keep opening.
GOLDEN_PRIVATE = "4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8"
GOLDEN_WRAP = (
    "a75138d35e16945a3961f82704755974996539655e5d199b8b9216b2bbad8f29be81ad71dd5e3e701ba0560ae0dc5014"
    "defb6b0d73bac457479ba7dde2c59e9fadcb695bce411c10065b6d9b78ae444d"
)


class TestWrap:
    @settings(max_examples=30)
    @given(st.binary(min_size=1, max_size=64), st.binary(max_size=40), st.binary(max_size=40))
    def test_round_trip(self, key: bytes, feed_id: bytes, key_name: bytes) -> None:
        private = generate_wrapping_key()
        wrapped = wrap_key(private.public_key().public_bytes_raw(), key, feed_id=feed_id, key_name=key_name)
        assert len(wrapped) == 32 + len(key) + 16
        assert unwrap_key(private, wrapped, feed_id=feed_id, key_name=key_name) == key

    def test_a_golden_wrap_opens(self) -> None:
        """32 bytes encapsulated key, ciphertext, 16 bytes tag; see docs/protocol/certificates.md."""
        private = X25519PrivateKey.from_private_bytes(bytes.fromhex(GOLDEN_PRIVATE))
        assert unwrap_key(private, bytes.fromhex(GOLDEN_WRAP), feed_id=FEED, key_name=NAME) == KEY

    def test_moved_wraps_do_not_open(self) -> None:
        """Another recipient, feed, key name, or the border between the two moved."""
        private = generate_wrapping_key()
        wrapped = wrap_key(private.public_key().public_bytes_raw(), KEY, feed_id=FEED, key_name=NAME)
        tries = [
            (generate_wrapping_key(), FEED, NAME),
            (private, b"g" * 32, NAME),
            (private, FEED, b"m" * 32),
            (private, FEED + b"n", NAME[1:]),
        ]
        for key, feed_id, key_name in tries:
            with pytest.raises(Corrupt):
                unwrap_key(key, wrapped, feed_id=feed_id, key_name=key_name)

    def test_every_flipped_byte_is_noticed(self) -> None:
        private = generate_wrapping_key()
        wrapped = wrap_key(private.public_key().public_bytes_raw(), KEY, feed_id=FEED, key_name=NAME)
        for index in range(len(wrapped)):
            if index == 31:
                continue  # the top bit of the encapsulated key is ignored by X25519 (RFC 7748); tried below
            broken = bytearray(wrapped)
            broken[index] ^= 0x80
            with pytest.raises(Corrupt):
                unwrap_key(private, bytes(broken), feed_id=FEED, key_name=NAME)
        for short in (b"", wrapped[:31], wrapped[:47], wrapped[:-1]):
            with pytest.raises(Corrupt):
                unwrap_key(private, short, feed_id=FEED, key_name=NAME)
        broken = bytearray(wrapped)
        broken[31] ^= 0x01
        with pytest.raises(Corrupt):
            unwrap_key(private, bytes(broken), feed_id=FEED, key_name=NAME)

    @pytest.mark.parametrize("public", [b"", b"x" * 31, b"x" * 33, bytes(32), b"\x01" + bytes(31)])
    def test_a_card_without_a_proper_key(self, public: bytes) -> None:
        """Wrong lengths, and points that would give the same secret to everybody."""
        with pytest.raises(Corrupt, match="X25519"):
            wrap_key(public, KEY, feed_id=FEED, key_name=NAME)
