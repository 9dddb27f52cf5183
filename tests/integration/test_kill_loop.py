"""Nothing acknowledged is lost: node and coordinator are killed with -9 while files are put."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from support.homes import Federation, Home, wait_for


class Putter(threading.Thread):
    """Puts files without end and keeps the ledger: path -> SHA-256 of what was acknowledged."""

    def __init__(self, home: Home, folder: Path, number: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.home, self.folder, self.number = home, folder, number
        self.random = random.Random(seed * 1000 + number)
        self.ledger: dict[str, str] = {}
        self.failed = 0
        self.stopping = threading.Event()

    def run(self) -> None:
        count = 0
        while not self.stopping.is_set():
            count += 1
            content = self.random.randbytes(self.random.choice((10, 5_000, 200_000, 3_000_000)))
            source = self.folder / f"source-{self.number}"
            source.write_bytes(content)
            path = f"/media/p{self.number}/{count}"
            done = subprocess.run(
                self.home.command("put", source, path, "--quiet"), capture_output=True, text=True, check=False
            )
            if done.returncode == 0:
                self.ledger[path] = hashlib.sha256(content).hexdigest()
            else:
                self.failed += 1
                assert "Traceback" not in done.stderr, done.stderr


def kill_loop(federation: Federation, tmp_path: Path, kills: int, seed: int) -> None:
    alice = federation.found("alice", storage="30GB")
    alice.ok("datastore", "create", "/media")
    alice.start()
    rng = random.Random(seed)
    putters = [Putter(alice, tmp_path, number, seed) for number in range(2)]
    for putter in putters:
        putter.start()
    for round_ in range(kills):
        before = sum(len(putter.ledger) for putter in putters)
        wait_for(lambda before=before: sum(len(p.ledger) for p in putters) > before, f"a put in round {round_}")
        threading.Event().wait(rng.uniform(0.0, 0.7))  # the random point: not a wait for anything
        assert alice.coordinator is not None
        victim = rng.choice(("node", "coordinator", "both"))
        if victim == "node":
            os.kill(alice.node_pid(), signal.SIGKILL)
        elif victim == "coordinator":
            alice.kill_coordinator_alone()
            alice.start()
        else:
            alice.kill()
            alice.start()
    for putter in putters:
        putter.stopping.set()
    for putter in putters:
        putter.join(60)
    wait_for(lambda: alice.status()["nodes"][0]["answers"], "the node to serve again")
    ledger = {path: digest for putter in putters for path, digest in putter.ledger.items()}
    assert len(ledger) >= kills
    alice.ok("get", "/media", tmp_path / "back", timeout=200)
    for path, digest in ledger.items():
        content = (tmp_path / "back" / path.removeprefix("/media/")).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest, f"{path} was acknowledged and is not whole (seed {seed})"


@pytest.mark.long
@pytest.mark.timeout(110)
def test_a_few_kills(federation: Federation, tmp_path: Path) -> None:
    """The short form of the loop below."""
    kill_loop(federation, tmp_path, kills=5, seed=1)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_fifty_kills(federation: Federation, tmp_path: Path) -> None:
    """Fifty random points: every acknowledged file is there afterwards, whole, and everything starts by itself."""
    kill_loop(federation, tmp_path, kills=50, seed=2)
