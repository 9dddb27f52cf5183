"""The demo's parts: free ports, groups that end whole, the film's pace, an environment that configures nothing."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from collective.cli.demo_film import PACE_LIMIT_BYTES_PER_SECOND, make_noise, need_room, pace_of, take_film
from collective.cli.demo_homes import end_group, group_of, plain_environment, three_free_ports, wait_until
from collective.cli.demo_mount import is_mounted, timed_read
from collective.core.errors import Full, NotFound, Unreachable

PARENT_WITH_CHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"


def test_three_ports_in_a_row_can_be_bound() -> None:
    first = three_free_ports()
    for step in range(3):
        with socket.socket() as one:
            one.bind(("127.0.0.1", first + step))


@pytest.mark.parametrize("frozen", [False, True])
def test_a_group_ends_whole_also_when_it_is_frozen(frozen: bool) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT_WITH_CHILD], start_new_session=True) as process:
        wait_until(lambda: len(group_of(process.pid)) == 2, "the child's start")
        if frozen:
            os.killpg(process.pid, signal.SIGSTOP)
        end_group(process)
        assert group_of(process.pid) == []
        assert process.poll() is not None


def test_what_does_not_happen_is_named() -> None:
    with pytest.raises(Unreachable, match="the moon"):
        wait_until(lambda: False, "the moon", timeout_seconds=0.0)


def test_the_environment_carries_no_settings_of_a_component(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLLECTIVE_HOME", "/somewhere")
    monkeypatch.setenv("STORAGE_PATH", "/elsewhere")
    environment = plain_environment()
    assert "COLLECTIVE_HOME" not in environment
    assert "STORAGE_PATH" not in environment
    assert environment["PATH"] == os.environ["PATH"]


def test_a_film_plays_at_its_own_pace_or_faster_but_never_above_the_limit() -> None:
    assert pace_of(25_000_000, 25.0) == pytest.approx(1_000_000)
    assert pace_of(250_000_000, 6000.0) == pytest.approx(10_000_000)
    assert pace_of(50_000_000_000, 6000.0) == PACE_LIMIT_BYTES_PER_SECOND
    assert pace_of(25_000_000, 0.0) == pytest.approx(1_000_000)


def test_noise_is_as_long_as_asked_and_its_hash_is_true(tmp_path: Path) -> None:
    digest = make_noise(tmp_path / "noise", 3_000_001)
    assert (tmp_path / "noise").stat().st_size == 3_000_001
    assert digest == hashlib.sha256((tmp_path / "noise").read_bytes()).hexdigest()
    assert timed_read(tmp_path / "noise")[0] == 3_000_001


def test_a_small_disk_is_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(Full, match="needs"):
        need_room(tmp_path, 1 << 62)


def test_a_film_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no film"):
        take_film(tmp_path / "none.mkv", tmp_path)


def test_an_ordinary_folder_is_no_mount(tmp_path: Path) -> None:
    assert not is_mounted(tmp_path)
    assert is_mounted(Path("/proc"))
