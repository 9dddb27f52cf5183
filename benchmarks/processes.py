"""What processes cost: CPU seconds of whole trees, peak memory, and the page cache emptied between runs."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
SAMPLE_SECONDS = 0.05


def drop_caches() -> bool:
    """Forget the machine's page cache; False where that is not permitted (not root)."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
    except PermissionError:
        return False
    return True


def tree(roots: Iterable[int]) -> list[int]:
    """These processes and everything that descends from them, as far as it is alive."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: list[int] = []
    waiting = [pid for pid in roots if _stat(pid)]
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.append(pid)
            waiting.extend(children.get(pid, ()))
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of these processes and of their children that ended."""
    total = 0
    for pid in pids:
        if fields := _stat(pid):
            total += sum(int(field) for field in fields[11:15])
    return total / TICKS


def own_cpu_seconds() -> float:
    """User and system time of this process: the reader's share, copying out of FUSE included."""
    spent = os.times()
    return spent.user + spent.system


def peak_bytes(pid: int) -> int:
    """The most memory that was resident at once (VmHWM); 0 when the process is gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0


def command_name(pid: int) -> str:
    """What the process does, short: `alice: collective node`, `bob: collective mount`, `sshd`, …"""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return "gone"
    if "--home" in words:
        at = words.index("--home")
        return f"{Path(words[at + 1]).name}: collective {words[at + 2]}" if len(words) > at + 2 else "collective"
    return " ".join(Path(words[0].split(":")[0]).name.split()[:1] + words[1:2])


class PeakWatch:
    """Notes the peak memory of every process under some roots for as long as it runs, the short-lived ones too."""

    def __init__(self, roots: Callable[[], Iterable[int]]) -> None:
        self._roots = roots
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.peaks: dict[str, int] = {}

    def __enter__(self) -> PeakWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        own = os.getpid()
        while not self._done.is_set():
            for pid in tree(self._roots()):
                if pid != own and (peak := peak_bytes(pid)):
                    name = command_name(pid)
                    self.peaks[name] = max(peak, self.peaks.get(name, 0))
            time.sleep(SAMPLE_SECONDS)


def _stat(pid: int) -> list[str]:
    """The fields after the name: state, parent, … ; empty when the process is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [] if fields[0] == "Z" else fields
