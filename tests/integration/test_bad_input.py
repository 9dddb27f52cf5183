"""Bad input: a clear error that says what happened and what to do; nothing lost, no wrong byte given out."""

from __future__ import annotations

import hashlib
import os
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.homes import Federation, Home, Outcome, wait_for


@pytest.fixture
def alice(federation: Federation) -> Home:
    home = federation.found("alice")
    home.ok("datastore", "create", "/media")
    return home


def clear(outcome: Outcome, *words: str, code: int = 1) -> None:
    """The error is told on stderr, in words, with the right exit code and without a traceback."""
    assert outcome.code == code, f"exit {outcome.code}: {outcome.err}"
    assert "Traceback" not in outcome.err
    assert "internal error" not in outcome.err, outcome.err
    for word in words:
        assert word in outcome.err, f"{word!r} is not in: {outcome.err}"


def test_missing_home(federation: Federation, tmp_path: Path) -> None:
    """A home that is not there is named, with the command that makes one."""
    nobody = Home(tmp_path / "nowhere", "nobody")
    for command in (["status"], ["ls", "/"], ["coordinator", "--federation"], ["put", "/etc/hostname", "/media/x"]):
        clear(nobody.run(*command), "nowhere", "federation init")
    assert not (tmp_path / "nowhere").exists(), "asking makes no home"


def test_wrong_certificate(federation: Federation, alice: Home, tmp_path: Path) -> None:
    """A member of another federation is refused, and the reason is told."""
    stranger = Federation(tmp_path / "other")
    try:
        (tmp_path / "other").mkdir()
        mallory = stranger.found("mallory")
        alice.start()
        mallory.start()
        outcome = mallory.run("ping", "alice.media.collective")
        assert outcome.code in (1, 3)
        peers = mallory.path / "peers.json"
        peers.write_text(f'{{"alice.media.collective": [{{"type": "lan", "grpc": "127.0.0.1:{alice.ports[0]}"}}]}}')
        clear(mallory.run("ping", "alice.media.collective"), "alice.media.collective", "certificate")
    finally:
        stranger.close()


def test_port_in_use(alice: Home) -> None:
    """The port is named, and what to do about it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        outcome = alice.run("coordinator", "--federation", "--listen", f"127.0.0.1:{port}")
    clear(outcome, str(port), "in use")


def test_a_second_coordinator_is_refused(alice: Home) -> None:
    """A feed has one writer: the home's lock says so."""
    alice.start()
    clear(alice.run("coordinator", "--federation", "--listen", "127.0.0.1:0"), "using the home")


def test_path_without_a_datastore(alice: Home, tmp_path: Path) -> None:
    """The path is named, and how to make a DataStore."""
    alice.start()
    (tmp_path / "file").write_bytes(b"x" * 10_000)
    clear(alice.run("put", tmp_path / "file", "/nowhere/file"), "/nowhere", "datastore create")
    clear(alice.run("ls", "/nowhere"), "/nowhere")
    clear(alice.run("put", tmp_path / "missing", "/media/file"), "missing")


@pytest.mark.long
def test_names_too_long_or_strange(alice: Home, tmp_path: Path) -> None:
    """256 bytes are refused, 255 work; '..' is refused; newlines, emoji and broken UTF-8 are kept as bytes."""
    alice.start()
    (tmp_path / "file").write_bytes(b"content")
    clear(alice.run("put", tmp_path / "file", "/media/" + "n" * 256), "255")
    clear(alice.run("put", tmp_path / "file", "/media/../etc"), "..")
    strange = ["n" * 255, "new\nline", "émoji 🎬", os.fsdecode(b"broken \xff\xfe utf-8"), "logo@2x.png", "-rf", "a b"]
    for name in strange:
        alice.ok("put", tmp_path / "file", "/media/" + name)
        alice.ok("get", "/media/" + name, tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == b"content"
        (tmp_path / "back").unlink()
    assert len(alice.ok("ls", "/media", "--json").json["files"]) == len(strange)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB."""
    if os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail("CI must run this as root")
        pytest.skip("mounting a small file system needs root")
    place = tmp_path / "small-disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_full_disk(federation: Federation, small_disk: Path, tmp_path: Path) -> None:
    """A file that does not fit is refused, what was there stays, and a smaller one still fits."""
    alice = federation.found("alice", storage_path=small_disk / "storage")
    alice.ok("datastore", "create", "/media")
    alice.start()
    first, large, second = (os.urandom(size << 20) for size in (10, 100, 4))
    for name, content in (("first", first), ("large", large), ("second", second)):
        (tmp_path / name).write_bytes(content)
    alice.ok("put", tmp_path / "first", "/media/first")
    clear(alice.run("put", tmp_path / "large", "/media/large"), "full")
    assert alice.ok("ls", "/media").out.split() == ["first"]
    alice.ok("get", "/media/first", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == first


def test_a_flipped_byte_in_a_chunk_is_never_given_out(federation: Federation, tmp_path: Path) -> None:
    """The only copy is broken: an error, not a wrong byte. With a second copy: the right bytes."""
    alice = federation.found("alice")
    alice.ok("datastore", "create", "/media", "--replicas", "2")
    alice.start()
    content = os.urandom(3 << 20)
    (tmp_path / "film").write_bytes(content)
    alice.ok("put", tmp_path / "film", "/media/film")
    chunks = [path for path in (alice.path / "storage").rglob("*-*") if path.stat().st_size > 3 << 20]
    assert len(chunks) == 1

    def flip() -> None:
        with chunks[0].open("r+b") as file:
            file.seek(1_000_000)
            byte = file.read(1)
            file.seek(1_000_000)
            file.write(bytes([byte[0] ^ 1]))

    flip()
    outcome = alice.run("get", "/media/film", tmp_path / "back")
    assert outcome.code in (1, 3)
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "back").exists(), "nothing that looks whole is left"


def test_the_second_copy_answers_for_a_broken_first(federation: Federation, tmp_path: Path) -> None:
    """A reader gets every byte right although the nearest copy is broken."""
    alice = federation.found("alice")
    alice.start()
    bob = federation.join("bob")
    bob.start()
    federation.connected()
    alice.ok("datastore", "create", "/media", "--replicas", "2")
    content = os.urandom(20 << 20)
    (tmp_path / "film").write_bytes(content)
    alice.ok("put", tmp_path / "film", "/media/film", "--level", "two")
    broken = 0
    for path in (alice.path / "storage").rglob("*-*"):
        if path.stat().st_size > 1 << 20 and broken < 2:
            broken += 1
            with path.open("r+b") as file:
                file.seek(500_000)
                file.write(b"\0" * 8)
    assert broken
    alice.ok("get", "/media/film", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content
    # to the reader, or to alice's node if it was quicker to fetch the broken chunks again
    wait_for(lambda: bob.status()["nodes"][0].get("served_bytes", 0) > 1 << 20, "bob's copy to be used", 30)


def test_a_flipped_byte_in_an_entry_is_refused(federation: Federation, tmp_path: Path) -> None:
    """A peer that serves a broken entry gets it refused; what came before stays; a whole one is taken later."""
    alice = federation.found("alice")
    bob = federation.join("bob")
    alice.ok("datastore", "create", "/media")
    database = sqlite3.connect(alice.path / "catalog.db")
    table, row, raw = _last_entry(database)
    broken = bytearray(raw)
    broken[len(broken) // 2] ^= 1
    database.execute(f"UPDATE {table} SET entry = ? WHERE rowid = ?", (bytes(broken), row))
    database.commit()
    alice.start()
    bob.start()
    log = bob.path / "coordinator.log"
    alice_log = alice.path / "coordinator.log"
    wait_for(
        lambda: "refused" in log.read_text() or "broken" in log.read_text() or "hash" in alice_log.read_text(),
        "somebody to say that the entry is broken",
    )
    assert "/media" not in bob.ok("datastore", "list").out
    database.execute(f"UPDATE {table} SET entry = ? WHERE rowid = ?", (raw, row))
    database.commit()
    database.close()
    wait_for(lambda: "/media" in bob.ok("datastore", "list").out, "bob to take the whole entry")


def _last_entry(database: sqlite3.Connection) -> tuple[str, int, bytes]:
    row, raw = database.execute(
        "SELECT e.rowid, e.entry FROM entries e JOIN feeds f ON f.id = e.feed WHERE f.kind = 'member'"
        " AND f.owner = 'alice.media.collective' ORDER BY e.seq DESC LIMIT 1"
    ).fetchone()
    return "entries", row, raw


def test_a_rolled_back_database_does_not_sign(federation: Federation, tmp_path: Path) -> None:
    """A home behind its head file signs nothing, says why, keeps what it is asked and does it when it is sure."""
    alice = federation.found("alice")
    alice.ok("datastore", "create", "/media")
    saved = {path.name: path.read_bytes() for path in alice.path.glob("catalog.db*")}
    (tmp_path / "file").write_bytes(b"content")
    alice.ok("put", tmp_path / "file", "/media/file")
    for path in alice.path.glob("catalog.db*"):
        path.unlink()
    for name, content in saved.items():
        (alice.path / name).write_bytes(content)
    before = (alice.path / "heads").stat().st_mtime_ns
    assert "in doubt" in alice.ok("put", tmp_path / "file", "/media/other").err
    assert "older" in alice.ok("status").out
    assert alice.ok("ls", "/media").out.split() == ["other"]
    assert (alice.path / "heads").stat().st_mtime_ns == before, "nothing is signed"
    alice.start()
    wait_for(lambda: alice.status()["doubt"] is None and not alice.status()["pending"], "what was kept to be signed")
    assert alice.ok("ls", "/media").out.split() == ["other"], "what nobody else has is gone, and nothing else"


def test_keys_that_others_could_read_are_refused(alice: Home) -> None:
    """A key file wider than 0600 stops the start and is named."""
    key = alice.path / "identity" / "coord.key"
    key.chmod(0o644)
    clear(alice.run("coordinator", "--federation", "--listen", "127.0.0.1:0"), "coord.key")


def test_unknown_config_key(alice: Home) -> None:
    """A misspelt key is named with a suggestion."""
    (alice.path / "config.json").write_text('{"federation": {"domian": "media.collective"}}')
    clear(alice.run("coordinator", "--federation"), "domian", "domain")


def test_sha_of_what_was_put(alice: Home, tmp_path: Path) -> None:
    """A source that is replaced while nothing reads it simply becomes the new content."""
    alice.start()
    for content in (b"a" * 100_000, b"b" * 100_001):
        (tmp_path / "file").write_bytes(content)
        alice.ok("put", tmp_path / "file", "/media/file")
        alice.ok("get", "/media/file", tmp_path / "back")
        assert hashlib.sha256((tmp_path / "back").read_bytes()).digest() == hashlib.sha256(content).digest()
        (tmp_path / "back").unlink()
