"""What a certificate says of its holder, byte by byte: these forms are stored in feeds and must never change."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from collective.core.address import parse_address
from collective.core.errors import Corrupt
from collective.identity import ComponentKind, generate_leaf_key, generate_signing_key, read_identity
from collective.identity.certificates import decode_text, encode_text, federation_extensions

ARC = "1.3.6.1.4.1.99999"
GOLDEN = {
    f"{ARC}.1": "0c10" + b"collective.local".hex(),
    f"{ARC}.2": "0c16" + b"alice.collective.local".hex(),
    f"{ARC}.3": "0c04" + b"node".hex(),
    f"{ARC}.4": "0c1e" + b"node-01@alice.collective.local".hex(),
    f"{ARC}.5": "0c0a" + b"read,write".hex(),
}


def ours(certificate: x509.Certificate) -> dict[str, str]:
    """The federation's extensions of a certificate, by dotted OID, in hex; none may be critical."""
    found = {}
    for extension in certificate.extensions:
        if extension.oid.dotted_string.startswith(ARC):
            assert not extension.critical
            assert isinstance(extension.value, x509.UnrecognizedExtension)
            found[extension.oid.dotted_string] = extension.value.value.hex()
    return found


class TestCertificate:
    def test_extensions_of_a_leaf_are_golden(self, federation: Any) -> None:
        """Five DER UTF8Strings, never critical."""
        assert ours(federation.leaf("alice", "node-01", ComponentKind.NODE)) == GOLDEN

    def test_extensions_of_the_authorities_are_golden(self, federation: Any) -> None:
        """The root names the federation; a member CA names its member too."""
        assert ours(federation.root.certificate) == {f"{ARC}.1": GOLDEN[f"{ARC}.1"]}
        first_two = {oid: GOLDEN[oid] for oid in (f"{ARC}.1", f"{ARC}.2")}
        assert ours(federation.members["alice"].certificate) == first_two

    def test_lengths_of_a_der_string_are_golden(self) -> None:
        """Short, one-byte and two-byte lengths (X.690 8.1.3)."""
        assert encode_text("") == bytes.fromhex("0c00")
        assert encode_text("a" * 127)[:2] == bytes.fromhex("0c7f")
        assert encode_text("a" * 128)[:3] == bytes.fromhex("0c8180")
        assert encode_text("a" * 255)[:3] == bytes.fromhex("0c81ff")
        assert encode_text("a" * 256)[:4] == bytes.fromhex("0c820100")

    @given(st.text(max_size=400))
    def test_text_round_trips(self, text: str) -> None:
        assert decode_text(encode_text(text)) == text

    @given(st.binary(max_size=300))
    def test_only_the_canonical_encoding_is_read(self, der: bytes) -> None:
        """Bytes are the one encoding of their text, or Corrupt."""
        try:
            text = decode_text(der)
        except Corrupt:
            return
        assert encode_text(text) == der

    def test_empty_texts_are_left_out(self) -> None:
        assert [extension.oid.dotted_string for extension in federation_extensions("a.b")] == [f"{ARC}.1"]

    @pytest.mark.parametrize("kind", list(ComponentKind))
    def test_identity_is_read_as_issued(self, federation: Any, kind: ComponentKind) -> None:
        key = generate_signing_key() if kind is ComponentKind.SIGNING else generate_leaf_key()
        leaf = federation.members["carol"].issue(
            kind, "Client-7", key.public_key(), federation.now, 3600.0, frozenset({"read", "admin"})
        )
        identity = read_identity(leaf)
        assert identity.kind is kind
        assert identity.address == parse_address("client-7@carol.collective.local")
        assert (identity.member_domain, identity.federation_domain) == ("carol.collective.local", "collective.local")
        assert identity.capabilities == {"read", "admin"}
        assert identity.not_after == federation.now + 3600
        assert len(identity.fingerprint) == 32

    def test_no_capabilities(self, federation: Any) -> None:
        """A signing key is for entries alone."""
        signing = federation.members["alice"].issue_signing(generate_signing_key().public_key(), federation.now)
        assert read_identity(signing).capabilities == frozenset()
        assert f"{ARC}.5" not in ours(signing)
