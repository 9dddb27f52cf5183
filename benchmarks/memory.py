"""2 GiB through put, mount read and get between two members: hashes, speeds and each process's peak memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from os import getpid
from pathlib import Path
from typing import Any

from contenders import Collective
from measures import hash_of
from processes import PeakWatch, drop_caches

from collective.cli.demo_film import make_noise

SIZE_BYTES = 2 << 30
LIMIT_BYTES = 400_000_000


def measure_memory(folder: Path, note: Callable[[str], None]) -> dict[str, Any]:
    """Put at alice's, read through bob's mount, get at bob's; peaks in bytes by process, `under_limit` if all are."""
    source = folder / "memory-source"
    source.mkdir()
    note("making 2 GiB")
    expected = make_noise(source / "two.bin", SIZE_BYTES)
    homes = Collective(source, folder / "memory", ("two.bin",))

    def roots() -> Iterable[int]:
        return [getpid(), *(pid for pid in homes.roots().values() if pid)]

    out: dict[str, Any] = {"bytes": SIZE_BYTES}
    try:
        with PeakWatch(roots) as watch:
            note("put")
            homes.start()
            out["put_mb_per_s"] = round(SIZE_BYTES / homes.put_seconds["two.bin"] / 1e6, 1)
            note("mount read")
            root = homes.mount()
            drop_caches()
            digest, _, seconds = hash_of(root / "two.bin")
            out["mount_sha256_equal"] = digest == expected
            out["mount_mb_per_s_with_hashing"] = round(SIZE_BYTES / seconds / 1e6, 1)
            note("get")
            drop_caches()
            got = homes.bob.ask("get", "/media/bench/two.bin", str(folder / "two.got"), timeout_seconds=3600)
            out["get_mb_per_s"] = got["mb_per_s"]
            out["get_sha256_equal"] = hash_of(folder / "two.got")[0] == expected
            (folder / "two.got").unlink()
    finally:
        homes.stop()
    out["peak_bytes"] = dict(sorted(watch.peaks.items()))
    out["under_limit"] = all(peak < LIMIT_BYTES for peak in watch.peaks.values())
    return out
