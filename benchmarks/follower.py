"""A new follower of a large DataStore: rows a second by entries and by a snapshot, then lookups and listings there.

    PYTHONPATH=$PWD/src:$PWD/tests python benchmarks/follower.py [--rows 1000000] [--folder DIR]

One process, real keys, signatures and databases; the network is left out. A row is a file with inline content in a
folder of 1,000: an inode, a name and an absorbed id.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import stat
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from support.catalogs import TestFederation

from collective.catalog import Catalog, Offer
from collective.wire import feed_pb2

FOLDER_FILES = 1000
OPERATIONS = 1000
SAMPLES = 2000


def operations(rows: int, writer: str) -> Iterator[feed_pb2.TreeOperation]:
    """Folders of files, ids random, everything as a mount would have it."""
    number = parent = 1
    made = 0
    while made < rows:
        number += 1
        parent = number
        yield _create(writer, 1, b"folder-%06d" % (made // FOLDER_FILES), number, stat.S_IFDIR | 0o755)
        for index in range(min(FOLDER_FILES, rows - made)):
            number += 1
            yield _create(writer, parent, b"file-%04d.nfo" % index, number, stat.S_IFREG | 0o644, b"inline")
            made += 1


def _create(writer: str, parent: int, name: bytes, number: int, mode: int, data: bytes = b"") -> feed_pb2.TreeOperation:
    return feed_pb2.TreeOperation(
        id=feed_pb2.OperationId(writer=writer, random=os.urandom(16)),
        actor=f"client@{writer}",
        create=feed_pb2.Create(
            parent=parent, name=name, inode=number, mode=mode,
            content=feed_pb2.Content(size_bytes=len(data), inline=data) if data else None,
        ),
    )  # fmt: skip


def timed(what: str, rows: int, work: Callable[[], object]) -> None:
    began, began_cpu = time.perf_counter(), time.process_time()
    work()
    seconds, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    print(
        f"{what:44} {seconds:8.1f} s {rows / seconds:10,.0f} rows/s"
        f"   CPU {cpu:7.1f} s {rows / max(cpu, 1e-9):10,.0f} rows/s", flush=True,
    )  # fmt: skip


def write_all(owner: Catalog, store: bytes, rows: int) -> None:
    batch: list[feed_pb2.TreeOperation] = []
    for operation in operations(rows, owner.own_domain):
        batch.append(operation)
        if len(batch) == OPERATIONS:
            owner.append_store(store, operations=batch)
            batch = []
    if batch:
        owner.append_store(store, operations=batch)


def pull(owner: Catalog, follower: Catalog, store: bytes) -> None:
    while entries := owner.entries_beyond(store, follower.heads().get(store)):
        for entry in entries:
            follower.receive(entry)


def sample(follower: Catalog, store: bytes, rows: int) -> None:
    """Milliseconds of a lookup by path and of a page of 100 names, warm, each of a random folder."""
    rng = random.Random(1)
    folders = rows // FOLDER_FILES
    for what, ask in (
        ("lookup by path", lambda folder, file: follower.resolve(b"/media/folder-%06d/file-%04d.nfo" % (folder, file))),
        ("page of 100 names", lambda folder, file: follower.list(
            follower.resolve(b"/media/folder-%06d" % folder).ino, b"file-%04d" % file, 100)),
    ):  # fmt: skip
        times = []
        for _ in range(SAMPLES):
            folder, file = rng.randrange(folders), rng.randrange(FOLDER_FILES - 101)
            began = time.perf_counter()
            ask(folder, file)
            times.append((time.perf_counter() - began) * 1000)
        times.sort()
        print(f"{what:44} median {statistics.median(times):.3f} ms, 99 % under {times[len(times) * 99 // 100]:.3f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="follower-", dir=arguments.folder))
    try:
        federation = TestFederation(folder)
        alice, bob, carol = (federation.add(name) for name in ("alice", "bob", "carol"))
        alice.create_datastore(b"/media", 0, 0, {})
        alice.grant(b"/media", [feed_pb2.READ], "*@*.collective")
        federation.exchange("alice", "bob", "carol")
        store = alice.datastores()[0].feed_id
        rows = arguments.rows
        timed("the owner appends", rows, lambda: write_all(alice, store, rows))
        timed("a follower by entries", rows, lambda: pull(alice, bob, store))
        timed("the owner folds a snapshot", rows, lambda: alice.fold(store))
        base = alice.heads()[store].seq
        for sealed in (False, True):
            timed(
                f"a follower keeps its blocks ({'sealed' if sealed else 'public'})", rows,
                lambda sealed=sealed: carol.keep_blocks(
                    store, base, alice.snapshot_blocks(store, base, sealed=sealed), sealed=sealed
                ),
            )  # fmt: skip
        empty = feed_pb2.Layout()
        offer = Offer(store, alice.own_domain, base, empty, empty, b"")
        timed("a follower starts from it", rows, lambda: list(carol.start_from(offer, with_sealed=True)))
        sample(bob, store, rows)
        sample(carol, store, rows)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{'peak memory of all three in one process':44} {peak:8.0f} MiB")
        for name in ("alice", "bob", "carol"):
            size = (federation.folder(name) / "catalog.db").stat().st_size
            print(f"{'database of ' + name:44} {size / 1e6:8.0f} MB")
        federation.close()
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
