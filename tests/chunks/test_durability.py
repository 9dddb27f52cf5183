"""Group durability: data before names, names before the answer; few syncs for many; nothing half kept on failure."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from collective.chunks import durability
from collective.chunks.disk import sync_file_system, sync_folder
from collective.chunks.durability import FEW_FILES, GroupCommitter, WrittenFile
from collective.core.errors import CollectiveError, Full, Misconfigured, Unreachable


class Bench:
    """A committer on a folder, its syncs and renames written down in order, its answers kept."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.steps: list[str] = []
        self.answers: dict[str, CollectiveError | None] = {}
        self.fail_at: dict[str, OSError] = {}
        self.sync_allowed = threading.Event()
        self.sync_allowed.set()
        self.sync_begun = threading.Event()
        self._settled = threading.Condition()
        real_file_system, real_folder, real_fsync = sync_file_system, sync_folder, os.fsync
        real_rename = Path.rename

        def file_system(descriptor: int) -> None:
            self._step("syncfs")
            real_file_system(descriptor)

        def folder_sync(path: Path) -> None:
            self._step(f"folder {path.name}")
            real_folder(path)

        def fsync(descriptor: int) -> None:
            name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
            if name.endswith(".tmp"):
                self.sync_begun.set()
                assert self.sync_allowed.wait(20)
                self._step(f"data {name}")
            real_fsync(descriptor)

        def rename(path: Path, target: Path) -> Path:
            self._step(f"rename {path.name}")
            return real_rename(path, target)

        monkeypatch.setattr(durability, "sync_file_system", file_system)
        monkeypatch.setattr(durability, "sync_folder", folder_sync)
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(Path, "rename", rename)
        for name in ("a", "b"):
            (folder / name).mkdir()
        self.committer = GroupCommitter(folder)

    def _step(self, step: str) -> None:
        self.steps.append(step)
        if step.split()[0] in self.fail_at:
            raise self.fail_at[step.split()[0]]

    def submit(self, name: str, into: str = "a") -> None:
        temporary = self.folder / f"{name}.tmp"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, name.encode())

        def settle(error: CollectiveError | None) -> None:
            with self._settled:
                self.steps.append(f"answer {name}")
                self.answers[name] = error
                self._settled.notify_all()

        self.committer.submit(WrittenFile(temporary, self.folder / into / name, 1, descriptor, settle))

    def wait_for(self, count: int) -> None:
        with self._settled:
            assert self._settled.wait_for(lambda: len(self.answers) >= count, 20)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    bench = Bench(tmp_path, monkeypatch)
    yield bench
    bench.sync_allowed.set()
    bench.committer.close()


def test_a_lone_writer_is_answered_without_company_data_then_name_then_folder(bench: Bench) -> None:
    bench.submit("one")
    bench.wait_for(1)
    assert bench.steps == ["data one.tmp", "rename one.tmp", "folder a", "answer one"]
    assert (bench.folder / "a" / "one").read_bytes() == b"one"


def test_those_who_come_while_a_sync_runs_share_the_next_one(bench: Bench) -> None:
    bench.sync_allowed.clear()
    bench.submit("first")
    assert bench.sync_begun.wait(20)
    many = [f"n{number}" for number in range(FEW_FILES + 6)]
    for number, name in enumerate(many):
        bench.submit(name, "ab"[number % 2])
    bench.sync_allowed.set()
    bench.wait_for(1 + len(many))
    group = bench.steps[bench.steps.index("answer first") + 1 :]
    assert group[0] == "syncfs"
    assert group[1 : 1 + len(many)] == [f"rename {name}.tmp" for name in many]
    assert sorted(group[1 + len(many) : 3 + len(many)]) == ["folder a", "folder b"]
    assert group[3 + len(many) :] == [f"answer {name}" for name in many]


@pytest.mark.parametrize("step", ["data", "rename", "folder"])
def test_a_failed_step_is_a_failed_write_and_leaves_nothing(bench: Bench, step: str) -> None:
    bench.fail_at[step] = OSError(errno.EIO, "Input/output error")
    bench.submit("one")
    bench.wait_for(1)
    assert isinstance(bench.answers["one"], Misconfigured)
    assert not (bench.folder / "a" / "one").exists()
    assert not (bench.folder / "one.tmp").exists()
    bench.fail_at.clear()
    bench.submit("two")  # the committer goes on
    bench.wait_for(2)
    assert bench.answers["two"] is None


def test_a_full_disk_is_told_as_full_to_the_whole_group(bench: Bench) -> None:
    bench.sync_allowed.clear()
    bench.submit("first")
    assert bench.sync_begun.wait(20)
    bench.fail_at["syncfs"] = OSError(errno.ENOSPC, "No space left on device")
    for number in range(FEW_FILES + 1):
        bench.submit(f"n{number}")
    bench.sync_allowed.set()
    bench.wait_for(FEW_FILES + 2)
    assert bench.answers.pop("first") is None
    assert all(isinstance(answer, Full) for answer in bench.answers.values())
    assert [path.name for path in (bench.folder / "a").iterdir()] == ["first"]


def test_closing_answers_all_who_wait_and_refuses_who_comes_later(bench: Bench) -> None:
    for number in range(20):
        bench.submit(f"n{number}")
    bench.committer.close()
    assert bench.answers == {f"n{number}": None for number in range(20)}
    bench.submit("late")
    assert isinstance(bench.answers["late"], Unreachable)
    assert not (bench.folder / "late.tmp").exists()
