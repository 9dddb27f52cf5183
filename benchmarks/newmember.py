"""A new member on real processes: it follows a large DataStore, by entries and by a snapshot, while its mount plays.

    PYTHONPATH=$PWD/src:$PWD/tests python benchmarks/newmember.py
        [--rows 1000000] [--only entries|snapshot] [--folder DIR]

alice has a film and a DataStore of `rows` files with inline contents. A fresh member starts, mounts as soon as the film
shows, and plays it at 10 MB/s from alice while it follows the large DataStore. Told for each way: rows a second and CPU
seconds of the member's coordinator, from its start to the last row; the player's reads; the waits for a change that a
command asks of the member meanwhile; each process's longest hold of its loop; lookups and pages of listings during
and after.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path

from follower import FOLDER_FILES, write_all
from processes import cpu_seconds, tree
from support.homes import Federation, Home, wait_for

from collective.admission import open_household
from collective.catalog import Reader
from collective.cli.demo_film import make_noise
from collective.core.errors import NotFound, Refused
from collective.daemon.control import open_control
from collective.daemon.home import Home as HomeFolder
from collective.daemon.runtime import SystemClock
from collective.identity import load_certificate
from collective.wire import control_pb2, feed_pb2

FILM_BYTES = 256 << 20
PLAYED_BYTES_PER_SECOND = 10_000_000
READ_BYTES = 1 << 20
FOLLOW_SECONDS = 3600.0
CHANGE_SECONDS = 3.0  # between two changes asked meanwhile
AFTER_SECONDS = 20  # of lookups, once all rows are there
PROCESSES = multiprocessing.get_context("spawn")  # what measures shares no interpreter with what else measures
Times = list[float]


# ---------------------------------------------------------------- what goes on meanwhile, each in a process of its own
# (the first thing put into `out` says that it has begun)


def play(film: str, stop: Event, out: Queue[Times]) -> None:
    """Read a film again and again at its own pace, dropping the kernel's pages; seconds of each read."""
    times: Times = []
    descriptor = os.open(film, os.O_RDONLY)
    out.put([])
    due, at = time.monotonic(), 0
    while not stop.is_set():
        began = time.monotonic()
        count = len(os.pread(descriptor, READ_BYTES, at))
        times.append(time.monotonic() - began)
        at += count
        if at >= FILM_BYTES:
            at = 0
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        due = max(due + READ_BYTES / PLAYED_BYTES_PER_SECOND, began)  # a player that was late does not hurry
        time.sleep(max(0.0, due - time.monotonic()))
    out.put(times)


def look(database: str, own_domain: str, rows: int, stop: Event, out: Queue[tuple[Times, Times]]) -> None:
    """Lookups by path and pages of 100 names in random folders, as far as they are there; seconds of each."""
    rng, reader = random.Random(1), Reader.open(Path(database), own_domain)
    lookups: Times = []
    pages: Times = []
    out.put(([], []))
    while not stop.is_set():
        folder, file = rng.randrange(rows // FOLDER_FILES), rng.randrange(FOLDER_FILES - 101)
        with suppress(NotFound, Refused):  # not followed so far yet
            ino = reader.resolve(b"/media/folder-%06d" % folder).ino
            began = time.perf_counter()
            reader.resolve(b"/media/folder-%06d/file-%04d.nfo" % (folder, file))
            between = time.perf_counter()
            reader.list(ino, b"file-%04d" % file, 100)
            pages.append(time.perf_counter() - between)
            lookups.append(between - began)
        time.sleep(0.01)
    reader.close()
    out.put((lookups, pages))


def change(home: str, store: str, stop: Event, out: Queue[Times]) -> None:
    """Make a folder in an own DataStore now and then, by the home's coordinator; seconds until it was committed."""
    times: Times = []

    async def ask() -> None:
        async with open_control(HomeFolder(Path(home)), SystemClock(), need_running=True) as control:
            out.put([])
            while not stop.is_set():
                request = control_pb2.CommitRequest(
                    id=feed_pb2.OperationId(writer="bench", random=os.urandom(16)),
                    make_directory=control_pb2.MakeDirectory(path=f"{store}/made-{len(times)}".encode(), mode=0o755),
                )
                began = time.monotonic()
                await control.call("Commit", request, control_pb2.CommitReply, 600.0)
                times.append(time.monotonic() - began)
                await asyncio.sleep(CHANGE_SECONDS)

    asyncio.run(ask())
    out.put(times)


@contextmanager
def meanwhile(work: Callable[..., None], *arguments: object) -> Iterator[list[object]]:
    """Run this in a process of its own for as long as the context lasts; what it measured is in the list afterwards."""
    stop, out = PROCESSES.Event(), PROCESSES.Queue()
    process = PROCESSES.Process(target=work, args=(*arguments, stop, out))
    process.start()
    out.get(timeout=60)  # it has begun
    measured: list[object] = []
    try:
        yield measured
    finally:
        stop.set()
        measured.append(out.get(timeout=700))
        process.join()


# ---------------------------------------------------------------- the homes


def seed(home: Home, rows: int) -> None:
    """Write the large DataStore's feed into a home that does not run, by the catalogue itself."""
    folder = HomeFolder(home.path)
    with folder.locked():
        household, root = open_household(folder.identity), load_certificate(folder.identity / "root-ca.crt")
        catalog = folder.catalog_opener(SystemClock())(household, root)
        store = next(store for store in catalog.datastores() if store.path == b"/media")
        write_all(catalog, store.feed_id, rows)
        catalog.close()


def snapshots_after(home: Home, entries: int) -> None:
    path = home.path / "config.json"
    document = json.loads(path.read_text())
    document.setdefault("coordinator", {})["snapshot_entries"] = entries
    path.write_text(json.dumps(document))


def has_all(home: Home, rows: int) -> bool:
    """Whether the last file's name is there."""
    reader = Reader.open(home.path / "catalog.db", f"{home.name}.media.collective")
    try:
        last = rows - 1
        reader.resolve(b"/media/folder-%06d/file-%04d.nfo" % (last // FOLDER_FILES, last % FOLDER_FILES))
    except (NotFound, Refused):
        return False
    finally:
        reader.close()
    return True


def held(home: Home) -> str:
    """The longest hold of each process's loop, and how many were over the bound."""
    document = home.status()
    loops = [("coordinator", document["loop"])]
    loops += [(node["address"].partition("@")[0], node["loop"]) for node in document["nodes"]]
    loops += [("mount", mount["loop"]) for mount in document["mounts"]]
    return ", ".join(
        f"{name} {loop['longest_ms']:.0f} ms ({loop['over_bound']} over {loop['bound_ms']:.0f})" for name, loop in loops
    )


def spread(times: Times) -> str:
    """Median, 99 % and the longest, in milliseconds."""
    if not times:
        return "nothing measured"
    ordered = sorted(times)
    worst = ordered[len(ordered) * 99 // 100]
    return (
        f"median {statistics.median(ordered) * 1000:.2f} ms, 99 % under {worst * 1000:.2f} ms,"
        f" longest {ordered[-1] * 1000:.1f} ms, of {len(ordered)}"
    )


def follow(federation: Federation, name: str, rows: int, way: str) -> None:
    """One new member, from its mount to the last row."""
    member = federation.join(name)
    began = time.monotonic()
    member.start()
    member.ok("datastore", "create", f"/own-{name}", "--replicas", "1")
    mountpoint = member.path / "library"
    mountpoint.mkdir()
    member.ok("mount", mountpoint, "--vfs-cache-max-size", "64MiB")
    film = mountpoint / "films" / "film.bin"
    wait_for(lambda: os.access(film, os.R_OK), "the film to show")  # its folder's key comes after its name
    assert member.coordinator is not None
    pids = tree([member.coordinator.pid])
    domain = f"{name}.media.collective"
    with (
        meanwhile(play, str(film)) as played,
        meanwhile(look, str(member.path / "catalog.db"), domain, rows) as looked,
        meanwhile(change, str(member.path), f"/own-{name}") as changed,
    ):
        wait_for(lambda: has_all(member, rows), "the last row", FOLLOW_SECONDS)
        seconds, cpu = time.monotonic() - began, cpu_seconds(pids)
    print(
        f"\n{way}: {rows:,} rows in {seconds:.1f} s, {rows / seconds:,.0f} rows/s;"
        f" the member's coordinator and node {cpu:.1f} CPU-s, {rows / cpu:,.0f} rows per CPU second"
    )
    print(f"  the film's reads       {spread(played[0])}")
    print(f"  changes asked          {spread(changed[0])}")
    print(f"  loops of {name:13} {held(member)}")
    print(f"  loops of alice         {held(federation.homes['alice'])}")
    print(f"  lookups during         {spread(looked[0][0])}\n  pages of 100 during    {spread(looked[0][1])}")
    with meanwhile(look, str(member.path / "catalog.db"), domain, rows) as after:
        time.sleep(AFTER_SECONDS)
    print(f"  lookups after          {spread(after[0][0])}\n  pages of 100 after     {spread(after[0][1])}", flush=True)
    member.ok("umount", mountpoint)
    member.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--only", choices=["entries", "snapshot"])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--keep", action="store_true", help="leave the homes behind, for their logs")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="newmember-", dir=options.folder))
    federation = Federation(folder)
    try:
        alice = federation.found("alice")
        snapshots_after(alice, 1 << 30)
        alice.start()
        for path in ("/films", "/media"):
            alice.ok("datastore", "create", path, "--replicas", "1")
            alice.ok("datastore", "grant", path, "read", "*@*.collective")
        make_noise(folder / "film.bin", FILM_BYTES)
        alice.ok("put", folder / "film.bin", "/films/film.bin")
        alice.stop()
        began = time.monotonic()
        seed(alice, options.rows)
        print(f"seeded {options.rows:,} rows in {time.monotonic() - began:.0f} s, in {folder}", flush=True)
        if options.only != "snapshot":
            alice.start()
            follow(federation, "bob", options.rows, "by entries")
            alice.stop()
        if options.only != "entries":
            snapshots_after(alice, 10)
            alice.start()
            log = alice.path / "coordinator.log"
            wait_for(lambda: '"event": "snapshot.made"' in log.read_text(), "a snapshot", FOLLOW_SECONDS)
            print(f"alice folded; her loops: {held(alice)}", flush=True)
            follow(federation, "carol", options.rows, "by a snapshot")
    finally:
        federation.close()
        if not options.keep:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
