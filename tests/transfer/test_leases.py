"""The brain of directory leases, with a driven clock: who may change what from memory, and that two never may."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import pytest

from collective.transfer.leases import LEASES_PER_SESSION, TERM_SECONDS, Directory, LeaseTable

HERE: Directory = (b"s" * 32, 1)
THERE: Directory = (b"s" * 32, 2)


def table_with(*sessions: int, now: float = 0.0) -> LeaseTable:
    table = LeaseTable()
    for session in sessions:
        table.open(session, now)
    return table


def test_a_free_directory_is_granted_and_again_to_its_holder() -> None:
    """The first who asks has it; asking again is harmless; others are told whom to recall."""
    table = table_with(1, 2)
    assert table.ask(1, HERE, 0.0).granted
    assert table.ask(1, HERE, 1.0).granted
    refused = table.ask(2, HERE, 1.0)
    assert (refused.granted, refused.recall) == (False, 1)
    assert table.ask(2, THERE, 1.0).granted, "another directory is another lease"


def test_a_recalled_lease_goes_to_who_asks_next() -> None:
    """Given up is free; what is not held cannot be given up."""
    table = table_with(1, 2)
    table.ask(1, HERE, 0.0)
    table.give_up(2, HERE)
    assert table.holder(HERE, 0.1) == 1
    table.give_up(1, HERE)
    assert table.ask(2, HERE, 0.1).granted


def test_a_holder_is_not_granted_what_it_is_asked_to_give_up() -> None:
    """Else the second grant would be taken for standing when the first is given up."""
    table = table_with(1, 2)
    table.ask(1, HERE, 0.0)
    table.recall(1, HERE)
    assert not table.ask(1, HERE, 0.1).granted
    assert table.ask(2, HERE, 0.1).recall == 1
    table.give_up(1, HERE)
    assert table.ask(1, HERE, 0.2).granted


def test_a_fresh_lease_is_kept_for_a_moment() -> None:
    """The recall is told to wait until ten milliseconds are over."""
    table = table_with(1, 2)
    table.ask(1, HERE, 5.0 - 2.5)
    assert table.ask(2, HERE, 2.504).retry_seconds == pytest.approx(0.006)
    assert table.ask(2, HERE, 2.6).retry_seconds == 0.0


def test_a_silent_session_lapses_for_good() -> None:
    """When the term is over its leases are free, and it must connect anew: no old lease comes back to life."""
    table = table_with(1, 2)
    table.ask(1, HERE, 0.0)
    assert not table.ask(2, HERE, TERM_SECONDS - 0.01).granted
    assert table.ask(2, HERE, TERM_SECONDS - 0.01).recall == 1
    table.open(2, TERM_SECONDS)
    assert table.ask(2, HERE, TERM_SECONDS).granted
    assert not table.renew(1, TERM_SECONDS + 0.1)
    assert table.ask(1, THERE, TERM_SECONDS + 0.1).lapsed
    assert table.holder(HERE, TERM_SECONDS + 0.1) == 2


def test_renewals_keep_all_leases_of_a_session() -> None:
    """Heard of every second, a session holds for as long as it likes."""
    table = table_with(1, 2)
    table.ask(1, HERE, 0.0)
    table.ask(1, THERE, 0.0)
    for second in range(1, 60):
        assert table.renew(1, float(second))
    assert table.holder(HERE, 60.0) == table.holder(THERE, 60.0) == 1


def test_an_ended_connection_frees_at_once_only_what_its_mount_knows_of() -> None:
    """Closed by the mount: free. Cut otherwise: the mount may not know, and the term runs out first."""
    table = table_with(1, 2)
    table.ask(1, HERE, 0.0)
    table.end(1, 0.5, known_there=True)
    assert table.ask(2, HERE, 0.5).granted
    table.end(2, 1.0, known_there=False)
    table.open(3, 1.0)
    assert table.ask(3, HERE, 1.0).recall == 2
    assert not table.renew(2, 1.1), "nothing is heard over a connection that ended"
    table.renew(3, 0.5 + TERM_SECONDS)
    assert table.ask(3, HERE, 0.5 + TERM_SECONDS).granted


def test_nothing_is_granted_in_the_first_term_after_a_crash() -> None:
    """Leases of the run before may still be believed in."""
    table = LeaseTable(quiet_until=TERM_SECONDS)
    table.open(1, 0.0)
    assert table.ask(1, HERE, 1.0).retry_seconds == pytest.approx(TERM_SECONDS - 1.0)
    table.renew(1, 2.0)
    assert table.ask(1, HERE, TERM_SECONDS).granted


def test_a_directory_that_is_being_changed_is_not_lent() -> None:
    """Whoever gets the lease afterwards sees the change; the holder itself goes on."""
    table = table_with(1, 2)
    table.ask(1, HERE, 0.0)
    table.begin([HERE, THERE])
    table.begin([THERE])
    assert table.in_the_way(None, [HERE, THERE], 0.1) == [HERE]
    assert table.in_the_way(1, [HERE, THERE], 0.1) == []
    assert table.ask(1, HERE, 0.1).granted
    assert not table.ask(2, THERE, 0.1).granted
    table.finish([HERE, THERE])
    assert not table.ask(2, THERE, 0.1).granted, "two changed it, one is done"
    table.finish([THERE])
    assert table.ask(2, THERE, 0.1).granted


def test_a_directory_made_under_a_lease_belongs_to_its_maker() -> None:
    """Only with the parent's lease, and never one that somebody else has."""
    table = table_with(1, 2)
    assert not table.created(1, HERE, THERE, 0.0)
    table.ask(1, HERE, 0.0)
    assert table.created(1, HERE, THERE, 0.0)
    assert table.ask(2, THERE, 0.1).recall == 1
    table.ask(2, (b"s" * 32, 3), 0.1)
    assert not table.created(1, HERE, (b"s" * 32, 3), 0.1)


def test_a_session_that_holds_very_many_is_asked_for_the_oldest() -> None:
    """The table does not grow without bound."""
    table = table_with(1)
    for number in range(LEASES_PER_SESSION + 3):
        table.ask(1, (b"s" * 32, number), 0.0)
    assert table.over_limit(1) == [(b"s" * 32, number) for number in range(3)]


# ---------------------------------------------------------------- two never both


@dataclass
class SimulatedMount:
    """What a mount believes, by its own record of when it sent its last renewal."""

    name: int
    session: int = 0
    connected: bool = False
    suspended_until: float = 0.0
    valid_until: float = 0.0
    held: set[Directory] = field(default_factory=set)
    unsent: list[tuple[Directory, int]] = field(default_factory=list)
    late: set[tuple[Directory, int]] = field(default_factory=set)
    made: set[tuple[Directory, int]] = field(default_factory=set)
    last_arrival: dict[str, float] = field(default_factory=dict)
    inbox: deque[tuple[float, Callable[[], None]]] = field(default_factory=deque)

    def believes(self, directory: Directory, now: float) -> bool:
        return self.connected and directory in self.held and now < self.valid_until


class SimulatedHome:
    """A coordinator with a lease table and mounts, messages that take their time, and things that break."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = 0.0
        self.table = LeaseTable()
        self.sessions = itertools.count(1)
        self.tie = itertools.count()
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.mounts = [SimulatedMount(name) for name in range(3)]
        self.committed: dict[tuple[Directory, int], int] = {}
        self.succeeded: dict[tuple[Directory, int], int] = {}
        self.directories = [HERE, THERE]
        self.recalling: set[tuple[int, Directory]] = set()

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now + seconds, next(self.tie), what))

    def at(self, mount: SimulatedMount, what: Callable[[], None]) -> None:
        """Run at the mount once it is not suspended."""
        if self.now < mount.suspended_until:
            self.later(mount.suspended_until - self.now, lambda: self.at(mount, what))
        else:
            what()

    def send(self, mount: SimulatedMount, way: str, what: Callable[[], None]) -> None:
        """A message to (`way` down) or from (up) a mount: it takes its time, and overtakes none before it."""
        arrival = max(self.now + self.random.choice([0.0005, 0.002, 0.02, 0.5]), mount.last_arrival.get(way, 0.0))
        mount.last_arrival[way] = arrival
        if way == "down":
            mount.inbox.append((arrival, what))
            self.later(arrival - self.now, lambda: self.drain(mount))
        else:
            self.later(arrival - self.now, what)

    def drain(self, mount: SimulatedMount) -> None:
        """The mount takes what has arrived, in order, once it is not suspended."""
        if self.now < mount.suspended_until:
            self.later(mount.suspended_until - self.now, lambda: self.drain(mount))
            return
        while mount.inbox and mount.inbox[0][0] <= self.now:
            mount.inbox.popleft()[1]()

    # the mount's side

    def connect(self, mount: SimulatedMount) -> None:
        mount.session = next(self.sessions)
        mount.connected, mount.valid_until = True, 0.0
        mount.held.clear()
        mount.late.update(mount.unsent)  # made under leases that are void now: replayed, and kept under other names
        self.table.open(mount.session, self.now)
        self.renew(mount)

    def renew(self, mount: SimulatedMount) -> None:
        session, sent = mount.session, self.now
        if not mount.connected:
            return

        def arrives() -> None:
            ok = self.table.renew(session, self.now)
            self.send(mount, "down", lambda: answered(ok))

        def answered(ok: bool) -> None:
            if session != mount.session or not mount.connected:
                return
            if not ok:
                self.connect(mount)
                return
            mount.valid_until = sent + TERM_SECONDS * 2 / 3
            self.later(1.0, lambda: self.at(mount, lambda: session == mount.session and self.renew(mount)))

        self.send(mount, "up", arrives)

    def want(self, mount: SimulatedMount, directory: Directory) -> None:
        session = mount.session

        def arrives() -> None:
            answer = self.table.ask(session, directory, self.now)
            if answer.granted:
                self.send(mount, "down", granted)
            elif answer.recall is not None:
                self.later(answer.retry_seconds, lambda: self.recall(answer.recall or 0, directory))

        def granted() -> None:
            if session == mount.session and mount.connected:
                mount.held.add(directory)

        self.send(mount, "up", arrives)

    def recall(self, session: int, directory: Directory) -> None:
        if (session, directory) in self.recalling:
            return
        self.recalling.add((session, directory))
        self.table.recall(session, directory)
        mount = next((mount for mount in self.mounts if mount.session == session), None)
        if mount is None:
            return

        def asked() -> None:
            if mount.session != session or not mount.connected:
                return
            mount.held.discard(directory)
            sent = list(mount.unsent)
            mount.unsent.clear()
            self.send(mount, "up", lambda: answered(sent))

        def answered(sent: list[tuple[Directory, int]]) -> None:
            for key in sent:
                self.committed.setdefault(key, mount.name)
            self.recalling.discard((session, directory))
            self.table.give_up(session, directory)

        self.send(mount, "down", asked)

    def create(self, mount: SimulatedMount, directory: Directory, name: int) -> None:
        """An exclusive creation from memory: succeeds when the mount sees no such name."""
        key = (directory, name)
        if not mount.believes(directory, self.now) or key in self.committed or key in mount.made:
            return
        mount.unsent.append(key)
        mount.made.add(key)
        other = self.succeeded.get(key)
        if other is not None:
            late_elsewhere = any(key in one.late for one in self.mounts)
            unsent_and_void = any(
                key in one.unsent and not one.believes(directory, self.now) for one in self.mounts if one is not mount
            )
            assert late_elsewhere or unsent_and_void, f"two mounts made {key} at {self.now:.3f}"
        self.succeeded[key] = mount.name

    def submit(self, mount: SimulatedMount) -> None:
        for key in mount.unsent:
            self.committed.setdefault(key, mount.name)
        mount.unsent.clear()

    # what happens

    def step(self) -> None:
        mount = self.random.choice(self.mounts)
        directory = self.random.choice(self.directories)
        roll = self.random.random()
        if not mount.connected:
            self.at(mount, lambda: None if mount.connected else self.connect(mount))
        elif roll < 0.45:
            self.at(mount, lambda: None if directory in mount.held else self.want(mount, directory))
        elif roll < 0.85:
            name = self.random.randrange(6)
            self.at(mount, lambda: self.create(mount, directory, name))
        elif roll < 0.95:
            self.at(mount, lambda: self.submit(mount) if mount.connected else None)
        elif roll < 0.951:
            for one in self.mounts:  # the coordinator stands still: whatever is on the way to it arrives afterwards
                one.last_arrival["up"] = max(one.last_arrival.get("up", 0.0), self.now + 4.0)
        elif roll < 0.97:
            mount.suspended_until = max(mount.suspended_until, self.now + self.random.choice([0.1, 1.0, 4.0, 8.0]))
        elif roll < 0.985:
            mount.connected = False
            self.table.end(mount.session, self.now, known_there=True)
        else:
            self.cut(mount)
        holders = [one.name for one in self.mounts if one.believes(directory, self.now)]
        assert len(holders) <= 1, f"mounts {holders} both believe to hold {directory} at {self.now:.3f}"

    def cut(self, mount: SimulatedMount) -> None:
        """The coordinator's side ends the connection; the mount hears of it later, if at all in time."""
        session = mount.session
        self.table.end(session, self.now, known_there=False)

        def heard() -> None:
            if mount.session == session:
                mount.connected = False

        self.later(self.random.choice([0.01, 1.0, 10.0]), lambda: self.at(mount, heard))

    def run(self, seconds: float) -> None:
        while self.now < seconds:
            self.step()
            until = self.now + self.random.choice([0.001, 0.01, 0.05])
            while self.events and self.events[0][0] <= until:
                self.now, _, what = heapq.heappop(self.events)
                what()
            self.now = until


@pytest.mark.parametrize("seed", range(40))
def test_two_mounts_never_both_succeed_in_creating_one_name(seed: int) -> None:
    """Through delays, suspensions and cut connections: at any moment at most one mount believes to hold a directory,
    and one exclusive creation of a name succeeds, unless the first was never sent under a lease that ran out."""
    home = SimulatedHome(seed)
    home.run(60.0)
    assert home.succeeded, "the simulation did something"


def late_holder(patch: pytest.MonkeyPatch) -> None:
    """A mount that goes on for two terms more."""

    def believes(mount: SimulatedMount, directory: Directory, now: float) -> bool:
        return mount.connected and directory in mount.held and now < mount.valid_until + 2 * TERM_SECONDS

    patch.setattr(SimulatedMount, "believes", believes)


def recalled_is_granted(patch: pytest.MonkeyPatch) -> None:
    """A coordinator that grants a lease again while it is being given up."""
    patch.setattr(LeaseTable, "recall", lambda table, session, directory: None)


def cut_frees_at_once(patch: pytest.MonkeyPatch) -> None:
    """A coordinator that takes a connection it cut itself for one that the mount gave up."""
    end = LeaseTable.end
    patch.setattr(
        LeaseTable, "end", lambda table, session, now, *, known_there: end(table, session, now, known_there=True)
    )


@pytest.mark.parametrize("bug", [late_holder, recalled_is_granted, cut_frees_at_once])
def test_the_simulation_finds_planted_bugs(
    bug: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is found within the seeds that the right code passes."""
    bug(monkeypatch)

    def fails(seed: int) -> bool:
        try:
            SimulatedHome(seed).run(60.0)
        except AssertionError:
            return True
        return False

    assert any(fails(seed) for seed in range(40))
