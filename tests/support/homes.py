"""Real homes for the integration tests: real processes, TLS, SQLite, files, on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DEADLINE_SECONDS = 40.0
FIRST_PORT = 20_000
PORTS_PER_WORKER = 2_000


def _own_ports() -> Iterator[int]:
    """Below those that the kernel gives to connections, and each worker's its own: nobody takes them meanwhile."""
    first = FIRST_PORT + PORTS_PER_WORKER * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    while True:
        yield from random.SystemRandom().sample(range(first, first + PORTS_PER_WORKER), PORTS_PER_WORKER)


_ports = _own_ports()


def free_ports(count: int) -> list[int]:
    """Ports that are free now; `count` in a row are not promised to be neighbours."""
    found: list[int] = []
    for port in _ports:
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            break
    return found


def wait_for(condition: Callable[[], Any], what: str, seconds: float = DEADLINE_SECONDS) -> Any:
    """The first true value of `condition`; fails naming `what` when the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        select.select([], [], [], 0.05)
    raise AssertionError(f"waited {seconds:.0f} s for {what}")


@dataclass
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out.strip().splitlines()[-1])


@dataclass
class Home:
    """One member's home on this machine and the processes that belong to it.

    `address`: where it listens and is reached; `lane_host` and `node_host`: where those two listen, when elsewhere.
    `told_ports`: where others are told that its gRPC port and its lane are, when something lies between. `hidden`:
    nobody is told anything.
    """

    path: Path
    name: str
    ports: list[int] = field(default_factory=lambda: free_ports(3))
    coordinator: subprocess.Popen[str] | None = None
    storage: str = "2GB"
    storage_path: Path | None = None
    address: str = "127.0.0.1"
    lane_host: str = ""
    node_host: str = ""
    told_ports: list[int] = field(default_factory=list)
    hidden: bool = False
    prefix: list[str] = field(default_factory=list)  # words before each command: where it runs (support/networks)

    @property
    def endpoint(self) -> str:
        grpc, lane = (self.told_ports or self.ports)[:2]
        return f"lan:{self.address}:{grpc},{lane}"

    @property
    def endpoint_option(self) -> list[str]:
        return [] if self.hidden else ["--endpoint", self.endpoint]

    def command(self, *arguments: str | Path) -> list[str]:
        return [
            *self.prefix,
            sys.executable,
            "-m",
            "collective.cli.main",
            "--home",
            str(self.path),
            *map(str, arguments),
        ]

    def run(self, *arguments: str | Path, timeout: float = 100.0, **settings: Any) -> Outcome:
        """Run a command to its end, whatever it says."""
        done = subprocess.run(
            self.command(*arguments), capture_output=True, text=True, timeout=timeout, check=False, **settings
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    def ok(self, *arguments: str | Path, timeout: float = 100.0) -> Outcome:
        """Run a command that must work."""
        outcome = self.run(*arguments, timeout=timeout)
        assert outcome.code == 0, f"{arguments}: exit {outcome.code}\n{outcome.out}\n{outcome.err}"
        return outcome

    def start(self, *more: str) -> None:
        """Start the coordinator with its node and wait until it serves."""
        self._close_pipe()
        log = (self.path / "coordinator.log").open("ab")
        storage = ["--storage", self.storage] if self.storage else []
        if self.storage_path:
            storage += ["--storage-path", str(self.storage_path)]
        self.coordinator = subprocess.Popen(
            self.command(
                "coordinator", "--federation", *storage,
                "--listen", f"{self.address}:{self.ports[0]}",
                "--lane", f"{self.lane_host or self.address}:{self.ports[1]}",
                "--node-lane", f"{self.node_host or self.address}:{self.ports[2]}",
                *more,
            ),
            stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
        )  # fmt: skip
        log.close()
        assert self.coordinator.stdout is not None
        readable, _, _ = select.select([self.coordinator.stdout], [], [], DEADLINE_SECONDS)
        line = self.coordinator.stdout.readline() if readable else ""
        assert line.startswith("ready"), f"{self.name} did not start:\n{(self.path / 'coordinator.log').read_text()}"

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the coordinator and its node at once."""
        assert self.coordinator is not None
        os.killpg(self.coordinator.pid, number)
        if number == signal.SIGKILL:
            self.coordinator.wait(10)
            self._close_pipe()
            self.coordinator = None

    def stop(self) -> int:
        """SIGTERM, then the exit code."""
        assert self.coordinator is not None
        self.coordinator.terminate()
        return self.ended()

    def ended(self) -> int:
        """The exit code of a coordinator that ends by itself."""
        assert self.coordinator is not None
        code = self.coordinator.wait(20)
        self._close_pipe()
        self.coordinator = None
        return code

    def kill_coordinator_alone(self) -> None:
        """kill -9 of the one process; its node is left to end by itself."""
        assert self.coordinator is not None
        os.kill(self.coordinator.pid, signal.SIGKILL)
        self.coordinator.wait(10)
        self._close_pipe()
        self.coordinator = None

    def _close_pipe(self) -> None:
        if self.coordinator is not None and self.coordinator.stdout is not None:
            self.coordinator.stdout.close()

    def status(self) -> Any:
        return self.ok("status", "--json").json

    def node_pid(self) -> int:
        """The carried node's process, as soon as it runs."""
        assert self.coordinator is not None
        children = Path(f"/proc/{self.coordinator.pid}/task/{self.coordinator.pid}/children")
        return int(wait_for(lambda: children.read_text().split(), "the node process")[0])

    def close(self) -> None:
        for row in list((self.path / "mounts").glob("*.json")):
            with contextlib.suppress(FileNotFoundError):  # the command before swept it away
                self.run("umount", json.loads(row.read_text())["directory"])
        if self.coordinator is not None:
            os.killpg(self.coordinator.pid, signal.SIGCONT)
            self.kill()


@dataclass
class Federation:
    """Homes made by bundles; the first founds."""

    root: Path
    homes: dict[str, Home] = field(default_factory=dict)

    def found(self, name: str = "alice", **settings: Any) -> Home:
        home = self._home(name, **settings)
        home.ok(
            "federation", "init", "--domain", "media.collective", "--member", name, "--no-datastores",
            *home.endpoint_option,
        )  # fmt: skip
        return home

    def join(self, name: str, **settings: Any) -> Home:
        issuer = next(iter(self.homes.values()))
        home = self._home(name, **settings)
        bundle = self.root / f"{name}.bundle"
        issuer.ok("federation", "bundle", "--member", name, "--out", bundle)
        home.ok("federation", "join", "--bundle", bundle, *home.endpoint_option)
        return home

    def connected(self) -> None:
        """Wait until every running home has every other's entries."""
        running = [home for home in self.homes.values() if home.coordinator is not None]

        def all_caught_up() -> bool:
            return all(
                sum(peer["connected"] and peer["caught_up"] for peer in home.status()["peers"]) >= len(running) - 1
                for home in running
            )

        wait_for(all_caught_up, "all homes to be connected")

    def _home(self, name: str, **settings: Any) -> Home:
        self.homes[name] = Home(self.root / name, name, **settings)
        return self.homes[name]

    def close(self) -> None:
        for home in self.homes.values():
            home.close()
