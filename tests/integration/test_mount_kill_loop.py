"""Nothing closed or fsynced is lost: mount, coordinator and node are killed with -9 while programs write."""

from __future__ import annotations

import os
import random
import signal
import threading
from pathlib import Path

import pytest
from support.homes import Federation, Home, wait_for
from support.writers import Writer, check


def mount_pid(home: Home) -> int:
    """The mount process that serves now; one that was killed may take a moment to be gone."""

    def only() -> int:
        rows = home.status()["mounts"]
        return int(rows[0]["pid"]) if len(rows) == 1 else 0

    return int(wait_for(only, "one mount to be there"))


def kill_loop(federation: Federation, tmp_path: Path, victims: tuple[str, ...], kills: int, seed: int) -> None:
    if not Path("/dev/fuse").exists() or os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail("CI must have /dev/fuse and root")
        pytest.skip("mounting needs /dev/fuse and root")
    alice = federation.found("alice", storage="30GB")  # a full disk is another test's matter
    alice.ok("datastore", "create", "/media", "--replicas", "1")
    alice.start()
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    alice.ok("mount", mountpoint)
    rng = random.Random(seed)
    writers = [Writer(mountpoint / "media", number, seed) for number in range(2)]
    for writer in writers:
        writer.start()
    for round_ in range(kills):
        before = sum(len(writer.ledger) for writer in writers)
        wait_for(
            lambda before=before: sum(len(w.ledger) for w in writers) != before,
            f"a write in round {round_} (seed {seed})",
        )
        threading.Event().wait(rng.uniform(0.0, 0.7))  # the random point: not a wait for anything
        victim = rng.choice(victims)
        if victim == "mount":
            os.kill(mount_pid(alice), signal.SIGKILL)
            alice.ok("mount", mountpoint)
        elif victim == "node":
            os.kill(alice.node_pid(), signal.SIGKILL)
        else:
            alice.kill_coordinator_alone()
            alice.start()
    for writer in writers:
        writer.stopping.set()
    for writer in writers:
        writer.join(100)
        assert not writer.is_alive(), "a program hangs in the mount"
        assert not writer.wrong, f"{writer.wrong} (seed {seed})"
    expected = {path: held for writer in writers for path, held in writer.ledger.items()}
    assert len(expected) > 10
    check(mountpoint / "media", expected, f"in the mount (seed {seed})")
    try:
        wait_for(lambda: not pending(alice), "everything to be uploaded by itself", 100)
    except AssertionError as error:
        raise AssertionError(f"{error} (seed {seed})\n{said_last(alice)}") from error
    alice.ok("umount", mountpoint)
    alice.ok("get", "/media", tmp_path / "back", timeout=200)
    check(tmp_path / "back", expected, f"in the library (seed {seed})")


def pending(home: Home) -> int:
    """What the home's mounts have not handed over yet."""
    return sum(int(mount["pending"]) for mount in home.status()["mounts"])


def said_last(home: Home) -> str:
    """Its status and the last lines of its logs, to be printed with a failure."""
    logs = "\n".join("\n".join(log.read_text().splitlines()[-40:]) for log in sorted(home.path.glob("*.log")))
    return f"{home.status()}\n{logs}"


@pytest.mark.timeout(115)
def test_a_few_kills_of_each(federation: Federation, tmp_path: Path) -> None:
    """The short form of the loops below."""
    kill_loop(federation, tmp_path, ("mount", "coordinator", "node"), kills=4, seed=3)


@pytest.mark.long
@pytest.mark.timeout(500)
def test_more_kills_of_each(federation: Federation, tmp_path: Path) -> None:
    """As much of the loops below as CI has the time for."""
    kill_loop(federation, tmp_path, ("mount", "coordinator", "node"), kills=20, seed=5)


@pytest.mark.byhand
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("victim", ["mount", "coordinator", "node"])
def test_a_hundred_kills(federation: Federation, tmp_path: Path, victim: str) -> None:
    """A hundred random points each: everything closed or fsynced is there, whole, and uploads by itself."""
    kill_loop(federation, tmp_path, (victim,), kills=100, seed=4)
