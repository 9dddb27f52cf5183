"""Real processes: a copied home signs two histories. Both are kept, everybody is told, the first one counts."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from support.homes import Federation, Home, wait_for

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]  # many commands, each a process of its own


def evidence(home: Home) -> int:
    """Entries that contradict what stands in its database."""
    with sqlite3.connect(f"file:{home.path / 'catalog.db'}?mode=ro", uri=True) as connection:
        (count,) = connection.execute("SELECT count(*) FROM forks").fetchone()
        return int(count)


def first_line(home: Home) -> str:
    return home.run("status").out.partition("\n")[0]


def test_two_histories_are_kept_and_told(federation: Federation, tmp_path: Path) -> None:
    """bob's whole home is put back as it was, heads too, so that nothing betrays it; it signs another entry in the
    place of one that alice has. She keeps the first, holds the second as evidence, and both homes say what is wrong."""
    alice = federation.found("alice")
    alice.start()
    bob = federation.join("bob")
    bob.start()
    federation.connected()
    bob.ok("datastore", "create", "/bobs")
    bob.ok("datastore", "grant", "/bobs", "read", "alice@media.collective")
    bob.ok("mkdir", "/bobs/first")
    wait_for(lambda: "first/" in alice.run("ls", "/bobs").out, "alice to list what bob made")
    bob.stop()
    shutil.copytree(bob.path, tmp_path / "copy")
    bob.start()
    bob.ok("mkdir", "/bobs/one")
    wait_for(lambda: "one/" in alice.run("ls", "/bobs").out, "alice to have one history")
    bob.stop()
    shutil.rmtree(bob.path)
    shutil.copytree(tmp_path / "copy", bob.path)
    bob.ok("mkdir", "/bobs/other")  # without a coordinator: nobody is asked

    bob.start()
    for home in (alice, bob):
        wait_for(lambda home=home: "two different entries are signed" in first_line(home), f"{home.name} to say so")
        assert first_line(home).startswith("HEALTH_ERR")
        assert "/bobs@bob.media.collective" in first_line(home)
        assert evidence(home) == 1
        assert '"event": "catalog.fork"' in (home.path / "coordinator.log").read_text()
    assert set(alice.ok("ls", "/bobs").out.split()) == {"first/", "one/"}, "the first that came counts"
    refused = bob.run("mkdir", "/bobs/more")
    assert refused.code == 1
    assert "second copy of this home" in refused.err
    alice.ok("datastore", "create", "/alices")
    alice.ok("datastore", "grant", "/alices", "read", "bob@media.collective")
    alice.ok("mkdir", "/alices/goes-on")
    wait_for(lambda: "goes-on/" in bob.run("ls", "/alices").out, "everything else to go on")
