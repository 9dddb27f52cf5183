"""The order of changes: what depends on another follows it, what does not goes on."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collective.mount.scheduling import Keys, Schedule, keys_of
from collective.wire import feed_pb2


def operations(random: Random) -> list[tuple[Keys, bool]]:
    """(keys, ready) of operations as they are made."""
    made = []
    for _ in range(random.randint(1, 30)):
        keys = random.sample(range(1, 7), random.randint(0, 4))
        cut = random.randint(0, len(keys))
        made.append((Keys(tuple(keys[:cut]), tuple(keys[cut:])), random.random() < 0.6))
    return made


def conflict(one: Keys, other: Keys) -> bool:
    return bool(set(one.alone) & {*other.alone, *other.shared} or set(one.shared) & set(other.alone))


@given(st.integers(0, 1 << 32), st.integers(1, 5))
@settings(max_examples=500, deadline=None)
def test_the_laws_of_the_order(seed: int, limit: int) -> None:
    """However adding, readiness, taking and finishing interleave: conflicting ones in order, each once, none left."""
    random = Random(seed)
    made = operations(random)
    schedule = Schedule()
    added: list[Keys] = []
    unready: list[int] = []
    batch: list[int] = []
    order: list[int] = []
    waiting = list(made)
    while waiting or unready or schedule.takeable_count or batch:
        step = random.choice(["add", "ready", "take", "finish"])
        if step == "add" and waiting:
            keys, ready = waiting.pop(0)
            ticket = schedule.add(keys, ready=ready)
            added.append(keys)
            assert ticket == len(added)
            if not ready:
                unready.append(ticket)
        elif step == "ready" and unready:
            schedule.make_ready(unready.pop(random.randrange(len(unready))))
        elif step == "take" and not batch:
            blocked = held_up(added, set(order), set(unready))
            batch = schedule.take(limit)
            free = [ticket for ticket in range(1, len(added) + 1) if ticket not in blocked and ticket not in order]
            assert set(batch) <= set(free)
            assert len(batch) == min(limit, len(free)), "whatever may go is taken"
            order += batch
        elif step == "finish":
            schedule.finish(batch)
            batch = []
    assert sorted(order) == list(range(1, len(made) + 1))
    assert len(schedule) == 0
    for place, ticket in enumerate(order):
        for later in order[place + 1 :]:
            assert ticket < later or not conflict(added[ticket - 1], added[later - 1])


def held_up(added: list[Keys], taken: set[int], unready: set[int]) -> set[int]:
    """By the definition: not ready, or in conflict with an earlier one that is held up."""
    held: set[int] = set()
    for ticket in range(1, len(added) + 1):
        if ticket in taken:
            continue
        if ticket in unready or any(conflict(added[ticket - 1], added[other - 1]) for other in held):
            held.add(ticket)
    return held


def create(parent: int, name: bytes, inode: int) -> feed_pb2.TreeOperation:
    return feed_pb2.TreeOperation(create=feed_pb2.Create(parent=parent, name=name, inode=inode))


def rename(inode: int, old: tuple[int, bytes], new: tuple[int, bytes], replaced: int = 0) -> feed_pb2.TreeOperation:
    return feed_pb2.TreeOperation(
        rename=feed_pb2.Rename(
            inode=inode, from_parent=old[0], from_name=old[1], to_parent=new[0], to_name=new[1], replaced_inode=replaced
        )
    )


def test_a_rename_waits_for_the_content_and_nothing_else_does() -> None:
    """write tmp, rename over: the name never leads to the empty file, and the neighbours are not held up."""
    schedule = Schedule()
    made = schedule.add(keys_of(create(1, b"tmp", 10), of_directory=False))
    content = schedule.add(Keys((10,)), ready=False)
    moved = schedule.add(keys_of(rename(10, (1, b"tmp"), (1, b"final"), 9), of_directory=False))
    other = schedule.add(keys_of(create(1, b"other", 11), of_directory=False))
    assert schedule.take(256) == [made, other]
    schedule.make_ready(content)
    assert schedule.take(256) == [content, moved]


def test_a_directory_goes_after_what_was_taken_out_of_it() -> None:
    """rmdir follows the unlinks of what was inside, also when one of them waits."""
    schedule = Schedule()
    content = schedule.add(Keys((10,)), ready=False)
    gone = schedule.add(
        keys_of(feed_pb2.TreeOperation(unlink=feed_pb2.Unlink(parent=5, name=b"f", inode=10)), of_directory=False)
    )
    removed = schedule.add(
        keys_of(feed_pb2.TreeOperation(unlink=feed_pb2.Unlink(parent=1, name=b"d", inode=5)), of_directory=True)
    )
    assert schedule.take(256) == []
    assert schedule.changing_names_in(5) == [removed], "the last one; what it waits for is finished before"
    assert schedule.changing_names_in(1) == [removed]
    schedule.make_ready(content)
    assert schedule.take(256) == [content, gone, removed]


def test_what_concerns_a_name_is_known_until_it_is_finished() -> None:
    """An exact call waits for what is queued about its names and inodes, taken or not."""
    schedule = Schedule()
    first = schedule.add(keys_of(create(1, b"a", 10), of_directory=True))
    inside = schedule.add(keys_of(create(10, b"b", 11), of_directory=False))
    keys = keys_of(create(10, b"c", 12), of_directory=False)
    assert schedule.concerning(keys) == [first]
    schedule.take(1)
    assert schedule.concerning(keys) == [first]
    schedule.finish([first])
    assert schedule.concerning(keys) == []
    assert schedule.concerning(keys_of(create(10, b"b", 13), of_directory=False)) == [inside]


@pytest.mark.parametrize("count", [20_000])
def test_the_cost_of_an_operation_does_not_grow(count: int) -> None:
    """Twenty thousand creates in one directory, half of them behind contents, in a moment; nothing scans the queue."""
    schedule = Schedule()
    contents = []
    for number in range(10, 10 + count):
        schedule.add(keys_of(create(1, b"%d" % number, number), of_directory=False))
        if number % 2:
            contents.append(schedule.add(Keys((number,)), ready=False))
    while batch := schedule.take(256):
        schedule.finish(batch)
    for ticket in contents:
        schedule.make_ready(ticket)
    while batch := schedule.take(256):
        schedule.finish(batch)
    assert len(schedule) == 0
    assert schedule._alone == schedule._sharing == {}
