"""A mount that writes, with the kernel: system calls and programs find a disk.

The mount is a child process (serve_home): a home in memory with DataStores /media, /media/inner and /backups. What is
done to it is done by threads and children of the test.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import hashlib
import os
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

import pytest
from memory_library import pattern_bytes

from collective.core.sizes import KIB, MIB
from collective.mount.mountpoint import clean_stale

T = TypeVar("T")

HERE = Path(__file__).parent
AT_FDCWD = -100
ANOTHER_USER = "import os; os.setgroups([]); os.setgid(65534); os.setuid(65534)"
FOR_ANOTHER_USER = "import ctypes; libc = ctypes.CDLL(None); libc.setfsgid(65534); libc.setfsuid(65534)"
NO_REPLACE, EXCHANGE = 1, 2
LONG_AGO = 1_234_567_890_123_456_789

libc = ctypes.CDLL(None, use_errno=True)


class Server:
    """The child that keeps a home, and whoever serves its mount just now."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self._child = child
        self._serving = 0

    async def ready(self) -> None:
        assert self._child.stdout is not None
        async with asyncio.timeout(60):
            said, pid = (await self._child.stdout.readline()).split()
            assert said == b"serving"
            self._serving = int(pid)
            assert await self._child.stdout.readline() == b"ready\n"

    async def kill(self) -> None:
        """kill -9 of whoever serves; returns when the next one does."""
        os.kill(self._serving, signal.SIGKILL)
        await self.ready()

    async def stop(self) -> None:
        """Unmounted, cleanly."""
        self._child.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            assert await self._child.wait() == 0

    def end(self) -> None:
        for pid in (self._child.pid, self._serving):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@asynccontextmanager
async def serving(folder: Path, *words: str) -> AsyncIterator[Server]:
    """A home, mounted until the end of the block."""
    command = (sys.executable, str(HERE / "serve_home.py"), str(folder), *words)
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parents[1] / 'src'}:{HERE.parent}"}
    child = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env=environment)
    server = Server(child)
    try:
        await server.ready()
        yield server
        await server.stop()
    finally:
        if child.returncode is None:
            server.end()
            await child.wait()
        clean_stale(folder / "mount")


@pytest.fixture
async def media(need_fuse: None, tmp_path: Path) -> AsyncIterator[Path]:
    """The DataStore /media of a fresh home, mounted."""
    async with serving(tmp_path, "--uvloop"):
        yield tmp_path / "mount" / "media"


async def away(call: Callable[..., T], *args: object) -> T:
    async with asyncio.timeout(100):
        return await asyncio.to_thread(call, *args)


async def errno_of(call: Callable[..., object], *args: object) -> int:
    with pytest.raises(OSError) as caught:  # noqa: PT011
        await away(call, *args)
    assert caught.value.errno is not None
    return caught.value.errno


async def run(*command: object, cwd: Path | None = None) -> str:
    """A program's output; fails with what it said."""

    def call() -> str:
        done = subprocess.run(
            [str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=90, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return await away(call)


def renameat2(old: Path, new: Path, flags: int) -> None:
    if libc.renameat2(AT_FDCWD, bytes(old), AT_FDCWD, bytes(new), flags):
        raise OSError(ctypes.get_errno(), "renameat2")


# ------------------------------------------------------------ names


async def test_files_folders_links_come_and_go(media: Path) -> None:
    def work() -> None:
        folder = media / "folder"
        folder.mkdir(mode=0o750)
        (folder / "file").write_bytes(b"text")
        os.link(folder / "file", folder / "second")
        os.symlink("file", folder / "pointer")
        assert sorted(os.listdir(folder)) == ["file", "pointer", "second"]
        assert (folder / "pointer").read_bytes() == b"text"
        first, second = os.stat(folder / "file"), os.stat(folder / "second")
        assert (first.st_ino, first.st_nlink, second.st_nlink) == (second.st_ino, 2, 2)
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o750
        os.unlink(folder / "file")
        assert os.stat(folder / "second").st_nlink == 1
        os.mkfifo(folder / "pipe")
        assert stat.S_ISFIFO(os.stat(folder / "pipe").st_mode)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(folder / "socket"))
        for name in os.listdir(folder):
            os.unlink(folder / name)
        folder.rmdir()
        assert "folder" not in os.listdir(media)

    await away(work)


async def test_errors_are_those_of_linux(media: Path) -> None:
    (media / "full").mkdir()
    (media / "full" / "file").write_bytes(b"x")
    for expected, call, args in (
        (errno.EEXIST, os.mkdir, (media / "full",)),
        (errno.EEXIST, os.open, (media / "full" / "file", os.O_CREAT | os.O_EXCL)),
        (errno.ENOTEMPTY, os.rmdir, (media / "full",)),
        (errno.ENOTDIR, os.rmdir, (media / "full" / "file",)),
        (errno.EISDIR, os.unlink, (media / "full",)),
        (errno.ENOENT, os.unlink, (media / "none",)),
        (errno.EINVAL, os.rename, (media / "full", media / "full" / "inside")),
        (errno.ENAMETOOLONG, os.mkdir, (media / ("n" * 256),)),
        (errno.EXDEV, os.rename, (media / "full" / "file", media.parent / "backups" / "file")),
        (errno.EXDEV, os.link, (media / "full" / "file", media.parent / "backups" / "file")),
        (errno.EBUSY, os.rename, (media / "inner", media / "other")),
        (errno.EBUSY, os.rmdir, (media / "inner",)),
        (errno.EPERM, os.mkdir, (media.parent / "nowhere",)),
        (errno.EISDIR, os.open, (media / "full", os.O_WRONLY)),
        (errno.ENODATA, os.getxattr, (media / "full", "user.none")),
        (errno.ENODATA, os.removexattr, (media / "full", "user.none")),
        (errno.ENOTSUP, os.setxattr, (media / "full", "security.other", b"1")),
    ):
        assert await errno_of(call, *args) == expected, (call, args)


async def test_renames_of_every_kind(media: Path) -> None:
    def work() -> None:
        (media / "a").write_bytes(b"a")
        (media / "b").write_bytes(b"b")
        with pytest.raises(FileExistsError):
            renameat2(media / "a", media / "b", NO_REPLACE)
        renameat2(media / "a", media / "b", EXCHANGE)
        assert ((media / "a").read_bytes(), (media / "b").read_bytes()) == (b"b", b"a")
        os.rename(media / "a", media / "b")
        assert (media / "b").read_bytes() == b"b"
        (media / "folder").mkdir()
        renameat2(media / "b", media / "folder" / "c", NO_REPLACE)
        (media / "empty").mkdir()
        os.rename(media / "folder", media / "empty")
        assert (media / "empty" / "c").read_bytes() == b"b"
        assert sorted(os.listdir(media)) == ["empty", "inner"]

    await away(work)


async def test_a_file_without_a_name_lives_as_long_as_it_is_open(media: Path) -> None:
    def work() -> None:
        descriptor = os.open(media / "file", os.O_CREAT | os.O_RDWR)
        os.write(descriptor, b"before ")
        os.unlink(media / "file")
        os.write(descriptor, b"and after")
        os.fchmod(descriptor, 0o600)
        found = os.fstat(descriptor)
        assert (found.st_nlink, found.st_size, stat.S_IMODE(found.st_mode)) == (0, 16, 0o600)
        assert os.pread(descriptor, 100, 0) == b"before and after"
        os.ftruncate(descriptor, 3)
        os.fsync(descriptor)
        assert os.pread(descriptor, 100, 0) == b"bef"
        os.close(descriptor)
        assert os.listdir(media) == ["inner"]

    await away(work)


async def test_a_listing_is_stable_while_names_come_and_go(media: Path) -> None:
    """What was there all the while is listed exactly once, whatever happens around it."""

    def work() -> None:
        folder = media / "many"
        folder.mkdir()
        stays = {f"stays-{number:04d}" for number in range(1500)}
        for name in stays:
            (folder / name).touch()
        for number in range(100):
            (folder / f"goes-{number}").touch()
        seen = []
        with os.scandir(folder) as entries:
            for count, entry in enumerate(entries):
                seen.append(entry.name)
                if count < 100:
                    (folder / f"goes-{count}").unlink()
                    (folder / f"{'a' if count % 2 else 'z'}-new-{count}").touch()
        assert len(seen) == len(set(seen))
        assert stays <= set(seen)
        assert len(os.listdir(folder)) == 1600

    await away(work)


# ------------------------------------------------------------ contents


async def test_what_was_written_is_read(media: Path) -> None:
    """Sizes around every edge, at once and again when it is in the library."""
    sizes = [0, 1, 4096, 4097, 64 * KIB + 1, 256 * KIB, MIB + 1, 8 * MIB, 20 * MIB + 3]

    def write() -> None:
        for size in sizes:
            (media / str(size)).write_bytes(pattern_bytes(size, size))

    def check() -> None:
        for size in sizes:
            assert (media / str(size)).read_bytes() == pattern_bytes(size, size), size
            descriptor = os.open(media / str(size), os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)

    await away(write)
    await away(check)
    await away(check)


async def test_pieces_here_and_there(media: Path) -> None:
    """Overwriting, appending, truncating, holes: as in memory."""

    def work() -> None:
        path = media / "file"
        model = bytearray(pattern_bytes(1, 300_000))
        path.write_bytes(model)
        with path.open("r+b", buffering=0) as file:
            for offset, size in ((0, 10), (4090, 20), (65_530, 40), (299_990, 100), (500_000, 7)):
                piece = os.urandom(size)
                if offset > len(model):
                    model.extend(bytes(offset - len(model)))
                model[offset : offset + size] = piece
                file.seek(offset)
                file.write(piece)
                assert path.read_bytes() == model
            for size in (400_000, 100, 5000):
                file.truncate(size)
                model = model[:size] + bytes(max(0, size - len(model)))
                assert os.fstat(file.fileno()).st_size == size
                assert path.read_bytes() == model
        with path.open("ab") as file:
            file.write(b"end")
        assert path.read_bytes() == model + b"end"
        path.write_bytes(b"new")
        assert path.read_bytes() == b"new"

    await away(work)


async def test_a_large_sparse_file_costs_nothing(media: Path) -> None:
    def work() -> None:
        with (media / "sparse").open("w+b", buffering=0) as file:
            file.truncate(1 << 30)
            os.pwrite(file.fileno(), b"end", (1 << 30) - 3)
            assert os.pread(file.fileno(), 4096, 123_456_789) == bytes(4096)
            assert os.pread(file.fileno(), 10, (1 << 30) - 5) == b"\0\0end"
            file.truncate(0)

    await away(work)


APPEND = """
import os, sys
descriptor = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for number in range(300):
    os.write(descriptor, (sys.argv[2] + "\\n").encode())
"""


async def test_appends_of_several_processes_do_not_tear(media: Path) -> None:
    words = ["one" * 10, "two" * 11, "three" * 7]
    await asyncio.gather(*(run(sys.executable, "-c", APPEND, media / "log", word) for word in words))
    lines = (await away((media / "log").read_text)).splitlines()
    assert sorted(lines) == sorted(word for word in words for _ in range(300))


MAPPED = """
import mmap, os, sys
with open(sys.argv[1], "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
    mapped[0:4] = b"HEAD"
    mapped[len(mapped) - 4:] = b"TAIL"
    mapped.flush()
    assert mapped[100_000:100_004] == b"body"
"""


async def test_a_mapping_writes_through(media: Path) -> None:
    def prepare() -> None:
        (media / "file").write_bytes(bytes(100_000) + b"body" + bytes(100_000))

    await away(prepare)
    await run(sys.executable, "-c", MAPPED, media / "file")
    data = await away((media / "file").read_bytes)
    assert (data[:4], data[-4:], data[100_000:100_004], len(data)) == (b"HEAD", b"TAIL", b"body", 200_004)


async def test_times_modes_and_attributes_stay(media: Path) -> None:
    def work() -> None:
        path = media / "file"
        with path.open("wb", buffering=0) as file:
            file.write(b"x" * 10_000)
            os.utime(file.fileno(), ns=(LONG_AGO, LONG_AGO + 1))
        os.chmod(path, 0o4711)
        os.chown(path, 1234, 4321)
        os.setxattr(path, "user.color", b"blue")
        os.setxattr(path, "user.empty", b"")
        with pytest.raises(FileExistsError):
            os.setxattr(path, "user.color", b"red", os.XATTR_CREATE)
        os.setxattr(path, "user.color", b"green", os.XATTR_REPLACE)

    def check() -> None:
        path = media / "file"
        found = os.stat(path)
        assert (found.st_atime_ns, found.st_mtime_ns, found.st_size) == (LONG_AGO, LONG_AGO + 1, 10_000)
        assert (found.st_uid, found.st_gid) == (1234, 4321)
        assert sorted(os.listxattr(path)) == ["user.color", "user.empty"]
        assert (os.getxattr(path, "user.color"), os.getxattr(path, "user.empty")) == (b"green", b"")

    def sync() -> None:
        descriptor = os.open(media / "file", os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)

    for step in (work, check, sync, check):
        await away(step)


@pytest.mark.parametrize("others", [False, True])
async def test_permission_bits_count_whoever_looks_at_them(need_fuse: None, others: bool) -> None:
    """Also a server of root's that acts for somebody else (its fsuid, as NFS does), in a mount that is root's own."""

    def work(media: Path) -> None:
        tool, notes, secret = media / "tool", media / "notes", media / "secret"
        for path, mode in ((tool, 0o755), (notes, 0o644), (secret, 0o600)):
            path.write_text("#!/bin/sh\necho ran\n")
            path.chmod(mode)
        assert os.access(notes, os.R_OK | os.W_OK)
        assert os.access(media, os.R_OK | os.W_OK | os.X_OK)
        assert os.access(tool, os.X_OK)
        assert not os.access(notes, os.X_OK), "what nobody may run root may not either"
        assert subprocess.run([tool], capture_output=True, check=True).stdout == b"ran\n"
        with pytest.raises(PermissionError):
            subprocess.run([notes], check=False)
        for change, enters in ((ANOTHER_USER, others), (FOR_ANOTHER_USER, True)):
            assert opens_after(change, notes, "r") == enters
            assert not opens_after(change, notes, "a")
            assert not opens_after(change, secret, "r")
            assert not opens_after(change, media / "made", "x")

    def opens_after(change: str, path: Path, mode: str) -> bool:
        script = f"{change}; open({str(path)!r}, {mode!r})"
        return subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0

    with tempfile.TemporaryDirectory() as folder:  # not in pytest's, which only root enters
        os.chmod(folder, 0o755)
        async with serving(Path(folder), "--uvloop", *(("--allow-other",) if others else ())):
            await away(work, Path(folder) / "mount" / "media")


async def test_locks_hold_within_the_mount(media: Path) -> None:
    def work() -> None:
        (media / "file").touch()
        first = os.open(media / "file", os.O_RDWR)
        second = os.open(media / "file", os.O_RDWR)
        fcntl.flock(first, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(first, fcntl.LOCK_UN)
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(first, fcntl.LOCK_EX)
        os.close(first)
        os.close(second)

    await away(work)


async def test_df_tells_what_there_is(media: Path) -> None:
    space = await away(os.statvfs, media)
    assert (space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize) == (1 << 40, 1 << 39)


# ------------------------------------------------------------ programs


@pytest.mark.parametrize("mode", ["delete", "wal"])
async def test_sqlite(media: Path, mode: str) -> None:
    path = media / f"{mode}.db"

    def work() -> None:
        with sqlite3.connect(path) as database:
            assert database.execute(f"PRAGMA journal_mode = {mode}").fetchone() == (mode,)
            database.execute("CREATE TABLE t (number INTEGER PRIMARY KEY, text TEXT)")
        for start in range(0, 500, 100):
            with sqlite3.connect(path) as database:
                database.executemany("INSERT INTO t VALUES (?, ?)", [(n, "x" * n) for n in range(start, start + 100)])
        with sqlite3.connect(path) as database:
            assert database.execute("SELECT count(*), sum(length(text)) FROM t").fetchone() == (500, 124_750)
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)

    await away(work)


async def test_git(media: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for command in (
        ("git", "init", "-q", source),
        ("git", "-C", source, "config", "user.email", "a@b"),
        ("git", "-C", source, "config", "user.name", "a"),
    ):
        await run(*command)
    for number in range(50):
        (source / f"file-{number}").write_text("text\n" * number)
    await run("git", "-C", source, "add", ".")
    await run("git", "-C", source, "commit", "-qm", "first")
    await run("git", "clone", "-q", source, media / "clone")
    await away((media / "clone" / "more").write_text, "more\n")
    for command in (
        ("config", "user.email", "a@b"),
        ("config", "user.name", "a"),
        ("add", "."),
        ("commit", "-qm", "second"),
        ("fsck", "--full", "--strict"),
        ("gc", "-q"),
        ("fsck", "--full"),
    ):
        await run("git", "-C", media / "clone", *command)
    assert await run("git", "-C", media / "clone", "status", "--short") == ""


def make_tree(folder: Path) -> None:
    """Files of several sizes, links of both kinds, empty folders, times long ago, an odd name."""
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "empty").mkdir()
    for number, size in enumerate((0, 1, 4096, 5000, 70_000, 9 * MIB)):
        (folder / "deep" / f"file-{number}").write_bytes(pattern_bytes(number, size))
    os.link(folder / "deep" / "file-3", folder / "deep" / "er" / "hard")
    os.symlink("../deep/file-1", folder / "empty" / "soft")
    (folder / os.fsdecode(b"od\xffd \n name")).write_bytes(b"x")
    os.chmod(folder / "deep" / "file-2", 0o640)
    for path in sorted(folder.rglob("*"), reverse=True):
        os.utime(path, ns=(LONG_AGO, LONG_AGO), follow_symlinks=False)


async def test_rsync_finds_nothing_to_do_afterwards(media: Path, tmp_path: Path) -> None:
    if shutil.which("rsync") is None:
        if os.environ.get("CI"):
            pytest.fail("CI must have rsync")
        pytest.skip("rsync is not installed")
    make_tree(tmp_path / "tree")
    await run("rsync", "-aH", f"{tmp_path}/tree/", f"{media}/tree/")
    assert await run("rsync", "-aHnci", f"{tmp_path}/tree/", f"{media}/tree/") == ""
    await run("rsync", "-aH", "--inplace", "--delete", f"{tmp_path}/tree/", f"{media}/tree/")
    assert await run("rsync", "-aHnci", f"{media}/tree/", f"{tmp_path}/tree/") == ""


async def test_tar_and_cp(media: Path, tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    await run("tar", "-cf", tmp_path / "tree.tar", "-C", tmp_path, "tree")
    (media / "untarred").mkdir()
    await run("tar", "-xf", tmp_path / "tree.tar", "-C", media / "untarred")
    await run("tar", "-df", tmp_path / "tree.tar", "-C", media / "untarred")
    await run("cp", "-a", tmp_path / "tree", media / "copied")
    await run("diff", "-r", "--no-dereference", tmp_path / "tree", media / "copied")
    await run("tar", "-cf", tmp_path / "again.tar", "-C", media / "untarred", "tree")
    await run("tar", "-df", tmp_path / "again.tar", "-C", tmp_path)
    await run("mv", media / "copied", media.parent / "backups" / "moved")
    await run("diff", "-r", "--no-dereference", tmp_path / "tree", media.parent / "backups" / "moved")
    await run("rm", "-r", media / "untarred", media.parent / "backups" / "moved")
    assert await away(os.listdir, media) == ["inner"]


# ------------------------------------------------------------ ends


async def test_killed_it_has_forgotten_nothing(need_fuse: None, tmp_path: Path) -> None:
    """kill -9, again and again, while it is written to: what was closed is there, whole, under its last name."""
    media = tmp_path / "mount" / "media"
    digests: dict[str, str] = {}

    def write(turn: int) -> None:
        for number in range(25):
            data = os.urandom(number * number * 1000 // 7)
            name = f"{turn}-{number}"
            (media / f"{name}.part").write_bytes(data)
            os.rename(media / f"{name}.part", media / name)
            digests[name] = hashlib.sha256(data).hexdigest()

    def check() -> None:
        assert sorted(os.listdir(media)) == sorted([*digests, "inner"])
        for name, digest in digests.items():
            assert hashlib.sha256((media / name).read_bytes()).hexdigest() == digest, name

    async with serving(tmp_path) as server:
        for turn in range(4):
            await away(write, turn)
            await server.kill()
            await away(check)
