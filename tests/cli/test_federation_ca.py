"""`federation ca …` as typed: what it prints, in words and as JSON, and its usage errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from collective.cli.federation_ca import ca
from collective.core.errors import CollectiveError, Conflict
from collective.identity import Credentials, load_certificate, read_identity


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, and no home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLLECTIVE_HOME", str(tmp_path / "no-home"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "no-data"))
    return tmp_path


def type_in(*arguments: str, obj: Any = None) -> Result:
    result = CliRunner().invoke(ca, arguments, obj=obj)
    if isinstance(result.exception, CollectiveError):
        raise result.exception
    return result


def test_words(here: Path) -> None:
    """Each command says what it wrote, for whom, until when, and the next line to type."""
    said = type_in("init", "--domain", "collective.local").output
    assert "Wrote root-ca.crt, root-ca.key: collective.local, until 20" in said
    assert "federation ca sign-member --member alice.collective.local" in said
    said = type_in("sign-member", "--member", "alice.collective.local").output
    assert "alice-cert.crt, alice-cert.key: coord@alice.collective.local" in said
    assert "openssl verify -CAfile root-ca.crt -untrusted alice-ca.crt alice-cert.crt" in said


def test_json(here: Path) -> None:
    """One object on one line, naming every file."""
    type_in("init", "--domain", "collective.local", "--out", "ca")
    request = json.loads(type_in("request", "--member", "bob.collective.local", "--json").output)
    assert request == {"member": "bob.collective.local", "files": ["bob-ca.csr", "bob-ca.key"], "not_after": []}
    signed = type_in("sign-member", "--member", "bob", "--csr", "bob-ca.csr", "--root", "ca", "--json").output
    assert json.loads(signed)["files"] == ["bob-ca.crt"]
    alice = json.loads(type_in("sign-member", "--member", "alice", "--out", "ca", "--json").output)
    assert alice["files"] == [f"ca/alice-{name}" for name in ("ca.crt", "ca.key", "cert.crt", "cert.key")]
    assert len(alice["not_after"]) == 2
    node = json.loads(type_in("sign-component", "--name", "node-02", "--ca", "ca", "--out", "n", "--json").output)
    assert node["address"] == "node-02@alice.collective.local"
    assert node["files"] == ["n/node-02.crt", "n/node-02.key", "n/member-ca.crt", "n/root-ca.crt"]


def test_sign_component_in_a_home(here: Path) -> None:
    """With a home the CA is the home's, and the certificate goes beside it."""
    type_in("init", "--domain", "collective.local")
    type_in("sign-member", "--member", "alice")
    identity = here / "home" / "identity"
    identity.mkdir(parents=True, mode=0o700)
    for source, target in (("root-ca.crt",) * 2, ("alice-ca.crt", "member-ca.crt"), ("alice-ca.key", "member-ca.key")):
        (identity / target).write_bytes((here / source).read_bytes())
        (identity / target).chmod(0o600)
    home = here / "home"
    type_in("sign-component", "--type", "node", "--name", "node-02", obj=home)
    assert str(Credentials.load(identity, "node-02").identity.address) == "node-02@alice.collective.local"
    type_in("sign-component", "--type", "client", "--name", "laptop", "--admin", obj=home)
    assert "admin" in read_identity(load_certificate(identity / "laptop.crt")).capabilities
    before = load_certificate(identity / "node-02.crt")
    type_in("sign-component", "--name", "node-02", "--renew", obj=home)
    assert load_certificate(identity / "node-02.crt").serial_number != before.serial_number


def test_errors(here: Path) -> None:
    """What is there stays; what makes no sense is a usage error."""
    type_in("init", "--domain", "collective.local")
    with pytest.raises(Conflict, match="not overwritten"):
        type_in("init", "--domain", "collective.local")
    for arguments in (
        ("init",),
        ("sign-member",),
        ("sign-component", "--name", "x", "--type", "signing"),
        ("sign-component", "--name", "x", "--admin"),
        ("sign-component", "--name", "x", "--type", "client", "--admin", "--renew"),
    ):
        assert type_in(*arguments).exit_code == 2
