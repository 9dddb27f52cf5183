"""What is not whole any more is stated, by whoever it is missing at, and nobody counts it until it is whole again."""

from __future__ import annotations

import os

from support.catalogs import TestFederation, operation_id, rebuild, state_of

from collective.catalog import Catalog, HeldHere
from collective.chunks import compute_layout_hash, page_name
from collective.core.layout import ChunkReference, encode_page
from collective.wire import control_pb2, feed_pb2, submit_pb2

ALICE, BOB = "alice.media.collective", "bob.media.collective"


def put_version(catalog: Catalog, path: bytes, chunk_ids: list[bytes]) -> bytes:
    """A file of two members whose version lists these chunks of 1 MiB; the version's id."""
    page = encode_page([ChunkReference(id_, 1 << 20) for id_ in chunk_ids])
    size_bytes = len(chunk_ids) << 20
    key_page = os.urandom(60)
    layout = feed_pb2.Layout(
        version_id=os.urandom(16), size_bytes=size_bytes, chunk_size_bytes=1 << 20, coding=feed_pb2.Coding(k=1, m=0),
        pages=[page_name(page)], key_pages=[page_name(key_page)], members=[ALICE, BOB],
    )  # fmt: skip
    layout.layout_hash = compute_layout_hash(layout)
    store, _ = catalog.datastore_at(path, None)
    content = feed_pb2.Content(
        size_bytes=size_bytes, version_id=layout.version_id, key_pages=layout.key_pages, key_name=store.key_name
    )
    request = control_pb2.PutFile(
        path=path, mode=0o644, content=content, layout=layout, pages=[page], key_pages=[key_page]
    )
    catalog.put_pages({page_name(page): page, page_name(key_page): key_page})
    catalog.put_file(operation_id(), request, "client@alice.media.collective")
    return layout.version_id


def test_a_lost_copy_is_not_counted_until_it_is_whole(federation: TestFederation) -> None:
    """The host's is wanted from the owner again, the owner's from the host; every follower sees the same."""
    alice, bob = federation.catalogs["alice"], federation.add("bob")
    store = alice.create_datastore(b"/media", feed_pb2.MEDIA, 2, {})
    federation.sync()
    shared, other = os.urandom(32), os.urandom(32)
    one = put_version(alice, b"/media/one", [shared, other])
    two = put_version(alice, b"/media/two", [shared])
    federation.sync()
    bob.hold(store.feed_id, [one, two])
    federation.sync()
    assert alice.holders(store.feed_id, one) == [ALICE, BOB]
    assert alice.copies_missing() == []

    found = alice.versions_with_chunks({shared, other, b"x" * 32})
    assert found == {
        shared: {(store.feed_id, one), (store.feed_id, two)},
        other: {(store.feed_id, one)},
        b"x" * 32: set(),
    }

    bob.lose([(store.feed_id, one)])
    federation.sync()
    for catalog in (alice, bob):
        assert catalog.holders(store.feed_id, one) == [ALICE]
        assert catalog.holders(store.feed_id, two) == [ALICE, BOB]
        assert catalog.partial_holders(store.feed_id, one) == [], "a host's rest is not asked for"
    assert alice.copies_missing() == [(store.feed_id, one, BOB)]
    assert alice.versions_below_target(store.feed_id) == 1
    assert bob.versions_lost() == [], "the owner offers it again"

    alice.lose([(store.feed_id, one), (store.feed_id, two)])
    alice.lose([(store.feed_id, two)])
    federation.sync()
    for catalog in (alice, bob):
        assert catalog.holders(store.feed_id, one) == []
        assert catalog.holders(store.feed_id, two) == [BOB]
        assert catalog.partial_holders(store.feed_id, one) == [ALICE], "what is left of it can still be read"
    assert sorted(alice.versions_lost()) == sorted([(store.feed_id, one), (store.feed_id, two)])

    put_version(alice, b"/media/three", [os.urandom(32)])
    federation.sync()
    assert len(alice.versions_lost()) == 2, "a later version changes nothing of it"
    for version in (one, two):
        alice.regain(store.feed_id, version)
    bob.hold(store.feed_id, [one])
    federation.sync()
    for catalog in (alice, bob):
        assert catalog.holders(store.feed_id, one) == catalog.holders(store.feed_id, two) == [ALICE, BOB]
        assert catalog.partial_holders(store.feed_id, one) == []
    assert alice.versions_lost() == []
    heads = alice.heads()
    alice.regain(store.feed_id, one)
    assert alice.heads() == heads, "saying it again adds nothing"
    fresh = rebuild(federation, alice, federation.folder("rebuilt"))
    assert state_of(fresh) == state_of(alice)
    fresh.close()


def test_whoever_wrote_into_anothers_datastore_fetches_what_it_lost(federation: TestFederation) -> None:
    """The writer holds by the entry, the owner by its statement; each one's loss is mended accordingly."""
    alice, bob = federation.catalogs["alice"], federation.add("bob")
    store = alice.create_datastore(b"/media", feed_pb2.MEDIA, 2, {})
    alice.grant(b"/media", [feed_pb2.READ, feed_pb2.WRITE], "bob@media.collective")
    federation.sync()
    page = encode_page([ChunkReference(os.urandom(32), 1 << 20)])
    layout = feed_pb2.Layout(
        version_id=os.urandom(16), size_bytes=1 << 20, chunk_size_bytes=1 << 20, coding=feed_pb2.Coding(k=1, m=0),
        pages=[page_name(page)], key_pages=[page_name(b"sealed")], members=[BOB],
    )  # fmt: skip
    layout.layout_hash = compute_layout_hash(layout)
    create = feed_pb2.Create(
        parent=1, name=b"film", inode=alice.lease_numbers(store.feed_id, BOB, 1).start, mode=0o100644,
        content=feed_pb2.Content(size_bytes=1 << 20, version_id=layout.version_id),
    )  # fmt: skip
    id_ = feed_pb2.OperationId(writer=BOB, random=os.urandom(16))
    change = feed_pb2.TreeOperation(id=id_, create=create, time_nanoseconds=1)
    staged = submit_pb2.StagedOperation(operation=change, layout=layout, pages=[page], key_pages=[b"sealed"])
    outcomes, _ = alice.commit_operations(
        store.feed_id, [staged], actor_domain=BOB, now=federation.clock.wall(), exact=False
    )
    assert [outcome.outcome for outcome in outcomes] == [submit_pb2.APPLIED], outcomes
    alice.hold(store.feed_id, [layout.version_id])
    federation.sync()
    version = (store.feed_id, layout.version_id)
    assert alice.holders(*version) == bob.holders(*version) == [BOB, ALICE]

    alice.lose([version])
    federation.sync()
    assert alice.holders(*version) == bob.holders(*version) == [BOB]
    assert alice.partial_holders(*version) == []
    assert alice.versions_lost() == [], "its writer sends it again"
    assert bob.copies_missing() == [(*version, ALICE)]
    alice.hold(store.feed_id, [layout.version_id])

    bob.lose([version])
    federation.sync()
    assert alice.holders(*version) == bob.holders(*version) == [ALICE]
    assert alice.partial_holders(*version) == [BOB]
    assert bob.versions_lost() == [version]
    assert alice.copies_missing() == [(*version, BOB)], "the owner sends it back, should the writer not ask first"
    bob.hold(store.feed_id, [layout.version_id])
    federation.sync()
    assert alice.holders(*version) == bob.holders(*version) == [BOB, ALICE]
    assert bob.versions_lost() == alice.copies_missing() == []


def test_what_is_held_here_and_nowhere_else(federation: TestFederation) -> None:
    """Before the host stated its copies they lie here alone; at the host they count as another's."""
    alice, bob = federation.catalogs["alice"], federation.add("bob")
    store = alice.create_datastore(b"/media", feed_pb2.MEDIA, 2, {})
    federation.sync()
    one = put_version(alice, b"/media/one", [os.urandom(32)])
    put_version(alice, b"/media/two", [os.urandom(32), os.urandom(32)])
    federation.sync()
    assert bob.held_here() == []
    assert alice.held_here() == [HeldHere(b"/media", ALICE, 2, 3 << 20, 2, 3 << 20)]
    bob.hold(store.feed_id, [one])
    federation.sync()
    assert alice.held_here() == [HeldHere(b"/media", ALICE, 2, 3 << 20, 1, 2 << 20)]
    assert bob.held_here() == [HeldHere(b"/media", ALICE, 1, 1 << 20, 0, 0)]
    assert alice.copies_at(BOB) == 1
    alice.lose([(store.feed_id, one)])
    federation.sync()
    assert bob.held_here() == [HeldHere(b"/media", ALICE, 1, 1 << 20, 1, 1 << 20)]
