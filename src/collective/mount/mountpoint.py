"""The directory under the mount: is it fit, is it stale, and how does it look while nothing is mounted?

Media servers delete libraries that look empty, so the bare directory is made unreadable (mode 0000) when that harms
nobody: it is empty and belongs to whoever mounts. Nothing here may touch the mount itself in a way that could wait
for it.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from pathlib import Path
from types import TracebackType

from collective.core.errors import Conflict, Misconfigured, NotFound, Refused
from collective.mount.kernel import find_mount

__all__ = ["MOUNT_KIND", "Mountpoint", "clean_stale", "mark_unmounted", "unmount"]

MOUNT_KIND = "fuse.collective"
FUSE_DEVICE = Path("/dev/fuse")
FUSE_SETTINGS = Path("/etc/fuse.conf")
COMMAND_SECONDS = 20.0


class Mountpoint:
    """A directory checked and ready to be mounted on; keeps a door to the bare directory open while it is covered.

    A context manager: `with Mountpoint(path) as mountpoint: … mount …; mountpoint.hide()`.
    """

    def __init__(self, directory: Path, *, allow_other: bool = False) -> None:
        """Raises: Misconfigured (missing, not a directory, not empty, in use, no FUSE), each with what to do."""
        self.directory = Path(os.path.abspath(directory))
        _check_fuse(allow_other=allow_other)
        clean_stale(self.directory)
        if find_mount(self.directory) is not None:
            raise Misconfigured(f"something is mounted at {self.directory} already", f"umount {self.directory}")
        self._was_hidden = _open_up(self.directory)
        try:
            self._descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise Misconfigured(
                f"there is no directory {self.directory} to mount at", f"mkdir -p {self.directory}"
            ) from None
        except NotADirectoryError:
            raise Misconfigured(f"{self.directory} is not a directory", "mount at a directory") from None
        except OSError as error:
            raise Misconfigured(f"{self.directory}: {error.strerror}", "mount at a directory of your own") from None
        if os.listdir(self._descriptor):
            os.close(self._descriptor)
            raise Misconfigured(
                f"{self.directory} is not empty; the mount would cover what is in it", "mount at an empty directory"
            )

    def __enter__(self) -> Mountpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._was_hidden:
            self.hide()
        os.close(self._descriptor)

    def hide(self) -> bool:
        """Make the bare directory unreadable, covered or not. Whether that was done."""
        return _hide(self._descriptor)


def mark_unmounted(directory: Path) -> bool:
    """Make a directory nothing is mounted on look broken: mode 0000, if it is empty and ours. Whether it was done."""
    if find_mount(Path(os.path.abspath(directory))) is not None:
        return False
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return _hide(descriptor)
    finally:
        os.close(descriptor)


def clean_stale(directory: Path) -> bool:
    """Take away a mount of ours whose process has died. Whether there was one.

    Raises: Misconfigured when it cannot be taken away.
    """
    cleaned = False
    while (entry := find_mount(directory)) is not None and entry.kind == MOUNT_KIND:
        try:
            os.statvfs(directory)  # never answered from the kernel's memory, as a stat may be
        except OSError as error:
            if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED):
                return cleaned
        else:
            return cleaned
        problem = _run_unmount(directory, lazy=True)
        if problem:
            raise Misconfigured(f"a dead mount at {directory} stays: {problem}", f"sudo umount -l {directory}")
        cleaned = True
    return cleaned


def unmount(directory: Path, *, lazy: bool = False) -> None:
    """Take the mount at `directory` away; its process ends by itself.

    Raises: NotFound when nothing of ours is mounted there; Conflict while it is in use (and not `lazy`); Refused.
    """
    directory = Path(os.path.abspath(directory))
    entry = find_mount(directory)
    if entry is None or entry.kind != MOUNT_KIND:
        raise NotFound(f"no library is mounted at {directory}")
    problem = _run_unmount(directory, lazy=lazy)
    if "busy" in problem.lower():
        raise Conflict(f"{directory} is in use", "close what reads there, or give --lazy")
    if problem:
        raise Refused(f"{directory} stays mounted: {problem}", "unmount as the user who mounted, or as root")


def _run_unmount(directory: Path, *, lazy: bool) -> str:
    """Returns the problem, empty when there was none."""
    command = ["fusermount3", "-uz" if lazy else "-u", "--", str(directory)]
    if os.geteuid() == 0:
        command = ["umount", *(["-l"] if lazy else []), "--", str(directory)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else (done.stderr.strip() or f"{command[0]} answered {done.returncode}")


def _check_fuse(*, allow_other: bool) -> None:
    if not FUSE_DEVICE.exists():
        raise Misconfigured(
            "this machine has no /dev/fuse", "sudo modprobe fuse   (in a container: --device /dev/fuse)"
        )
    if not os.access(FUSE_DEVICE, os.R_OK | os.W_OK):
        raise Misconfigured("/dev/fuse may not be used by this user", "sudo chmod 0666 /dev/fuse")
    if os.geteuid() == 0:
        return
    if shutil.which("fusermount3") is None:
        raise Misconfigured("fusermount3 is not installed", "sudo apt-get install -y fuse3")
    if allow_other:
        lines = FUSE_SETTINGS.read_text().splitlines() if FUSE_SETTINGS.exists() else []
        if not any(line.strip() == "user_allow_other" for line in lines):
            raise Misconfigured(
                "only root may show a mount to other users here",
                "echo user_allow_other | sudo tee -a /etc/fuse.conf",
            )


def _open_up(directory: Path) -> bool:
    """Give a directory that was hidden before back to its owner, so that it can be mounted on."""
    try:
        found = os.lstat(directory)
    except OSError:
        return False  # the caller's open says what is wrong
    hidden = stat.S_ISDIR(found.st_mode) and stat.S_IMODE(found.st_mode) == 0 and found.st_uid == os.geteuid()
    if hidden:
        os.chmod(directory, 0o700)
    return hidden


def _hide(descriptor: int) -> bool:
    if os.fstat(descriptor).st_uid != os.geteuid() or os.listdir(descriptor):
        return False
    os.fchmod(descriptor, 0)
    return True
