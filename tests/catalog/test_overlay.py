"""The law of overlays: what an overlay shows of operations is what their entry makes of the tree."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.catalogs import TestFederation, operation_id
from support.operations import likely_operation

from collective.catalog import Catalog, DataStore, Node
from collective.catalog.overlay import Overlay, located
from collective.core.errors import NotFound
from collective.wire import feed_pb2

SLOW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def sensible_operation(
    rng: random.Random, view: Catalog | Overlay, store: DataStore, time_ns: int
) -> feed_pb2.TreeOperation:
    """Half of the time one that names what really stands where."""
    operation = likely_operation(rng, time_ns)
    change = operation.WhichOneof("change")
    if change in ("unlink", "rename") and rng.random() < 0.8:
        standing = [(parent, name, node) for parent, name, node in walk(view, store)]
        if not standing:
            return operation
        parent, name, node = rng.choice(standing)
        if change == "unlink":
            operation.unlink.CopyFrom(feed_pb2.Unlink(parent=parent, name=name, inode=node.number))
        else:
            rename = operation.rename
            rename.inode, rename.from_parent, rename.from_name = node.number, parent, name
            target = [
                other.number for at, called, other in standing if (at, called) == (rename.to_parent, rename.to_name)
            ]
            if target and rng.random() < 0.8:
                rename.replaced_inode = target[0]
    return operation


def walk(view: Catalog | Overlay, store: DataStore) -> Iterator[tuple[int, bytes, Node]]:
    """(number of the folder, name, node) of everything below a DataStore's root."""
    waiting = [1]
    while waiting:
        parent = waiting.pop()
        after, limit = b"", 2
        while page := view.list(located(store, parent), after, limit):
            after = page[-1][0]
            for name, node in page:
                yield parent, name, node
                if node.is_directory:
                    waiting.append(node.number)
            if len(page) < limit:
                break


def shown(view: Catalog | Overlay, store: DataStore) -> list[object]:
    """Everything that a view tells of a DataStore."""
    told: list[object] = [view.get(located(store, 1)), dict(view.xattrs(located(store, 1)))]
    for parent, name, node in sorted(walk(view, store), key=lambda one: one[:2]):
        assert view.lookup(located(store, parent), name) == node == view.get(node.ino)
        content = view.content(node) if node.mode & 0o170000 == 0o100000 else None
        told.append((parent, name, node, content, dict(view.xattrs(node.ino))))
    return told


@SLOW
@given(seed=st.integers(0, 2**32))
def test_an_overlay_shows_what_the_entry_will_make(seed: int) -> None:
    """Random operations through an overlay and into the feed: every node, link, xattr, listing and refusal is equal.

    Some of the operations were applied before the overlay began; when all is settled the overlay is empty again.
    """
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        federation = TestFederation(Path(folder))
        alice = federation.add("alice")
        store = alice.create_datastore(b"/media", 0, 0, {})
        now_ns = int(federation.clock.wall() * 1000) * 1_000_000
        for _ in range(rng.randint(0, 2)):
            alice.append_store(
                store.feed_id,
                operations=[sensible_operation(rng, alice, store, now_ns) for _ in range(rng.randint(0, 20))],
            )
        overlay, operations, reasons = Overlay(alice), [], {}
        for seq in range(rng.randint(1, 40)):
            operation = sensible_operation(rng, overlay, store, now_ns + seq)
            operations.append(operation)
            reason = overlay.apply(seq, store, operation, now_ns)
            if reason:
                reasons[seq] = reason
        before = shown(overlay, store)
        position = alice.append_store(store.feed_id, operations=operations)
        refused = alice._all("SELECT number, reason FROM refused_operations WHERE seq = ? AND feed <> 0", position.seq)
        mine = {number: reason for number, reason in refused if number in reasons or number < len(operations)}
        assert mine == reasons
        assert shown(alice, store) == before
        overlay.settle(range(len(operations)))
        assert shown(overlay, store) == before
        assert len(overlay) == 0
        assert not any((overlay._nodes, overlay._names, overlay._xattrs, overlay._fresh, overlay._places))
        federation.close()


def created(number: int, name: bytes, parent: int = 1, mode: int = 0o100644) -> feed_pb2.TreeOperation:
    return feed_pb2.TreeOperation(
        id=operation_id("bob"), create=feed_pb2.Create(parent=parent, name=name, inode=number, mode=mode)
    )


def unlinked(number: int, name: bytes) -> feed_pb2.TreeOperation:
    return feed_pb2.TreeOperation(id=operation_id("bob"), unlink=feed_pb2.Unlink(parent=1, name=name, inode=number))


def test_a_folder_made_here_is_never_asked_of_the_base(federation: TestFederation) -> None:
    """Lookups and listings in a directory that the overlay made itself cost no query."""
    alice = federation.catalogs["alice"]
    store = alice.create_datastore(b"/media", 0, 0, {})
    overlay = Overlay(alice)
    assert not overlay.apply(1, store, created(2, b"folder", mode=0o040755), 5)
    assert not overlay.apply(2, store, created(3, b"file", parent=2), 5)
    alice.lookup = alice.list = alice.get = None  # type: ignore[method-assign,assignment]  # whoever asks it fails
    folder = located(store, 2)
    assert overlay.lookup(folder, b"file").number == 3
    assert [name for name, _ in overlay.list(folder)] == [b"file"]
    with pytest.raises(NotFound):
        overlay.lookup(folder, b"other")


def test_an_open_file_outlives_its_name(federation: TestFederation) -> None:
    """Kept, an inode is gettable without a name, here and when the base lost it too, until it is dropped."""
    alice = federation.catalogs["alice"]
    store = alice.create_datastore(b"/media", 0, 0, {})
    alice.append_store(store.feed_id, operations=[created(2, b"here"), created(3, b"there")])
    overlay = Overlay(alice)
    here, there = located(store, 2), located(store, 3)
    overlay.keep(here)
    overlay.keep(there)
    assert not overlay.apply(1, store, unlinked(2, b"here"), 5)
    alice.append_store(store.feed_id, operations=[unlinked(3, b"there")])
    for ino in (here, there):
        assert overlay.get(ino).link_count == 0
        overlay.content(overlay.get(ino))
        overlay.amend(ino, mode=0o100600)
        assert overlay.get(ino).mode == 0o100600
        assert overlay.xattrs(ino) == {}
        overlay.drop(ino)
        with pytest.raises(NotFound):
            overlay.get(ino)
