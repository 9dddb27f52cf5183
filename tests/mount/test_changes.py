"""What the kernel was told is taken back exactly when it is not true any more."""

from __future__ import annotations

from math import inf

import pytest
from memory_library import ROOT_INO, MemoryNames

from collective.mount.changes import Stale, ToldNames


def stale(told: ToldNames, now: float) -> list[Stale]:
    return [found for found in told.stale(now) if found is not None]


def test_nothing_is_taken_back_while_all_is_true(names: MemoryNames) -> None:
    ino = names.make_file(b"a", b"1")
    told = ToldNames(names, 5.0)
    told.tell(names.get(ino), 0.0, ROOT_INO, b"a")
    assert stale(told, 1.0) == []


def test_a_new_content_takes_back_the_inode_and_a_removal_the_entry(names: MemoryNames) -> None:
    first, second = names.make_file(b"a", b"1"), names.make_file(b"b", b"2")
    told = ToldNames(names, 5.0)
    for ino, name in ((first, b"a"), (second, b"b")):
        told.tell(names.get(ino), 0.0, ROOT_INO, name)
    names.replace_content(first, b"111", version=2)
    names.remove(b"b")
    assert stale(told, 1.0) == [Stale(first), Stale(second), Stale(ROOT_INO, b"b")]
    assert stale(told, 1.0) == []


def test_a_listing_is_told_like_its_entries(names: MemoryNames) -> None:
    folder = names.make_directory(b"folder")
    inos = {name: names.make_file(name, b"1", folder) for name in (b"a", b"b", b"c")}
    told = ToldNames(names, 5.0)
    told.tell_entries([(name, names.get(ino)) for name, ino in inos.items()], 0.0, folder)
    names.remove(b"a", folder)
    names.replace_content(inos[b"b"], b"111", version=2)
    assert stale(told, 1.0) == [Stale(inos[b"a"]), Stale(inos[b"b"]), Stale(folder, b"a")]
    assert len(told) == 3, "what is still true, and the name of what changed, stay told"


def test_a_folder_that_became_unreadable_is_taken_back(names: MemoryNames) -> None:
    folder = names.make_directory(b"folder")
    ino = names.make_file(b"a", b"1", folder)
    told = ToldNames(names, 5.0)
    told.tell(names.get(ino), 0.0, folder, b"a")
    names.seal(folder)
    assert stale(told, 1.0) == [Stale(folder, b"a")]


def test_what_is_certain_is_not_compared(names: MemoryNames) -> None:
    folder = names.make_directory(b"folder")
    asked: list[int] = []

    def certain_since(ino: int) -> float:
        asked.append(ino)
        return 1.0 if ino == folder else inf

    inos = {b"%d" % number: names.make_file(b"%d" % number, b"1", folder) for number in range(4)}
    inos[b"a"] = names.make_file(b"a", b"1")
    told = ToldNames(names, 5.0, certain_since)
    for at, (name, ino) in enumerate(inos.items()):
        told.tell(names.get(ino), at / 2, ROOT_INO if name == b"a" else folder, name)
    for name in inos:
        names.remove(name, ROOT_INO if name == b"a" else folder)
    assert {one.name for one in stale(told, 3.0) if one.name} == {b"0", b"1", b"a"}  # told before, or elsewhere
    assert sorted(asked) == sorted([folder, ROOT_INO])


def test_attributes_are_compared_where_names_are_certain(names: MemoryNames) -> None:
    """A lease covers names: what another mount does to a file's content shows within a second all the same."""
    ino = names.make_file(b"a", b"1")
    told = ToldNames(names, 5.0, lambda parent: 0.0)
    told.tell(names.get(ino), 3.0, ROOT_INO, b"a")
    assert stale(told, 3.0) == []
    names.replace_content(ino, b"22", version=2)
    assert stale(told, 3.2) == []
    assert told.owed_in(3.2) == pytest.approx(0.8)
    assert stale(told, 4.0) == [Stale(ino)]
    assert told.owed_in(4.0) is None


def test_what_the_kernel_has_to_ask_again_anyway_is_forgotten(names: MemoryNames) -> None:
    ino = names.make_file(b"a", b"1")
    told = ToldNames(names, 5.0)
    told.tell(names.get(ino), 0.0, ROOT_INO, b"a")
    names.replace_content(ino, b"22", version=2)
    assert stale(told, 6.0) == []
    assert len(told) == 0
