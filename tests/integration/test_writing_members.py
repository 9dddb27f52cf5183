"""Writing into another member's DataStore, from outside: rights, an owner who is away, conflicts, where bytes lie."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from support.homes import Federation, Home, wait_for


@pytest.fixture
def pair(federation: Federation) -> tuple[Home, Home]:
    """alice, who owns /media, and bob, who may read and write there; connected."""
    alice = federation.found("alice")
    alice.start()
    bob = federation.join("bob")
    bob.start()
    federation.connected()
    alice.ok("datastore", "create", "/media", "--strategy", "media", "--replicas", "2")
    alice.ok("datastore", "grant", "/media", "read,write", "bob@media.collective")
    wait_for(lambda: bob.run("ls", "/media").code == 0, "bob to see the DataStore")
    return alice, bob


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def names(home: Home, path: str) -> list[str]:
    return home.ok("ls", path).out.splitlines()


def same_names(one: Home, other: Home, path: str) -> None:
    wait_for(lambda: one.run("ls", "-R", path).out == other.run("ls", "-R", path).out, f"one tree at {path}")


def pending(home: Home) -> list[dict[str, str]]:
    found: list[dict[str, str]] = home.ok("pending", "--json").json["pending"]
    return found


def test_what_bob_writes_lies_at_both_homes(pair: tuple[Home, Home], tmp_path: Path) -> None:
    """Small and large, at level two: alice reads both with bob's home dead; nothing of it is pending."""
    alice, bob = pair
    (tmp_path / "small").write_bytes(b"a small content")
    (tmp_path / "large").write_bytes(os.urandom((20 << 20) + 5))
    put = bob.ok("put", tmp_path / "small", "/media/from bob/small", "--level", "two", "--timeout", "40", "--json").json
    assert put["level"] == "two"
    put = bob.ok("put", tmp_path / "large", "/media/from bob/large", "--level", "two", "--timeout", "40", "--json").json
    assert (put["level"], put["staged"], put["notes"]) == ("two", 0, [])
    assert sorted(put["holders"]) == ["alice.media.collective", "bob.media.collective"]
    assert pending(bob) == []
    same_names(alice, bob, "/media")
    bob.kill()
    for name in ("small", "large"):
        alice.ok("get", f"/media/from bob/{name}", tmp_path / "back")
        assert sha256(tmp_path / "back") == sha256(tmp_path / name)
    assert alice.status()["datastores"][0]["below_target"] == 0


@pytest.mark.long
def test_only_what_was_granted_can_be_done(pair: tuple[Home, Home], tmp_path: Path) -> None:
    """WRITE makes and overwrites; alice's own files go only with DELETE; without WRITE nothing is even sent."""
    alice, bob = pair
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "other").write_bytes(b"other content")
    alice.ok("put", tmp_path / "file", "/media/hers")
    bob.ok("put", tmp_path / "file", "/media/his")
    same_names(alice, bob, "/media")
    for forbidden in (("rm", "/media/hers"), ("mv", "/media/hers", "/media/moved")):
        refused = bob.run(*forbidden)
        assert refused.code == 1
        assert "DELETE" in refused.err
    bob.ok("put", tmp_path / "other", "/media/hers")
    wait_for(
        lambda: alice.ok("versions", "/media/hers", "--json").json["versions"][0]["size_bytes"] == 13, "the content"
    )
    bob.ok("mv", "/media/his", "/media/mine")
    bob.ok("rm", "/media/mine")
    alice.ok("datastore", "grant", "/media", "delete", "bob@media.collective")
    wait_for(lambda: bob.run("rm", "/media/hers").code == 0, "the right to arrive")
    same_names(alice, bob, "/media")
    assert names(alice, "/media") == []
    alice.ok("datastore", "create", "/private")
    alice.ok("datastore", "grant", "/private", "read", "bob@media.collective")
    wait_for(lambda: bob.run("ls", "/private").code == 0, "bob to see it")
    refused = bob.run("put", tmp_path / "file", "/private/file")
    assert refused.code == 1
    assert "may not write" in refused.err
    assert pending(bob) == []
    alice.ok("datastore", "create", "/inbox")
    alice.ok("datastore", "grant", "/inbox", "write", "bob@media.collective")
    wait_for(lambda: bob.run("put", tmp_path / "file", "/inbox/letter").code == 0, "bob to drop a letter in")
    again = bob.ok("put", tmp_path / "other", "/inbox/letter").err
    assert "letter (conflict bob " in again
    assert len(names(alice, "/inbox")) == 2
    assert bob.run("ls", "/inbox").code == 1
    assert bob.run("rm", "/inbox/letter").code == 1
    assert pending(bob) == []


@pytest.mark.long
def test_an_owner_who_is_away_gets_everything_when_she_is_back(pair: tuple[Home, Home], tmp_path: Path) -> None:
    """A folder of files, renames and removals while alice is down: at bob's at once, at alice's once she is back."""
    alice, bob = pair
    source = tmp_path / "season"
    source.mkdir()
    for number in range(120):
        (source / f"{number:03}").write_bytes(f"episode {number}".encode())
    (source / "large").write_bytes(os.urandom(9 << 20))
    alice.stop()
    wait_for(lambda: not bob.status()["peers"][0]["connected"], "bob to notice")
    put = bob.ok("put", source, "/media/season", "--json").json
    assert put["staged"] == 121
    bob.ok("mv", "/media/season", "/media/season 1")
    bob.ok("rm", "/media/season 1/000")
    bob.ok("mkdir", "/media/season 2")
    note = bob.ok("mv", "/media/season 1/001", "/media/season 2/renamed").err
    assert "pending" in note
    assert len(names(bob, "/media/season 1")) == 119
    assert names(bob, "/media/season 2") == ["renamed"]
    bob.ok("get", "/media/season 1/large", tmp_path / "back")
    assert sha256(tmp_path / "back") == sha256(source / "large")
    assert {row["state"] for row in pending(bob)} == {"waiting"}
    (waiting,) = bob.status()["pending"]
    assert (waiting["owner"], waiting["state"]) == ("alice.media.collective", "waiting")

    bob.kill()  # what is staged survives that too
    bob.start()
    alice.start()
    wait_for(lambda: not pending(bob), "everything to arrive")
    same_names(alice, bob, "/media")
    assert len(names(alice, "/media/season 1")) == 119
    assert names(alice, "/media/season 2") == ["renamed"]
    assert alice.status()["conflicts"] == []
    wait_for(
        lambda: len(alice.ok("ls", "/media/season 1", "--json").json["files"][-1]["holders"]) == 2, "the second copy"
    )
    alice.ok("get", "/media/season 1/large", tmp_path / "back")
    assert sha256(tmp_path / "back") == sha256(source / "large")


@pytest.mark.long
def test_changes_that_met_are_both_kept_and_named(pair: tuple[Home, Home], tmp_path: Path) -> None:
    """alice, without bob, makes and changes the same names: nothing is lost, each conflict is told, one tree."""
    alice, bob = pair
    for name, content in (("old", b"old"), ("his", b"by bob"), ("hers", b"by alice")):
        (tmp_path / name).write_bytes(content)
    alice.ok("put", tmp_path / "old", "/media/edited")
    alice.ok("mkdir", "/media/folder")
    alice.ok("put", tmp_path / "old", "/media/folder/inside")
    same_names(alice, bob, "/media")
    alice.stop()
    wait_for(lambda: not bob.status()["peers"][0]["connected"], "bob to notice")
    bob.ok("put", tmp_path / "his", "/media/edited")
    bob.ok("put", tmp_path / "his", "/media/new.mkv")
    bob.ok("put", tmp_path / "his", "/media/folder/deep/er")
    bob.stop()
    alice.start()
    alice.ok("put", tmp_path / "hers", "/media/edited")
    alice.ok("put", tmp_path / "hers", "/media/new.mkv")
    alice.ok("rm", "-r", "/media/folder")
    bob.start()
    wait_for(lambda: not pending(bob), "everything to be settled")
    same_names(alice, bob, "/media")
    listed = alice.ok("ls", "-R", "/media").out.splitlines()
    assert any(name.startswith("edited (conflict bob ") for name in listed), listed
    assert any(name.startswith("new (conflict bob ") and name.endswith(".mkv") for name in listed), listed
    contents = []
    for name in listed:
        if not name.endswith("/"):
            alice.ok("get", f"/media/{name}", tmp_path / "back")
            contents.append((tmp_path / "back").read_bytes())
    assert sorted(contents) == [b"by alice"] * 2 + [b"by bob"] * 3
    status = alice.status()
    assert len(status["conflicts"]) >= 3
    assert any("conflict names" in finding["message"] for finding in status["findings"])


@pytest.mark.long
@pytest.mark.parametrize("who", ["alice", "bob"])
def test_versions_copies_and_restoring(pair: tuple[Home, Home], tmp_path: Path, who: str) -> None:
    """In one's own DataStore and in another's: cp moves no byte, every content can be had again."""
    alice, bob = pair
    home = alice if who == "alice" else bob
    large = os.urandom(6 << 20)
    (tmp_path / "first").write_bytes(large)
    (tmp_path / "second").write_bytes(b"second")
    home.ok("put", tmp_path / "first", "/media/top/file")
    home.ok("put", tmp_path / "second", "/media/top/file")
    versions = home.ok("versions", "/media/top/file", "--json").json["versions"]
    assert [(version["size_bytes"], version["current"]) for version in versions] == [(6, True), (len(large), False)]
    home.ok("restore", "/media/top/file", "--as", "/media/top/before")
    home.ok("cp", "/media/top/before", "/media/top/copy")
    home.ok("rm", "/media/top/before")
    home.ok("restore", "/media/top/before")
    home.ok("cp", "-r", "/media/top", "/media/again")
    assert names(home, "/media/again") == ["before", "copy", "file"]
    home.ok("get", "/media/again/copy", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == large
    same_names(alice, bob, "/media")
