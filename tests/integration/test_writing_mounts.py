"""Mounts that write, from outside: two of one home, one into another member's DataStore, beside commands."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.homes import Federation, Home, wait_for

pytestmark = pytest.mark.skipif(
    not Path("/dev/fuse").exists() or os.geteuid() != 0, reason="mounting needs /dev/fuse and root"
)


def mounted(home: Home, mountpoint: Path) -> Path:
    mountpoint.mkdir()
    home.ok("mount", mountpoint)
    return mountpoint / "media"


def mount_pid(home: Home, mountpoint: Path) -> int:
    for row in (home.path / "mounts").glob("*.json"):
        record = json.loads(row.read_text())
        if record["directory"] == str(mountpoint):
            return int(record["pid"])
    raise AssertionError(f"no mount at {mountpoint}")


def exclusively(path: Path) -> bool:
    """Create it; whether it was us."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True


@pytest.fixture
def alice(federation: Federation) -> Home:
    made = federation.found("alice")
    made.ok("datastore", "create", "/media", "--replicas", "1")
    made.start()
    return made


@pytest.mark.timeout(110)
def test_two_mounts_never_both_create_one_name(alice: Home, tmp_path: Path) -> None:
    """Both race for 2,000 names, in two folders: each name has one maker, and both see all."""
    one, two = mounted(alice, tmp_path / "one"), mounted(alice, tmp_path / "two")
    for folder in ("a", "b"):
        (one / folder).mkdir()
    wait_for(lambda: (two / "b").is_dir(), "the folders at the other mount")

    def race(top: Path) -> list[bool]:
        return [exclusively(top / ("a" if number % 3 else "b") / f"{number:04}") for number in range(2000)]

    with ThreadPoolExecutor(2) as threads:
        made = list(threads.map(race, (one, two)))
    assert [first + second for first, second in zip(*made, strict=True)] == [1] * 2000
    assert all(any(who) for who in made), "one of them never came to its turn"
    wait_for(lambda: len(os.listdir(one / "a")) + len(os.listdir(two / "b")) == 2000, "all names at both")
    alice.ok("put", tmp_path / "alice" / "config.json", "/media/a/by command")
    wait_for(lambda: (one / "a" / "by command").exists(), "the command's file at the mount")


@pytest.mark.timeout(110)
def test_a_mount_that_stands_still_or_dies_holds_nobody_up(alice: Home, tmp_path: Path) -> None:
    """Suspended it loses its leases within seconds; killed, at once; what it had closed arrives all the same."""
    one, two = mounted(alice, tmp_path / "one"), mounted(alice, tmp_path / "two")
    (one / "folder").mkdir()
    (one / "folder" / "first").write_bytes(b"first")
    wait_for(lambda: (two / "folder" / "first").exists(), "the file at the other mount")
    pid = mount_pid(alice, tmp_path / "one")
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    assert exclusively(two / "folder" / "while it stood")
    assert time.monotonic() - began < 15
    os.kill(pid, signal.SIGCONT)
    wait_for(lambda: not exclusively(one / "folder" / "while it stood"), "the name to be taken")
    (one / "folder" / "last").write_bytes(b"last words")
    os.kill(pid, signal.SIGKILL)
    assert exclusively(two / "folder" / "after it died")
    os.system(f"umount -l {tmp_path / 'one'}")
    third = mounted(alice, tmp_path / "three")
    wait_for(lambda: (two / "folder" / "last").exists(), "what the dead mount had closed")
    assert (third / "folder" / "last").read_bytes() == b"last words"


def killed_with_unsent_names(alice: Home, mountpoint: Path) -> set[str]:
    """Create names exclusively while the coordinator stands still, and kill -9 the mount; the names it was given."""
    pid, top = mount_pid(alice, mountpoint), mountpoint / "media" / "folder"
    assert exclusively(top / "warm")  # it has the lease, and numbers in stock
    assert alice.coordinator is not None
    os.kill(alice.coordinator.pid, signal.SIGSTOP)
    made = {name for name in map(str, range(200)) if exclusively(top / name)}
    (top / "closed").write_bytes(b"closed before it died")
    os.kill(pid, signal.SIGKILL)
    os.system(f"umount -l {mountpoint}")
    return made


@pytest.mark.timeout(110)
@pytest.mark.parametrize("heir", ["coordinator", pytest.param("mount", marks=pytest.mark.long)])
def test_a_name_that_a_dead_mount_created_is_never_created_again(alice: Home, tmp_path: Path, heir: str) -> None:
    """It created names that were not sent; whoever takes its journal up, the other mount is told that they are taken,
    and what it had closed arrives without anybody mounting anew."""
    one, two = mounted(alice, tmp_path / "one"), mounted(alice, tmp_path / "two")
    (one / "folder").mkdir()
    wait_for(lambda: (two / "folder").is_dir(), "the folder at the other mount")
    made = killed_with_unsent_names(alice, tmp_path / "one")
    assert len(made) == 200
    if heir == "mount":  # the coordinator is away when it starts
        alice.kill()
        third = mounted(alice, tmp_path / "three")
        assert {name for name in os.listdir(third / "folder") if name.isdigit()} == made
        alice.start()
    else:
        assert alice.coordinator is not None
        os.kill(alice.coordinator.pid, signal.SIGCONT)
    with ThreadPoolExecutor(8) as threads:
        again = list(threads.map(lambda name: exclusively(two / "folder" / name), sorted(made)))
    assert not any(again), f"{sum(again)} names have two makers"
    closed = two / "folder" / "closed"  # a name may arrive before its content
    wait_for(lambda: closed.exists() and closed.read_bytes(), "what the dead mount had closed")
    assert closed.read_bytes() == b"closed before it died"
    assert not [name for name in os.listdir(two / "folder") if "conflict" in name]
    wait_for(lambda: alice.status()["mounts"] and not sum(m["pending"] for m in alice.status()["mounts"]), "all sent")
    assert exclusively(two / "folder" / "after"), "the folder is nobody's any more"


@pytest.mark.long
@pytest.mark.timeout(110)
def test_a_mount_takes_over_from_the_heir(alice: Home, tmp_path: Path) -> None:
    """The node stands still, so the heir cannot send what a dead mount had closed: the next mount ends it, shows the
    file at once, and sends it when it can."""
    content = os.urandom(5 << 20)
    top = mounted(alice, tmp_path / "one")
    node = alice.node_pid()
    os.kill(node, signal.SIGSTOP)
    (top / "closed").write_bytes(content)
    os.kill(mount_pid(alice, tmp_path / "one"), signal.SIGKILL)
    os.system(f"umount -l {tmp_path / 'one'}")
    log = alice.path / "mount.log"
    wait_for(lambda: '"event": "heir.began"' in log.read_text(), "the heir")
    alice.ok("mount", tmp_path / "one")
    assert (top / "closed").read_bytes() == content
    os.kill(node, signal.SIGCONT)
    wait_for(lambda: not alice.status()["mounts"][0]["pending"], "everything to be sent")
    assert '"event": "heir.ended"' not in log.read_text(), "it was ended, with its work undone"
    alice.ok("get", "/media/closed", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content


@pytest.mark.long
@pytest.mark.timeout(118)
def test_bob_writes_into_alices_datastore_while_she_is_away(federation: Federation, tmp_path: Path) -> None:
    """Through bob's mount: 1,000 files and a renamed folder, at bob's at once, at alice's when she is back."""
    alice = federation.found("alice")
    alice.start()
    bob = federation.join("bob")
    bob.start()
    federation.connected()
    alice.ok("datastore", "create", "/media", "--replicas", "1")
    alice.ok("datastore", "grant", "/media", "read,write,delete", "bob@media.collective")
    wait_for(lambda: bob.run("ls", "/media").code == 0, "bob to see the DataStore")
    top = mounted(bob, tmp_path / "mnt")
    (top / "there").write_bytes(b"written while she was there")
    assert alice.ok("ls", "/media").out.split() == ["there"], "its owner has it when the file is closed and asked for"
    alice.kill()
    wait_for(lambda: not bob.status()["peers"][0]["connected"], "bob to notice")
    (top / "season").mkdir()
    for number in range(1000):
        (top / "season" / f"{number:03}").write_bytes(f"episode {number}".encode())
    (top / "season").rename(top / "season 1")
    (top / "season 1" / "000").unlink()
    large = os.urandom(9 << 20)
    (top / "season 1" / "large").write_bytes(large)
    assert len(os.listdir(top / "season 1")) == 1000
    wait_for(lambda: len(bob.ok("ls", "/media/season 1").out.split()) == 1000, "bob's database to show it")
    assert not os.system(f"rm '{top}/there'")
    alice.start()
    wait_for(lambda: len(alice.run("ls", "/media/season 1").out.split()) == 1000, "alice to have it")
    wait_for(lambda: bob.ok("pending", "--json").json["pending"] == [], "nothing to be pending")
    wait_for(lambda: alice.ok("ls", "-R", "/media").out == bob.ok("ls", "-R", "/media").out, "one tree")
    assert "there" not in alice.ok("ls", "/media").out.split()
    assert alice.status()["conflicts"] == []
    wait_for(
        lambda: "alice.media.collective" in alice.ok("ls", "/media/season 1", "--json").json["files"][-1]["holders"],
        "the owner's copy",
    )
    bob.kill()
    alice.ok("get", "/media/season 1/large", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == large


@pytest.mark.long
@pytest.mark.timeout(110)
def test_a_right_on_a_folder_is_a_right_at_the_mount(federation: Federation, tmp_path: Path) -> None:
    """bob may write in /media/kids alone: programs save there, also with alice away, and are refused outside."""
    alice = federation.found("alice")
    alice.ok("datastore", "create", "/media", "--replicas", "1")
    alice.start()
    bob = federation.join("bob")
    bob.start()
    federation.connected()
    (tmp_path / "hers").write_bytes(b"hers")
    for path in ("/media/hers", "/media/kids/hers", "/media/kids/deep/er/hers", "/media/grown-ups/hers"):
        alice.ok("put", tmp_path / "hers", path)
    alice.ok("datastore", "grant", "/media", "read", "bob@media.collective")
    alice.ok("datastore", "grant", "/media/kids", "write", "bob@media.collective")
    wait_for(lambda: bob.run("ls", "/media/kids").code == 0, "bob to see the folder")
    top = mounted(bob, tmp_path / "mnt")
    wait_for(lambda: exclusively(top / "kids" / "first"), "the right to arrive")
    for folder in (top, top / "grown-ups"):
        for refused in (
            lambda folder=folder: (folder / "new").write_bytes(b"x"),
            lambda folder=folder: (folder / "new").mkdir(),
            lambda folder=folder: (folder / "hers").write_bytes(b"x"),
            lambda folder=folder: (folder / "hers").chmod(0o600),
            lambda folder=folder: (top / "kids" / "first").rename(folder / "first"),
        ):
            with pytest.raises(PermissionError):
                refused()
    (top / "kids" / "deep" / "er" / "film").write_bytes(b"a film" * 10_000)
    (top / "kids" / "hers").write_bytes(b"changed by bob")
    (top / "kids" / "hers").chmod(0o640)
    (top / "kids" / "made").mkdir()
    (top / "kids" / "first").rename(top / "kids" / "made" / "moved")
    wait_for(lambda: alice.run("ls", "/media/kids/made").out == "moved\n", "alice to have it")
    alice.kill()
    wait_for(lambda: not bob.status()["peers"][0]["connected"], "bob to notice")
    (top / "kids" / "made" / "while she was away").write_bytes(b"kept")
    with pytest.raises(PermissionError):
        (top / "new").write_bytes(b"x")
    alice.start()
    wait_for(lambda: "while she was away" in alice.run("ls", "/media/kids/made").out, "alice to have that too")
    wait_for(lambda: bob.ok("pending", "--json").json["pending"] == [], "nothing to be pending or refused")
    assert alice.ok("ls", "-R", "/media").out == bob.ok("ls", "-R", "/media").out
    alice.ok("get", "/media/kids/hers", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"changed by bob"


@pytest.mark.long
@pytest.mark.timeout(110)
def test_a_journal_over_an_older_database_loses_nothing(alice: Home, tmp_path: Path) -> None:
    """The home's database is put back by a day while a mount has changes that are not sent, under inode numbers, in a
    folder and of a file that the older one never knew: everything fsynced is in the library afterwards."""
    top = mounted(alice, tmp_path / "mnt")
    (top / "before").write_bytes(b"before")
    wait_for(lambda: alice.run("ls", "/media").out == "before\n", "it to be sent")
    alice.stop()
    yesterday = {path.name: path.read_bytes() for path in alice.path.glob("catalog.db*")}
    with sqlite3.connect(alice.path / "catalog.db") as database:
        database.execute("DELETE FROM number_stock")  # the next numbers come from a block that is leased then
    database.close()
    alice.ok("umount", tmp_path / "mnt")  # and the numbers that the mount had borrowed are given up
    alice.start()
    alice.ok("mount", tmp_path / "mnt")
    (top / "folder").mkdir()
    (top / "lost").write_bytes(b"of the day that is lost")
    wait_for(lambda: alice.run("ls", "/media").out.split() == ["before", "folder/", "lost"], "it to be sent")
    assert alice.coordinator is not None
    os.kill(alice.coordinator.pid, signal.SIGSTOP)
    kept = {f"{path}": os.urandom(size) for path, size in (("new", 100), ("folder/inside", 50_000), ("lost", 9000))}
    for path, content in kept.items():
        with (top / path).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    alice.kill()
    for path in alice.path.glob("catalog.db*"):
        path.unlink()
    for name, raw in yesterday.items():
        (alice.path / name).write_bytes(raw)
    alice.start()

    def in_the_library() -> list[bytes]:
        shutil.rmtree(tmp_path / "back", ignore_errors=True)
        alice.run("get", "/media", tmp_path / "back")
        return [path.read_bytes() for path in (tmp_path / "back").rglob("*") if path.is_file()]

    wait_for(lambda: all(content in in_the_library() for content in kept.values()), "everything that was fsynced")
    assert (tmp_path / "back" / "new").read_bytes() == kept["new"]
    assert alice.ok("pending", "--json").json["pending"] == []
    (top / "afterwards").write_bytes(b"afterwards")
    wait_for(lambda: "afterwards" in alice.ok("ls", "/media").out.split(), "new files to be made")
    assert not [name for name in os.listdir(top) if name.startswith("afterwards (")]


@pytest.mark.long
@pytest.mark.timeout(110)
def test_a_synced_backup_survives_the_loss_of_the_home(federation: Federation, tmp_path: Path) -> None:
    """When fsync returns two homes have it, small and large: the first is killed at that moment, and the second gives
    both out. With nobody else there fsync returns all the same, and status says what that is worth."""
    alice = federation.found("alice")
    alice.ok("datastore", "create", "/backups", "--strategy", "backup", "--replicas", "2")
    alice.start()
    (tmp_path / "mnt").mkdir()
    alice.ok("mount", tmp_path / "mnt")
    top = tmp_path / "mnt" / "backups"

    def save(name: str, content: bytes) -> None:
        with (top / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    save("alone", b"alone")
    wait_for(lambda: "/backups" in alice.status()["mounts"][0]["trouble"], "status to say that one home has it")
    bob = federation.join("bob")
    bob.start()
    federation.connected()
    alice.ok("datastore", "grant", "/backups", "read", "bob@media.collective")
    wait_for(lambda: bob.run("ls", "/backups").out == "alone\n", "bob to follow")
    small, large = os.urandom(100), os.urandom(9 << 20)
    save("large", large)
    save("small", small)
    alice.kill()
    for name, content in (("small", small), ("large", large)):
        bob.ok("get", f"/backups/{name}", tmp_path / f"{name} back")
        assert (tmp_path / f"{name} back").read_bytes() == content
    alice.start()
    wait_for(lambda: alice.status()["mounts"][0]["trouble"] == "", "all to be well again")
