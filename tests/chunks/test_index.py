"""The index is a dictionary in 36 bytes a chunk."""

from __future__ import annotations

import random
import sys

from hypothesis import given
from hypothesis import strategies as st

from collective.chunks.index import ChunkIndex

IDS = st.binary(min_size=1, max_size=1).map(lambda tail: bytes([tail[0] % 4]) + bytes(30) + tail)


@given(st.lists(st.tuples(st.booleans(), IDS, st.integers(1, 2**23)), max_size=80))
def test_it_behaves_as_a_dictionary(steps: list[tuple[bool, bytes, int]]) -> None:
    index, model = ChunkIndex(), dict[bytes, int]()
    for adding, id_, size in steps:
        if adding:
            index.add(id_, size)
            model.setdefault(id_, size)
        else:
            index.remove(id_)
            model.pop(id_, None)
        assert index.size_of(id_) == model.get(id_)
    assert list(index) == sorted(model.items())
    assert len(index) == len(model)
    assert index.total_bytes == sum(model.values())


def test_the_walk_goes_on_after_an_id_that_is_gone() -> None:
    index = ChunkIndex()
    ids = [bytes([folder]) * 32 for folder in (0, 7, 255)]
    for id_ in ids:
        index.add(id_, 5)
    index.remove(ids[1])
    assert index.after(ids[1]) == (ids[2], 5)
    assert index.after(ids[2]) is None
    assert index.after(b"") == (ids[0], 5)


def test_what_is_no_id_is_not_there() -> None:
    index = ChunkIndex()
    index.add(bytes(32), 5)
    assert index.size_of(b"") is None
    assert index.size_of(bytes(31)) is None


def test_a_chunk_takes_36_bytes() -> None:
    index, random_ = ChunkIndex(), random.Random(1)
    for folder in range(256):
        index.load(folder, [(bytes([folder]) + random_.randbytes(31), 8 << 20) for _ in range(200)])
    assert sum(sys.getsizeof(rows) for rows in index._folders) / len(index) < 37
