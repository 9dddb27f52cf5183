"""Homes that begin badly: broken bundles, unwritable places, processes killed half way; trying again works."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from pathlib import Path

import pytest
from support.homes import Federation, Home

FLIPS = 16
KILLS = 8


@pytest.fixture
def bundle(federation: Federation, tmp_path: Path) -> Path:
    """What admits bob."""
    federation.found("alice").ok("federation", "bundle", "--member", "bob", "--out", tmp_path / "bob.bundle")
    return tmp_path / "bob.bundle"


@pytest.mark.long
def test_a_broken_bundle_makes_no_home(bundle: Path, tmp_path: Path) -> None:
    """Whatever byte is flipped: refused in words or harmless, never half a home; the whole bundle joins afterwards."""
    bob = Home(tmp_path / "bob", "bob")
    whole = bundle.read_bytes()
    places = random.Random(7)
    refused = 0
    for offset in [places.randrange(len(whole)) for _ in range(FLIPS)]:
        broken = bytearray(whole)
        broken[offset] ^= 1 << places.randrange(8)
        (tmp_path / "broken").write_bytes(broken)
        outcome = bob.run("federation", "join", "--bundle", tmp_path / "broken")
        if outcome.code == 0:  # a byte that says nothing of importance, such as an endpoint's: then it is a whole home
            bob.ok("federation", "members")
            bob = Home(tmp_path / f"bob-{offset}", "bob")
            continue
        refused += 1
        assert outcome.code == 1, offset
        assert "internal error" not in outcome.err, (offset, outcome.err)
        nothing = bob.run("federation", "members")
        assert "there is no home" in nothing.err, offset
    assert refused > FLIPS // 2
    bob.ok("federation", "join", "--bundle", bundle)
    assert len(bob.ok("federation", "members", "--json").json["members"]) == 2
    assert "home of a member already" in bob.run("federation", "join", "--bundle", bundle).err


@pytest.mark.long
@pytest.mark.parametrize("words", ["init", "join"])
def test_killed_half_way_it_is_simply_done_again(bundle: Path, tmp_path: Path, words: str) -> None:
    """kill -9 at random moments leaves nothing that stands in the way, or the whole home."""
    home = Home(tmp_path / words, "bob")
    arguments = {
        "init": ("federation", "init", "--domain", "other.collective", "--member", "bob", "--no-datastores"),
        "join": ("federation", "join", "--bundle", bundle),
    }[words]
    moments = random.Random(words)
    made = False
    for _ in range(KILLS):
        process = subprocess.Popen(
            home.command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        try:
            process.wait(moments.uniform(0.2, 1.2))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
        _, told = process.communicate()
        assert process.returncode in (0, 1, -signal.SIGKILL)
        if process.returncode == 1:
            assert "home of a member already" in told
            made = True
    if not made and home.run("federation", "members").code:
        home.ok(*arguments)
    assert home.ok("federation", "members", "--json").json["members"]
    assert not (home.path / "unfinished").exists()
    home.start()
    assert home.status()["address"] == f"coord@bob.{'other' if words == 'init' else 'media'}.collective"
    home.kill()


def test_a_bundle_that_cannot_be_written_admits_nobody(federation: Federation, tmp_path: Path) -> None:
    """Its key would be lost and the name taken for ever."""
    alice = federation.found("alice")
    (tmp_path / "there").write_text("x")
    for place in (tmp_path / "no" / "such" / "folder", tmp_path / "there", tmp_path):
        refused = alice.run("federation", "bundle", "--member", "bob", "--out", place)
        assert refused.code == 1, place
        assert "internal error" not in refused.err
    assert (tmp_path / "there").read_text() == "x"
    alice.ok("federation", "bundle", "--member", "bob", "--out", tmp_path / "bob.bundle")
    assert (tmp_path / "bob.bundle").stat().st_mode & 0o777 == 0o600
    refused = alice.run("federation", "bundle", "--member", "bob", "--out", tmp_path / "again")
    assert "member already" in refused.err
    assert not (tmp_path / "again").exists(), "nothing is left of an answer that was not given"


def test_a_request_that_cannot_be_written_is_made_again(federation: Federation, tmp_path: Path) -> None:
    """By hand with a request: the key stays; another try makes the request, the bundle answers it."""
    alice = federation.found("alice")
    bob = Home(tmp_path / "bob", "bob")
    assert bob.run("federation", "join", "--request", tmp_path / "no" / "r", "--member", "bob").code == 1
    bob.ok("federation", "join", "--request", tmp_path / "r", "--member", "bob")
    alice.ok("federation", "bundle", "--request", tmp_path / "r", "--out", tmp_path / "bob.bundle")
    key = (bob.path / "identity" / "member-ca.key").read_bytes()
    assert b"PRIVATE" not in (tmp_path / "bob.bundle").read_bytes()
    elsewhere = Home(tmp_path / "elsewhere", "bob")
    assert elsewhere.run("federation", "join", "--bundle", tmp_path / "bob.bundle").code == 1
    bob.ok("federation", "join", "--bundle", tmp_path / "bob.bundle")
    assert (bob.path / "identity" / "member-ca.key").read_bytes() == key


@pytest.mark.parametrize("text", ["lan:1.2.3.4:99999", "lan:1.2.3.4:65535", "lan:host", "lan:a b:1", "lan:1.2.3.4:0"])
def test_endpoints_that_cannot_be(tmp_path: Path, text: str) -> None:
    """Refused before anything is made."""
    home = Home(tmp_path / "alice", "alice")
    refused = home.run("federation", "init", "--domain", "media.collective", "--member", "alice", "--endpoint", text)
    assert refused.code == 1
    assert "is not an endpoint" in refused.err
    assert not home.path.exists()


def test_commands_where_there_is_no_home(tmp_path: Path) -> None:
    """Each says so, and makes none by the way."""
    home = Home(tmp_path / "none", "nobody")
    for words in (
        ("status",), ("ls", "/media"), ("put", "/etc/hostname", "/media/x"), ("mount", str(tmp_path / "m")),
        ("federation", "members"), ("datastore", "list"), ("ping", "bob"), ("coordinator",),
    ):  # fmt: skip
        refused = home.run(*words)
        assert refused.code == 1, words
        assert "there is no home" in refused.err, (words, refused.err)
    assert not home.path.exists()
