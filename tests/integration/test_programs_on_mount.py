"""Programs that people run save into the mount as into a disk: databases, git, backups, copies, films, fio."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.homes import Federation, Home, wait_for

PROGRAM_SECONDS = 90.0


def run(*words: str | Path, cwd: Path | None = None, **settings: str) -> str:
    """Run a program to its end; it must succeed."""
    done = subprocess.run(
        list(map(str, words)), cwd=cwd, env=os.environ | settings, capture_output=True, text=True,
        timeout=PROGRAM_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{words}: exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def digests(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file below."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


@pytest.fixture
def alice(federation: Federation, tmp_path: Path) -> Iterator[Home]:
    """alice's home, mounted at `mnt`."""
    if not Path("/dev/fuse").exists() or os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail("CI must have /dev/fuse and root")
        pytest.skip("mounting needs /dev/fuse and root")
    alice = federation.found("alice")
    alice.ok("datastore", "create", "/media", "--replicas", "1")
    alice.start()
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    alice.ok("mount", mountpoint)
    yield alice
    if os.path.ismount(mountpoint):
        alice.ok("umount", mountpoint)


@pytest.fixture
def folder(alice: Home, tmp_path: Path) -> Path:
    """alice's DataStore in her mount."""
    return tmp_path / "mnt" / "media"


def seen_elsewhere(alice: Home, folder: Path, path: str, tmp_path: Path) -> None:
    """What the mount shows is what the library holds: `get` in a process of its own brings the same bytes."""
    expected = digests(folder)

    def same() -> bool:
        target = tmp_path / "fetched"
        shutil.rmtree(target, ignore_errors=True)
        return alice.run("get", path, target).code == 0 and digests(target) == expected

    wait_for(same, "everything to be committed")


@pytest.mark.timeout(110)
@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_sqlite(folder: Path, journal: str) -> None:
    """A database with either journal: transactions, pages updated in place, an integrity check by another process."""
    path = folder / "library.db"
    with sqlite3.connect(path) as database:
        assert database.execute(f"PRAGMA journal_mode = {journal}").fetchone()[0] == journal
        database.execute("CREATE TABLE films (id INTEGER PRIMARY KEY, title TEXT, seen INTEGER)")
        for batch in range(20):
            with database:
                database.executemany(
                    "INSERT INTO films (title, seen) VALUES (?, 0)", [(f"{batch} {n}",) for n in range(100)]
                )
        with database:
            database.execute("UPDATE films SET seen = 1 WHERE id % 3 = 0")
    database.close()
    script = (
        "import sqlite3, sys; d = sqlite3.connect(sys.argv[1]);"
        " print(d.execute('PRAGMA integrity_check').fetchone()[0],"
        " d.execute('SELECT count(*), sum(seen) FROM films').fetchone())"
    )
    assert run("python3", "-c", script, path).strip() == "ok (2000, 666)"


@pytest.mark.timeout(110)
def test_git(folder: Path, tmp_path: Path) -> None:
    """Clone, commit, gc and fsck."""
    origin = tmp_path / "origin"
    identity = {
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b.c",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b.c",
    }
    run("git", "init", "-q", origin)
    for number in range(60):
        (origin / f"folder{number % 7}").mkdir(exist_ok=True)
        (origin / f"folder{number % 7}" / f"file{number}").write_bytes(os.urandom(number * 300))
    run("git", "add", "-A", cwd=origin)
    run("git", "commit", "-qm", "first", cwd=origin, **identity)
    clone = folder / "clone"
    run("git", "clone", "-q", "--no-hardlinks", origin, clone)
    (clone / "folder1" / "file1").write_text("changed\n")
    (clone / "new").write_text("new\n")
    run("git", "add", "-A", cwd=clone)
    run("git", "commit", "-qm", "second", cwd=clone, **identity)
    run("git", "gc", "-q", cwd=clone)
    run("git", "fsck", "--strict", cwd=clone)
    assert run("git", "status", "--porcelain", cwd=clone) == ""
    assert run("git", "log", "--format=%s", cwd=clone).split() == ["second", "first"]


@pytest.mark.timeout(110)
def test_copies(alice: Home, folder: Path, tmp_path: Path) -> None:
    """rsync -a finds nothing to do the second time; tar and cp -a bring everything back, links and times included."""
    source = tmp_path / "source"
    (source / "deep" / "er").mkdir(parents=True)
    for number in range(80):
        (source / "deep" / f"{number}.nfo").write_bytes(os.urandom(number * 97))
    (source / "deep" / "er" / "film.mkv").write_bytes(os.urandom(20 << 20))
    os.symlink("../deep", source / "deep" / "link")
    os.link(source / "deep" / "7.nfo", source / "deep" / "er" / "seven")
    (source / "deep" / "1.nfo").chmod(0o640)
    os.utime(source / "deep" / "2.nfo", ns=(1_600_000_000_123_456_789, 1_500_000_000_987_654_321))
    run("rsync", "-aH", f"{source}/", folder / "synced")
    assert run("rsync", "-aHnci", f"{source}/", folder / "synced") == ""
    run("tar", "-C", source, "--format=posix", "-cf", folder / "all.tar", ".")
    (folder / "untarred").mkdir()
    run("tar", "-C", folder / "untarred", "-xf", folder / "all.tar")
    run("cp", "-a", folder / "untarred", folder / "copied")
    for name in ("untarred", "copied"):
        assert run("rsync", "-aHnci", f"{source}/", folder / name) == "", name
    assert (folder / "copied" / "deep" / "2.nfo").stat().st_mtime_ns == 1_500_000_000_987_654_321
    assert (folder / "copied" / "deep" / "7.nfo").stat().st_nlink == 2
    seen_elsewhere(alice, folder / "copied" / "deep" / "er", "/media/copied/deep/er", tmp_path)


@pytest.mark.timeout(110)
def test_restic(folder: Path, tmp_path: Path) -> None:
    """A backup repository: two backups, every byte read back and checked."""
    source = tmp_path / "photos"
    source.mkdir()
    for number in range(40):
        (source / f"{number}.jpg").write_bytes(os.urandom(150_000))
    settings = {"RESTIC_PASSWORD": "test", "RESTIC_CACHE_DIR": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    run("restic", "init", "-q", "--repo", folder / "repo", **settings)
    run("restic", "backup", "-q", "--repo", folder / "repo", source, **settings)
    (source / "3.jpg").write_bytes(os.urandom(170_000))
    run("restic", "backup", "-q", "--repo", folder / "repo", source, **settings)
    out = run("restic", "check", "--read-data", "--repo", folder / "repo", **settings)
    assert "no errors were found" in out


@pytest.mark.timeout(110)
def test_ffmpeg(folder: Path) -> None:
    """A film is written into the mount, its index moved to the front in place, probed, and sought in."""
    film = folder / "film.mp4"
    run(
        "ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc2=size=640x360:rate=25", "-t", "20", "-c:v", "mpeg4",
        "-b:v", "4M", "-movflags", "+faststart", film,
    )  # fmt: skip
    shown = run("ffprobe", "-v", "error", "-show_entries", "format=duration", "-of", "csv=p=0", film)
    assert 19.5 < float(shown) < 20.5
    for second in ("0", "7.3", "18"):
        run("ffmpeg", "-v", "error", "-ss", second, "-i", film, "-frames:v", "5", "-f", "null", "-")


@pytest.mark.timeout(110)
@pytest.mark.parametrize(
    "pattern",
    [("randwrite", "4k", "--fsync=16"), ("write", "1m", "--end_fsync=1"), ("randrw", "16k", "--ioengine=mmap")],
    ids=lambda pattern: pattern[0],
)
def test_fio(folder: Path, pattern: tuple[str, str, str]) -> None:
    """Random and sequential writes, through mmap too, all verified by reading back."""
    kind, block, more = pattern
    run(
        "fio", "--name=job", f"--directory={folder}", f"--rw={kind}", f"--bs={block}", "--size=24m", "--io_size=24m",
        "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--randseed=7", "--group_reporting", more,
    )  # fmt: skip
