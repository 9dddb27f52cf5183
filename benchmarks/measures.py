"""What is measured of one contender's fresh mount, once; and the source files for it."""

from __future__ import annotations

import hashlib
import os
import random
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from contenders import Contender
from processes import cpu_seconds, drop_caches, own_cpu_seconds, tree

from collective.cli.demo_film import make_noise
from collective.cli.demo_mount import timed_read

BIG_BYTES = 1 << 30
FIRST_FILES, FIRST_BYTES = 20, 8 << 20
LIST_FOLDERS, LIST_FILES = 100, 100
RANDOM_READS, RANDOM_BYTES = 400, 64 << 10
SMALL_FOLDERS, SMALL_FILES, SMALL_BYTES = 100, 100, 4096


@dataclass(frozen=True)
class Cost:
    """CPU seconds by role while something was measured; `reader` is the measuring process."""

    seconds: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


class CostMeter:
    """Counts CPU seconds of everything involved between its making and `stop`."""

    def __init__(self, contender: Contender) -> None:
        self._contender = contender
        self._before = self._now()

    def stop(self) -> Cost:
        after = self._now()
        return Cost({role: round(after[role] - self._before.get(role, 0.0), 3) for role in after})

    def _now(self) -> dict[str, float]:
        spent = {role: cpu_seconds(tree([pid])) for role, pid in self._contender.roots().items()}
        return spent | {"reader": own_cpu_seconds()}


def make_source(part: str, folder: Path, big_bytes: int) -> None:
    """Make the files of one part below `folder`; contents are random, so nothing compresses or repeats."""
    if part == "big.bin":
        make_noise(folder / part, big_bytes)
    elif part == "first":
        (folder / part).mkdir()
        for number in range(FIRST_FILES):
            make_noise(folder / part / f"{number:02}.bin", FIRST_BYTES)
    elif part == "list":
        for number in range(LIST_FOLDERS):
            inner = folder / part / f"Season {number:03}"
            inner.mkdir(parents=True)
            for episode in range(LIST_FILES):
                (inner / f"Episode {episode:03}.nfo").write_bytes(os.urandom(200))
    else:
        raise ValueError(part)


def read_once(contender: Contender, root: Path) -> dict[str, object]:
    """One cold sequential read in 1 MiB steps, from the open to the end."""
    meter = CostMeter(contender)
    count, seconds = timed_read(root / "big.bin")
    cost = meter.stop()
    return {
        "mb_per_s": round(count / seconds / 1e6, 1),
        "cpu_seconds_per_gb": round(cost.total / (count / 1e9), 2),
        "cpu_by_role": cost.seconds,
    }


def random_once(contender: Contender, root: Path, seed: int) -> dict[str, object]:
    """Cold reads of 64 KiB at random places of the large file, one after the other; every contender gets the same."""
    path = root / "big.bin"
    places = random.Random(seed)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        slots = os.fstat(descriptor).st_size // RANDOM_BYTES
        meter = CostMeter(contender)
        took = []
        for _ in range(RANDOM_READS):
            offset = places.randrange(slots) * RANDOM_BYTES
            began = time.perf_counter()
            block = os.pread(descriptor, RANDOM_BYTES, offset)
            took.append(time.perf_counter() - began)
            if len(block) != RANDOM_BYTES:
                raise SystemExit(f"{contender.name} gave {len(block)} bytes at {offset}")
        cost = meter.stop()
    finally:
        os.close(descriptor)
    took.sort()
    return {
        "reads_per_s": round(len(took) / sum(took), 1),
        "median_ms": round(statistics.median(took) * 1000, 3),
        "p99_ms": round(took[int(len(took) * 0.99)] * 1000, 3),
        "cpu_ms_per_read": round(cost.total * 1000 / len(took), 3),
    }


def list_once(contender: Contender, root: Path) -> dict[str, object]:
    """`ls -lR` of 10,000 files, cold, and once more."""
    meter = CostMeter(contender)
    cold, lines = _ls(root / "list")
    cost = meter.stop()
    warm, _ = _ls(root / "list")
    if lines < LIST_FOLDERS * LIST_FILES:
        raise SystemExit(f"{contender.name} listed only {lines} lines")
    return {"cold_seconds": round(cold, 3), "again_seconds": round(warm, 3), "cpu_seconds": round(cost.total, 2)}


def _ls(folder: Path) -> tuple[float, int]:
    began = time.perf_counter()
    done = subprocess.run(["ls", "-lR", str(folder)], capture_output=True, check=True, env={"LC_ALL": "C"})
    return time.perf_counter() - began, done.stdout.count(b".nfo")


def first_byte_once(contender: Contender, root: Path) -> dict[str, object]:
    """Open a file nobody opened before and read its first 4 KiB; then one read in its middle."""
    first, middle = [], []
    for number in range(FIRST_FILES):
        began = time.perf_counter()
        with (root / "first" / f"{number:02}.bin").open("rb", buffering=0) as file:
            file.read(4096)
            first.append(time.perf_counter() - began)
            began = time.perf_counter()
            os.pread(file.fileno(), 4096, FIRST_BYTES // 2)
            middle.append(time.perf_counter() - began)
    return {
        "first_ms": round(first[0] * 1000, 2),
        "median_ms": round(statistics.median(first) * 1000, 2),
        "max_ms": round(max(first) * 1000, 2),
        "seek_median_ms": round(statistics.median(middle) * 1000, 2),
    }


def hash_of(path: Path) -> tuple[str, int, float]:
    """SHA-256, bytes and seconds of reading a file once."""
    began = time.monotonic()
    digest = hashlib.sha256()
    count = 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(1 << 20):
            digest.update(block)
            count += len(block)
    return digest.hexdigest(), count, time.monotonic() - began


def small_once(contender: Contender, root: Path, number: int) -> dict[str, object]:
    """Create 10,000 files of 4 KiB in 100 folders, list them with their attributes, read them; each from fresh
    kernel caches for the reading (dropped between), nothing waited for but what the calls themselves wait for."""
    top = root / f"small-{number}"
    content = os.urandom(SMALL_BYTES)
    meter = CostMeter(contender)
    began = time.perf_counter()
    top.mkdir()
    for folder in range(SMALL_FOLDERS):
        inner = top / f"{folder:03}"
        inner.mkdir()
        for file in range(SMALL_FILES):
            with (inner / f"{file:03}").open("xb", buffering=0) as out:
                out.write(content)
    created = time.perf_counter() - began
    cost = meter.stop()
    drop_caches()
    began = time.perf_counter()
    found = sum(os.lstat(os.path.join(path, name)).st_size for path, _, names in os.walk(top) for name in names)
    listed = time.perf_counter() - began
    if found != SMALL_FOLDERS * SMALL_FILES * SMALL_BYTES:
        raise SystemExit(f"{contender.name} lists {found} bytes")
    drop_caches()
    began = time.perf_counter()
    for path, _, names in os.walk(top):
        for name in names:
            with open(os.path.join(path, name), "rb", buffering=0) as file:
                if file.read(SMALL_BYTES + 1) != content:
                    raise SystemExit(f"{contender.name} gives other bytes than were written")
    read = time.perf_counter() - began
    return {
        "create_seconds": round(created, 3),
        "list_seconds": round(listed, 3),
        "read_seconds": round(read, 3),
        "create_cpu_seconds": round(cost.total, 2),
        "cpu_by_role": cost.seconds,
    }


def write_once(contender: Contender, root: Path, number: int, size_bytes: int) -> dict[str, object]:
    """Write one file of `size_bytes` in 1 MiB steps and fsync it: from the open until fsync returned."""
    block = os.urandom(1 << 20)
    meter = CostMeter(contender)
    began = time.perf_counter()
    with (root / f"big-{number}").open("xb", buffering=0) as out:
        for step in range(size_bytes // len(block)):
            out.write(step.to_bytes(8, "big") + block[8:])
        written = time.perf_counter() - began
        os.fsync(out.fileno())
        took = time.perf_counter() - began
    cost = meter.stop()
    return {
        "mb_per_s": round(size_bytes / took / 1e6, 1),
        "before_fsync_mb_per_s": round(size_bytes / written / 1e6, 1),
        "cpu_seconds_per_gb": round(cost.total / (size_bytes / 1e9), 2),
        "cpu_by_role": cost.seconds,
    }
