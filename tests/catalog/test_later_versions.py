"""Entries of a version after this one: kinds of operations that are not known here are skipped, all else goes on."""

from __future__ import annotations

import os

import pytest
from support.catalogs import TestFederation, put, rebuild, state_of, tree_of

from collective.catalog import Catalog
from collective.wire import feed_pb2

LATER = b"\xf2\xac\x04\x06later!"  # field 9,806 of a version that is not here yet


@pytest.fixture
def two(federation: TestFederation) -> TestFederation:
    """alice's /media, which bob reads."""
    federation.add("bob")
    alice = federation.catalogs["alice"]
    alice.create_datastore(b"/media", 0, 0, {})
    alice.grant(b"/media", [feed_pb2.READ], "*@*.collective")
    put(alice, b"/media/before")
    federation.sync()
    return federation


def later(kind: type, writer: str = "alice.media.collective") -> object:
    """An operation whose change is a kind that this version does not know."""
    made = kind(id=feed_pb2.OperationId(writer=writer, random=os.urandom(16)))
    return kind.FromString(made.SerializeToString() + LATER)  # type: ignore[attr-defined]


def append(alice: Catalog, where: str) -> None:
    """As a coordinator of N+1 would; alice's own keys sign it."""
    match where:
        case "root":
            alice.append_root([later(feed_pb2.RootOperation)])  # type: ignore[list-item]
        case "member":
            alice.append_member([later(feed_pb2.MemberOperation)])  # type: ignore[list-item]
        case _:
            alice.append_store(alice.datastores()[0].feed_id, operations=[later(feed_pb2.TreeOperation)])  # type: ignore[list-item]


@pytest.mark.parametrize("where", ["root", "member", "store"])
def test_an_unknown_operation_is_skipped_and_kept(two: TestFederation, where: str) -> None:
    """It changes nothing, its entry is verified, stored and passed on whole, and what follows is applied."""
    alice, bob = two.catalogs["alice"], two.catalogs["bob"]
    before = tree_of(bob), [member.domain for member in bob.members()]
    append(alice, where)
    two.sync()
    assert (tree_of(bob), [member.domain for member in bob.members()]) == before
    feed = {"root": alice.root_feed(), "member": alice.own_member_feed()}.get(where, alice.datastores()[0].feed_id)
    assert bob.heads()[feed] == alice.heads()[feed]
    assert LATER in alice.entries_after(feed, alice.heads()[feed].seq - 1)[0] or where == "store", "sealed there"
    put(alice, b"/media/after")
    two.sync()
    assert b"/media/after" in tree_of(bob)
    assert alice.doubts() == bob.doubts() == {}
    assert alice.forked_feeds() == bob.forked_feeds() == []


def test_what_was_skipped_is_read_again_by_who_understands_it(two: TestFederation) -> None:
    """Derived tables are made anew from the entries, in which the operation still stands: an update loses nothing."""
    alice, bob = two.catalogs["alice"], two.catalogs["bob"]
    append(alice, "store")
    put(alice, b"/media/after")
    two.sync()
    fresh = rebuild(two, bob, two.root / "rebuilt")
    assert state_of(fresh) == state_of(bob)
    fresh.close()
