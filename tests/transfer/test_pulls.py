"""One pull after the other: what comes of entries that do not stand here."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.catalogs import FEDERATION, TestFederation, put

from collective.catalog import Catalog
from collective.core.clock import Clock
from collective.core.observe import SILENT
from collective.transfer.events import ChangeBell
from collective.transfer.sync import EntryServer, EntryTaker
from collective.wire import control_pb2, feed_pb2


def taker_from(server: EntryServer, taking: Catalog) -> EntryTaker:
    """What pulls from a server in the same process."""

    def stream(
        address: object, endpoint: str, method: str, request: control_pb2.FollowRequest, reply: object
    ) -> AsyncIterator[control_pb2.FollowReply]:
        return server.follow(taking.own_domain, request)

    async def write(change: Callable[[], object]) -> object:
        return change()

    async def nothing(*_: object) -> bool:
        return False

    channels = SimpleNamespace(stream=stream)
    bell = ChangeBell(taking.change_counter)
    return EntryTaker(taking, bell, channels, SILENT, write, nothing, nothing)  # type: ignore[arg-type]


class TwiceLost:
    """alice loses her database again and again, the heads that her node kept too."""

    def __init__(self, folder: Path) -> None:
        self.federation = TestFederation(folder)
        self.federation.add("alice")
        self.bob, self.carol = self.federation.add("bob"), self.federation.add("carol")
        self.alice.create_datastore(b"/media", feed_pb2.MEDIA, 1, {})
        self.alice.grant(b"/media", [feed_pb2.READ], "*@*.collective")
        put(self.alice, b"/media/before")
        self.federation.sync()
        (self.store,) = [store.feed_id for store in self.alice.datastores()]

    @property
    def alice(self) -> Catalog:
        return self.federation.catalogs["alice"]

    @property
    def clock(self) -> Clock:
        return self.federation.clock

    def set_back(self, database: bytes) -> None:
        """To an older database; nobody can be asked, and work goes on in a new epoch."""
        shutil.rmtree(self.federation.folder("alice") / "heads", ignore_errors=True)
        self.federation.restart("alice", database, "bob", "carol")
        if not self.alice.is_in_doubt(self.store):
            self.alice.enter_doubt(self.store, "test")
        self.alice.tend(self.clock.wall())


@pytest.mark.parametrize("count", [20, 300])
def test_what_a_lost_epoch_left_does_not_end_a_pull(tmp_path: Path, count: int) -> None:
    """Two epochs of one number: bob has the one that lost, and is sent the other, message by message, before the epoch
    that decides it."""
    lost = TwiceLost(tmp_path)
    federation, bob, carol = lost.federation, lost.bob, lost.carol
    old = federation.saved_database("alice")
    put(lost.alice, b"/media/lost")
    for reader in (bob, carol):
        federation.pull(lost.alice, reader)
    lost.set_back(old)
    put(lost.alice, b"/media/one")
    federation.pull(lost.alice, bob)
    lost.set_back(old)
    for number in range(count):
        put(lost.alice, b"/media/%d" % number)
    federation.pull(lost.alice, carol)
    newer = federation.saved_database("alice")
    put(lost.alice, b"/media/more")
    federation.restart("alice", newer, "bob", "carol")
    lost.alice.tend(lost.clock.wall())
    put(lost.alice, b"/media/last")
    federation.pull(lost.alice, carol)
    taker = taker_from(EntryServer(carol, lost.clock), bob)
    for _ in range(4):
        asyncio.run(taker.pull(f"carol.{FEDERATION}", "endpoint", [lost.store]))
    assert bob.heads()[lost.store] == carol.heads()[lost.store] == lost.alice.heads()[lost.store]
    federation.close()
