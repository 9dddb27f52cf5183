"""From outside, joined up: a file put at one home is read at another, and only by whom it was given to."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from support.homes import Federation, Home, wait_for


def random_file(path: Path, size_bytes: int) -> str:
    """Write random bytes and tell their SHA-256."""
    content = os.urandom(size_bytes)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def three(federation: Federation) -> Federation:
    """alice founds, bob and carol join; all run and are connected; carol is too small to host."""
    federation.found("alice").start()
    federation.join("bob").start()
    federation.join("carol", storage="20MB").start()
    federation.connected()
    return federation


def movies(three: Federation) -> tuple[Home, Home, Home]:
    """alice's DataStore /media/movies, which carol may read."""
    alice, bob, carol = three.homes["alice"], three.homes["bob"], three.homes["carol"]
    alice.ok("datastore", "create", "/media/movies", "--strategy", "media", "--replicas", "2")
    return alice, bob, carol


def test_put_and_get_within_one_home(federation: Federation, tmp_path: Path) -> None:
    """What was put comes back byte for byte: empty, inline, one chunk, several chunks, with holes."""
    alice = federation.found("alice")
    alice.ok("datastore", "create", "/media")
    alice.start()
    for size_bytes in (0, 1, 4096, 4097, 65_536, 65_537, 8 << 20, (20 << 20) + 7):
        source = tmp_path / f"source-{size_bytes}"
        expected = random_file(source, size_bytes)
        alice.ok("put", source, f"/media/deep/er/{size_bytes}")
        alice.ok("get", f"/media/deep/er/{size_bytes}", tmp_path / "back")
        assert sha256(tmp_path / "back") == expected, size_bytes
        (tmp_path / "back").unlink()
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate(40 << 20)
        file.seek(17 << 20)
        file.write(b"somewhere in the middle")
    alice.ok("put", sparse, "/media/sparse")
    alice.ok("get", "/media/sparse", tmp_path / "sparse-back")
    assert sha256(tmp_path / "sparse-back") == sha256(sparse)
    assert alice.status()["nodes"][0]["used_bytes"] < 60 << 20, "holes take no space"


def test_names_are_listed_moved_and_removed(federation: Federation, tmp_path: Path) -> None:
    """ls, mv, rm and mkdir work with and without a running coordinator."""
    alice = federation.found("alice")
    alice.ok("datastore", "create", "/media")
    (tmp_path / "small").write_bytes(b"small content")
    for running in (False, True):
        if running:
            alice.start()
        alice.ok("put", tmp_path / "small", "/media/a/small")
        alice.ok("mkdir", "/media/b")
        alice.ok("mv", "/media/a/small", "/media/b/renamed")
        assert alice.ok("ls", "-R", "/media").out.split() == ["a/", "b/", "b/renamed"]
        assert alice.run("rm", "/media/b").code == 1, "a folder that holds something is not removed without -r"
        alice.ok("rm", "-r", "/media/b")
        alice.ok("rm", "-r", "/media/a")
        assert alice.ok("ls", "/media").out.split() == []


def test_a_second_member_reads_what_it_was_given(three: Federation, tmp_path: Path) -> None:
    """bob holds the second copy and carol reads; without the grant she gets no name and no byte."""
    alice, _, carol = movies(three)
    expected = random_file(tmp_path / "film", (30 << 20) + 123)
    put = alice.ok("put", tmp_path / "film", "/media/movies/film", "--level", "two", "--json").json
    assert put["level"] == "two"
    assert sorted(put["holders"]) == ["alice.media.collective", "bob.media.collective"]

    refused = carol.run("get", "/media/movies/film", tmp_path / "stolen")
    assert refused.code == 1
    assert "film" not in carol.run("ls", "-R", "/media").out
    assert not (tmp_path / "stolen").exists()
    for written in carol.path.rglob("*"):
        if written.is_file() and written.suffix in (".db", ".db-wal"):
            assert b"film" not in written.read_bytes(), f"a name leaked into {written}"

    alice.ok("datastore", "grant", "/media/movies", "read", "carol@media.collective")
    wait_for(lambda: carol.run("ls", "/media/movies").out.split() == ["film"], "carol to see the name")
    got = carol.ok("get", "/media/movies/film", tmp_path / "got", "--json").json
    assert sha256(tmp_path / "got") == expected
    assert got["bytes"] == (30 << 20) + 123


def test_reading_goes_on_from_the_second_holder(three: Federation, tmp_path: Path) -> None:
    """With alice killed, carol lists and reads from bob's copy."""
    alice, _, carol = movies(three)
    expected = random_file(tmp_path / "film", 20 << 20)
    alice.ok("datastore", "grant", "/media/movies", "read", "carol@media.collective")
    alice.ok("put", tmp_path / "film", "/media/movies/film", "--level", "two")
    wait_for(lambda: carol.run("ls", "/media/movies").out.split() == ["film"], "carol to see the name")
    wait_for(
        lambda: len(carol.ok("ls", "-l", "/media/movies", "--json").json["files"][0]["holders"]) == 2,
        "carol to know both holders",
    )
    alice.kill()
    got = carol.ok("get", "/media/movies/film", tmp_path / "got", "--json").json
    assert sha256(tmp_path / "got") == expected
    assert got["served_by"] == {"bob.media.collective": pytest.approx(20 << 20, rel=0.01)}


def test_a_put_that_is_repeated_sends_only_what_is_missing(federation: Federation, tmp_path: Path) -> None:
    """A broken transfer resumes: chunks that are durable already are not sent again."""
    alice = federation.found("alice")
    alice.ok("datastore", "create", "/media")
    alice.start()
    expected = random_file(tmp_path / "film", 48 << 20)
    alice.ok("put", tmp_path / "film", "/media/film")
    again = alice.ok("put", tmp_path / "film", "/media/again", "--json").json
    assert again["sent_bytes"] == 0
    alice.ok("get", "/media/again", tmp_path / "back")
    assert sha256(tmp_path / "back") == expected


def test_a_pledge_counts_a_version_once(federation: Federation, tmp_path: Path) -> None:
    """What is offered is placed already: a home that pledges 12 MB takes 10 MB, and no more than that."""
    alice = federation.found("alice")
    alice.ok("datastore", "create", "/media", "--replicas", "2")
    alice.start()
    federation.join("bob", storage="12MB").start()
    federation.connected()
    random_file(tmp_path / "fits", 10_000_000)
    random_file(tmp_path / "too-much", 3_000_000)
    assert alice.ok("put", tmp_path / "fits", "/media/fits", "--level", "two", "--json").json["level"] == "two"
    alone = alice.run("put", tmp_path / "too-much", "/media/too-much", "--level", "two", "--timeout", "2")
    assert alone.code == 1
    assert "only at level local" in alone.err


def test_clean_stop_and_start(federation: Federation, tmp_path: Path) -> None:
    """SIGTERM ends both processes with exit code 0; everything is there after a start."""
    alice = federation.found("alice")
    alice.ok("datastore", "create", "/media")
    alice.start()
    expected = random_file(tmp_path / "film", 9 << 20)
    alice.ok("put", tmp_path / "film", "/media/film")
    node = alice.node_pid()
    assert alice.stop() == 0
    wait_for(lambda: not Path(f"/proc/{node}").exists(), "the node to end with its coordinator")
    alice.start()
    alice.ok("get", "/media/film", tmp_path / "back")
    assert sha256(tmp_path / "back") == expected


def test_the_node_ends_with_a_killed_coordinator(federation: Federation) -> None:
    """kill -9 of the coordinator alone leaves no node behind, and both start again by themselves."""
    alice = federation.found("alice")
    alice.start()
    node = alice.node_pid()
    alice.kill_coordinator_alone()
    wait_for(lambda: not Path(f"/proc/{node}").exists(), "the node to end")
    alice.start()
    assert alice.status()["nodes"][0]["answers"]
