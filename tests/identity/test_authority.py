"""Authorities: root, member CA, leaf; their times, their bounds, the names they may speak for."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from collective.core.errors import Conflict, Misconfigured, Refused
from collective.identity import (
    ComponentKind,
    Level,
    MemberAuthority,
    RootAuthority,
    check_member_domain,
    generate_leaf_key,
    generate_signing_key,
    root_hash,
    save_certificate,
    save_private_key,
)

DAY = 86400.0


def ends(certificate: x509.Certificate) -> float:
    return certificate.not_valid_after_utc.timestamp()


def openssl_verify(directory: Path, now: float, *certificates: x509.Certificate) -> str:
    """What `openssl verify` says of (root, intermediate, leaf) at `now`: its stdout and stderr."""
    for name, certificate in zip(("root", "ca", "leaf"), certificates, strict=True):
        (directory / f"{name}.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    command = ["openssl", "verify", "-attime", str(int(now)), "-x509_strict", "-CAfile", "root.crt"]
    done = subprocess.run(
        [*command, "-untrusted", "ca.crt", "leaf.crt"], cwd=directory, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


class TestAuthority:
    def test_root(self, federation: Any) -> None:
        """Ed25519, five years, a CA that signs CAs and those sign none."""
        root = federation.root.certificate
        assert isinstance(root.public_key(), ed25519.Ed25519PublicKey)
        assert ends(root) - federation.now == pytest.approx(5 * 365.25 * DAY, abs=1)
        basic = root.extensions.get_extension_for_class(x509.BasicConstraints)
        assert basic.critical
        assert (basic.value.ca, basic.value.path_length) == (True, 1)
        assert federation.root.federation_domain == "collective.local"
        assert root_hash(root) == root.fingerprint(hashes.SHA256())

    def test_member_ca(self, federation: Any) -> None:
        """Ed25519, two years, signs leaves only, bound to its member's names by critical constraints."""
        ca = federation.members["alice"].certificate
        assert isinstance(ca.public_key(), ed25519.Ed25519PublicKey)
        assert ends(ca) - federation.now == pytest.approx(2 * 365.25 * DAY, abs=1)
        basic = ca.extensions.get_extension_for_class(x509.BasicConstraints)
        assert basic.critical
        assert (basic.value.ca, basic.value.path_length) == (True, 0)
        usage = ca.extensions.get_extension_for_class(x509.KeyUsage)
        assert usage.critical
        assert usage.value.key_cert_sign
        assert not usage.value.digital_signature
        names = ca.extensions.get_extension_for_class(x509.NameConstraints)
        assert names.critical
        domain = "alice.collective.local"
        assert names.value.permitted_subtrees == [x509.DNSName(domain), x509.RFC822Name(domain)]
        assert names.value.excluded_subtrees is None

    def test_leaf(self, federation: Any) -> None:
        """P-256, 90 days, for both sides of TLS, under its federated address and its DNS name."""
        leaf = federation.leaf("alice", "node-01", ComponentKind.NODE)
        key = leaf.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert isinstance(key.curve, ec.SECP256R1)
        assert ends(leaf) - federation.now == pytest.approx(90 * DAY, abs=1)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.RFC822Name) == ["node-01@alice.collective.local"]
        assert names.get_values_for_type(x509.DNSName) == ["node-01.alice.collective.local"]
        assert set(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == {
            ExtendedKeyUsageOID.SERVER_AUTH,
            ExtendedKeyUsageOID.CLIENT_AUTH,
        }
        assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca

    def test_expiry_root_after_member_after_leaf(self, federation: Any) -> None:
        """Whenever something is signed, it ends before its issuer."""
        root, now = federation.root, federation.now
        for days in (0, 300, 365 * 3 + 180, 1700, 1826):
            moment = now + days * DAY
            key, request = MemberAuthority.create_request("dave.collective.local")
            authority = MemberAuthority(
                root.sign_member("dave.collective.local", request, moment), key, root.certificate
            )
            leaf = authority.issue(ComponentKind.NODE, "node-01", generate_leaf_key().public_key(), moment)
            signing = authority.issue_signing(generate_signing_key().public_key(), moment)
            assert ends(root.certificate) > ends(authority.certificate) > ends(leaf) > moment
            assert ends(authority.certificate) > ends(signing) > moment

    def test_an_issuer_that_has_ended_signs_nothing(self, federation: Any) -> None:
        late = ends(federation.root.certificate)
        for moment in (late - 30, late, late + 1000, late + DAY):
            with pytest.raises(Refused, match="ended"):
                federation.root.sign_member("dave.collective.local", generate_signing_key().public_key(), moment)
        early = federation.now - 2 * DAY
        with pytest.raises(Refused, match="clock"):
            federation.members["alice"].issue(ComponentKind.NODE, "n", generate_leaf_key().public_key(), early)

    def test_signing_from_a_request(self, federation: Any) -> None:
        """A request's key is taken, its subject is not."""
        key = generate_signing_key()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "somebody else")])
        request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, None)
        ca = federation.root.sign_member("dave.collective.local", request, federation.now)
        assert ca.public_key() == key.public_key()
        assert "somebody" not in ca.subject.rfc4514_string()

    def test_requests_that_are_refused(self, federation: Any) -> None:
        """A request for another type of key, or not signed by its own."""
        name = x509.Name([])
        wrong = x509.CertificateSigningRequestBuilder().subject_name(name).sign(generate_leaf_key(), hashes.SHA256())
        with pytest.raises(Refused, match="Ed25519"):
            federation.root.sign_member("dave.collective.local", wrong, federation.now)
        good = x509.CertificateSigningRequestBuilder().subject_name(name).sign(generate_signing_key(), None)
        der = bytearray(good.public_bytes(Encoding.DER))
        der[-1] ^= 1
        with pytest.raises(Refused, match="own key"):
            federation.root.sign_member("dave.collective.local", x509.load_der_x509_csr(bytes(der)), federation.now)

    def test_member_domains_keep_apart(self) -> None:
        """None equals, contains or lies under another's, nor contains the federation's."""
        existing = ["alice.media.collective", "bob.garage.collective"]
        for fine in ("carol.media.collective", "malice.media.collective", "alice.garage.collective", "x.y.z"):
            check_member_domain(fine, "media.collective", existing)
        for taken in ("alice.media.collective", "x.alice.media.collective", "a.x.alice.media.collective"):
            with pytest.raises(Conflict, match="choose another"):
                check_member_domain(taken, "media.collective", existing)
        with pytest.raises(Conflict, match=r"bob\.garage"):
            check_member_domain("garage.collective.x", "media.collective", ["bob.garage.collective.x"])
        for federation_domain in ("media.collective.home", "deep.media.collective.home"):
            with pytest.raises(Refused, match="contains the federation"):
                check_member_domain("media.collective.home", federation_domain, [])

    def test_a_member_domain_has_an_identity(self, federation: Any) -> None:
        """A domain of two labels leaves nothing behind the @ of its identity."""
        with pytest.raises(Refused, match="at least one dot"):
            federation.root.sign_member("alice.local", generate_signing_key().public_key(), federation.now)

    @pytest.mark.parametrize("name", ["", "a b", "a@b", "/media", "a.b", "*", "n" * 64, "../x"])
    def test_component_names_that_are_refused(self, federation: Any, name: str) -> None:
        with pytest.raises(Refused):
            federation.members["alice"].issue(
                ComponentKind.NODE, name, generate_leaf_key().public_key(), federation.now
            )

    def test_root_loads_only_with_its_own_key(self, federation: Any, tmp_path: Path) -> None:
        save_certificate(tmp_path / "root-ca.crt", federation.root.certificate)
        save_private_key(tmp_path / "root-ca.key", federation.root.key)
        loaded = RootAuthority.load(tmp_path / "root-ca.crt", tmp_path / "root-ca.key")
        assert loaded.certificate == federation.root.certificate
        save_private_key(tmp_path / "root-ca.key", generate_signing_key())
        with pytest.raises(Misconfigured, match="not the key"):
            RootAuthority.load(tmp_path / "root-ca.crt", tmp_path / "root-ca.key")


class TestAuthorityInOpenssl:
    """The same chains, judged by openssl itself."""

    def test_the_chain_is_good(self, federation: Any, tmp_path: Path) -> None:
        for name in federation.members:
            said = openssl_verify(
                tmp_path,
                federation.now,
                federation.root.certificate,
                federation.members[name].certificate,
                federation.leaf(name),
            )
            assert said == "leaf.crt: OK\n"

    def test_a_domain_longer_than_a_common_name(self, federation: Any, tmp_path: Path) -> None:
        """Subjects are cut at 64 characters; chains still build, by key."""
        name = "a" * 60 + "." + "b" * 60
        federation.admit(name)
        ca = federation.members[name].certificate
        said = openssl_verify(tmp_path, federation.now, federation.root.certificate, ca, federation.leaf(name))
        assert said == "leaf.crt: OK\n"
        assert federation.trust().verify(federation.leaf(name), [ca], level=Level.STRICT, now=federation.now)

    def test_openssl_refuses_a_name_of_another_member(self, federation: Any, tmp_path: Path) -> None:
        """What bob's CA makes for alice's domain, openssl calls a violation of its constraints."""
        bob = federation.members["bob"]
        for names in (
            [x509.DNSName("coord.alice.collective.local")],
            [x509.RFC822Name("coord@alice.collective.local")],
            [x509.RFC822Name("coord@x.bob.collective.local")],
            [x509.DNSName("collective.local")],
        ):
            leaf = federation.forge(bob, names)
            said = openssl_verify(tmp_path, federation.now, federation.root.certificate, bob.certificate, leaf)
            assert "permitted subtree violation" in said

    def test_openssl_refuses_a_ca_below_a_member(self, federation: Any, tmp_path: Path) -> None:
        """A member CA makes no further CAs."""
        bob = federation.members["bob"]
        key = generate_signing_key()
        below = federation.forge(bob, [x509.DNSName("x.bob.collective.local")], public_key=key.public_key(), ca=True)
        under = MemberAuthority(below, key, bob.root_certificate)
        leaf = federation.forge(under, [x509.DNSName("n.x.bob.collective.local")])
        for name, certificate in (("root", federation.root.certificate), ("leaf", leaf)):
            (tmp_path / f"{name}.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
        (tmp_path / "ca.crt").write_bytes(below.public_bytes(Encoding.PEM) + bob.certificate.public_bytes(Encoding.PEM))
        moment = str(int(federation.now))
        command = ["openssl", "verify", "-attime", moment, "-CAfile", "root.crt", "-untrusted", "ca.crt", "leaf.crt"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert "path length constraint" in done.stdout + done.stderr
