"""Who sees what: grants, keys, hosts, the joined tree."""

from __future__ import annotations

import pytest
from support.catalogs import TestFederation, put, tree_of

from collective.catalog.permissions import judge
from collective.core.address import FederatedAddress
from collective.core.errors import Conflict, Refused
from collective.wire import feed_pb2


def database_bytes(federation: TestFederation, name: str) -> bytes:
    return b"".join(path.read_bytes() for path in federation.folder(name).glob("catalog.db*"))


def test_a_host_learns_no_name(federation: TestFederation) -> None:
    """bob follows alice's feed sealed: he has every entry and not one name."""
    alice, bob = federation.catalogs["alice"], federation.add("bob")
    alice.create_datastore(b"/media", 0, 0, {})
    put(alice, b"/media/secret-title.mkv", b"secret-words")
    federation.sync()
    store = alice.datastores()[0]
    assert bob.own_domain in store.hosts
    assert bob.heads()[store.feed_id] == alice.heads()[store.feed_id]
    assert b"secret-title" not in database_bytes(federation, "bob")
    assert b"secret-words" not in database_bytes(federation, "bob")
    assert b"secret-title" in database_bytes(federation, "alice")
    with pytest.raises(Refused):
        bob.list(bob.resolve(b"/media").ino)


def test_a_member_without_grant_gets_no_store_feed(federation: TestFederation) -> None:
    """Neither owner, host nor reader: the feed is not offered at all."""
    alice = federation.catalogs["alice"]
    names = ["bob", "carol", "dave"]
    for name in names:
        federation.add(name)
    alice.choose_hosts = lambda feed, replicas, others: ["bob.media.collective"]
    store = alice.create_datastore(b"/media", 0, 0, {})
    put(alice, b"/media/film")
    federation.sync()
    now = federation.clock.wall()
    assert store.feed_id in alice.feeds_for("bob.media.collective", now)
    assert store.feed_id not in alice.feeds_for("carol.media.collective", now)
    assert store.feed_id not in federation.catalogs["carol"].heads()


def test_a_grant_opens_what_came_before(federation: TestFederation) -> None:
    """With READ the key comes, and the whole tree with it."""
    alice, bob = federation.catalogs["alice"], federation.add("bob")
    alice.create_datastore(b"/media", 0, 0, {})
    put(alice, b"/media/a/film", b"earlier")
    federation.sync()
    alice.grant(b"/media", [feed_pb2.READ], "bob@media.collective")
    federation.sync()
    assert tree_of(bob) == tree_of(alice)
    assert b"/media/a/film" in tree_of(bob)


def test_a_grant_that_ends_brings_a_new_key(federation: TestFederation) -> None:
    """After the end, new entries are sealed under a key that was never wrapped for bob."""
    alice, bob = federation.catalogs["alice"], federation.add("bob")
    store = alice.create_datastore(b"/media", 0, 0, {})
    until = int((federation.clock.wall() + 60) * 1000)
    alice.grant(b"/media", [feed_pb2.READ], "bob@media.collective", valid_until=until)
    federation.sync()
    assert bob.store(store.feed_id).readable
    federation.clock.advance(61)
    federation.sync()
    put(alice, b"/media/after-the-end", b"later-words")
    federation.sync()
    assert not bob.store(store.feed_id).readable
    assert b"after-the-end" not in database_bytes(federation, "bob")
    assert not alice.may("bob@media.collective", feed_pb2.READ, store.feed_id, now=federation.clock.wall()).allowed


@pytest.mark.parametrize(
    ("pattern", "path", "allowed"),
    [
        ("bob@media.collective", b"/media", True),
        ("*@media.collective", b"/media", True),
        ("*@*.collective", b"/media", True),
        ("*@bob.media.collective", b"/media", True),
        ("coord@bob.media.collective", b"/media", True),
        ("carol@media.collective", b"/media", False),
        ("*@*.bob.media.collective", b"/media", False),
        ("bob@media.collective", b"/med", False),
        ("bob@media.collective", b"/media/movies", False),
        ("bob@media.collective", b"/", True),
    ],
)
def test_patterns_and_paths(pattern: str, path: bytes, allowed: bool) -> None:
    """A grant counts at its path and below, for whom its pattern means."""
    grant = feed_pb2.Grant(subject=pattern, path=path, rights=[feed_pb2.READ])
    verdict = judge(
        [grant],
        owner="alice.media.collective",
        store_path=b"/media",
        subject=FederatedAddress("coord", "bob.media.collective"),
        right=feed_pb2.READ,
        now=0,
    )
    assert verdict.allowed is allowed, verdict.reason


def test_read_gives_no_more_than_read() -> None:
    """Rights do not imply each other; a removed member has none; the owner has all."""
    grant = feed_pb2.Grant(subject="bob@media.collective", path=b"/media", rights=[feed_pb2.READ])
    bob = FederatedAddress("coord", "bob.media.collective")

    def may(subject: FederatedAddress, right: int, removed: bool = False) -> bool:
        return judge(
            [grant], owner="alice.media.collective", store_path=b"/media", subject=subject, right=right, now=0,
            removed=removed,
        ).allowed  # fmt: skip

    assert may(bob, feed_pb2.READ)
    assert not may(bob, feed_pb2.WRITE)
    assert not may(bob, feed_pb2.READ, removed=True)
    assert may(FederatedAddress("client", "alice.media.collective"), feed_pb2.DELETE)


def test_two_owners_of_one_path_both_show(federation: TestFederation) -> None:
    """The first has the plain name, the other its suffix; at every member alike, and with distinct numbers."""
    alice, bob = federation.catalogs["alice"], federation.add("bob")
    alice.create_datastore(b"/media/movies", 0, 0, {})
    federation.sync()
    bob.create_datastore(b"/media/movies", 0, 0, {})
    alice.grant(b"/media", [feed_pb2.READ], "*@*.collective")
    bob.grant(b"/media", [feed_pb2.READ], "*@*.collective")
    put(alice, b"/media/movies/hers")
    federation.sync()
    assert tree_of(alice).keys() == tree_of(bob).keys()
    assert {b"/media/movies/hers", b"/media/movies@bob.media.collective"} <= tree_of(bob).keys()
    store, rest = bob.datastore_at(b"/media/movies/x", "bob.media.collective")
    assert (store.owner, rest) == ("bob.media.collective", b"x")


def test_a_nested_datastore_hides_nothing(federation: TestFederation) -> None:
    """The longest path wins; one over an existing entry is refused."""
    alice = federation.catalogs["alice"]
    alice.create_datastore(b"/media", 0, 0, {})
    put(alice, b"/media/shows/one")
    with pytest.raises(Conflict):
        alice.create_datastore(b"/media/shows", 0, 0, {})
    nested = alice.create_datastore(b"/media/movies", 0, 0, {})
    put(alice, b"/media/movies/film")
    assert alice.resolve(b"/media/movies/film").store_id == nested.feed_id
    assert {b"/media/shows/one", b"/media/movies/film"} <= tree_of(alice).keys()


def test_a_folder_is_paged_by_name(federation: TestFederation) -> None:
    """Pages of a listing cover everything once, whatever the size of the page."""
    alice = federation.catalogs["alice"]
    alice.create_datastore(b"/media", 0, 0, {})
    alice.create_datastore(b"/media/m5x", 0, 0, {})
    names = [b"m%d" % number for number in range(17)] + [b"\xff\xfe", "é".encode(), b"new\nline"]
    for name in names:
        put(alice, b"/media/" + name)
    for limit in (1, 2, 5, 100):
        seen: list[bytes] = []
        after = b""
        while page := alice.list(alice.resolve(b"/media").ino, after, limit):
            seen += [name for name, _ in page]
            after = seen[-1]
        assert seen == sorted([*names, b"m5x"])
