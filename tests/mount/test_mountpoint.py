"""Unfit mountpoints are refused with what to do; bare ones look broken rather than empty."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from collective.core.errors import Misconfigured, NotFound
from collective.mount import mountpoint as subject
from collective.mount.kernel import find_mount, raise_read_ahead
from collective.mount.mountpoint import Mountpoint, mark_unmounted, unmount


def test_a_missing_directory(tmp_path: Path, need_fuse: None) -> None:
    with pytest.raises(Misconfigured, match="mkdir -p"):
        Mountpoint(tmp_path / "absent")


def test_a_file_is_no_mountpoint(tmp_path: Path, need_fuse: None) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Misconfigured, match="not a directory"):
        Mountpoint(tmp_path / "file")


def test_a_directory_with_something_in_it(tmp_path: Path, need_fuse: None) -> None:
    (tmp_path / "film").touch()
    with pytest.raises(Misconfigured, match="not empty"):
        Mountpoint(tmp_path)


def test_a_mountpoint_in_use(need_fuse: None) -> None:
    with pytest.raises(Misconfigured, match="umount /proc"):
        Mountpoint(Path("/proc"))


def test_a_machine_without_fuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "FUSE_DEVICE", tmp_path / "fuse")
    with pytest.raises(Misconfigured, match="sudo modprobe fuse"):
        Mountpoint(tmp_path)


def test_only_root_shows_to_others_unless_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `user_allow_other` the line that allows it is named."""
    device = tmp_path / "fuse"
    device.touch()
    monkeypatch.setattr(subject, "FUSE_DEVICE", device)
    monkeypatch.setattr(subject, "FUSE_SETTINGS", tmp_path / "fuse.conf")
    monkeypatch.setattr(subject.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(subject.shutil, "which", lambda name: name)
    with pytest.raises(Misconfigured, match="user_allow_other"):
        Mountpoint(tmp_path / "library", allow_other=True)
    monkeypatch.setattr(subject.shutil, "which", lambda name: None)
    with pytest.raises(Misconfigured, match="apt-get install -y fuse3"):
        Mountpoint(tmp_path / "library")


def test_an_empty_directory_of_ours_is_hidden_and_can_be_mounted_on_again(tmp_path: Path, need_fuse: None) -> None:
    assert mark_unmounted(tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0
    with Mountpoint(tmp_path) as mountpoint:
        assert tmp_path.stat().st_mode & 0o777 == 0o700
        assert mountpoint.hide()
    assert tmp_path.stat().st_mode & 0o777 == 0


def test_a_directory_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "film").touch()
    mode = tmp_path.stat().st_mode
    assert not mark_unmounted(tmp_path)
    assert tmp_path.stat().st_mode == mode


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, 1234, 1234)
    assert not mark_unmounted(theirs)


def test_nothing_mounted_to_take_away(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no library is mounted"):
        unmount(tmp_path)


def test_the_mount_table_is_read_with_its_escapes(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        "36 35 0:44 / /mnt/two\\040words rw,noatime shared:1 - fuse.collective collective rw\n"
        "37 35 0:45 / /mnt/two\\040words rw - fuse.other other rw\n"
        "38 35 0:46 / /mnt/back\\134slash rw - ext4 /dev/sda rw\n"
    )
    found = find_mount(Path("/mnt/two words"), table)
    assert found is not None
    assert (found.device, found.kind, found.source) == ("0:45", "fuse.other", "other")
    assert find_mount(Path("/mnt/back\\slash"), table) is not None
    assert find_mount(Path("/mnt/two"), table) is None


def test_read_ahead_of_what_is_not_mounted_is_told(tmp_path: Path) -> None:
    assert "mount table" in raise_read_ahead(tmp_path, 1 << 20)
