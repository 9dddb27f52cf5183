"""A way out of a mount that ends in a real catalogue of this process and a dictionary of contents."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence

from collective.catalog import Catalog, DataStore, VersionReference
from collective.core.errors import CollectiveError, Refused
from collective.core.layout import CHUNK_SIZE_BYTES, SEGMENT_BYTES, VersionLayout
from collective.mount.committing import GiveUp, PlainContent, SealedContent, Unsent
from collective.mount.names import Space
from collective.wire import feed_pb2, submit_pb2

Hook = Callable[[str], Awaitable[None]]


async def go_on(place: str) -> None:
    """The hook that does nothing but let others run."""
    await asyncio.sleep(0)


class MemoryCommitter:
    """A `Committer` over `catalog`, which owns all DataStores written to.

    `hook` is awaited at every point where the real one would wait (`submit`, `submitted`, `upload`, `read`, `uploaded`,
    `numbers`, `lease`); what it raises is raised there. `outcomes` collects every answer that was given.
    """

    def __init__(self, catalog: Catalog, contents: dict[bytes, bytes] | None = None, hook: Hook = go_on) -> None:
        self.catalog = catalog
        self.contents = {} if contents is None else contents
        self.hook = hook
        self.batches: list[list[submit_pb2.StagedOperation]] = []
        self.outcomes: list[submit_pb2.OperationOutcome] = []
        self.uploads: list[PlainContent] = []
        self.give_up: GiveUp | None = None
        self.upload_failure: CollectiveError | None = None
        self.submit_failure: CollectiveError | None = None
        self.never = lambda staged: False  # which operations no call may carry

    async def submit(
        self, store_id: bytes, operations: Sequence[submit_pb2.StagedOperation], *, exact: bool
    ) -> Sequence[submit_pb2.OperationOutcome]:
        await self.hook("submit")
        if self.submit_failure is not None:
            raise self.submit_failure
        if any(map(self.never, operations)):
            raise Refused("not like this")
        copies = [submit_pb2.StagedOperation.FromString(operation.SerializeToString()) for operation in operations]
        outcomes, _ = self.catalog.commit_operations(
            store_id, copies, actor_domain=self.catalog.own_domain, now=self.catalog.clock.wall(), exact=exact
        )
        self.batches.append(copies)
        self.outcomes += outcomes
        await self.hook("submitted")
        return outcomes

    async def lease_numbers(self, store_id: bytes, count: int) -> range:
        await self.hook("numbers")
        return self.catalog.take_numbers(store_id, count) or range(0)

    async def lease_directory(self, store_id: bytes, inode: int) -> float | None:
        await self.hook("lease")
        return 3.0

    def on_connect(self, unsent: Unsent) -> None:
        self.unsent = unsent

    def on_recall(self, give_up: GiveUp) -> None:
        self.give_up = give_up

    @property
    def session(self) -> int:
        return 1

    def leases_valid_until(self) -> float:
        return float("inf")

    async def upload(self, content: PlainContent) -> SealedContent:
        await self.hook("upload")
        if self.upload_failure is not None:
            raise self.upload_failure
        whole = bytearray(content.size_bytes)
        if content.size_bytes:
            await content.read(0, memoryview(whole))
        self._check_changed(content, whole)
        await self.hook("read")
        version_id = os.urandom(16)
        self.contents[version_id] = bytes(whole)
        self.uploads.append(content)
        await self.hook("uploaded")
        store = self.catalog.store(content.store_id)
        layout = feed_pb2.Layout(
            version_id=version_id,
            size_bytes=len(whole),
            chunk_size_bytes=CHUNK_SIZE_BYTES,
            members=[self.catalog.own_domain],
        )
        sealed = feed_pb2.Content(size_bytes=len(whole), version_id=version_id, key_name=store.key_name)
        return SealedContent(sealed, layout, [], [], len(whole))

    def _check_changed(self, content: PlainContent, whole: bytearray) -> None:
        """That what is said to be unchanged is: an upload that trusts it must come out the same."""
        previous = self.contents[content.previous.version_id] if content.previous is not None else b""
        trusted = bytearray((previous + bytes(max(0, len(whole) - len(previous))))[: len(whole)])
        last = 0
        for start, end in content.changed:
            assert last <= start < end, "ranges are sorted and disjoint"
            trusted[start:end] = whole[start:end]
            last = end
        assert trusted == whole

    async def await_level(self, store_id: bytes, version_id: bytes, level: str, timeout_seconds: float) -> str:
        return "local"

    def may_write(self, store: DataStore, path: bytes | None) -> bool:
        return store.owner == self.catalog.own_domain

    def space(self) -> Space:
        return Space(1 << 40, 1 << 39)

    async def open_source(self, reference: VersionReference) -> MemorySource:
        """The bytes of a version, as `OpenSource`."""
        return MemorySource(self.contents[reference.version_id], self.hook)


class MemorySource:
    def __init__(self, data: bytes, hook: Hook) -> None:
        self._data = data
        self._hook = hook
        self.layout = VersionLayout(len(data), CHUNK_SIZE_BYTES)

    async def fill(self, chunk_index: int, first_segment: int, segment_count: int, out: memoryview) -> None:
        await self._hook("fill")
        start = chunk_index * self.layout.chunk_size_bytes + first_segment * SEGMENT_BYTES
        end = min(
            start + segment_count * SEGMENT_BYTES,
            (chunk_index + 1) * self.layout.chunk_size_bytes,
            self.layout.size_bytes,
        )
        assert len(out) == end - start
        out[:] = self._data[start:end]

    async def close(self) -> None:
        await self._hook("close")
