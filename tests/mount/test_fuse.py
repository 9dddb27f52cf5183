"""Real mounts: what programs see, what faults do to them, and that nothing hangs.

The mount is served by this test's own event loop, so it is touched from threads and child processes only.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import pytest
from memory_library import MTIME, MemoryNames, MemorySource, MemorySources, pattern_bytes, until

from collective.core.errors import Conflict, Corrupt, Misconfigured, Unreachable
from collective.core.sizes import KIB, MIB
from collective.mount.fuse import run_mount
from collective.mount.kernel import find_mount
from collective.mount.mountpoint import clean_stale, unmount
from collective.mount.settings import MountSettings

Mounted = Callable[..., AbstractAsyncContextManager[Path]]
T = TypeVar("T")

MAPPED_READ = """
import hashlib, mmap, sys
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
    for place in range(len(mapped) - 1, 0, -333_333):
        mapped[place]
    print(hashlib.sha256(mapped).hexdigest())
"""


async def away(call: Callable[..., T], *args: object) -> T:
    """Run a file system call where waiting for the mount does not stop the mount."""
    async with asyncio.timeout(60):
        return await asyncio.to_thread(call, *args)


async def run(*command: object) -> str:
    """A program's output; fails with what it said on stderr."""

    def call() -> str:
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return await away(call)


async def seen(condition: Callable[[], bool]) -> None:
    """Ask the mount, away from its event loop, until it shows what it should; fails after 20 seconds."""
    async with asyncio.timeout(20):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0)


@asynccontextmanager
async def child_mount(directory: Path, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Another process that mounts a library with one film, until the end of the block."""
    script = Path(__file__).with_name("serve_memory.py")
    child = await asyncio.create_subprocess_exec(
        sys.executable, str(script), str(directory), *words, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert child.stdout is not None
        async with asyncio.timeout(30):
            assert await child.stdout.readline() == b"ready\n"
        yield child
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
        clean_stale(directory)


async def errno_of(call: Callable[..., object], *args: object) -> int:
    """The errno a call fails with."""
    with pytest.raises(OSError) as caught:  # noqa: PT011
        await away(call, *args)
    assert caught.value.errno is not None
    return caught.value.errno


async def test_copied_files_are_equal(mounted: Mounted, names: MemoryNames, tmp_path: Path) -> None:
    """Sizes around every edge: empty, inline, one segment, one chunk, several."""
    sizes = [0, 1, 4096, 4097, 64 * KIB, 64 * KIB + 1, 8 * MIB - 1, 8 * MIB, 8 * MIB + 1, 70 * MIB + 3]
    for size in sizes:
        names.make_file(b"file-%d" % size, pattern_bytes(size, size))
    async with mounted() as directory:
        await run("cp", "-r", directory, tmp_path / "copy")
    for size in sizes:
        assert (tmp_path / "copy" / f"file-{size}").read_bytes() == pattern_bytes(size, size)


async def test_random_reads_are_right(mounted: Mounted, names: MemoryNames) -> None:
    data = pattern_bytes(3, 50 * MIB + 77)
    names.make_file(b"film", data)
    dice = random.Random(1)
    places = [(dice.randrange(len(data)), dice.randrange(1, 300_000)) for _ in range(150)]

    def look(path: Path) -> list[bytes]:
        with path.open("rb", buffering=0) as file:
            return [os.pread(file.fileno(), length, offset) for offset, length in places]

    async with mounted(cache_size_bytes=16 * MIB) as directory:
        got = await away(look, directory / "film")
    assert got == [data[offset : offset + length] for offset, length in places]


async def test_random_reads_cost_segments_not_chunks(
    mounted: Mounted, names: MemoryNames, sources: MemorySources
) -> None:
    names.make_file(b"film", pattern_bytes(3, 128 * MIB))

    def look(path: Path) -> None:
        with path.open("rb", buffering=0) as file:
            for index in range(1, 16):
                os.pread(file.fileno(), 64 * KIB, index * 8 * MIB + 3 * MIB)

    async with mounted() as directory:
        await away(look, directory / "film")
    assert sources.filled_bytes <= 15 * 256 * KIB


async def test_ten_thousand_names_with_attributes(mounted: Mounted, names: MemoryNames) -> None:
    folder = names.make_directory(b"many")
    for index in range(10_000):
        names.make_file(b"file-%05d" % index, b"x" * (index % 100), folder)
    async with mounted() as directory:
        listed = await away(sorted, directory.glob("many/*"))
        assert [path.name for path in listed] == [f"file-{index:05d}" for index in range(10_000)]
        lines = (await run("ls", "-lR", directory)).splitlines()
        assert sum("file-" in line for line in lines) == 10_000
        assert await away(os.path.getsize, directory / "many" / "file-00042") == 42


async def test_attributes_links_and_space(mounted: Mounted, names: MemoryNames) -> None:
    ino = names.make_file(b"film", pattern_bytes(1, 5000))
    names.make_link(b"link", b"film")
    async with mounted(uid=4321) as directory:
        found = await away(os.stat, directory / "film")
        assert (found.st_ino, found.st_size, found.st_mtime_ns) == (ino, 5000, MTIME)
        assert (found.st_uid, found.st_mode & 0o777) == (4321, 0o644)
        assert await away(os.readlink, directory / "link") == "film"
        assert (await away(os.stat, directory / "link")).st_ino == ino
        assert (await away(os.statvfs, directory)).f_namemax == 255
        assert (await away(os.stat, directory)).st_ino == 1
        assert await away(os.listxattr, directory / "film") == []


async def test_what_is_not_there_and_what_cannot_be_named(mounted: Mounted) -> None:
    async with mounted() as directory:
        assert await errno_of(os.stat, directory / "absent") == errno.ENOENT
        assert await errno_of(os.stat, directory / ("n" * 256)) == errno.ENAMETOOLONG
        assert await errno_of(os.getxattr, directory, "user.x") == errno.ENODATA


async def test_nothing_can_be_changed(mounted: Mounted, names: MemoryNames) -> None:
    names.make_file(b"film", b"12345")
    async with mounted() as directory:
        film = directory / "film"
        for call, args in (
            (os.mkdir, (directory / "new",)),
            (os.unlink, (film,)),
            (os.rename, (film, directory / "other")),
            (os.chmod, (film, 0o600)),
            (os.truncate, (film, 0)),
            (os.link, (film, directory / "other")),
            (os.symlink, ("film", directory / "other")),
            (os.open, (film, os.O_WRONLY)),
            (os.open, (directory / "new", os.O_CREAT | os.O_WRONLY)),
            (os.setxattr, (film, "user.x", b"1")),
        ):
            assert await errno_of(call, *args) == errno.EROFS, call
        assert await away(film.read_bytes) == b"12345"


async def test_an_unreadable_folder_is_not_an_empty_one(mounted: Mounted, names: MemoryNames) -> None:
    folder = names.make_directory(b"sealed")
    names.make_file(b"film", b"12345", folder)
    names.seal(folder)
    async with mounted() as directory:
        assert await away(os.listdir, directory) == ["sealed"]
        assert await errno_of(os.listdir, directory / "sealed") == errno.EACCES
        assert await errno_of(os.stat, directory / "sealed" / "film") == errno.EACCES


async def test_failing_bytes_are_an_error_and_the_mount_lives_on(
    mounted: Mounted, names: MemoryNames, sources: MemorySources
) -> None:
    names.make_file(b"film", pattern_bytes(1, MIB))
    async with mounted() as directory:
        sources.failure = Corrupt("a segment is not what its hash says")
        assert await errno_of((directory / "film").read_bytes) == errno.EIO
        sources.failure = None
        assert await away((directory / "film").read_bytes) == pattern_bytes(1, MIB)


async def test_a_surprise_in_the_names_is_eio_and_told(mounted: Mounted, names: MemoryNames, observer: object) -> None:
    """An exception nobody expected neither escapes the handler nor hangs the caller."""
    async with mounted(names_timeout_seconds=0.0) as directory:
        names.broken = ZeroDivisionError("surprise")
        assert await errno_of(os.listdir, directory) == errno.EIO
        names.broken = None
        assert await away(os.listdir, directory) == []
    assert observer.named("mount.unexpected")  # type: ignore[attr-defined]


async def test_bytes_that_never_come_are_eio_after_the_deadline(
    mounted: Mounted, names: MemoryNames, sources: MemorySources
) -> None:
    names.make_file(b"film", pattern_bytes(1, MIB))
    sources.gate.clear()
    async with mounted(deadline_seconds=0.3) as directory:
        assert await errno_of((directory / "film").read_bytes) == errno.EIO
        assert await away(os.listdir, directory) == ["film"]


async def test_many_readers_over_a_tiny_cache(mounted: Mounted, names: MemoryNames) -> None:
    for seed in range(8):
        names.make_file(b"%d" % seed, pattern_bytes(seed, 12 * MIB + seed))

    def digest(path: Path) -> str:
        return sha256(path.read_bytes()).hexdigest()

    async with mounted(cache_size_bytes=16 * MIB) as directory:
        got = await asyncio.gather(*(away(digest, directory / str(seed)) for seed in range(8)))
    assert got == [sha256(pattern_bytes(seed, 12 * MIB + seed)).hexdigest() for seed in range(8)]


async def test_a_mapped_file_reads_the_same(mounted: Mounted, names: MemoryNames) -> None:
    data = pattern_bytes(9, 20 * MIB + 5)
    names.make_file(b"film", data)

    async with mounted() as directory:
        # In a child: a fault in a mapped page waits for the mount while holding the interpreter that serves it.
        assert await run(sys.executable, "-c", MAPPED_READ, directory / "film") == f"{sha256(data).hexdigest()}\n"


async def test_a_replaced_content_is_seen_and_never_mixed(mounted: Mounted, names: MemoryNames) -> None:
    """A change is pushed: the new size and bytes are there without waiting for a timeout; who has the old one open
    is told so once somebody opened the new one."""
    old, new = pattern_bytes(1, 3 * MIB), pattern_bytes(2, 2 * MIB + 1)
    ino = names.make_file(b"film", old)
    changed: asyncio.Queue[None] = asyncio.Queue()

    async def changes() -> AsyncIterator[None]:
        while True:
            yield await changed.get()

    async with mounted(changes=changes(), names_timeout_seconds=3600.0) as directory:
        film = directory / "film"
        assert await away(film.read_bytes) == old
        held = await away(os.open, film, os.O_RDONLY)
        names.replace_content(ino, new, version=2)
        changed.put_nowait(None)
        await seen(lambda: film.stat().st_size == len(new))
        assert await away(film.read_bytes) == new
        await away(os.posix_fadvise, held, 0, 0, os.POSIX_FADV_DONTNEED)
        assert await errno_of(os.pread, held, 4096, 0) == errno.ESTALE
        await away(os.close, held)
        names.remove(b"film")
        changed.put_nowait(None)
        await seen(lambda: not film.exists())


async def test_the_kernel_keeps_pages_of_an_unchanged_content(
    mounted: Mounted, names: MemoryNames, sources: MemorySources
) -> None:
    names.make_file(b"film", pattern_bytes(1, 4 * MIB))
    async with mounted(cache_size_bytes=16 * MIB) as directory:
        await away((directory / "film").read_bytes)
        sources.failure = Corrupt("nobody may ask again")
        assert await away((directory / "film").read_bytes) == pattern_bytes(1, 4 * MIB)


async def test_the_kernel_asks_for_a_mebibyte_at_a_time(mounted: Mounted, names: MemoryNames, observer: object) -> None:
    names.make_file(b"film", pattern_bytes(1, 64 * MIB))
    async with mounted() as directory:
        await run("dd", f"if={directory}/film", "of=/dev/null", "bs=1M")
    ready, stopped = observer.named("mount.ready"), observer.named("mount.stopped")  # type: ignore[attr-defined]
    assert ready[0]["kernel_read_ahead"] is True
    assert stopped[0]["reads"] <= 80


async def test_unmounting_while_somebody_reads_ends_both(
    mounted: Mounted, names: MemoryNames, sources: MemorySources
) -> None:
    names.make_file(b"film", pattern_bytes(1, MIB))
    sources.gate.clear()
    async with mounted() as directory:
        reading = asyncio.create_task(away((directory / "film").read_bytes))
        await until(lambda: sources.fills)
    with pytest.raises(OSError):  # noqa: PT011
        await reading
    assert find_mount(directory) is None
    assert directory.stat().st_mode & 0o777 == 0, "unmounted looks broken, not empty"


async def test_unmounted_from_outside_it_returns(
    need_fuse: None, names: MemoryNames, sources: MemorySources, tmp_path: Path
) -> None:
    names.make_file(b"film", b"12345")
    ready = asyncio.Event()
    running = asyncio.create_task(run_mount(names, sources.open, MountSettings(tmp_path), on_ready=ready.set))
    await ready.wait()
    # another process holds the file: one that serves a mount must not fork with a file of it open (the child's
    # close would wait for the very process that waits for the child)
    code = "import sys; held = open(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path / "film")]
    holder = await away(partial(subprocess.Popen, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    assert await away(holder.stdout.readline) == b"open\n"
    with pytest.raises(Conflict, match="in use"):
        await away(unmount, tmp_path)
    await away(holder.communicate)
    await away(unmount, tmp_path)
    async with asyncio.timeout(20):
        await running


async def test_a_mountpoint_in_use_is_refused(mounted: Mounted, names: MemoryNames, sources: MemorySources) -> None:
    async with mounted() as directory:
        with pytest.raises(Misconfigured, match=r"mounted at .* already"):
            await run_mount(names, sources.open, MountSettings(directory))


async def test_impossible_settings_are_refused(tmp_path: Path, names: MemoryNames, sources: MemorySources) -> None:
    with pytest.raises(Misconfigured, match="--vfs-cache-max-size"):
        await run_mount(names, sources.open, MountSettings(tmp_path, cache_size_bytes=MIB))


async def test_a_dead_mount_is_cleaned_and_mounted_again(mounted: Mounted, names: MemoryNames, tmp_path: Path) -> None:
    """Killed with -9 while it serves: broken, not empty; the next mount clears it away by itself."""
    directory = tmp_path / "library"
    directory.mkdir()
    async with child_mount(directory) as child:
        assert await away(os.listdir, directory) == ["film"]
        child.kill()
        await child.wait()
        assert await errno_of(os.listdir, directory) == errno.ENOTCONN
        names.make_file(b"other", b"12345")
        async with mounted() as again:
            assert again == directory
            assert await away(os.listdir, directory) == ["other"]


async def test_sigterm_unmounts_and_uvloop_serves(need_fuse: None, tmp_path: Path) -> None:
    async with child_mount(tmp_path, "--uvloop") as child:
        assert await away((tmp_path / "film").read_bytes) == pattern_bytes(1, 3 * MIB)
        child.terminate()
        async with asyncio.timeout(30):
            assert await child.wait() == 0
        assert find_mount(tmp_path) is None


async def test_readers_of_what_is_away_hold_up_no_other_and_can_be_killed(
    mounted: Mounted, names: MemoryNames, sources: MemorySources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty programs wait for films that nobody has just now; another file is read meanwhile, whole; those that wait
    die when they are killed, and who is left alone gets its film when the holder is back."""
    gone = [pattern_bytes(seed, 12 * MIB) for seed in range(20)]
    for number, film in enumerate(gone):
        names.make_file(b"gone-%d" % number, film)
    there = pattern_bytes(99, 30 * MIB)
    names.make_file(b"there", there)
    real = MemorySource.fill
    away_now = True

    async def fill(source: MemorySource, index: int, first: int, count: int, out: memoryview) -> None:
        if away_now and len(source._data) == 12 * MIB:
            raise Unreachable("the node is starting")
        await real(source, index, first, count, out)

    monkeypatch.setattr(MemorySource, "fill", fill)
    async with mounted(kernel_read_ahead_bytes=4 * MIB) as library:
        readers = [
            await asyncio.create_subprocess_exec(
                "sha256sum", library / f"gone-{number}", stdout=asyncio.subprocess.PIPE
            )
            for number in range(20)
        ]
        assert await away(lambda: (library / "there").read_bytes()) == there
        waiting = [reader for reader in readers if reader.returncode is None]
        for reader in waiting[::2]:
            reader.kill()
            async with asyncio.timeout(10):
                await reader.wait()
        away_now = False
        sums = {f"{sha256(film).hexdigest()}  {library}/gone-{number}\n" for number, film in enumerate(gone)}
        outputs = {(await reader.communicate())[0].decode() for reader in readers} - {""}
        assert outputs, "some waited, and got their films"
        assert outputs <= sums
