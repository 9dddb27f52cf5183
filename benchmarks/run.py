"""The benchmarks' one driver: Collective beside sshfs and rclone on this machine.

    python benchmarks/run.py read|random|list|first-byte|small|write|memory|all [--rounds 5] [--json] [--only NAME,…]

Contenders take turns within each round, so that a busy moment of the machine hits all of them; figures are medians
of the rounds. Before each turn the contender is mounted afresh and every cache is dropped.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

from contenders import Collective, CollectiveAtHome, Contender, Rclone, Sshfs
from measures import (
    BIG_BYTES,
    first_byte_once,
    list_once,
    make_source,
    random_once,
    read_once,
    small_once,
    write_once,
)
from memory import measure_memory
from processes import drop_caches

from collective.core.errors import CollectiveError

Rows = dict[str, list[dict[str, Any]]]

PARTS = {"read": ("big.bin",), "random": ("big.bin",), "list": ("list",), "first-byte": ("first",)}
WRITING = ("small", "write")  # into an empty folder that the contender lets us write to
NAMES = ("collective", "sshfs", "sshfs aes-gcm", "rclone off", "rclone full")
HEADLINES = {
    "read": ("mb_per_s",),
    "random": ("reads_per_s",),
    "list": ("cold_seconds",),
    "first-byte": ("median_ms",),
    "small": ("create_seconds", "list_seconds", "read_seconds"),
    "write": ("mb_per_s",),
}
LESS_IS_BETTER = {"list", "first-byte", "small"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*PARTS, *WRITING, "memory", "all"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="the last line of stdout is one JSON object")
    parser.add_argument("--only", default=",".join(NAMES), help=f"of {', '.join(NAMES)}")
    parser.add_argument("--size", type=int, default=BIG_BYTES, help="bytes of the large file (read, random)")
    parser.add_argument("--folder", type=Path, help="where to work (default: a new folder in TMPDIR)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    wanted = [*PARTS, *WRITING, "memory"] if arguments.what == "all" else [arguments.what]
    only = [name.strip() for name in arguments.only.split(",")]
    if unknown := set(only) - set(NAMES):
        raise SystemExit(f"unknown: {', '.join(unknown)}; there are {', '.join(NAMES)}")
    if arguments.folder is not None:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="collective-bench-", dir=arguments.folder))
    document: dict[str, Any] = {"machine": machine(), "rounds": arguments.rounds, "results": {}}
    try:
        if pages := [what for what in wanted if what in PARTS]:
            rounds(pages, only, folder, arguments.rounds, arguments.size, document["results"])
        if pages := [what for what in wanted if what in WRITING]:
            rounds(pages, only, folder, arguments.rounds, arguments.size, document["results"])
        if "memory" in wanted and "collective" in only:
            document["results"]["memory"] = measure_memory(folder, note)
    except CollectiveError as error:
        raise SystemExit(f"benchmark: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    tell(document)
    if arguments.json:
        print(json.dumps(document))


def rounds(
    wanted: list[str], only: list[str], folder: Path, count: int, big_bytes: int, results: dict[str, Any]
) -> None:
    """Start the contenders, let them take turns, fill `results`; everything is stopped whatever happens."""
    writing = wanted[0] in WRITING
    parts = tuple(sorted({part for what in wanted for part in PARTS.get(what, ())}))
    source = folder / ("written" if writing else "source")
    source.mkdir()
    for part in parts:
        note(f"making {part}")
        make_source(part, source, big_bytes)
    with ExitStack() as stack:
        if writing:
            contenders = make_writing_contenders(only, source, folder)
        else:
            contenders = make_contenders(only, source, folder, parts)
        for contender in contenders:
            note(f"starting {contender.name}")
            stack.callback(contender.stop)
            contender.start()
        for what in wanted:
            rows: Rows = {contender.name: [] for contender in contenders}
            for number in range(count):
                for contender in contenders:
                    row = turn(what, contender, number, big_bytes)
                    rows[contender.name].append(row)
                    note(f"{what} {number + 1}/{count} {contender.name}: {row}")
            results[what] = summary(what, rows)
        for contender in contenders:
            if isinstance(contender, Collective):
                results["put_seconds"] = contender.put_seconds


def make_contenders(only: list[str], source: Path, folder: Path, parts: tuple[str, ...]) -> list[Contender]:
    """Those asked for, in the order of NAMES."""
    make: dict[str, Callable[[], Contender]] = {
        "collective": lambda: Collective(source, folder / "collective", parts),
        "sshfs": lambda: Sshfs(source, folder / "sshfs"),
        "sshfs aes-gcm": lambda: Sshfs(source, folder / "sshfs-aes", "sshfs aes-gcm", "aes128-gcm@openssh.com"),
        "rclone off": lambda: Rclone(source, folder / "rclone-off", "off"),
        "rclone full": lambda: Rclone(source, folder / "rclone-full", "full"),
    }
    return [make[name]() for name in NAMES if name in only]


def make_writing_contenders(only: list[str], source: Path, folder: Path) -> list[Contender]:
    """As above, each with a folder of its own that may be written to."""
    make: dict[str, Callable[[Path], Contender]] = {
        "collective": lambda own: CollectiveAtHome(own, folder / "w-collective"),
        "sshfs": lambda own: Sshfs(own, folder / "w-sshfs", writable=True),
        "sshfs aes-gcm": lambda own: Sshfs(
            own, folder / "w-sshfs-aes", "sshfs aes-gcm", "aes128-gcm@openssh.com", writable=True
        ),
        "rclone off": lambda own: Rclone(own, folder / "w-rclone-off", "off", writable=True),
        "rclone full": lambda own: Rclone(own, folder / "w-rclone-full", "full", writable=True),
    }
    made = []
    for name in NAMES:
        if name in only:
            own = source / name.replace(" ", "-")
            own.mkdir()
            made.append(make[name](own))
    return made


def turn(what: str, contender: Contender, number: int, big_bytes: int) -> dict[str, Any]:
    """One measurement on a fresh mount with nothing cached."""
    measures: dict[str, Callable[[Path], dict[str, object]]] = {
        "read": lambda root: read_once(contender, root),
        "random": lambda root: random_once(contender, root, seed=number),
        "list": lambda root: list_once(contender, root),
        "first-byte": lambda root: first_byte_once(contender, root),
        "small": lambda root: small_once(contender, root, number),
        "write": lambda root: write_once(contender, root, number, big_bytes),
    }
    root = contender.mount()
    try:
        drop_caches()
        return measures[what](root)
    finally:
        contender.unmount()


def summary(what: str, rows: Rows) -> dict[str, Any]:
    """Medians per contender, every round's figures, and the ratio to Collective in each round."""
    out: dict[str, Any] = {name: {"median": medians(found), "rounds": found} for name, found in rows.items()}
    for name in rows.keys() - {"collective"} if "collective" in rows else ():
        for key in HEADLINES[what]:
            pairs = zip(rows["collective"], rows[name], strict=True)
            ratios = [ratio(float(mine[key]), float(theirs[key]), what in LESS_IS_BETTER) for mine, theirs in pairs]
            out[name].setdefault("collective_is_times_better", {})[key] = {
                "median": round(statistics.median(ratios), 2),
                "rounds": [round(value, 2) for value in ratios],
            }
    return out


def ratio(mine: float, theirs: float, less_is_better: bool) -> float:
    """How many times better mine is."""
    above, below = (theirs, mine) if less_is_better else (mine, theirs)
    return above / below if below else 0.0


def medians(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each figure; of figures by role, the median of each role's."""
    out: dict[str, Any] = {}
    for key, first in rows[0].items():
        values = [row[key] for row in rows]
        out[key] = medians(values) if isinstance(first, dict) else round(statistics.median(values), 3)
    return out


def tell(document: dict[str, Any]) -> None:
    """The figures as tables, for people."""
    print(f"\n{document['machine']}; medians of {document['rounds']}")
    for what, found in document["results"].items():
        print(f"\n{what}")
        if what == "put_seconds" or what == "memory":
            for key, value in found.items():
                print(f"  {key}: {value}")
            continue
        for name, figures in found.items():
            plain = {key: value for key, value in figures["median"].items() if not isinstance(value, dict)}
            line = "  ".join(f"{key} {value}" for key, value in plain.items())
            better = figures.get("collective_is_times_better", {})
            times = ", ".join(f"{key} {found['median']}x" for key, found in better.items())
            print(f"  {name:14} {line}" + (f"  (collective: {times})" if times else ""))
            for key, value in figures["median"].items():
                if isinstance(value, dict):
                    print(f"  {'':14} {key}: " + ", ".join(f"{role} {spent}" for role, spent in value.items()))


def machine() -> str:
    """Cores, kernel and the versions of those compared."""
    cores = len([line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("processor")])
    versions = [_version("rclone", "version"), _version("sshfs", "--version"), _version("ssh", "-V").split(",")[0]]
    return f"{cores} cores, Linux {platform.release()}, Python {platform.python_version()}, {', '.join(versions)}"


def _version(*words: str) -> str:
    if shutil.which(words[0]) is None:
        return f"no {words[0]}"
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    lines = (done.stdout or done.stderr).splitlines()
    return next((line for line in lines if line.lower().startswith(words[0])), lines[0]).strip()


def note(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
