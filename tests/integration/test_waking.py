"""Real processes: a home wakes up on yesterday's database, or on none, and has everything back from the others."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.homes import Federation, Home, wait_for

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]  # many commands, each a process of its own


@pytest.fixture
def three(federation: Federation) -> Federation:
    """alice founds, bob and carol join; all run, are connected, and may read /media."""
    alice = federation.found("alice")
    alice.start()
    federation.join("bob").start()
    federation.join("carol").start()
    federation.connected()
    alice.ok("datastore", "create", "/media")
    alice.ok("datastore", "grant", "/media", "read", "*@*.collective")
    return federation


def put(home: Home, tmp_path: Path, name: str, *more: str) -> None:
    (tmp_path / name).write_text(f"the content of {name}")
    home.ok("put", tmp_path / name, f"/media/{name}", *more)


def names(home: Home) -> set[str]:
    return set(home.run("ls", "/media").out.split())


def wait_for_names(home: Home, *expected: str) -> None:
    wait_for(lambda: names(home) == set(expected), f"{home.name} to list {expected}, not {names(home)}")


def database(home: Home) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in home.path.glob("catalog.db*")}


def replace_database(home: Home, files: dict[str, bytes]) -> None:
    for path in home.path.glob("catalog.db*"):
        path.unlink()
    for name, content in files.items():
        (home.path / name).write_bytes(content)


def test_yesterdays_database_with_one_member_away(three: Federation, tmp_path: Path) -> None:
    """alice wakes up in doubt, says so, signs nothing and keeps what she is asked to do, through a kill; without carol
    she goes on and signs it; what carol alone had comes back."""
    alice, bob, carol = three.homes["alice"], three.homes["bob"], three.homes["carol"]
    put(alice, tmp_path, "before")
    wait_for_names(bob, "before")
    wait_for_names(carol, "before")
    assert alice.stop() == 0
    yesterday = database(alice)
    alice.start()
    put(alice, tmp_path, "told")
    wait_for_names(bob, "before", "told")
    wait_for_names(carol, "before", "told")
    bob.stop()
    put(alice, tmp_path, "carols", "--level", "two")
    wait_for_names(carol, "before", "told", "carols")
    carol.stop()
    alice.stop()

    replace_database(alice, yesterday)
    bob.start()
    alice.start()
    wait_for(lambda: alice.status()["doubt"]["awaited"] == ["carol.media.collective"], "bob's answer")
    wait_for_names(alice, "before", "told")
    first_line = alice.ok("status").out.splitlines()[0]
    for word in ("in doubt", "/media", "carol.media.collective", "collective coordinator --without"):
        assert word in first_line, first_line
    content = bytes(range(256)) * 10_000
    (tmp_path / "kept").write_bytes(content)
    stored = alice.ok("put", tmp_path / "kept", "/media/kept")
    assert "level local" in stored.out
    assert "--without carol.media.collective" in stored.err
    for words in (("mkdir", "/media/new"), ("mv", "/media/kept", "/media/new/moved"), ("rm", "/media/told")):
        assert "this home is in doubt" in alice.ok(*words).err
    wait_for_names(alice, "before", "new/")
    assert [row["state"] for row in alice.ok("pending", "--json").json["pending"]] == ["waiting"] * 4

    alice.kill()
    alice.start("--without", "carol")
    wait_for(lambda: alice.status()["doubt"] is None and not alice.status()["pending"], "what was kept to be signed")
    put(alice, tmp_path, "after")
    wait_for_names(bob, "before", "new/", "after")
    bob.ok("get", "/media/new/moved", tmp_path / "moved-back")
    assert (tmp_path / "moved-back").read_bytes() == content

    carol.start()
    everything = ("before", "new/", "after", "carols")
    wait_for_names(alice, *everything)
    wait_for_names(bob, *everything)
    wait_for_names(carol, *everything)
    alice.ok("get", "/media/carols", tmp_path / "back")
    assert (tmp_path / "back").read_text() == "the content of carols"
    put(alice, tmp_path, "last", "--level", "two")


def test_a_deleted_database(three: Federation, tmp_path: Path) -> None:
    """Only identity, heads and chunks are left at alice, who founded: names, rights and bytes come back."""
    alice, bob, carol = three.homes["alice"], three.homes["bob"], three.homes["carol"]
    put(alice, tmp_path, "small")
    content = bytes(range(256)) * 40_000
    (tmp_path / "film").write_bytes(content)
    alice.ok("put", tmp_path / "film", "/media/film", "--level", "two")
    wait_for_names(bob, "film", "small")
    wait_for_names(carol, "film", "small")
    alice.stop()
    replace_database(alice, {})
    alice.start()
    wait_for(lambda: alice.status()["doubt"] is None, "the doubt to end")
    wait_for_names(alice, "film", "small")
    alice.ok("get", "/media/film", tmp_path / "film-back")
    assert (tmp_path / "film-back").read_bytes() == content
    wait_for(lambda: '"event": "waking.pages"' in (alice.path / "coordinator.log").read_text(), "the film's pages")
    bob.kill()
    carol.kill()
    got = alice.ok("get", "/media/film", tmp_path / "film-again", "--json").json
    assert set(got["served_by"]) == {"alice.media.collective"}, "her own chunks are of use again"
    bob.start()
    put(alice, tmp_path, "new", "--level", "two")
    wait_for_names(bob, "film", "small", "new")


def test_everybody_rebooting_is_no_doubt(three: Federation, tmp_path: Path) -> None:
    """All stop and start on their own databases, alice first and alone: she writes at once."""
    alice = three.homes["alice"]
    for home in three.homes.values():
        home.stop()
    alice.start()
    assert alice.status()["doubt"] is None
    put(alice, tmp_path, "alone")
