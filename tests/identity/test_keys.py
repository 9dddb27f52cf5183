"""Secrets on disk: written whole with mode 0600, refused when others could have read them."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from collective.core.errors import Misconfigured
from collective.identity import (
    ComponentKind,
    Credentials,
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
from collective.identity.keys import check_private_directory


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class TestKeys:
    @pytest.mark.parametrize("generate", [generate_signing_key, generate_leaf_key, generate_wrapping_key])
    def test_keys_come_back(self, tmp_path: Path, generate: Any) -> None:
        """Each type of key is written 0600 whatever the umask, and read back the same."""
        path, key = tmp_path / "some.key", generate()
        before = os.umask(0)
        try:
            save_private_key(path, key)
        finally:
            os.umask(before)
        assert mode(path) == 0o600
        assert load_private_key(path).public_key() == key.public_key()

    @pytest.mark.parametrize("wide", [0o604, 0o620, 0o640, 0o644, 0o666, 0o601])
    def test_a_wider_key_is_refused(self, tmp_path: Path, wide: int) -> None:
        """Also when only executable for others: the mode is 0600 or it is mended by hand."""
        path = tmp_path / "some.key"
        save_private_key(path, generate_signing_key())
        path.chmod(wide)
        with pytest.raises(Misconfigured, match=f"mode {wide:04o}") as refusal:
            load_private_key(path)
        assert refusal.value.hint == f"chmod 600 {path}"

    def test_what_holds_no_key(self, tmp_path: Path) -> None:
        rsa = generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        for content, reason in ((b"", "no private key"), (b"-----BEGIN nonsense", "no private key"), (rsa, "type")):
            write_private(tmp_path / "some.key", content)
            with pytest.raises(Misconfigured, match=reason):
                load_private_key(tmp_path / "some.key")
        with pytest.raises(Misconfigured, match=r"gone\.key is missing"):
            load_private_key(tmp_path / "gone.key")
        with pytest.raises(Misconfigured, match="no certificate"):
            load_certificate(tmp_path / "some.key")

    def test_a_failed_write_leaves_the_old_secret(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The new bytes are synced before they take the old one's name; an error is told as one."""
        path = tmp_path / "chunk.secret"
        write_private(path, b"old")

        def failing(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing)
            with pytest.raises(Misconfigured, match="No space left"):
                write_private(path, b"new")
        assert read_private(path) == b"old"
        write_private(path, b"new")
        assert read_private(path) == b"new"
        assert os.listdir(tmp_path) == ["chunk.secret"], "nothing is left over beside it"

    def test_a_link_laid_in_the_way_is_not_followed(self, tmp_path: Path) -> None:
        """The temporary file is made new; a planted link is removed, its target untouched."""
        target = tmp_path / "target"
        target.write_bytes(b"untouched")
        (tmp_path / ".some.key.new").symlink_to(target)
        write_private(tmp_path / "some.key", b"secret")
        assert target.read_bytes() == b"untouched"
        assert read_private(tmp_path / "some.key") == b"secret"

    def test_folders(self, tmp_path: Path) -> None:
        """Made 0700; an empty wide one is narrowed, one with something in it is its owner's to judge."""
        home = tmp_path / "a" / "home"
        ensure_private_directory(home)
        assert mode(home) == 0o700
        home.chmod(0o755)
        ensure_private_directory(home)
        assert mode(home) == 0o700
        (home / "file").touch()
        home.chmod(0o750)
        with pytest.raises(Misconfigured, match="by others"):
            ensure_private_directory(home)
        with pytest.raises(Misconfigured, match="0750"):
            check_private_directory(home)
        with pytest.raises(Misconfigured, match="cannot make"):
            ensure_private_directory(home / "file" / "below")
        check_private_directory(tmp_path / "missing")


class TestCredentials:
    def prepare(self, federation: Any, directory: Path) -> Credentials:
        key, authority = generate_leaf_key(), federation.members["alice"]
        leaf = authority.issue(ComponentKind.NODE, "node-01", key.public_key(), federation.now)
        made = Credentials(leaf, key, authority.certificate, federation.root.certificate)
        ensure_private_directory(directory)
        made.save(directory, "node-01")
        save_certificate(directory / "member-ca.crt", made.member_ca)
        save_certificate(directory / "root-ca.crt", made.root)
        return made

    def test_saved_and_loaded(self, federation: Any, tmp_path: Path) -> None:
        made = self.prepare(federation, tmp_path / "identity")
        loaded = Credentials.load(tmp_path / "identity", "node-01")
        assert loaded.certificate == made.certificate
        assert loaded.chain_pem == made.chain_pem
        assert loaded.chain_pem.count(b"BEGIN CERTIFICATE") == 2
        assert (loaded.key_pem, loaded.root_pem) == (made.key_pem, made.root_pem)
        assert str(loaded.identity.address) == "node-01@alice.collective.local"
        assert mode(tmp_path / "identity" / "node-01.key") == 0o600

    def test_refused_at_load(self, federation: Any, tmp_path: Path) -> None:
        """An open folder, an open key, another's key, nothing at all."""
        directory = tmp_path / "identity"
        self.prepare(federation, directory)
        directory.chmod(0o755)
        with pytest.raises(Misconfigured, match="0755"):
            Credentials.load(directory, "node-01")
        directory.chmod(0o700)
        (directory / "node-01.key").chmod(0o640)
        with pytest.raises(Misconfigured, match="0640"):
            Credentials.load(directory, "node-01")
        save_private_key(directory / "node-01.key", generate_leaf_key())
        with pytest.raises(Misconfigured, match="not the key"):
            Credentials.load(directory, "node-01")
        with pytest.raises(Misconfigured, match=r"node-02\.crt is missing"):
            Credentials.load(directory, "node-02")
        with pytest.raises(Misconfigured, match="missing"):
            Credentials.load(tmp_path / "nowhere", "node-01")
