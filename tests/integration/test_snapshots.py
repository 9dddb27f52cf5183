"""Real processes: an owner folds a DataStore's feed, entries are dropped, a new member starts from the snapshot."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from support.homes import Federation, Home, wait_for

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]  # many commands, each a process of its own


def fold_often(home: Home) -> None:
    path = home.path / "config.json"
    document = json.loads(path.read_text())
    document.setdefault("coordinator", {})["snapshot_entries"] = 10
    path.write_text(json.dumps(document))


def entries(home: Home) -> int:
    """How many entries of store feeds lie in its database."""
    with sqlite3.connect(f"file:{home.path / 'catalog.db'}?mode=ro", uri=True) as connection:
        (count,) = connection.execute(
            "SELECT count(*) FROM entries e JOIN feeds f ON f.id = e.feed WHERE f.kind = 'store'"
        ).fetchone()
        return int(count)


def told(home: Home, event: str) -> bool:
    return f'"event": "{event}"' in (home.path / "coordinator.log").read_text()


def test_a_new_member_starts_from_a_snapshot(federation: Federation, tmp_path: Path) -> None:
    """alice's feed is folded, bob hosts the snapshot, both drop entries; carol joins later and sees everything."""
    alice = federation.found("alice")
    fold_often(alice)
    alice.start()
    bob = federation.join("bob")
    bob.start()
    federation.connected()
    alice.ok("datastore", "create", "/media")
    alice.ok("datastore", "grant", "/media", "read", "*@*.collective")
    alice.ok("mkdir", "/media/many")
    for number in range(14):  # one after the other: what is put at once may share an entry
        (tmp_path / f"file-{number}").write_text(f"content {number}")
        alice.ok("put", tmp_path / f"file-{number}", f"/media/many/file-{number}")
    wait_for(lambda: told(alice, "snapshot.made"), "a snapshot")
    wait_for(lambda: told(alice, "snapshot.dropped"), "alice to drop entries", 90)
    wait_for(lambda: told(bob, "snapshot.dropped"), "bob to drop entries", 90)
    assert entries(alice) < 14
    carol = federation.join("carol")
    carol.start()
    listed = {f"file-{number}" for number in range(14)}
    wait_for(lambda: set(carol.run("ls", "/media/many").out.split()) == listed, "carol to list all", 60)
    assert told(carol, "snapshot.started_from")
    carol.ok("get", "/media/many/file-3", tmp_path / "back")
    assert (tmp_path / "back").read_text() == "content 3"
    (tmp_path / "after").write_text("after")
    alice.ok("put", tmp_path / "after", "/media/after")
    wait_for(lambda: "after" in carol.run("ls", "/media").out.split(), "carol to follow on")
