"""The demo's homes: each a folder, three ports and a coordinator in a session of its own, run by typed commands."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from collective.core.errors import CollectiveError, Unreachable

__all__ = ["DemoHome", "end_group", "group_of", "plain_environment", "three_free_ports", "wait_until"]

COMMAND = (sys.executable, "-m", "collective.cli.main")
START_SECONDS = 30.0
STOP_SECONDS = 8.0
POLL_SECONDS = 0.1
_PORTS: list[int] = [*range(20_000, 32_000, 3)]  # below the ports that the kernel gives to outgoing connections
_KEPT_VARIABLES = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH")


def plain_environment() -> dict[str, str]:
    """What a shell needs and nothing that configures a component: the demo's homes are not the person's."""
    return {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ} | {"PYTHONUNBUFFERED": "1"}


def three_free_ports() -> int:
    """The first of three free ports in a row on loopback (gRPC, lane, the node's lane); never the same ones twice."""
    for first in random.sample(_PORTS, len(_PORTS)):
        with contextlib.ExitStack() as held:
            try:
                for port in range(first, first + 3):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
        _PORTS.remove(first)
        return first
    raise Unreachable("there are no three free ports in a row on 127.0.0.1")


def wait_until(condition: Callable[[], bool], what: str, timeout_seconds: float = START_SECONDS) -> None:
    """Ask again until it is so. Raises: Unreachable naming `what` did not happen."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Unreachable(f"{what} did not happen within {timeout_seconds:.0f} s")
        time.sleep(POLL_SECONDS)


def group_of(group: int) -> list[int]:
    """The live processes of a process group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                state, _, member_of = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(member_of) == group and state != "Z":
                    found.append(int(entry.name))
    return sorted(found)


def end_group(process: subprocess.Popen[Any], timeout_seconds: float = STOP_SECONDS) -> None:
    """End a process that leads its own group, with everything in it: kindly, then not."""
    if process.poll() is not None and not group_of(process.pid):
        return
    for number, patience in ((signal.SIGTERM, timeout_seconds), (signal.SIGKILL, STOP_SECONDS)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
            os.killpg(process.pid, signal.SIGCONT)  # a stopped process hears SIGTERM only when it goes on
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            process.poll()
            if not group_of(process.pid):
                return
            time.sleep(0.05)


@dataclass
class DemoHome:
    """One member's home on this machine. `narrate` hears each command as a person would type it."""

    name: str
    path: Path
    storage: str
    narrate: Callable[[str], None]
    port: int = field(default_factory=three_free_ports)
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"lan:127.0.0.1:{self.port}"

    @property
    def identity(self) -> str:
        return f"{self.name}@media.collective"

    def words(self, *words: str) -> list[str]:
        return [*COMMAND, "--home", str(self.path), *words]

    def tell(self, *words: str) -> None:
        inside = f"{self.path.parent}/"
        self.narrate(shlex.join(["collective", "--home", self.name, *(word.removeprefix(inside) for word in words)]))

    def run(self, *words: str, timeout_seconds: float = 60.0) -> str:
        """Type a command, wait for its end, give its stdout. Raises: CollectiveError with what it said."""
        self.tell(*words)
        return self._run(words, timeout_seconds)

    def ask(self, *words: str, timeout_seconds: float = 60.0, tell: bool = False) -> dict[str, Any]:
        """Run a command with `--json`; its last line."""
        if tell:
            self.tell(*words)
        document: dict[str, Any] = json.loads(self._run((*words, "--json"), timeout_seconds).strip().splitlines()[-1])
        return document

    def _run(self, words: tuple[str, ...], timeout_seconds: float) -> str:
        try:
            done = subprocess.run(
                self.words(*words),
                env=plain_environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout_seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Unreachable(f"`collective {words[0]} …` of {self.name} took over {timeout_seconds:.0f} s") from None
        if done.returncode != 0:
            said = done.stderr.strip().removeprefix("collective: ")
            raise CollectiveError(f"`collective {shlex.join(words[:3])}` of {self.name} failed: {said}")
        return done.stdout

    def start(self) -> None:
        """Start the coordinator with its node, and wait for its line `ready …`."""
        words = ["coordinator", "--federation", "--storage", self.storage]
        words += ["--listen", f"127.0.0.1:{self.port}", "--lane", f"127.0.0.1:{self.port + 1}"]
        self.tell(*words)
        log = self.path.parent / f"{self.name}.log"
        with log.open("ab") as sink:
            self.process = subprocess.Popen(
                self.words(*words),
                env=plain_environment(),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait_until(lambda: self._is_ready(log), f"the start of {self.name}'s coordinator (its log: {log})")

    def _is_ready(self, log: Path) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            last = log.read_text(errors="replace").strip().splitlines()[-4:]
            raise CollectiveError(f"{self.name}'s coordinator ended at once:\n  " + "\n  ".join(last))
        return any(line.startswith("ready") for line in log.read_text(errors="replace").splitlines())

    def served_bytes(self) -> int:
        """How many bytes this home's nodes gave out since they started."""
        return sum(int(node.get("served_bytes", 0)) for node in self.ask("status")["nodes"])

    def hears(self, others: int) -> bool:
        """It is connected with that many peers and has all they know."""
        peers = self.ask("status")["peers"]
        return sum(bool(peer["connected"] and peer.get("caught_up", True)) for peer in peers) >= others

    def signal(self, number: signal.Signals) -> list[int]:
        """Send it to coordinator and node at once; the processes that were there."""
        assert self.process is not None
        processes = group_of(self.process.pid)
        os.killpg(self.process.pid, number)
        if number == signal.SIGKILL:
            self.process.wait()
        return processes

    def stop(self) -> None:
        """End coordinator and node, also when they are stopped or one of them is gone."""
        if self.process is not None:
            end_group(self.process)
