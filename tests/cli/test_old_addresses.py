"""Addresses of the old form: translated at the command line with a warning, refused with `federation_only`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.homes import Home


@pytest.fixture
def alice(tmp_path: Path) -> Home:
    """A founder's home; nothing runs."""
    home = Home(tmp_path / "alice", "alice")
    home.ok("federation", "init", "--domain", "media.collective", "--member", "alice", "--no-datastores")
    return home


def test_a_bare_name_is_translated_with_a_warning(alice: Home) -> None:
    """As owner and as whom a grant is for, a member in the roster or one to come."""
    made = alice.ok("datastore", "create", "/media", "--owner", "Alice", "--json")
    assert made.json["owner"] == "alice@media.collective"
    assert "deprecated" in made.err
    assert "alice@media.collective" in made.err
    granted = alice.ok("datastore", "grant", "/media", "read", "bob", "--json")
    assert granted.json["subject"] == "bob@media.collective"
    assert "deprecated" in granted.err
    for whole in ("carol@media.collective", "*@*.collective"):
        assert "deprecated" not in alice.ok("datastore", "grant", "/media", "read", whole).err


def test_federation_only_refuses_it(alice: Home) -> None:
    """The configuration's key counts; whole addresses go on working."""
    config = json.loads((alice.path / "config.json").read_text())
    config["federation"]["federation_only"] = True
    (alice.path / "config.json").write_text(json.dumps(config))
    for words in (("create", "/media", "--owner", "alice"), ("grant", "/media", "read", "bob")):
        refused = alice.run("datastore", *words)
        assert refused.code == 1, words
        assert "federation_only" in refused.err
        assert "@media.collective" in refused.err, "it says what to write instead"
    assert "federation_only" in alice.run("ping", "bob").err
    assert "no effect" not in alice.ok("datastore", "create", "/media", "--owner", "alice@media.collective").err


def test_what_is_no_name_is_refused_as_ever(alice: Home) -> None:
    """Bare words that could never be a member's name get the usual error."""
    alice.ok("datastore", "create", "/media")
    for subject in ("a b", "-x-", "é", "a" * 64):
        refused = alice.run("datastore", "grant", "/media", "read", "--", subject)
        assert refused.code == 1, subject
        assert "deprecated" not in refused.err
        assert "internal" not in refused.err
