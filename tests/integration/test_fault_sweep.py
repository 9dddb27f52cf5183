"""Killed at the n-th system call: the mount and the coordinator die inside a sync, a rename, a write."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from support.homes import Federation, Home, wait_for
from support.writers import Writer, check

CALLS = ("fsync,fdatasync", "rename", "pwrite64,pwritev,pwritev2")
STEPS = 40
DYING_SECONDS = 15.0  # that a program saves, at most, before the coordinator made the n-th call (in one thread)


def needs_strace() -> None:
    """Skip on a poor machine; CI must have strace, FUSE and root."""
    if shutil.which("strace") is None or not Path("/dev/fuse").exists() or os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail("CI must have strace, /dev/fuse and root")
        pytest.skip("the sweep needs strace, /dev/fuse and root")


def traced(calls: str, when: int) -> list[str]:
    """Words before a command: it is killed as it enters the n-th of these calls."""
    return [
        "strace",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        f"trace={calls}",
        "-e",
        f"inject={calls}:signal=KILL:when={when}",
    ]


def start_mount(home: Home, mountpoint: Path, prefix: list[str]) -> subprocess.Popen[bytes]:
    """The mount in the foreground; returns when it is there or has died on the way."""
    with (home.path / "traced-mount.log").open("ab") as log:
        process = subprocess.Popen(
            [*prefix, *home.command("mount", mountpoint, "--foreground")],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    wait_for(lambda: process.poll() is not None or os.path.ismount(mountpoint), "the mount to be there or dead")
    return process


def sweep_mount(federation: Federation, tmp_path: Path, points: list[tuple[str, int]]) -> int:
    """The mount is killed at each point while a program saves, mounted again, checked; how many points hit."""
    alice = federation.found("alice")
    alice.ok("datastore", "create", "/media", "--replicas", "1")
    alice.start()
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    hits = 0
    for number, (calls, when) in enumerate(points):
        folder = mountpoint / "media" / f"run{number}"
        writer = Writer(folder, 0, number)
        process = start_mount(alice, mountpoint, traced(calls, when))
        if os.path.ismount(mountpoint):
            with contextlib.suppress(OSError):  # it dies under us: that step is not in the ledger
                folder.mkdir(parents=True)
                for count in range(STEPS):
                    writer.step(f"f{count % 12}")
        if process.poll() is None:
            alice.run("umount", mountpoint)  # whatever it says: the mount may be dying this moment
        hits += process.wait(30) == -signal.SIGKILL
        alice.ok("mount", mountpoint)
        check(folder, writer.ledger, f"after the mount died in {calls} {when}")
        alice.ok("umount", mountpoint)
    return hits


def sweep_coordinator(federation: Federation, tmp_path: Path, points: list[tuple[str, int]]) -> int:
    """The coordinator (or its node) is killed at each point while a program saves through a mount that stays; how many
    points hit."""
    alice = federation.found("alice")
    alice.ok("datastore", "create", "/media", "--replicas", "1")
    alice.start()
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    alice.ok("mount", mountpoint)
    coordinators = hits = 0

    def died() -> int:
        """How many of both have died; a coordinator that did is started again (a node is by its coordinator)."""
        nonlocal coordinators
        if alice.coordinator is None or alice.coordinator.poll() is not None:
            coordinators += 1
            alice.start()
        return coordinators + (alice.path / "coordinator.log").read_text().count('"exit_code": -9')

    for number, (calls, when) in enumerate(points):
        before = died()
        folder = mountpoint / "media" / f"run{number}"
        folder.mkdir()
        alice.stop()
        alice.prefix = traced(calls, when)
        with contextlib.suppress(AssertionError):  # on its way up
            alice.start()
        alice.prefix = []
        writer = Writer(folder, 0, number)
        writer.start()
        with contextlib.suppress(AssertionError):  # so many calls may take longer
            wait_for(lambda before=before: died() > before, "it to die", DYING_SECONDS)
        writer.stopping.set()
        wait_for(lambda writer=writer: (died(), not writer.is_alive())[1], "the program to end", 60)
        hits += died() > before
        alice.kill()  # it might die yet, with nobody to start it
        alice.start()
        assert writer.ledger
        assert not writer.wrong, writer.wrong
        check(folder, writer.ledger, f"after the coordinator died in {calls} {when}")
    alice.ok("umount", mountpoint)
    alice.ok("mount", mountpoint)
    check(folder, writer.ledger, "in a fresh mount")
    return hits


@pytest.mark.long
@pytest.mark.timeout(200)
def test_the_mount_dies_inside_a_call(federation: Federation, tmp_path: Path) -> None:
    """A few points; the long form sweeps."""
    needs_strace()
    assert sweep_mount(federation, tmp_path, [(CALLS[0], 2), (CALLS[1], 2), (CALLS[2], 9), (CALLS[2], 40)]) >= 3


@pytest.mark.byhand
@pytest.mark.timeout(900)
def test_the_mount_dies_inside_every_call(federation: Federation, tmp_path: Path) -> None:
    """Every early call of each kind, then every seventh."""
    needs_strace()
    points = [(calls, when) for calls in CALLS for when in (*range(1, 9), *range(10, 80, 7))]
    assert sweep_mount(federation, tmp_path, points) > 20


@pytest.mark.byhand
@pytest.mark.timeout(900)
def test_the_coordinator_dies_inside_a_call(federation: Federation, tmp_path: Path) -> None:
    """Syncs, renames and writes of the coordinator and its node, early and late."""
    needs_strace()
    points = [(calls, when) for calls in CALLS for when in (5, 20, 45, 80, 130)]
    assert sweep_coordinator(federation, tmp_path, points) > 5
