"""Nothing closed or fsynced is lost: mount, coordinator and node are killed with -9 while programs write."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import threading
from pathlib import Path

import pytest
from support.homes import Federation, Home, wait_for

SIZES = (0, 10, 4096, 5_000, 200_000, 3_000_000, 12_000_000)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Writer(threading.Thread):
    """Writes files without end and keeps the ledger: path below the DataStore -> SHA-256 of what was closed.

    While a step goes on its paths are not in the ledger; when it fails they stay out: they may hold either.
    """

    def __init__(self, folder: Path, number: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.folder, self.number = folder, number
        self.random = random.Random(seed * 1000 + number)
        self.ledger: dict[str, str] = {}
        self.wrong = ""
        self.stopping = threading.Event()

    def run(self) -> None:
        count = 0
        while not self.stopping.is_set():
            count += 1
            path = f"w{self.number}-{count % 400}"
            try:
                self._once(path)
            except OSError:  # the mount is away
                self.stopping.wait(0.05)
            except AssertionError as error:
                self.wrong = str(error)
                return

    def _once(self, path: str) -> None:
        content = self.random.randbytes(self.random.choice(SIZES))
        target = self.folder / path
        kind = self.random.choice(("write", "write", "replace", "append", "rename", "unlink"))
        aside = self.folder / (path + "+")
        before = {name: self.ledger.pop(name) for name in (path, aside.name) if name in self.ledger}
        after = dict(before)
        if kind == "replace":  # as editors do: write aside, sync, rename over
            with aside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            aside.rename(target)
            after.pop(aside.name, None)
            after[path] = digest(content)
        elif kind == "append" and path in before:
            held = target.read_bytes()
            assert digest(held) == before[path], f"{path} is not what was closed"
            with target.open("ab") as file:
                file.write(content[:100_000])
            after[path] = digest(held + content[:100_000])
        elif kind == "rename" and path in before:
            target.rename(aside)
            after[aside.name] = after.pop(path)
        elif kind == "unlink" and path in before:
            target.unlink()
            del after[path]
        else:
            with target.open("wb") as file:
                for start in range(0, len(content), 1 << 20):
                    file.write(content[start : start + (1 << 20)])
            after[path] = digest(content)
        self.ledger.update(after)


def mount_pid(home: Home) -> int:
    """The mount process that serves now."""
    rows = [json.loads(path.read_text()) for path in (home.path / "mounts").glob("*.json")]
    (pid,) = [row["pid"] for row in rows if Path(f"/proc/{row['pid']}").exists()]
    return int(pid)


def kill_loop(federation: Federation, tmp_path: Path, victims: tuple[str, ...], kills: int, seed: int) -> None:
    if not Path("/dev/fuse").exists() or os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail("CI must have /dev/fuse and root")
        pytest.skip("mounting needs /dev/fuse and root")
    alice = federation.found("alice")
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
    wait_for(lambda: not pending(alice), "everything to be uploaded by itself", 100)
    alice.ok("umount", mountpoint)
    alice.ok("get", "/media", tmp_path / "back", timeout=200)
    check(tmp_path / "back", expected, f"in the library (seed {seed})")


def pending(home: Home) -> int:
    """What the home's mounts have not handed over yet."""
    return sum(int(mount.get("pending", 0)) for mount in home.status()["mounts"])


def check(folder: Path, expected: dict[str, str], where: str) -> None:
    for path, held in expected.items():
        content = None
        with contextlib.suppress(FileNotFoundError):
            content = (folder / path).read_bytes()
        assert content is not None, f"{path} was closed and is gone {where}"
        assert digest(content) == held, f"{path} was closed and is not whole {where}"


@pytest.mark.timeout(115)
def test_a_few_kills_of_each(federation: Federation, tmp_path: Path) -> None:
    """The short form of the loops below."""
    kill_loop(federation, tmp_path, ("mount", "coordinator", "node"), kills=5, seed=3)


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("victim", ["mount", "coordinator", "node"])
def test_a_hundred_kills(federation: Federation, tmp_path: Path, victim: str) -> None:
    """A hundred random points each: everything closed or fsynced is there, whole, and uploads by itself."""
    kill_loop(federation, tmp_path, (victim,), kills=100, seed=4)
