"""One tree out of many: where DataStores stand in the joined tree, and the folders that lead to them.

DataStores are taken in the order of who was first (Lamport stamp of the definition, then roster order). One owner's
nested DataStore stands inside the outer one, hiding nothing. Another owner's with an equal path, or inside another's
path, shows beside it with its suffix: `/media/movies@bob.media.collective`. Folders that only lead somewhere are
synthetic: their numbers have prefix 0 and come from their path, so they are the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from blake3 import blake3

from collective.catalog.models import DataStore
from collective.catalog.permissions import path_covers

__all__ = ["NUMBER_BITS", "ROOT_INO", "Joined", "join"]

NUMBER_BITS = 40
ROOT_INO = 1
_SYNTHETIC_BIT = 1 << (NUMBER_BITS - 1)


@dataclass
class Joined:
    """`children`: folder ino -> name -> ino, for synthetic folders and for what stands inside real ones.

    `roots`: ino of a DataStore's root -> the DataStore. `synthetic`: inos of folders that only lead somewhere.
    """

    children: dict[int, dict[bytes, int]] = field(default_factory=dict)
    roots: dict[int, DataStore] = field(default_factory=dict)
    synthetic: set[int] = field(default_factory=set)
    shown: dict[bytes, bytes] = field(default_factory=dict)  # store feed id -> path as shown


def root_ino(store: DataStore) -> int:
    """The number of a DataStore's root directory."""
    return store.inode_prefix << NUMBER_BITS | 1


def _synthetic_ino(path: bytes) -> int:
    digest = int.from_bytes(blake3(b"collective folder\0" + path).digest(8), "big")
    return _SYNTHETIC_BIT | digest % _SYNTHETIC_BIT


def join(stores: Sequence[DataStore], walk: Callable[[DataStore, Sequence[bytes]], tuple[int, int]]) -> Joined:
    """Lay the DataStores, sorted by who was first, into one tree.

    `walk(store, names)` tells how many of the names exist as directories inside a DataStore, and the ino of the last.
    """
    joined = Joined(synthetic={ROOT_INO})
    placed: list[DataStore] = []
    for store in stores:
        enclosing = [other for other in placed if path_covers(other.path, store.path)]
        foreign = any(other.owner != store.owner for other in enclosing)
        path = store.path + b"@" + store.owner.encode() if foreign else store.path
        joined.shown[store.feed_id] = path
        placed.append(store)
    # outer ones first, so that inner ones find them
    for store in sorted(placed, key=lambda one: len(joined.shown[one.feed_id])):
        _attach(joined, placed, store, walk)
    return joined


def _attach(
    joined: Joined,
    placed: Sequence[DataStore],
    store: DataStore,
    walk: Callable[[DataStore, Sequence[bytes]], tuple[int, int]],
) -> None:
    shown = joined.shown[store.feed_id]
    outer = [
        other
        for other in placed
        if other.feed_id != store.feed_id
        and joined.shown[other.feed_id] != shown
        and path_covers(joined.shown[other.feed_id], shown)
        and root_ino(other) in joined.roots
    ]
    if outer:
        nearest = max(outer, key=lambda other: len(joined.shown[other.feed_id]))
        base = joined.shown[nearest.feed_id]
        names = shown[len(base) :].strip(b"/").split(b"/")
        depth, parent = walk(nearest, names[:-1])
    else:
        base, parent, depth = b"", ROOT_INO, 0
        names = shown.strip(b"/").split(b"/")
    for index in range(depth, len(names) - 1):
        ino = _synthetic_ino(base + b"/" + b"/".join(names[: index + 1]))
        parent = joined.children.setdefault(parent, {}).setdefault(names[index], ino)
        if parent == ino:
            joined.synthetic.add(ino)
    joined.children.setdefault(parent, {})[names[-1]] = root_ino(store)
    joined.roots[root_ino(store)] = store
