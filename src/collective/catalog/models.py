"""What the catalogue answers with: members, DataStores, nodes of the tree, contents."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from cryptography import x509

from collective.wire import feed_pb2

__all__ = ["DataStore", "HeldHere", "Inline", "Member", "Node", "VersionReference"]


@dataclass(frozen=True)
class Member:
    """One member of the roster; `card` and `signing_certificate` (DER) None until its feed arrived."""

    domain: str
    ca_certificate: x509.Certificate
    generation: int
    feed_id: bytes
    removed: bool
    card: feed_pb2.Card | None
    signing_certificate: bytes | None


@dataclass(frozen=True)
class DataStore:
    """One DataStore. `owner` is the member domain; `readable` whether this home holds its current key."""

    feed_id: bytes
    path: bytes
    owner: str
    strategy: int
    replicas: int
    hosts: tuple[str, ...]
    key_name: bytes
    inode_prefix: int
    metadata: Mapping[str, str]
    readable: bool
    store_number: int  # of its tree here; 0 until that is there
    lamport: int


class Node(NamedTuple):
    """A file, link or directory in the joined tree. `ino` is the same at every member; times in nanoseconds.

    `store_id` None: a folder that only leads to DataStores. `readable` False: a DataStore whose key is not here.
    (A tuple because a mount makes and changes several for every file it shows: a third of a frozen class's price.)
    """

    ino: int
    mode: int
    uid: int
    gid: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    atime_ns: int
    link_count: int
    symlink_target: bytes | None
    store_id: bytes | None
    number: int
    owner: str
    version_id: bytes | None = None
    rdev: int = 0
    readable: bool = True
    creator: str = ""  # member domain of whoever made it

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    def without_name(self) -> Node:
        """As it is when its last name is gone."""
        return self._replace(link_count=0)


class Inline(NamedTuple):
    """Content that lives in the row itself."""

    data: bytes


@dataclass(frozen=True)
class VersionReference:
    """Content that lies in chunks: what a reader needs to find and open them."""

    store_id: bytes
    version_id: bytes
    size_bytes: int
    key_pages: tuple[bytes, ...]
    key_name: bytes


@dataclass(frozen=True)
class HeldHere:
    """What this home holds of a DataStore: versions, plain bytes; `alone`: what no other member holds."""

    path: bytes
    owner: str
    versions: int
    size_bytes: int
    alone: int
    alone_bytes: int
