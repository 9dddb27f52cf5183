"""A mount's way out over a real lane: leases asked back, sessions that end, what a crash and a clean stop leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from collective.core.address import FederatedAddress
from collective.core.errors import Refused, Unreachable
from collective.core.observe import SILENT
from collective.daemon import committing
from collective.daemon.committing import LaneCommitter
from collective.daemon.runtime import SystemClock
from collective.identity import (
    ComponentKind,
    Credentials,
    MemberAuthority,
    RootAuthority,
    TrustStore,
    generate_leaf_key,
)
from collective.net.lane import LaneConnection, LaneServer, connect_lane
from collective.transfer import leases, legacies, serve_leases
from collective.transfer.serve_leases import LeaseDesk, lease_handlers
from collective.wire import submit_pb2

CLOCK = SystemClock()
DOMAIN = "alice.media.collective"
STORE = b"s" * 32
PATIENCE_SECONDS = 10.0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():
            await asyncio.sleep(0.005)


async def leased(mount: LaneCommitter, inode: int) -> float:
    """Ask for a lease as a mount does, again and again; how long it took."""
    began = CLOCK.monotonic()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await mount.lease_directory(STORE, inode) is None:
            await asyncio.sleep(0.005)
    return CLOCK.monotonic() - began


async def changed(coordinator: Coordinator, inode: int) -> None:
    """A command's change of a directory."""
    async with coordinator.desk.changing(None, [(STORE, inode)], exact=True):
        return


@dataclass
class Coordinator:
    """A lane server with a lease desk, and the mounts that are connected to it."""

    credentials: Callable[[str, ComponentKind], Credentials]
    trust: TrustStore
    marks: list[bool] = field(default_factory=list)
    journals: dict[int, bool] = field(default_factory=dict)
    port: int = 0
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def start(self, *, out_before: bool = False) -> None:
        self.desk = LeaseDesk(
            CLOCK, SILENT, out_before=out_before, mark=self.marks.append, space=lambda: (100, 40),
            journals=lambda: self.journals,
        )  # fmt: skip
        self.server = LaneServer(
            self.credentials("coord", ComponentKind.COORDINATOR),
            self.trust,
            lease_handlers(self.desk, DOMAIN),
            clock=CLOCK,
        )
        self.port = await self.server.start("127.0.0.1", self.port)

    async def dial(self, side: Any, handlers: Any) -> LaneConnection:
        return await connect_lane(
            "127.0.0.1", self.port, credentials=self.credentials("client", ComponentKind.CLIENT), trust=self.trust,
            clock=CLOCK, expected=FederatedAddress("coord", DOMAIN), handlers=handlers,
        )  # fmt: skip

    async def mount(
        self, journal: int = 0, unsent: Sequence[int] = ()
    ) -> tuple[LaneCommitter, list[int], asyncio.Task[None]]:
        """A connected committer, the directories it was asked back, and the task that keeps it."""
        made = LaneCommitter(None, journal, CLOCK, SILENT)  # type: ignore[arg-type]  # dialling is replaced
        recalled: list[int] = []

        async def give_up(store_id: bytes, inode: int) -> None:
            recalled.append(inode)

        made.on_recall(give_up)
        made.on_connect(lambda: [(STORE, inode) for inode in unsent])
        task = asyncio.create_task(made.run())
        self.tasks.append(task)
        await until(lambda: made.leases_valid_until() > CLOCK.monotonic())
        return made, recalled, task

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.desk.close()
        await self.server.stop()


@pytest.fixture
async def coordinator(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Coordinator]:
    """alice's, with a term of 0.9 s and renewals every 0.2 s."""
    for module in (leases, legacies, serve_leases):
        monkeypatch.setattr(module, "TERM_SECONDS", 0.9)
    monkeypatch.setattr(committing, "RENEW_SECONDS", 0.2)
    now = CLOCK.wall()
    root = RootAuthority.create("media.collective", now)
    key, request = MemberAuthority.create_request(DOMAIN)
    authority = MemberAuthority(root.sign_member(DOMAIN, request, now), key, root.certificate)
    trust = TrustStore(root.certificate, DOMAIN)
    trust.add_member(authority.certificate)

    def credentials(name: str, kind: ComponentKind) -> Credentials:
        leaf = generate_leaf_key()
        issued = authority.issue(kind, name, leaf.public_key(), now)
        return Credentials(issued, leaf, authority.certificate, root.certificate)

    made = Coordinator(credentials, trust)
    monkeypatch.setattr(committing, "dial_own_coordinator", made.dial)
    yield made
    await made.stop()


async def test_a_lease_is_asked_back_and_given_only_then(coordinator: Coordinator) -> None:
    """The second mount waits until the first has answered; both were told the space."""
    await coordinator.start()
    first, _, _ = await coordinator.mount()
    second, _, _ = await coordinator.mount()
    submitted = asyncio.Event()
    asked = asyncio.Event()

    async def give_up(store_id: bytes, inode: int) -> None:
        asked.set()
        await submitted.wait()

    first.on_recall(give_up)
    await leased(first, 1)
    waiting = asyncio.create_task(leased(second, 1))
    await asyncio.wait_for(asked.wait(), PATIENCE_SECONDS)
    assert await first.lease_directory(STORE, 1) is None, "not granted again while it is given up"
    assert not waiting.done()
    submitted.set()
    await waiting
    assert (first.space().total_bytes, first.space().free_bytes) == (100, 40)


async def test_a_mount_that_is_gone_has_no_leases(coordinator: Coordinator) -> None:
    """Its connection was closed by its own side: nobody waits for the term."""
    await coordinator.start()
    first, _, task = await coordinator.mount()
    second, _, _ = await coordinator.mount()
    await leased(first, 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await until(lambda: not coordinator.desk.table.all_held(CLOCK.monotonic()))
    assert await second.lease_directory(STORE, 1) is not None


async def test_a_mount_that_stands_still_loses_its_leases_after_the_term(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It neither renews nor answers; it has stopped believing before another is granted, and begins a new session."""
    await coordinator.start()
    first, _, _ = await coordinator.mount()
    second, _, _ = await coordinator.mount()
    await leased(first, 1)
    session = first.session
    resumed = asyncio.Event()
    renew = LaneCommitter._renew

    async def stuck(self: LaneCommitter, *, first: bool = False) -> None:
        if self is standing:
            await resumed.wait()
        await renew(self, first=first)

    async def never(store_id: bytes, inode: int) -> None:
        await resumed.wait()

    standing = first
    monkeypatch.setattr(LaneCommitter, "_renew", stuck)
    first.on_recall(never)
    await leased(second, 1)
    assert first.leases_valid_until() < CLOCK.monotonic(), "the holder stopped before"
    assert first.session == session
    resumed.set()
    await until(lambda: first.session > session and first.leases_valid_until() > CLOCK.monotonic())
    assert await first.lease_directory(STORE, 2) is not None


async def test_a_holder_that_does_not_answer_is_cut_off(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It renews and never gives up: its connection is closed, and the term runs out."""
    monkeypatch.setattr(serve_leases, "RECALL_SECONDS", 0.3)
    await coordinator.start()
    first, _, _ = await coordinator.mount()
    second, _, _ = await coordinator.mount()
    session = first.session

    async def never(store_id: bytes, inode: int) -> None:
        await asyncio.Event().wait()

    first.on_recall(never)
    await leased(first, 1)
    await leased(second, 1)
    await until(lambda: first.session > session)


async def test_a_restart_is_another_session(coordinator: Coordinator) -> None:
    """While the coordinator is away calls fail; afterwards the leases of before are void."""
    await coordinator.start()
    first, _, _ = await coordinator.mount()
    await leased(first, 1)
    session = first.session
    await coordinator.server.stop()
    await until(lambda: first.session > session)
    with pytest.raises(Unreachable):
        await first.lease_directory(STORE, 1)
    restarted = CLOCK.monotonic()
    await coordinator.start(out_before=True)
    await until(lambda: first.leases_valid_until() > CLOCK.monotonic())
    await leased(first, 1)
    assert CLOCK.monotonic() - restarted >= 0.9, "an earlier run may have leases out for a term"


async def test_what_a_dead_mount_left_comes_before_all_others(coordinator: Coordinator) -> None:
    """A journal has nobody: no lease is lent and no exact change made, until its heir is there; the directories in
    which the heir has changes to send are its own until it has sent them."""
    coordinator.journals = {1: False, 2: True}
    await coordinator.start()
    coordinator.desk.look()
    second, _, _ = await coordinator.mount(journal=2)
    waiting = [asyncio.create_task(leased(second, inode)) for inode in (1, 5)]
    exact = asyncio.create_task(changed(coordinator, 9))
    await until(lambda: coordinator.desk.table.lapses_in(1, CLOCK.monotonic()) > 0)
    coordinator.journals = {1: True, 2: True}  # the heir has it, and said nothing yet
    coordinator.desk.look()
    assert not any(task.done() for task in (*waiting, exact))
    heir, asked, _ = await coordinator.mount(journal=1, unsent=[1])
    await asyncio.gather(*waiting, exact)
    assert asked == [1], "asked back before the other had it, and nothing else"
    assert heir.session


async def test_an_exact_change_waits_for_an_heir_only_so_long(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then it says why; a change that was promised already is made all the same."""
    monkeypatch.setattr(serve_leases, "EXACT_WAIT_SECONDS", 0.3)
    monkeypatch.setattr(serve_leases, "WAIT_SECONDS", 0.3)
    coordinator.journals = {1: False}
    await coordinator.start()
    coordinator.desk.look()
    mount, _, _ = await coordinator.mount()
    assert await mount.lease_directory(STORE, 1) is None
    with pytest.raises(Unreachable, match="a mount that died"):
        await changed(coordinator, 1)
    async with coordinator.desk.changing(None, [(STORE, 1)], exact=False):
        assert coordinator.desk.legacies.open


async def test_the_mark_says_whether_leases_may_be_out(coordinator: Coordinator) -> None:
    """Set before the first lease, taken away when the stop called all of them back."""
    await coordinator.start()
    first, recalled, _ = await coordinator.mount()
    assert coordinator.marks == []
    await leased(first, 1)
    await leased(first, 2)
    assert coordinator.marks == [True]
    await coordinator.desk.close()
    assert sorted(recalled) == [1, 2]
    assert coordinator.marks == [True, False]


async def test_whoever_changes_a_directory_recalls_it_first(coordinator: Coordinator) -> None:
    """A command's change waits for the holder, and nobody gets the lease until it is made."""
    await coordinator.start()
    first, recalled, _ = await coordinator.mount()
    await leased(first, 1)
    async with coordinator.desk.changing(None, [(STORE, 1), (STORE, 7)], exact=True):
        assert recalled == [1]
        waiting = asyncio.create_task(leased(first, 7))
        await asyncio.sleep(0)
        assert not coordinator.desk.table.all_held(CLOCK.monotonic())
    await waiting


async def test_a_promised_change_is_made_all_the_same(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exact change gives up on a holder that does not answer, a replay goes on after a term."""
    monkeypatch.setattr(serve_leases, "EXACT_WAIT_SECONDS", 0.5)
    await coordinator.start()
    first, _, _ = await coordinator.mount()

    async def never(store_id: bytes, inode: int) -> None:
        await asyncio.Event().wait()

    first.on_recall(never)
    await leased(first, 1)
    with pytest.raises(Unreachable, match="another mount"):
        async with coordinator.desk.changing(None, [(STORE, 1)], exact=True):
            raise AssertionError("it was not given up")
    async with coordinator.desk.changing(None, [(STORE, 1)], exact=False):
        assert coordinator.desk.table.holder((STORE, 1), CLOCK.monotonic()) is not None


def test_changes_are_cut_to_what_a_call_carries() -> None:
    """In order, none left out, each call under its limit; what no call can carry is said in words."""
    operations = [submit_pb2.StagedOperation(pages=[bytes(size)]) for size in (10, 3 << 20, 2 << 20, 5 << 20, 7, 8)]
    portions = list(committing._portions(operations))
    assert [staged for portion in portions for staged in portion] == operations
    assert [len(portion) for portion in portions] == [2, 1, 1, 2]
    assert list(committing._portions([])) == []
    with pytest.raises(Refused, match="too large"):
        list(committing._portions([submit_pb2.StagedOperation(pages=[bytes(9 << 20)])]))
