"""Two mounts of one home, a coordinator that goes away, DataStores of others: what a change waits for, and what not."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from math import inf
from pathlib import Path

import pytest
from home_in_memory import ALICE, Desk, MemoryCommitter, Mount, desk_of, make_home, mount_in_memory
from memory_library import until
from support.catalogs import FEDERATION, TestFederation

from collective.catalog import Reader
from collective.catalog.numbers import lease_numbers
from collective.catalog.staging import commit_operations
from collective.core.errors import CollectiveError, NotFound, Refused, Unreachable
from collective.mount.names import Node
from collective.mount.operations import AttributeChange, NewInode
from collective.wire import feed_pb2, submit_pb2

BOB = f"bob.{FEDERATION}"


class BobsCommitter(MemoryCommitter):
    """Bob's coordinator, and alice's behind it: what is sent exactly reaches alice, or is Unreachable."""

    owner_away = False
    exact_calls = 0

    async def submit(
        self, store_id: bytes, operations: Sequence[submit_pb2.StagedOperation], *, exact: bool
    ) -> Sequence[submit_pb2.OperationOutcome]:
        await asyncio.sleep(0)
        if self.owner_away:
            raise Unreachable("alice is away")
        self.exact_calls += exact
        outcomes, _ = commit_operations(
            self.desk.catalog, store_id, operations, actor_domain=BOB, now=self.desk.catalog.clock.wall(), exact=exact
        )
        return outcomes

    async def lease_numbers(self, store_id: bytes, count: int) -> range:
        return lease_numbers(self.desk.catalog, store_id, BOB, count)

    def may_write(self, store: object, path: bytes | None) -> bool:
        return True


class Home:
    """Alice's home, and mounts of it."""

    def __init__(
        self, folder: Path, federation: TestFederation, desk: Desk, names: Reader, stack: AsyncExitStack
    ) -> None:
        self.folder = folder
        self.federation = federation
        self.desk = desk
        self.names = names
        self._stack = stack
        self._count = 0

    async def mount(self, committer: MemoryCommitter | None = None, domain: str = ALICE) -> Mount:
        self._count += 1
        journals = self.folder / f"journals-{self._count}"
        return await self._stack.enter_async_context(
            mount_in_memory(self.desk, self.names, journals, committer=committer, domain=domain)
        )


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Home]:
    federation = make_home(tmp_path / "home", b"/media", others=["bob"])
    with desk_of(federation) as (desk, open_reader):
        async with AsyncExitStack() as stack:
            yield Home(tmp_path, federation, desk, open_reader(), stack)


def top(mount: Mount) -> int:
    return mount.files.lookup(mount.files.root_ino, b"media").ino


def folder() -> NewInode:
    return NewInode(stat.S_IFDIR | 0o755, 0, 0)


def file() -> NewInode:
    return NewInode(stat.S_IFREG | 0o644, 0, 0)


async def create(mount: Mount, parent: int, name: bytes, data: bytes = b"", flags: int = os.O_EXCL) -> Node:
    opened, node = await mount.files.create(parent, name, file(), os.O_WRONLY | flags)
    if data:
        await mount.files.write(opened.handle, 0, data)
    await mount.files.flush(opened.handle)
    mount.files.release(opened.handle)
    return node


def names_in(mount: Mount, ino: int) -> list[bytes]:
    handle = mount.files.opendir(ino)
    found = [name for name, _ in mount.files.readdir(handle, 0)]
    mount.files.releasedir(handle)
    return found


# ------------------------------------------------------------ two mounts


async def test_two_mounts_never_both_make_a_name(home: Home) -> None:
    """50 names, both at once, each time: one makes it, the other is told that it is there."""
    mounts = [await home.mount(), await home.mount()]

    async def try_to_make(mount: Mount, name: bytes) -> bool:
        try:
            await create(mount, top(mount), name)
        except FileExistsError:
            return False
        return True

    for number in range(50):
        made = await asyncio.gather(*(try_to_make(mount, b"%d" % number) for mount in mounts))
        assert sorted(made) == [False, True]
    for mount in mounts:
        await mount.settled()
        assert len(names_in(mount, top(mount))) == 50
    assert {outcome.outcome for outcome in home.desk.outcomes} == {submit_pb2.APPLIED}


async def test_what_one_mount_changed_the_other_sees_when_it_changes_there(home: Home) -> None:
    """A recall brings everything home before the other may change anything: nobody works on an old listing."""
    first, second = await home.mount(), await home.mount()
    await first.files.make(top(first), b"folder", folder())
    for number in range(10):
        await create(first, top(first), b"%d" % number)
    await create(second, top(second), b"mine")
    assert len(names_in(second, top(second))) == 12
    await second.files.rename((top(second), b"3"), (top(second), b"three"), 0)
    await first.files.unlink(top(first), b"three")
    assert b"3" not in names_in(first, top(first))
    await first.settled()
    assert names_in(first, top(first)) == names_in(second, top(second))


async def test_a_folder_is_not_removed_under_whoever_fills_it(home: Home) -> None:
    first, second = await home.mount(), await home.mount()
    made = await first.files.make(top(first), b"folder", folder())
    await first.settled()
    await create(first, made.ino, b"file")
    assert names_in(second, made.ino) == [], "not told yet"
    with pytest.raises(OSError, match="not empty"):
        await second.files.rmdir(top(second), b"folder")


async def test_a_held_lease_costs_no_call(home: Home) -> None:
    mount = await home.mount()
    made = await mount.files.make(top(mount), b"folder", folder())
    await mount.settled()
    home.desk.reachable = True
    before = home.desk.submitted
    for number in range(100):
        with pytest.raises(NotFound):
            mount.files.lookup(made.ino, b"%d" % number)
        await create(mount, made.ino, b"%d" % number, b"data")
    assert home.desk.submitted == before, "nothing waited for the coordinator"
    await mount.settled()
    assert len(names_in(mount, made.ino)) == 100


# ------------------------------------------------------------ the coordinator is away


async def test_names_of_own_datastores_wait_for_the_coordinator_contents_do_not(home: Home) -> None:
    mount = await home.mount()
    made = await create(mount, top(mount), b"file", b"before")
    await mount.settled()
    home.desk.reachable = False
    opened = await mount.files.open(made.ino, os.O_WRONLY)
    await mount.files.write(opened.handle, 0, b"after!")
    await mount.files.set_attributes(made.ino, AttributeChange(mode=0o600))
    await mount.files.fsync(opened.handle)
    await mount.files.flush(opened.handle)
    mount.files.release(opened.handle)
    reading = await mount.files.open(made.ino, os.O_RDONLY)
    assert await mount.files.read(reading.handle, 0, 100) == b"after!"
    mount.files.release(reading.handle)
    creating = asyncio.create_task(create(mount, top(mount), b"new"))
    for _ in range(100):
        await asyncio.sleep(0)
    assert not creating.done()
    home.desk.reachable = True
    await creating
    await mount.settled()
    node = home.names.lookup(top(mount), b"file")
    assert (node.mode & 0o777, node.size_bytes) == (0o600, 6)


async def test_a_datastore_made_inside_a_known_folder_is_found(home: Home) -> None:
    """A mount knows all names of a folder it made; a new DataStore in there is none of its doing."""
    mount = await home.mount()
    made = await mount.files.make(top(mount), b"folder", folder())
    with pytest.raises(NotFound):
        mount.files.lookup(made.ino, b"inner")
    await mount.settled()
    home.desk.catalog.create_datastore(b"/media/folder/inner", feed_pb2.MEDIA, 1, {})
    mount.writing.view.refresh()
    inner = mount.files.lookup(made.ino, b"inner")
    for refused in (
        mount.files.rename((top(mount), b"folder"), (top(mount), b"other"), 0),
        mount.files.rename((made.ino, b"inner"), (top(mount), b"other"), 0),
        mount.files.rmdir(made.ino, b"inner"),
    ):
        with pytest.raises(OSError, match="DataStore stands"):
            await refused
    with pytest.raises(OSError, match="within its DataStore"):
        await mount.files.rename((top(mount), b"folder"), (inner.ino, b"other"), 0)


async def test_what_the_kernel_was_told_under_a_lease_is_not_asked_again(home: Home) -> None:
    first, second = await home.mount(), await home.mount()
    made = await first.files.make(top(first), b"folder", folder())
    await first.settled()
    now = first.files._now()
    assert now - 10 < first.writing.certain_since(made.ino) <= now, "before the lease it was anybody's"
    await create(second, made.ino, b"file")
    assert first.writing.certain_since(made.ino) == inf


# ------------------------------------------------------------ another member's DataStore


@pytest.fixture
async def bob(home: Home) -> tuple[Mount, BobsCommitter]:
    rights = [feed_pb2.READ, feed_pb2.WRITE, feed_pb2.DELETE]
    home.desk.catalog.grant(b"/media", rights, f"*@{BOB}", granted_by=f"client@{ALICE}")
    home.federation.sync()
    committer = BobsCommitter(home.desk)
    return await home.mount(committer, BOB), committer


async def test_exclusive_changes_are_asked_of_the_owner(home: Home, bob: tuple[Mount, BobsCommitter]) -> None:
    mount, committer = bob
    await create(mount, top(mount), b"file", b"text")
    assert committer.exact_calls == 1
    with pytest.raises(FileExistsError):
        await create(mount, top(mount), b"file")
    alice = await home.mount()
    await create(alice, top(alice), b"hers")
    await alice.settled()
    with pytest.raises(FileExistsError):
        await mount.files.make(top(mount), b"hers", folder())
    before = committer.exact_calls
    await create(mount, top(mount), b"any", flags=0)
    await mount.files.unlink(top(mount), b"any")
    assert committer.exact_calls == before, "what is not exclusive asks nobody"
    await mount.settled()
    assert names_in(mount, top(mount)) == [b"file", b"hers"]


async def test_with_the_owner_away_everything_goes_on(home: Home, bob: tuple[Mount, BobsCommitter]) -> None:
    mount, committer = bob
    await create(mount, top(mount), b"first", b"1")
    await mount.settled()
    committer.owner_away = True
    made = await mount.files.make(top(mount), b"folder", folder())
    await create(mount, made.ino, b"file", b"text")
    await mount.files.rename((top(mount), b"first"), (made.ino, b"second"), 1)
    assert names_in(mount, made.ino) == [b"file", b"second"]
    with pytest.raises(FileExistsError):
        await create(mount, made.ino, b"file")
    committer.owner_away = False
    await mount.settled()
    assert [name for name, _ in home.names.list(made.ino)] == [b"file", b"second"]


async def test_without_write_nothing_is_changed(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    committer = BobsCommitter(home.desk)
    monkeypatch.setattr(committer, "may_write", lambda store, path: False)
    mount = await home.mount(committer, BOB)
    for refused in (
        mount.files.make(top(mount), b"folder", folder()),
        mount.files.set_attributes(top(mount), AttributeChange(mode=0o700)),
        mount.files.setxattr(top(mount), b"user.a", b"1"),
    ):
        with pytest.raises(Refused):
            await refused
    with pytest.raises(PermissionError):
        await mount.files.make(mount.files.root_ino, b"folder", folder())


async def test_a_refused_change_is_taken_back(home: Home, bob: tuple[Mount, BobsCommitter]) -> None:
    """Bob lost WRITE while his change was on its way: the owner refuses, and the tree shows what is."""
    mount, committer = bob
    committer.owner_away = True
    await mount.files.make(top(mount), b"folder", folder())
    assert names_in(mount, top(mount)) == [b"folder"]
    for grant in home.desk.catalog.grants(home.desk.catalog.datastores()[0].feed_id):
        withdrawal = feed_pb2.MemberOperation(grant_withdrawal=feed_pb2.GrantWithdrawal(grant_id=grant.id))
        withdrawal.id.CopyFrom(feed_pb2.OperationId(writer=ALICE, random=os.urandom(16)))
        home.desk.catalog.append_member([withdrawal])
    committer.owner_away = False
    await mount.settled()
    assert names_in(mount, top(mount)) == []
    with pytest.raises(CollectiveError):
        mount.files.lookup(top(mount), b"folder")


async def test_a_waiting_change_ends_with_its_caller(home: Home) -> None:
    """The coordinator never comes back: the caller's deadline ends the wait, and nothing is left behind."""
    mount = await home.mount()
    await create(mount, top(mount), b"file")
    home.desk.reachable = False
    waiting = asyncio.create_task(create(mount, top(mount), b"new"))
    await until(lambda: not waiting.done())
    waiting.cancel()
    await asyncio.wait({waiting})
    home.desk.reachable = True
    await mount.settled()
    assert names_in(mount, top(mount)) == [b"file"]


async def test_fsync_of_a_backup_waits_for_the_second_home_and_says_when_there_is_none(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small and large alike; without a second home, or without one's own coordinator, what survives a power failure is
    enough after a while, and the mount's trouble tells of it until an fsync reaches both again."""
    monkeypatch.setattr("collective.mount.writing.LEVEL_SECONDS", 0.2)
    home.desk.catalog.create_datastore(b"/backups", feed_pb2.BACKUP, 2, {})
    mount = await home.mount()
    asked: list[bytes] = []
    level = "two"

    async def await_level(store_id: bytes, version_id: bytes, wanted: str, timeout_seconds: float) -> str:
        asked.append(version_id)
        return level

    monkeypatch.setattr(mount.committer, "await_level", await_level)
    folder = mount.files.lookup(mount.files.root_ino, b"backups").ino

    async def save(name: bytes, size: int) -> None:
        opened, _ = await mount.files.create(folder, name, file(), os.O_WRONLY)
        await mount.files.write(opened.handle, 0, os.urandom(size))
        await mount.files.fsync(opened.handle)
        mount.files.release(opened.handle)

    await save(b"small", 100)
    await save(b"large", 100_000)
    assert [bool(version_id) for version_id in asked] == [False, True]
    assert mount.writing.trouble == ""
    level = "local"
    await save(b"alone", 100)
    assert mount.writing.trouble == "the last 1 fsyncs in /backups found no second home"
    opened, _ = await mount.files.create(folder, b"away", file(), os.O_WRONLY)
    home.desk.reachable = False
    await mount.files.write(opened.handle, 0, b"x")
    await mount.files.fsync(opened.handle)
    home.desk.reachable = True
    await mount.settled()
    assert mount.writing.trouble == "the last 2 fsyncs in /backups found no second home"
    level = "two"
    await mount.files.fsync(opened.handle)
    assert mount.writing.trouble == ""
