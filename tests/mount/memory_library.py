"""A library made in memory: names and bytes with the shapes the mount asks for, and switches to hold or fail them."""

from __future__ import annotations

import asyncio
import stat
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

from collective.core.errors import CollectiveError, NotFound, Refused
from collective.core.layout import CHUNK_SIZE_BYTES, INLINE_LIMIT_BYTES, SEGMENT_BYTES, VersionLayout

ROOT_INO = 7 << 40 | 1
MTIME = 1_700_000_000_123_456_789


@dataclass(frozen=True)
class MemoryNode:
    ino: int
    mode: int
    size_bytes: int = 0
    link_count: int = 1
    uid: int = 0
    gid: int = 0
    rdev: int = 0
    mtime_ns: int = MTIME
    ctime_ns: int = MTIME
    atime_ns: int = MTIME
    symlink_target: bytes = b""

    def without_name(self) -> MemoryNode:
        return replace(self, link_count=0)


@dataclass(frozen=True)
class MemoryInline:
    data: bytes


@dataclass(frozen=True)
class MemoryReference:
    store_id: bytes
    version_id: bytes
    size_bytes: int


async def until(condition: Callable[[], object]) -> None:
    """Give others the event loop until `condition()` holds; fails after ten seconds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


def pattern_bytes(seed: int, size_bytes: int) -> bytes:
    """Bytes that differ from segment to segment and from file to file."""
    block = blake2b(seed.to_bytes(8, "big")).digest() * (SEGMENT_BYTES // 64)
    parts = []
    for index in range(-(-size_bytes // SEGMENT_BYTES)):
        parts.append(index.to_bytes(8, "big") + block[8:])
    return b"".join(parts)[:size_bytes]


class MemoryNames:
    """Directories, files and links; `seal` makes a directory one whose key has not arrived."""

    def __init__(self) -> None:
        self._nodes: dict[int, MemoryNode] = {ROOT_INO: MemoryNode(ROOT_INO, stat.S_IFDIR | 0o755, link_count=2)}
        self._children: dict[int, dict[bytes, int]] = {ROOT_INO: {}}
        self._contents: dict[int, MemoryInline | MemoryReference] = {}
        self._sealed: set[int] = set()
        self._counter = 1
        self.bytes_of: dict[bytes, bytes] = {}
        self.broken: Exception | None = None

    # what the mount asks

    def root(self) -> MemoryNode:
        return self._nodes[ROOT_INO]

    def get(self, ino: int) -> MemoryNode:
        if self.broken is not None:
            raise self.broken
        try:
            return self._nodes[ino]
        except KeyError:
            raise NotFound(f"no inode {ino}") from None

    def lookup(self, parent_ino: int, name: bytes) -> MemoryNode:
        self._check_readable(parent_ino)
        try:
            return self.get(self._children[parent_ino][name])
        except KeyError:
            raise NotFound(f"no {name!r}") from None

    def list(self, ino: int, after: bytes = b"", limit: int = 1000) -> Sequence[tuple[bytes, MemoryNode]]:
        self._check_readable(ino)
        names = sorted(self._children[ino])
        start = bisect_right(names, after) if after else 0
        return [(name, self._nodes[self._children[ino][name]]) for name in names[start : start + limit]]

    def content(self, node: MemoryNode) -> MemoryInline | MemoryReference:
        return self._contents[node.ino]

    def xattrs(self, ino: int) -> dict[bytes, bytes]:
        self.get(ino)
        return {}

    def change_counter(self) -> int:
        return self._counter

    # what tests do

    def make_directory(self, name: bytes, parent: int = ROOT_INO) -> int:
        return self._add(name, parent, MemoryNode(self._next_ino(), stat.S_IFDIR | 0o755, link_count=2))

    def make_link(self, name: bytes, target: bytes, parent: int = ROOT_INO) -> int:
        node = MemoryNode(self._next_ino(), stat.S_IFLNK | 0o777, len(target), symlink_target=target)
        return self._add(name, parent, node)

    def make_file(self, name: bytes, data: bytes, parent: int = ROOT_INO) -> int:
        node = MemoryNode(self._next_ino(), stat.S_IFREG | 0o644, len(data))
        self._set_content(node.ino, data, version=1)
        return self._add(name, parent, node)

    def replace_content(self, ino: int, data: bytes, version: int) -> None:
        self._set_content(ino, data, version)
        node = self._nodes[ino]
        self._nodes[ino] = replace(node, size_bytes=len(data), mtime_ns=node.mtime_ns + version)
        self._counter += 1

    def remove(self, name: bytes, parent: int = ROOT_INO) -> None:
        del self._nodes[self._children[parent].pop(name)]
        self._counter += 1

    def seal(self, ino: int) -> None:
        self._sealed.add(ino)
        self._counter += 1

    def _set_content(self, ino: int, data: bytes, version: int) -> None:
        if len(data) <= INLINE_LIMIT_BYTES:
            self._contents[ino] = MemoryInline(data)
            return
        version_id = ino.to_bytes(8, "big") + version.to_bytes(8, "big")
        self.bytes_of[version_id] = data
        self._contents[ino] = MemoryReference(b"store", version_id, len(data))

    def _add(self, name: bytes, parent: int, node: MemoryNode) -> int:
        self._nodes[node.ino] = node
        self._children[parent][name] = node.ino
        if stat.S_ISDIR(node.mode):
            self._children[node.ino] = {}
        self._counter += 1
        return node.ino

    def _next_ino(self) -> int:
        return max(self._nodes) + 1

    def _check_readable(self, ino: int) -> None:
        if self.broken is not None:
            raise self.broken
        if ino in self._sealed:
            raise Refused("the key has not arrived")


class MemorySources:
    """Opens sources over `names.bytes_of`; `hold` keeps fills waiting, `failure` is raised by them."""

    def __init__(self, names: MemoryNames, *, chunk_size_bytes: int = CHUNK_SIZE_BYTES) -> None:
        self._names = names
        self._chunk_size_bytes = chunk_size_bytes
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure: Exception | None = None
        self.fills: list[tuple[int, int, int]] = []  # chunk index, first segment, count
        self.filled_bytes = 0
        self.latency_seconds = 0.0
        self.opened = self.closed = 0

    async def open(self, reference: MemoryReference) -> MemorySource:
        self.opened += 1
        data = self._names.bytes_of[reference.version_id]
        return MemorySource(self, data, VersionLayout(len(data), self._chunk_size_bytes))

    def begin(self, chunk_index: int, first_segment: int, segment_count: int) -> None:
        self.fills.append((chunk_index, first_segment, segment_count))


class MemorySource:
    def __init__(self, sources: MemorySources, data: bytes, layout: VersionLayout) -> None:
        self._sources = sources
        self._data = memoryview(data)
        self.layout = layout

    async def fill(self, chunk_index: int, first_segment: int, segment_count: int, out: memoryview) -> None:
        self._sources.begin(chunk_index, first_segment, segment_count)
        await self._sources.gate.wait()
        if self._sources.latency_seconds:
            await asyncio.sleep(self._sources.latency_seconds)
        if self._sources.failure is not None:
            raise self._sources.failure
        start = chunk_index * self.layout.chunk_size_bytes + first_segment * SEGMENT_BYTES
        end = min(start + segment_count * SEGMENT_BYTES, (chunk_index + 1) * self.layout.chunk_size_bytes)
        piece = self._data[start:end]
        if len(piece) != len(out):
            raise CollectiveError(f"asked to fill {len(out)} bytes with {len(piece)}")
        out[:] = piece
        self._sources.filled_bytes += len(piece)

    async def close(self) -> None:
        self._sources.closed += 1
