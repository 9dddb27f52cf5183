"""The demo's main act: the film plays, and half-way through the home it plays from is gone."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from collective.cli.demo_homes import DemoHome, end_group, plain_environment
from collective.cli.demo_report import Playback
from collective.core.errors import CollectiveError

__all__ = ["Player", "Watched", "watch"]

OVERTIME_SECONDS = 60.0  # a film that ends this much late is not playing


@dataclass
class Player:
    """The process that plays (`demo_player`) and, when the film comes through a pipe, the command that fetches it."""

    process: subprocess.Popen[bytes]
    log: Path
    fetcher: subprocess.Popen[bytes] | None = None

    @classmethod
    def of_file(cls, path: str, bytes_per_second: float, log: Path) -> Player:
        """Play a file of the mount."""
        return cls(_start(_words(path, bytes_per_second), subprocess.DEVNULL, log), log)

    @classmethod
    def of_command(cls, words: list[str], bytes_per_second: float, log: Path) -> Player:
        """Play what a command writes to its stdout."""
        fetcher = _start(words, subprocess.DEVNULL, log)
        assert fetcher.stdout is not None
        player = cls(_start(_words("-", bytes_per_second), fetcher.stdout.fileno(), log), log, fetcher)
        fetcher.stdout.close()
        return player

    def positions(self) -> Iterator[int | Playback]:
        """Byte offsets while it plays; the playback last. Raises: CollectiveError when it ends without one."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            document = json.loads(line)
            if "done" in document:
                yield Playback(**document["done"])
                return
            yield int(document["at"])
        code = self.process.wait()
        raise CollectiveError(f"the player ended before the film did (exit code {code}): {self.complaints()}")

    def complaints(self) -> str:
        """The last lines of what player, decoder and fetching command had to say on stderr; often nothing."""
        lines = self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        return " | ".join(lines[-4:])

    def stop(self) -> None:
        """End it, also in the middle of a read that hangs."""
        end_group(self.process)
        if self.fetcher is not None:
            end_group(self.fetcher)


@dataclass
class Watched:
    """What came of it. `second_bytes` left the second holder's disks after the first one was gone."""

    playback: Playback
    second_bytes: int
    killed_at: int
    processes: list[int] = field(default_factory=list)


def watch(
    player: Player,
    film_bytes: int,
    play_seconds: float,
    first: DemoHome,
    second: DemoHome,
    number: signal.Signals,
    at: Callable[[int], None],
    gone: Callable[[list[int]], None],
) -> Watched:
    """Follow the player; when half the film is through, send `number` to the first holder's processes.

    What the second holder served is read right *after* the signal and again at the end, so what it served before
    does not count. `at` hears the position, `gone` which processes were hit. Raises: CollectiveError.
    """
    overtime = threading.Timer(play_seconds + OVERTIME_SECONDS, player.stop)
    overtime.daemon = True
    overtime.start()
    hit: list[int] = []
    killed_at = before = 0
    try:
        for position in player.positions():
            if isinstance(position, Playback):
                second_bytes = second.served_bytes() - before if hit else 0
                return Watched(position, second_bytes, killed_at, hit)
            at(position)
            if not hit and position >= film_bytes // 2:
                hit = first.signal(number)
                killed_at = position
                gone(hit)
                before = second.served_bytes()
        raise CollectiveError("the player said nothing")
    finally:
        overtime.cancel()
        player.stop()


def _words(source: str, bytes_per_second: float) -> list[str]:
    return [
        sys.executable, "-m", "collective.cli.demo_player", source, "--bytes-per-second", f"{bytes_per_second:.0f}"
    ]  # fmt: skip


def _start(words: list[str], stdin: int, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as sink:
        return subprocess.Popen(
            words, env=plain_environment(), stdin=stdin, stdout=subprocess.PIPE, stderr=sink, start_new_session=True
        )
