"""The mounted tree behaves as a local directory does, whatever is done in whatever order.

One machine does the same to a local directory and to a mount without a kernel (real catalogue, real journal, contents
in memory) and compares every answer, then everything there is. What a kernel does before it asks (walking paths,
checking that a rename's directories are not each other's ancestors) is done here the same way.

    COLLECTIVE_MODEL_OPERATIONS=100000 bin/test tests/mount/test_model.py     the long run
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from home_in_memory import Mount, home_in_memory, mount_in_memory
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from collective.core.errors import CollectiveError, codes_of
from collective.mount.names import Node
from collective.mount.operations import AttributeChange, NewInode

OPERATIONS = int(os.environ.get("COLLECTIVE_MODEL_OPERATIONS", "2000"))
STEPS = 100
AT_FDCWD = -100
LONG_AGO = 1_000_000_000  # seconds; times set on purpose lie before it, all others after

NAMES = st.sampled_from([b"a", b"b", b"c", "übel".encode()])
PICKS = st.integers(0, 10_000)
OLD = st.tuples(st.sampled_from([True, True, True, True, False]), PICKS, NAMES)  # what is there, mostly
NEW = st.tuples(st.sampled_from([False, False, False, True]), PICKS, NAMES)  # a name in a directory that is there
Pick = tuple[bool, int, bytes]
MAXIMUM_DEPTH = 4
DATA = st.one_of(
    st.binary(max_size=40),
    st.tuples(st.binary(min_size=1, max_size=3), st.sampled_from([1000, 4000, 5000])).map(lambda p: p[0] * p[1]),
)
OFFSETS = st.one_of(st.integers(0, 60), st.sampled_from([4090, 4096, 9000]))
SIZES = st.one_of(st.integers(0, 60), st.sampled_from([4095, 4096, 4097, 12_000]))
MODES = st.integers(0, 0o7777)
TIMES = st.integers(0, LONG_AGO * 10**9)
HANDLES = st.integers(0, 3)

libc = ctypes.CDLL(None, use_errno=True)


def local_rename(old: bytes, new: bytes, flags: int) -> None:
    if libc.renameat2(AT_FDCWD, old, AT_FDCWD, new, flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@dataclass
class Opened:
    """The same file, open on both sides."""

    local: int
    mounted: int
    writes: bool


class FileSystemModel(RuleBasedStateMachine):
    """Two trees that must be one."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="collective-model-"))
        self.local = bytes(self.folder / "local")
        os.mkdir(self.local)
        self.runner = asyncio.Runner()
        self.home = ExitStack()
        self.desk, open_reader = self.home.enter_context(home_in_memory(self.folder / "home", b"/media"))
        self.names = open_reader()
        self.open: list[Opened] = []
        self.mount: Mount
        self._begin()

    def teardown(self) -> None:
        self._end()
        self.home.close()
        self.runner.close()
        shutil.rmtree(self.folder)

    def _begin(self) -> None:
        async def begin() -> tuple[AsyncExitStack, Mount]:
            stack = AsyncExitStack()
            return stack, await stack.enter_async_context(
                mount_in_memory(self.desk, self.names, self.folder / "journals")
            )

        self.stack, self.mount = self.runner.run(begin())
        self.files = self.mount.files
        self.top = self.files.lookup(self.files.root_ino, b"media").ino

    def _end(self) -> None:
        for opened in self.open:
            os.close(opened.local)
            self._close(opened)
        self.open.clear()
        self.runner.run(self.stack.aclose())

    def _close(self, opened: Opened) -> None:
        async def close() -> None:
            await self.files.flush(opened.mounted)
            self.files.release(opened.mounted)

        self.runner.run(close())

    # ------------------------------------------------------------ both sides

    def same(self, local: Callable[[], Any], mounted: Callable[[], Any]) -> Any:
        """Do both; the errno or the answer must be the same. Returns the local answer, None after an error."""
        expected = failed = got = None
        try:
            expected = local()
        except OSError as error:
            failed = error.errno
        try:
            got = mounted()
            if isinstance(got, Coroutine):
                got = self.runner.run(got)
        except CollectiveError as error:
            got = OSError(codes_of(error).errno, error.message)
        except OSError as error:
            got = error
        if failed is not None:
            assert isinstance(got, OSError), f"did, but {errno.errorcode[failed]} was due"
            assert got.errno == failed, (
                f"{errno.errorcode[got.errno or 0]} ({got}), but {errno.errorcode[failed]} was due"
            )
            return None
        if isinstance(got, OSError):
            raise AssertionError("failed, but should have done") from got
        if expected is not None:
            assert got == expected
        return expected if expected is not None else True

    def path(self, pick: Pick) -> bytes:
        """A path below the top: one that exists, or a name in a directory that does."""
        exists, number, name = pick
        directories, entries = [b""], []
        for folder, folders, others in os.walk(self.local):
            below = folder[len(self.local) + 1 :]
            found = [below + b"/" + entry if below else entry for entry in sorted(folders + others)]
            entries += found
            directories += [path for path in found if path.count(b"/") + 1 < MAXIMUM_DEPTH and self.is_directory(path)]
        if exists and entries:
            return entries[number % len(entries)]
        directory = directories[number % len(directories)]
        return directory + b"/" + name if directory else name

    def is_directory(self, path: bytes) -> bool:
        return stat.S_ISDIR(os.lstat(self.at(path)).st_mode)

    def at(self, path: bytes) -> bytes:
        return self.local + b"/" + path

    def walk(self, names: list[bytes]) -> Node:
        """As the kernel walks; symbolic links are not followed. Raises: NotADirectoryError, NotFound."""
        node = self.files.getattr(self.top)
        for name in names:
            if not stat.S_ISDIR(node.mode):
                raise NotADirectoryError(errno.ENOTDIR, "not a directory")
            node = self.files.lookup(node.ino, name)
        return node

    def node(self, path: bytes) -> Node:
        return self.walk(path.split(b"/"))

    def place(self, path: bytes) -> tuple[int, bytes]:
        *names, last = path.split(b"/")
        parent = self.walk(names)
        if not stat.S_ISDIR(parent.mode):
            raise NotADirectoryError(errno.ENOTDIR, "not a directory")
        return parent.ino, last

    def crosses_link(self, path: bytes) -> bool:
        """Whether a symbolic link stands on the way: a kernel would follow it."""
        parts = path.split(b"/")
        return any(os.path.islink(self.at(b"/".join(parts[:count]))) for count in range(1, len(parts)))

    def is_link(self, path: bytes) -> bool:
        return self.crosses_link(path) or os.path.islink(self.at(path))

    # ------------------------------------------------------------ names

    @rule(pick=NEW, mode=MODES)
    def mkdir(self, pick: Pick, mode: int) -> None:
        path = self.path(pick)
        if self.crosses_link(path):
            return
        mode |= 0o700

        def local() -> None:
            os.mkdir(self.at(path))
            os.chmod(self.at(path), mode)

        async def mounted() -> None:
            parent, name = self.place(path)
            node = await self.files.make(parent, name, NewInode(stat.S_IFDIR | 0o755, os.getuid(), os.getgid()))
            await self.files.set_attributes(node.ino, AttributeChange(mode=mode))

        self.same(local, mounted)

    @rule(pick=OLD)
    def rmdir(self, pick: Pick) -> None:
        path = self.path(pick)
        if self.crosses_link(path):
            return
        self.same(lambda: os.rmdir(self.at(path)), lambda: self.files.rmdir(*self.place(path)))

    @rule(pick=OLD)
    def unlink(self, pick: Pick) -> None:
        path = self.path(pick)
        if self.crosses_link(path):
            return
        self.same(lambda: os.unlink(self.at(path)), lambda: self.files.unlink(*self.place(path)))

    @rule(pick=NEW, points_to=st.binary(min_size=1, max_size=20).filter(lambda text: b"\0" not in text))
    def symlink(self, pick: Pick, points_to: bytes) -> None:
        path = self.path(pick)
        if self.crosses_link(path):
            return

        async def mounted() -> None:
            parent, name = self.place(path)
            new = NewInode(stat.S_IFLNK | 0o777, os.getuid(), os.getgid(), symlink_target=points_to)
            await self.files.make(parent, name, new)

        self.same(lambda: os.symlink(points_to, self.at(path)), mounted)

    @rule(old_pick=OLD, new_pick=NEW)
    def link(self, old_pick: Pick, new_pick: Pick) -> None:
        old, new = self.path(old_pick), self.path(new_pick)
        if self.crosses_link(old) or self.crosses_link(new) or os.path.isdir(self.at(old)):
            return

        async def mounted() -> None:
            node = self.node(old)
            await self.files.link(node.ino, *self.place(new))

        self.same(lambda: os.link(self.at(old), self.at(new), follow_symlinks=False), mounted)

    @rule(old_pick=OLD, new_pick=NEW, flags=st.sampled_from([0, 0, 0, 1, 2]))
    def rename(self, old_pick: Pick, new_pick: Pick, flags: int) -> None:
        old, new = self.path(old_pick), self.path(new_pick)
        if self.crosses_link(old) or self.crosses_link(new):
            return

        async def mounted() -> None:
            source, target = self.place(old), self.place(new)
            node = self.node(old)
            if old.startswith(new + b"/"):  # the kernel's word, before it asks
                raise OSError((errno.ENOTEMPTY, errno.EEXIST, errno.EINVAL)[flags], "the target holds the source")
            if flags == 1 and source == target and node is not None:
                raise FileExistsError(errno.EEXIST, "the name is taken")
            await self.files.rename(source, target, flags)

        if self.same(lambda: local_rename(self.at(old), self.at(new), flags), mounted):
            return

    # ------------------------------------------------------------ contents

    @rule(pick=NEW, data=DATA, exclusive=st.booleans(), truncate=st.booleans())
    def write_file(self, pick: Pick, data: bytes, exclusive: bool, truncate: bool) -> None:
        path = self.path(pick)
        if self.is_link(path):
            return
        flags = os.O_WRONLY | os.O_CREAT | (os.O_EXCL if exclusive else 0) | (os.O_TRUNC if truncate else 0)

        def local() -> None:
            descriptor = os.open(self.at(path), flags, 0o644)
            os.write(descriptor, data)
            os.close(descriptor)

        async def mounted() -> None:
            handle = await self._open_or_create(path, flags)
            await self.files.write(handle, 0, data)
            await self.files.flush(handle)
            self.files.release(handle)

        self.same(local, mounted)

    async def _open_or_create(self, path: bytes, flags: int) -> int:
        parent, name = self.place(path)
        try:
            node = self.node(path)
        except CollectiveError:
            if not flags & os.O_CREAT:
                raise
            new = NewInode(stat.S_IFREG | 0o644, os.getuid(), os.getgid())
            opened, _ = await self.files.create(parent, name, new, flags)
            return opened.handle
        if flags & os.O_CREAT and flags & os.O_EXCL:
            raise FileExistsError(errno.EEXIST, "the name is taken")
        return (await self.files.open(node.ino, flags)).handle

    @rule(pick=OLD, flags=st.sampled_from([os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_CREAT, os.O_RDWR | os.O_TRUNC]))
    def open_file(self, pick: Pick, flags: int) -> None:
        path = self.path(pick)
        if len(self.open) > 3 or self.is_link(path) or os.path.isdir(self.at(path)):
            return
        opened = Opened(-1, -1, flags != os.O_RDONLY)

        def local() -> None:
            opened.local = os.open(self.at(path), flags, 0o644)

        async def mounted() -> None:
            opened.mounted = await self._open_or_create(path, flags)

        if self.same(local, mounted):
            self.open.append(opened)

    @precondition(lambda self: self.open)
    @rule(which=HANDLES)
    def close_file(self, which: int) -> None:
        opened = self.open.pop(which % len(self.open))
        os.close(opened.local)
        self._close(opened)

    @precondition(lambda self: self.open)
    @rule(which=HANDLES, offset=OFFSETS, data=DATA)
    def write_open(self, which: int, offset: int, data: bytes) -> None:
        opened = self.open[which % len(self.open)]
        if not opened.writes:
            return
        os.pwrite(opened.local, data, offset)
        self.runner.run(self.files.write(opened.mounted, offset, data))

    @precondition(lambda self: self.open)
    @rule(which=HANDLES, offset=OFFSETS, size=SIZES)
    def read_open(self, which: int, offset: int, size: int) -> None:
        opened = self.open[which % len(self.open)]
        expected = os.pread(opened.local, size, offset)
        assert bytes(self.runner.run(self.files.read(opened.mounted, offset, size))) == expected

    @precondition(lambda self: self.open)
    @rule(which=HANDLES)
    def sync_open(self, which: int) -> None:
        with self.unnoticed():
            self.runner.run(self.files.fsync(self.open[which % len(self.open)].mounted))

    @rule(pick=OLD, size=SIZES)
    def truncate(self, pick: Pick, size: int) -> None:
        path = self.path(pick)
        if self.is_link(path):
            return

        async def mounted() -> None:
            node = self.node(path)
            await self.files.set_attributes(node.ino, AttributeChange(size_bytes=size))

        self.same(lambda: os.truncate(self.at(path), size), mounted)

    # ------------------------------------------------------------ attributes

    @rule(pick=OLD, mode=MODES)
    def chmod(self, pick: Pick, mode: int) -> None:
        path = self.path(pick)
        if self.is_link(path):
            return
        mode |= 0o700

        async def mounted() -> None:
            await self.files.set_attributes(self.node(path).ino, AttributeChange(mode=mode))

        self.same(lambda: os.chmod(self.at(path), mode), mounted)

    @rule(pick=OLD, atime=TIMES, mtime=TIMES)
    def set_times(self, pick: Pick, atime: int, mtime: int) -> None:
        path = self.path(pick)
        if self.crosses_link(path):
            return

        async def mounted() -> None:
            await self.files.set_attributes(self.node(path).ino, AttributeChange(atime_ns=atime, mtime_ns=mtime))

        self.same(lambda: os.utime(self.at(path), ns=(atime, mtime), follow_symlinks=False), mounted)

    @rule(pick=OLD, name=st.sampled_from([b"user.one", b"user.two"]), value=st.binary(max_size=30))
    def set_xattr(self, pick: Pick, name: bytes, value: bytes) -> None:
        path = self.path(pick)
        if self.is_link(path):
            return

        async def mounted() -> None:
            await self.files.setxattr(self.node(path).ino, name, value)

        self.same(lambda: os.setxattr(self.at(path), name, value), mounted)

    @rule(pick=OLD, name=st.sampled_from([b"user.one", b"user.two"]))
    def remove_xattr(self, pick: Pick, name: bytes) -> None:
        path = self.path(pick)
        if self.is_link(path):
            return

        async def mounted() -> None:
            await self.files.setxattr(self.node(path).ino, name, None)

        self.same(lambda: os.removexattr(self.at(path), name), mounted)

    # ------------------------------------------------------------ what nobody may notice

    @contextmanager
    def unnoticed(self) -> Iterator[None]:
        """Everything has the same attributes afterwards.

        But for the time of the last look, and a directory's own times: names that wait for a content come later than
        others, and the last to come says when. The ctime of a file may be that of a link to it, made before its last
        write and applied after.
        """
        before = self._attributes(b"", self.top)
        yield
        after = self._attributes(b"", self.top)
        assert {path: row[:-1] for path, row in after.items()} == {path: row[:-1] for path, row in before.items()}
        for path, row in after.items():
            assert abs(row[-1] - before[path][-1]) < 10**9, path

    def _attributes(self, path: bytes, ino: int) -> dict[bytes, tuple[int, ...]]:
        found: dict[bytes, tuple[int, ...]] = {}
        for name, node in self._list(ino).items():
            times = (0, 0) if stat.S_ISDIR(node.mode) else (node.mtime_ns, node.ctime_ns)
            found[path + b"/" + name] = (
                node.ino, node.mode, node.link_count, node.uid, node.gid, node.size_bytes, *times
            )  # fmt: skip
            if stat.S_ISDIR(node.mode):
                found |= self._attributes(path + b"/" + name, node.ino)
        return found

    @rule()
    def settle(self) -> None:
        """Everything is sent."""
        with self.unnoticed():
            self.runner.run(self.mount.settled())

    @rule(turns=st.integers(1, 6))
    def go_on(self, turns: int) -> None:
        """The background gets on a little."""

        async def wait() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        with self.unnoticed():
            self.runner.run(wait())

    @rule()
    def recall(self) -> None:
        """Another mount asks for every lease there is."""

        async def recall() -> None:
            give_up = self.mount.committer._give_up
            assert give_up is not None
            for store_id, inode in list(self.desk.holders):
                del self.desk.holders[store_id, inode]
                await give_up(store_id, inode)

        with self.unnoticed():
            self.runner.run(recall())

    @precondition(lambda self: not self.open)
    @rule()
    def remount(self) -> None:
        with self.unnoticed():
            self._end()
            self._begin()

    # ------------------------------------------------------------ everything there is

    @invariant()
    def trees_are_equal(self) -> None:
        self._compare(self.local, self.top)

    def _compare(self, path: bytes, ino: int) -> None:
        listed = self._list(ino)
        assert sorted(os.listdir(path)) == sorted(listed)
        for name, node in listed.items():  # before anything is read, and the background gets on
            assert node == self.files.lookup(ino, name), "listed and looked up"
            assert node == self.files.getattr(node.ino), "listed and asked by number"
        for name, node in listed.items():
            below = path + b"/" + name
            expected = os.lstat(below)
            assert node.mode == expected.st_mode
            if expected.st_mtime_ns < LONG_AGO * 10**9 or node.mtime_ns < LONG_AGO * 10**9:
                assert node.mtime_ns == expected.st_mtime_ns
            if stat.S_ISDIR(node.mode):
                self._compare(below, node.ino)
                continue
            assert (name, node.size_bytes, node.link_count) == (name, expected.st_size, expected.st_nlink)
            if stat.S_ISLNK(node.mode):
                assert self.files.readlink(node.ino) == os.readlink(below)
                continue
            xattrs = {key: self.files.getxattr(node.ino, key) for key in self.files.listxattr(node.ino)}
            assert xattrs == {key.encode(): os.getxattr(below, key) for key in os.listxattr(below)}
            with open(below, "rb") as file:
                assert self._content(node) == file.read()

    def _list(self, ino: int) -> dict[bytes, Node]:
        handle = self.files.opendir(ino)
        listed: list[tuple[bytes, Node]] = []
        while entries := self.files.readdir(handle, len(listed)):
            listed += entries
        self.files.releasedir(handle)
        assert len(dict(listed)) == len(listed)
        return dict(listed)

    def _content(self, node: Node) -> bytes:
        async def read() -> bytes:
            opened = await self.files.open(node.ino, os.O_RDONLY)
            data = bytes(await self.files.read(opened.handle, 0, 1 << 20))
            self.files.release(opened.handle)
            return data

        return self.runner.run(read())


@pytest.mark.timeout(0)
def test_the_mount_is_like_a_local_directory() -> None:
    run_state_machine_as_test(
        FileSystemModel,
        settings=settings(
            max_examples=max(1, OPERATIONS // STEPS),
            stateful_step_count=STEPS,
            deadline=None,
            phases=[Phase.explicit, Phase.reuse, Phase.generate],  # a run of 100 steps shrinks for minutes, not well
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
