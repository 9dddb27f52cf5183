"""The mount between homes, a separate node certified by hand, levels, resumed fetches."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from support.homes import DEADLINE_SECONDS, Federation, Home, free_ports, wait_for


@pytest.fixture
def needs_fuse() -> None:
    """Skip on a machine without FUSE; CI must have it."""
    if not Path("/dev/fuse").exists() or os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail("CI must have /dev/fuse and root")
        pytest.skip("mounting needs /dev/fuse and root")


def pair(federation: Federation) -> tuple[Home, Home]:
    """alice with /media, which bob may read; both run."""
    alice = federation.found("alice")
    alice.ok("datastore", "create", "/media", "--replicas", "2")
    alice.ok("datastore", "create", "/private")
    alice.start()
    bob = federation.join("bob", storage="10MB")
    bob.start()
    federation.connected()
    alice.ok("datastore", "grant", "/media", "read", "bob@media.collective")
    return alice, bob


def test_the_mount_reads_from_another_home(federation: Federation, needs_fuse: None, tmp_path: Path) -> None:
    """Names, whole and random reads, pushed changes, an unreadable DataStore, df, clean unmount."""
    alice, bob = pair(federation)
    content = os.urandom((21 << 20) + 77)
    (tmp_path / "film").write_bytes(content)
    alice.ok("put", tmp_path / "film", "/media/a b/film.mkv")
    wait_for(lambda: bob.run("ls", "/media").code == 0, "bob to have the key")
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    bob.ok("mount", mountpoint)
    film = mountpoint / "media" / "a b" / "film.mkv"
    wait_for(film.exists, "the film to show")
    assert hashlib.sha256(film.read_bytes()).digest() == hashlib.sha256(content).digest()
    with film.open("rb") as file:
        for offset in (0, 8 << 20, 12_345_678, len(content) - 5):
            file.seek(offset)
            assert file.read(4096) == content[offset : offset + 4096]
    with pytest.raises(PermissionError):
        list((mountpoint / "private").iterdir())
    with pytest.raises(PermissionError):  # alice gave no WRITE
        (mountpoint / "media" / "new").write_bytes(b"x")
    assert os.statvfs(mountpoint).f_blocks > 0
    (tmp_path / "later").write_bytes(b"came later")
    alice.ok("put", tmp_path / "later", "/media/later")
    wait_for(lambda: (mountpoint / "media" / "later").exists(), "a new file to show")
    assert (mountpoint / "media" / "later").read_bytes() == b"came later"
    clear = bob.run("mount", mountpoint)
    assert clear.code == 1
    assert "mounted" in clear.err
    bob.ok("umount", mountpoint)
    assert not os.path.ismount(mountpoint)
    assert bob.run("umount", mountpoint).code == 1


@pytest.mark.long
def test_the_mount_outlives_its_coordinator(federation: Federation, needs_fuse: None, tmp_path: Path) -> None:
    """With bob's own coordinator killed his mount goes on; a killed mount is cleaned by the next."""
    alice, bob = pair(federation)
    content = os.urandom(9 << 20)
    (tmp_path / "film").write_bytes(content)
    alice.ok("put", tmp_path / "film", "/media/film")
    wait_for(lambda: bob.run("ls", "/media").out.split() == ["film"], "bob to see the name")
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    bob.ok("mount", mountpoint)
    bob.kill()
    assert (mountpoint / "media" / "film").read_bytes() == content
    (record,) = (bob.path / "mounts").glob("*.json")
    os.kill(json.loads(record.read_text())["pid"], signal.SIGKILL)
    with pytest.raises(OSError):  # noqa: PT011 - "Transport endpoint is not connected" or "Permission denied"
        list((mountpoint / "media").iterdir())
    bob.ok("mount", mountpoint)
    assert (mountpoint / "media" / "film").read_bytes() == content
    bob.ok("umount", mountpoint)


@pytest.mark.long
@pytest.mark.timeout(115)
def test_a_node_that_restarts_costs_a_reader_a_pause(federation: Federation, needs_fuse: None, tmp_path: Path) -> None:
    """The only holder's node is killed while programs read: they get their bytes when it is back. While the home is
    down for good a reader can be killed, and other files are read."""
    alice, bob = pair(federation)
    content = os.urandom((40 << 20) + 9)
    for name in ("film", "other"):
        (tmp_path / name).write_bytes(content[:: 1 if name == "film" else -1])
        alice.ok("put", tmp_path / name, f"/media/{name}")
    bob.ok("mount", make_folder(tmp_path / "mnt"))
    top = tmp_path / "mnt" / "media"
    wait_for(lambda: (top / "other").exists(), "the files at bob's")
    with (top / "film").open("rb") as film:
        assert film.read(1000) == content[:1000]
        os.kill(alice.node_pid(), signal.SIGKILL)
        film.seek(30 << 20)
        assert film.read() == content[30 << 20 :]
    assert (top / "other").read_bytes() == content[::-1]
    alice.kill()
    with subprocess.Popen(["tail", "-c", "+15000000", top / "film"], stdout=subprocess.DEVNULL) as stuck:
        with (top / "other").open("rb") as other:
            assert other.read(1000) == content[::-1][:1000]
        assert stuck.poll() is None, "it waits"
        stuck.kill()
        assert stuck.wait(10) == -signal.SIGKILL


def make_folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_mountpoints_that_cannot_be(federation: Federation, needs_fuse: None, tmp_path: Path) -> None:
    """Missing, a file, or with something in it: said in words."""
    alice = federation.found("alice")
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thing").write_text("x")
    for place in ("file", "full"):
        outcome = alice.run("mount", tmp_path / place)
        assert outcome.code == 1, place
        assert place in outcome.err
        assert "internal error" not in outcome.err


def test_a_separate_node(federation: Federation, tmp_path: Path) -> None:
    """A node certified by hand, configured by the plan's file, holds the chunks of a coordinator without storage."""
    alice = federation.found("alice", storage="")
    alice.ok("datastore", "create", "/media")
    node_home = tmp_path / "node-home"
    alice.ok(
        "federation", "ca", "sign-component", "--type", "node", "--name", "node-02", "--out", node_home / "identity"
    )
    (port,) = free_ports(1)
    config = tmp_path / "node.json"
    config.write_text(
        json.dumps(
            {
                "node": {
                    "address": "node-02@alice.media.collective",
                    "coordinator": "coord@alice.media.collective",
                    "coordinator_endpoint": f"127.0.0.1:{alice.ports[0]}",
                    "storage_capacity": "1GB",
                    "storage_path": str(tmp_path / "disk"),
                    "lane": f"127.0.0.1:{port}",
                    "labels": {"type": "ssd"},
                }
            }
        )
    )
    alice.start()
    (tmp_path / "film").write_bytes(os.urandom(20 << 20))
    refused = alice.run("put", tmp_path / "film", "/media/film")
    assert refused.code == 3
    assert "no storage node" in refused.err
    node = Home(node_home, "node-02")
    log = (tmp_path / "node.log").open("wb")
    process = subprocess.Popen(node.command("node", "--config", config), stdout=log, stderr=log)
    log.close()
    try:
        wait_for(lambda: any(row["answers"] for row in alice.status()["nodes"]), "the node to be registered")
        alice.ok("put", tmp_path / "film", "/media/film")
        alice.ok("get", "/media/film", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == (tmp_path / "film").read_bytes()
        row = alice.status()["nodes"][0]
        assert row["address"] == "node-02@alice.media.collective"
        assert row["labels"] == {"type": "ssd"}
    finally:
        process.terminate()
        assert process.wait(DEADLINE_SECONDS) == 0


@pytest.mark.long
def test_backups_wait_for_a_second_home(federation: Federation, tmp_path: Path) -> None:
    """A backup alone is stored with a loud note; beside another home it is at level two by itself."""
    alice = federation.found("alice")
    alice.ok("datastore", "create", "/backups", "--replicas", "2")
    alice.start()
    (tmp_path / "photo").write_bytes(os.urandom(1 << 20))
    alone = alice.ok("put", tmp_path / "photo", "/backups/photo", "--timeout", "1")
    assert "NOT SAFE YET" in alone.err
    federation.join("bob").start()
    federation.connected()
    (tmp_path / "small").write_bytes(b"kept in the row")
    for name in ("photo", "small"):
        put = alice.ok("put", tmp_path / name, f"/backups/again-{name}", "--json").json
        assert put["level"] == "two", name
        assert len(put["holders"]) == 2
    wait_for(
        lambda: len(alice.ok("ls", "-l", "/backups/photo", "--json").json["files"][0]["holders"]) == 2,
        "the first one to be copied too",
    )


def test_a_broken_get_goes_on(federation: Federation, tmp_path: Path) -> None:
    """What an interrupted fetch left is not fetched again."""
    alice = federation.found("alice")
    alice.ok("datastore", "create", "/media")
    alice.start()
    content = os.urandom(40 << 20)
    (tmp_path / "film").write_bytes(content)
    alice.ok("put", tmp_path / "film", "/media/film")
    version = alice.ok("ls", "/media/film", "--json").json["files"][0]["version"]
    (tmp_path / f".back.part-{version[:12]}").write_bytes(content[: 17 << 20])
    got = alice.ok("get", "/media/film", tmp_path / "back", "--json").json
    assert got["resumed_bytes"] == 16 << 20
    assert (tmp_path / "back").read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir() if "part" in path.name) == []


def test_a_home_that_told_nobody_where_it_is(federation: Federation, needs_fuse: None, tmp_path: Path) -> None:
    """Founded without an endpoint it works for itself: get, the mount's reads and writes, also on other ports later."""
    alice = federation.found("alice", hidden=True)
    alice.ok("datastore", "create", "/media")
    alice.start()
    content = os.urandom(3 << 20)
    (tmp_path / "film").write_bytes(content)
    alice.ok("put", tmp_path / "film", "/media/film")
    alice.ok("get", "/media/film", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    alice.ok("mount", mountpoint)
    assert (mountpoint / "media" / "film").read_bytes() == content
    (mountpoint / "media" / "first").write_bytes(b"1")
    assert alice.stop() == 0
    stopped = alice.status()
    assert stopped["health"] == "HEALTH_WARN"
    assert stopped["findings"][0]["message"] == "the coordinator is not running"
    alice.ports = free_ports(3)
    alice.start()
    (mountpoint / "media" / "second").write_bytes(b"2")
    wait_for(lambda: {"first", "second"} <= set(alice.ok("ls", "/media").out.split()), "both to be in the library")


def tell(home: Home, other: Home) -> None:
    """Write into a home's book where another is, as its coordinator does when it has found it."""
    place = {"type": "lan", "grpc": f"{other.address}:{other.ports[0]}", "lane": f"{other.address}:{other.ports[1]}"}
    (home.path / "peers.json.new").write_text(json.dumps({f"{other.name}.media.collective": [place]}))
    (home.path / "peers.json.new").replace(home.path / "peers.json")


@pytest.mark.long
def test_a_mount_finds_a_member_that_moved(federation: Federation, needs_fuse: None, tmp_path: Path) -> None:
    """bob, who tells nobody where he is, is elsewhere than when alice's mount began: what her coordinator found out
    since, the mount knows too."""
    alice = federation.found("alice")
    bob = federation.join("bob", hidden=True)
    tell(alice, bob)
    alice.start()
    bob.start()
    federation.connected()
    bob.ok("datastore", "create", "/films")
    bob.ok("datastore", "grant", "/films", "read", "alice@media.collective")
    for name in ("early", "late"):
        (tmp_path / name).write_bytes(os.urandom(100_000))
        bob.ok("put", tmp_path / name, f"/films/{name}")
    wait_for(lambda: alice.run("ls", "/films").out.split() == ["early", "late"], "alice to see the names")
    assert alice.stop() == 0
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    alice.ok("mount", mountpoint)
    assert (mountpoint / "films" / "early").read_bytes() == (tmp_path / "early").read_bytes()
    assert bob.stop() == 0
    bob.ports = free_ports(3)
    bob.start()
    tell(alice, bob)
    assert (mountpoint / "films" / "late").read_bytes() == (tmp_path / "late").read_bytes()
    alice.ok("umount", mountpoint)
