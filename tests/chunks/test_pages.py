"""Pages and layouts: named by content, keys opened only by the DataStore's key."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collective.chunks import compute_layout_hash, open_key_page, page_name, seal_key_page
from collective.core.errors import Corrupt
from collective.core.layout import CHUNKS_PER_PAGE
from collective.wire import feed_pb2

STORE_KEY = bytes(range(100, 132))
KEYS = st.lists(st.one_of(st.none(), st.binary(min_size=32, max_size=32).filter(any)), max_size=20)


@given(keys=KEYS)
@settings(max_examples=50, deadline=None)
def test_keys_come_back_from_their_page_and_holes_as_holes(keys: list[bytes | None]) -> None:
    page = seal_key_page(STORE_KEY, keys)
    assert open_key_page(STORE_KEY, page) == tuple(keys)
    assert page_name(seal_key_page(STORE_KEY, keys)) == page_name(page)


def test_a_full_page_holds_512_keys_and_not_one_more() -> None:
    keys = [number.to_bytes(32, "big") for number in range(1, CHUNKS_PER_PAGE + 1)]
    assert open_key_page(STORE_KEY, seal_key_page(STORE_KEY, keys)) == tuple(keys)
    with pytest.raises(ValueError, match="512"):
        seal_key_page(STORE_KEY, [*keys, None])


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="32"):
        seal_key_page(STORE_KEY, [b"short"])


def test_every_flipped_byte_and_every_cut_of_a_key_page_is_corrupt() -> None:
    page = seal_key_page(STORE_KEY, [b"k" * 32, None])
    for at in range(len(page)):
        broken = bytearray(page)
        broken[at] ^= 1
        with pytest.raises(Corrupt):
            open_key_page(STORE_KEY, bytes(broken))
        with pytest.raises(Corrupt):
            open_key_page(STORE_KEY, page[:at])


def test_another_datastores_key_opens_nothing_and_makes_another_page() -> None:
    keys = [b"k" * 32]
    page = seal_key_page(STORE_KEY, keys)
    with pytest.raises(Corrupt):
        open_key_page(bytes(32), page)
    assert seal_key_page(bytes(32), keys)[1:33] != page[1:33]


def layout() -> feed_pb2.Layout:
    return feed_pb2.Layout(
        version_id=b"v" * 16,
        size_bytes=10_000_000,
        chunk_size_bytes=8 << 20,
        coding=feed_pb2.Coding(k=1, m=1),
        pages=[b"a" * 32, b"b" * 32],
        key_pages=[b"c" * 32, b"d" * 32],
        members=["alice.media.collective"],
    )


def test_the_layout_hash_binds_size_chunk_size_coding_and_public_pages() -> None:
    plain = compute_layout_hash(layout())
    changes = [
        feed_pb2.Layout(size_bytes=10_000_001),
        feed_pb2.Layout(chunk_size_bytes=4 << 20),
        feed_pb2.Layout(coding=feed_pb2.Coding(m=2)),
        feed_pb2.Layout(coding=feed_pb2.Coding(k=2)),
        feed_pb2.Layout(pages=[b"e" * 32]),
    ]
    hashes = {plain}
    for change in changes:
        changed = layout()
        changed.MergeFrom(change)
        hashes.add(compute_layout_hash(changed))
    swapped = layout()
    swapped.pages[0], swapped.pages[1] = swapped.pages[1], swapped.pages[0]
    hashes.add(compute_layout_hash(swapped))
    assert len(hashes) == len(changes) + 2


def test_the_layout_hash_leaves_out_who_holds_it_and_how_the_version_is_called() -> None:
    other = layout()
    other.version_id = b"w" * 16
    other.members.append("bob.media.collective")
    other.layout_hash = b"x" * 32
    assert compute_layout_hash(other) == compute_layout_hash(layout())


def test_a_page_name_of_another_length_is_corrupt_so_that_names_cannot_run_together() -> None:
    joined = layout()
    del joined.pages[:]
    joined.pages.extend([b"a" * 32 + b"b" * 32, b""])
    with pytest.raises(Corrupt):
        compute_layout_hash(joined)
