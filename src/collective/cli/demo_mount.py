"""The demo's mount at carol's: what it needs, how it is put up and taken away."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from collective.cli.demo_homes import DemoHome, end_group, plain_environment, wait_until
from collective.core.errors import CollectiveError

__all__ = ["DemoMount", "is_mounted", "missing_for_mount", "timed_read"]

CACHE_SIZE = "64MiB"  # far less than a film: what is read was fetched
READ_BYTES = 1 << 20


def missing_for_mount() -> str:
    """Why this machine cannot mount, with what to type; empty when it can."""
    if importlib.util.find_spec("pyfuse3") is None:
        return "the Python package pyfuse3 is missing (pip install pyfuse3)"
    if shutil.which("fusermount3") is None:
        return "fusermount3 is missing (apt-get install -y fuse3)"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/fuse cannot be opened: {error.strerror} (in a container: --device /dev/fuse --cap-add SYS_ADMIN)"
    return ""


def is_mounted(directory: Path) -> bool:
    """Asked of the mount table, which answers also when the mount does not."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        return any(line.split()[4] == str(directory) for line in table)


def timed_read(path: Path) -> tuple[int, float]:
    """Read a file once from its beginning to its end: bytes, and seconds from the open on."""
    began = time.monotonic()
    done = 0
    buffer = bytearray(READ_BYTES)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            done += count
    return done, time.monotonic() - began


@dataclass
class DemoMount:
    """`collective mount` in the foreground, in a session of its own."""

    home: DemoHome
    directory: Path
    options: tuple[str, ...] = ("--vfs-cache-max-size", CACHE_SIZE)
    read_only: bool = True
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.home.path.parent / f"{self.home.name}-mount.log"

    def start(self) -> None:
        """Mount, and wait until it is in the mount table. Raises: CollectiveError with the end of its log."""
        self.directory.mkdir(exist_ok=True)
        read_only = ("--read-only",) if self.read_only else ()
        words = ["mount", str(self.directory), "--foreground", *read_only, *self.options]
        self.home.tell(*words)
        with self.log.open("ab") as sink:
            self.process = subprocess.Popen(
                self.home.words(*words),
                env=plain_environment(),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait_until(self._is_ready, f"the mount (its log: {self.log})")

    def _is_ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            last = self.log.read_text(errors="replace").strip().splitlines()[-4:]
            raise CollectiveError("the mount ended at once:\n  " + "\n  ".join(last))
        return is_mounted(self.directory)

    def stop(self) -> None:
        """Unmount as a person would; when that does not work, by force; end the process."""
        if is_mounted(self.directory):
            with contextlib.suppress(CollectiveError):
                self.home.run("umount", str(self.directory), timeout_seconds=15.0)
        if is_mounted(self.directory):
            force = ["fusermount3", "-u", "-z", str(self.directory)]
            subprocess.run(force, stderr=subprocess.DEVNULL, check=False)
        if self.process is not None:
            end_group(self.process)
