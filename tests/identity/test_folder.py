"""Authorities by hand: which files appear, what is never overwritten, whose CA signs."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from collective.core.errors import Conflict, Misconfigured, Refused
from collective.identity import (
    ComponentKind,
    Credentials,
    Level,
    MemberAuthority,
    TrustStore,
    generate_signing_key,
    load_certificate,
    read_identity,
    save_certificate,
    save_private_key,
)
from collective.identity.folder import init_root, renew_component, request_member, sign_component, sign_member

NOW = 1_790_000_000.0
ALICE = "alice.collective.local"


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the root of collective.local."""
    init_root(tmp_path / "ca", "Collective.Local", NOW)
    return tmp_path / "ca"


class TestFolder:
    def test_root(self, folder: Path) -> None:
        """A new folder is private; the key is, in any folder."""
        assert files(folder) == ["root-ca.crt", "root-ca.key"]
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "root-ca.key").stat().st_mode) == 0o600

    def test_nothing_is_overwritten(self, folder: Path) -> None:
        """Not the root, not a member's CA, not when only one of the files is there."""
        sign_member(folder, folder, ALICE, NOW)
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        with pytest.raises(Conflict, match=r"root-ca\.crt is there already"):
            init_root(folder, "collective.local", NOW)
        with pytest.raises(Conflict, match=r"alice-ca\.crt is there already"):
            sign_member(folder, folder, ALICE, NOW)
        with pytest.raises(Conflict, match="alice-ca"):
            sign_member(folder, folder, "alice.other.example", NOW)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        (folder / "alice-ca.crt").unlink()
        with pytest.raises(Conflict, match=r"alice-ca\.key is there already"):
            sign_member(folder, folder, ALICE, NOW)

    @pytest.mark.parametrize("member", ["alice", ALICE, "Alice.Collective.Local", "alice@collective.local"])
    def test_a_member_by_any_of_its_names(self, folder: Path, member: str) -> None:
        made_ca, made_leaf = sign_member(folder, folder, member, NOW)
        assert (made_ca.subject, made_leaf.subject) == (ALICE, f"coord@{ALICE}")
        assert files(folder) == [
            *("alice-ca.crt", "alice-ca.key", "alice-cert.crt", "alice-cert.key"),
            *("root-ca.crt", "root-ca.key"),
        ]
        root, ca, leaf = (load_certificate(folder / f"{name}.crt") for name in ("root-ca", "alice-ca", "alice-cert"))
        identity = TrustStore(root, ALICE).verify(leaf, [ca], level=Level.FEDERATED, now=NOW)
        assert str(identity.address) == f"coord@{ALICE}"
        assert root.not_valid_after_utc > ca.not_valid_after_utc > leaf.not_valid_after_utc

    def test_members_may_not_contain_one_another(self, folder: Path, tmp_path: Path) -> None:
        """Members signed before are known by their files, beside the root and where the new one goes."""
        sign_member(folder, folder, ALICE, NOW)
        for member in (f"x.{ALICE}", "x.y." + ALICE):
            with pytest.raises(Conflict, match="lies under the member"):
                sign_member(tmp_path / "elsewhere", folder, member, NOW)
        init_root(tmp_path / "deep", "a.collective.example", NOW)
        with pytest.raises(Refused, match="contains the federation"):
            sign_member(tmp_path / "elsewhere", tmp_path / "deep", "a.collective.example", NOW)
        assert not (tmp_path / "elsewhere").exists(), "a refused member leaves nothing behind"

    def test_by_request(self, folder: Path, tmp_path: Path) -> None:
        """The key is made elsewhere and stays there; only the CA's certificate comes out."""
        asked = request_member(tmp_path / "bob", "bob@collective.local")
        assert [path.name for path in asked.files] == ["bob-ca.csr", "bob-ca.key"]
        request_file = asked.files[0]
        (made,) = sign_member(folder, folder, "bob", NOW, request_file)
        assert [path.name for path in made.files] == ["bob-ca.crt"]
        assert files(folder) == ["bob-ca.crt", "root-ca.crt", "root-ca.key"]
        der = x509.load_pem_x509_csr(request_file.read_bytes()).public_bytes(Encoding.DER)
        (tmp_path / "bob.der").write_bytes(der)
        sign_member(tmp_path / "other", folder, "robert", NOW, tmp_path / "bob.der")
        for name in ("bob-ca.crt", "root-ca.crt"):
            (tmp_path / "bob" / name).write_bytes((folder / name).read_bytes())
        leaf = sign_component(tmp_path / "bob", tmp_path / "bob", ComponentKind.COORDINATOR, "coord", NOW)
        assert leaf.subject == "coord@bob.collective.local"
        with pytest.raises(Conflict):
            request_member(tmp_path / "bob", "bob.collective.local")

    def test_requests_that_cannot_be_read(self, folder: Path, tmp_path: Path) -> None:
        for content in (
            b"",
            b"junk",
            b"-----BEGIN CERTIFICATE REQUEST-----\n!!\n",
            (folder / "root-ca.crt").read_bytes(),
        ):
            (tmp_path / "bad.csr").write_bytes(content)
            with pytest.raises(Misconfigured, match="no certificate request"):
                sign_member(folder, folder, ALICE, NOW, tmp_path / "bad.csr")
        with pytest.raises(Misconfigured, match="missing"):
            sign_member(folder, folder, ALICE, NOW, tmp_path / "none.csr")

    def test_without_a_root(self, tmp_path: Path) -> None:
        with pytest.raises(Misconfigured, match=r"no root-ca\.crt") as refusal:
            sign_member(tmp_path, tmp_path, ALICE, NOW)
        assert "federation ca init" in refusal.value.hint
        with pytest.raises(Refused, match="at least one dot"):
            init_root(tmp_path, "collective", NOW)
        (tmp_path / "file").touch()
        with pytest.raises(Misconfigured, match="not a folder"):
            init_root(tmp_path / "file", "collective.local", NOW)
        assert files(tmp_path) == ["file"]


class TestFolderComponent:
    def test_a_node_for_another_machine(self, folder: Path, tmp_path: Path) -> None:
        """What comes out is the identity folder of a home."""
        sign_member(folder, folder, ALICE, NOW)
        out = tmp_path / "identity"
        made = sign_component(out, folder, ComponentKind.NODE, "Node-02", NOW)
        assert made.subject == f"node-02@{ALICE}"
        assert files(out) == ["member-ca.crt", "node-02.crt", "node-02.key", "root-ca.crt"]
        credentials = Credentials.load(out, "node-02")
        assert credentials.identity.kind is ComponentKind.NODE
        assert TrustStore(credentials.root, ALICE).verify(
            credentials.certificate, [credentials.member_ca], level=Level.LOCAL, now=NOW
        )
        again = sign_component(out, folder, ComponentKind.NODE, "node-03", NOW)
        assert again.subject == f"node-03@{ALICE}", "a second one goes beside it"
        with pytest.raises(Conflict, match=r"node-02\.crt is there") as refusal:
            sign_component(out, folder, ComponentKind.NODE, "node-02", NOW)
        assert "--renew" in refusal.value.hint

    def test_in_a_home(self, folder: Path, tmp_path: Path) -> None:
        """A home's own identity folder holds its CA as member-ca; the component goes beside it."""
        home = tmp_path / "home"
        home.mkdir(mode=0o700)
        sign_member(folder, folder, ALICE, NOW)
        for source, target in (("root-ca.crt", "root-ca.crt"), ("alice-ca.crt", "member-ca.crt")):
            save_certificate(home / target, load_certificate(folder / source))
        (home / "member-ca.key").write_bytes((folder / "alice-ca.key").read_bytes())
        (home / "member-ca.key").chmod(0o600)
        sign_component(home, home, ComponentKind.CLIENT, "tv", NOW, capabilities=frozenset({"read", "admin"}))
        assert Credentials.load(home, "tv").identity.capabilities == {"read", "admin"}

    def test_renewal_keeps_key_kind_and_capabilities(self, folder: Path, tmp_path: Path) -> None:
        sign_member(folder, folder, ALICE, NOW)
        out = tmp_path / "identity"
        sign_component(out, folder, ComponentKind.CLIENT, "tv", NOW, capabilities=frozenset({"read"}))
        before = Credentials.load(out, "tv")
        renew_component(out, folder, "tv", NOW + 60 * 86400)
        after = Credentials.load(out, "tv")
        assert after.certificate != before.certificate
        assert after.identity.not_after > before.identity.not_after
        assert after.certificate.public_key() == before.certificate.public_key()
        assert after.identity.kind is ComponentKind.CLIENT
        assert after.identity.capabilities == {"read"}

    def test_whose_ca(self, folder: Path, tmp_path: Path) -> None:
        """Of several, the one named; another member's component is not renewed."""
        sign_member(folder, folder, "alice", NOW)
        sign_member(folder, folder, "bob", NOW)
        with pytest.raises(Refused, match="holds the CAs of alice"):
            sign_component(tmp_path / "x", folder, ComponentKind.NODE, "node-02", NOW)
        with pytest.raises(Refused, match="not one of carol"):
            sign_component(tmp_path / "x", folder, ComponentKind.NODE, "node-02", NOW, "carol")
        for member in ("bob", "BOB.collective.local", "bob@collective.local"):
            made = sign_component(tmp_path / member, folder, ComponentKind.NODE, "node-02", NOW, member)
            assert made.subject == "node-02@bob.collective.local"
        with pytest.raises(Refused, match="not a component of alice"):
            renew_component(tmp_path / "bob", folder, "node-02", NOW, "alice")
        with pytest.raises(Conflict, match="another member"):
            sign_component(tmp_path / "bob", folder, ComponentKind.NODE, "node-09", NOW, "alice")

    @pytest.mark.parametrize("name", ["root-ca", "member-ca", "bob-ca", "signing", "card", "a/b", "../x", "", "a b"])
    def test_names_that_are_refused(self, folder: Path, tmp_path: Path, name: str) -> None:
        sign_member(folder, folder, ALICE, NOW)
        with pytest.raises(Refused):
            sign_component(tmp_path / "x", folder, ComponentKind.NODE, name, NOW)
        assert not (tmp_path / "x").exists()

    def test_no_ca_or_another_key(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(Misconfigured, match="no member CA with its key"):
            sign_component(tmp_path / "x", folder, ComponentKind.NODE, "node-02", NOW)
        sign_member(folder, folder, ALICE, NOW)
        save_private_key(folder / "alice-ca.key", generate_signing_key())
        with pytest.raises(Misconfigured, match="not the key"):
            sign_component(tmp_path / "x", folder, ComponentKind.NODE, "node-02", NOW)

    def test_leaf_of_sign_member_is_the_coordinator(self, folder: Path) -> None:
        sign_member(folder, folder, ALICE, NOW)
        assert read_identity(load_certificate(folder / "alice-cert.crt")).kind is ComponentKind.COORDINATOR
        ca = load_certificate(folder / "alice-ca.crt")
        assert MemberAuthority(ca, generate_signing_key(), ca).member_domain == ALICE
