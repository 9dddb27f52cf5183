"""One seed's story: members write while the network, the machines and one of them misbehave; then all heals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

from simulation.chance import seeded
from simulation.checkers import Checkers
from simulation.hostile import Hostile
from simulation.homes import Home, Killed, Life, Street
from simulation.ledgers import NAMES, Template
from simulation.promises import Promise, Promises, content_of
from simulation.world import Network
from support.catalogs import FEDERATION, operation_id, put

from collective.catalog import Inline
from collective.core.errors import CollectiveError
from collective.wire import control_pb2, feed_pb2, submit_pb2

__all__ = ["Story", "StoryFailed", "failing_seed"]

YEAR = 365 * 86400.0
LEVEL_SECONDS = 15.0  # after everything healed …
WAKING_SECONDS = 60.0  # … and when somebody has to ask everybody first
QUIET_SECONDS = 35.0  # longer than from one comparison of heads to the next
REAL_SIGNATURES_EVERY = 16  # gossip's; entries are always signed and verified
SHARED_NAMES = 4
EVENTS_TOLD = 60


class StoryFailed(AssertionError):
    """A checker found something; names the seed."""


class Story:
    """The members of one seed. Who misbehaves, and how, is drawn first; what happens then is drawn step by step."""

    def __init__(self, seed: int, template: Template, folder: Path, steps: int = 25) -> None:
        self.seed = seed
        self.random = random = Random(seed)
        network = Network(
            loss=random.choice([0.0, 0.0, 0.02, 0.1]),
            duplication=random.choice([0.0, 0.1]),
            most_delay=random.choice([0.002, 0.02, 0.1]),
            refuses=random.random() < 0.5,
        )
        self.folder = folder
        self.street = Street(seed, network, real_signatures=seed % REAL_SIGNATURES_EVERY == 0)
        self.steps = steps
        self.events: list[str] = []
        self.files = 0
        self.somebody_wakes = False
        for name in NAMES:
            skew = random.choice([0.0, 0.0, 300.0, -YEAR, 10 * YEAR])
            Home(self.street, name, template, folder / name, skew)
        self.homes = list(self.street.homes.values())
        self.promises = Promises()
        self.checkers = Checkers(self.street, self.promises)
        self.hostile: Hostile | None = None
        if random.random() < 0.25:
            self.hostile = Hostile(self.homes[3], self.street, random)
            self.checkers.hostile = self.homes[3]
        self.acts = self._choose_acts()

    def _choose_acts(self) -> list[Callable[[], None]]:
        acts = [self._write] * 5 + [self._write_to_another] * 4 + [self._remove, self._part, self._one_way, self._heal]
        acts += [self._crash, self._crash, self._flap, self._start, self._start, self._leave, self._move]
        acts += [self._blink, self._grant, self._withdraw]
        if self.random.random() < 0.5:
            acts += [self._keep_copy, self._keep_copy, self._set_back, self._lose_a_tail]
        if self.random.random() < 0.3:
            acts += [self._fill_disk, self._die_before_keeping]
        if self.random.random() < 0.2:
            acts += [self._remove_member]
        if self.hostile is not None:
            acts += [self._harm] * 4
        return acts

    def run(self) -> None:
        """Raises: StoryFailed."""
        try:
            with seeded(self.seed):
                for home in self.homes:
                    home.book = {
                        other.domain: [feed_pb2.Endpoint(type="lan", grpc=other.place)]
                        for other in self.homes
                        if other is not home
                    }
                self._tell()
        except AssertionError as error:
            raise self._failed(str(error) or repr(error)) from error
        except Exception as error:
            raise self._failed(repr(error)) from error
        finally:
            self.street.close()

    def _tell(self) -> None:
        for home in self.homes[: self.random.randrange(3, 6)]:
            home.start()
        for _ in range(self.steps):
            self.random.choice(self.acts)()
            self.street.run(self.random.choice([0.01, 0.3, 2.0, 6.0]))
            self.checkers.check_always()
            self.promises.note_entries()
        if self.random.random() < 0.5:
            self._heal()
            self.street.run(6)
            self._blink()  # the last that happens: nothing later brings what was missed
        self._mend()
        self.street.run_until(self.checkers.is_level, WAKING_SECONDS if self.somebody_wakes else LEVEL_SECONDS)
        self.promises.note_entries()
        healthy_since, then = self.street.now, self.checkers.heads()
        self.street.run(1)
        for home in self.checkers.honest:
            self._put(home, b"last-%d" % self.files)
        self.street.run(QUIET_SECONDS)
        self.checkers.check_healed(healthy_since, then, self.folder / "rebuilt")

    # ------------------------------------------------------------ writing

    def _log(self, what: str) -> None:
        self.events.append(f"{self.street.now:8.2f}  {what}")

    def _running(self) -> list[Home]:
        return [home for home in self.homes if home.life is not None]

    def _somebody(self) -> Home | None:
        running = self._running()
        return self.random.choice(running) if running else None

    def _path(self, home: Home) -> bytes:
        return b"/" + home.label.encode()

    def _name(self) -> bytes:
        """One that others may use too, or one of its own."""
        if self.random.random() < 0.5:
            return b"shared-%d" % self.random.randrange(SHARED_NAMES)
        return b"f%d" % self.files

    def _write(self) -> None:
        home = self._somebody()
        if home is None:
            return
        for _ in range(self.random.choice([1, 1, 5, 20])):
            if not self._put(home, self._name()):
                return
        self._log(f"{home.label} wrote up to file {self.files}")

    def _put(self, home: Home, name: bytes) -> bool:
        """A file in an own DataStore, which is made when there is none; whether it was acknowledged."""
        assert home.life is not None
        self.files += 1
        data = b"%d" % self.files
        life = home.life
        try:
            standing = self._content(home, self._path(home) + b"/" + name)
            position = put(home.catalog, self._path(home) + b"/" + name, data)
        except CollectiveError as error:
            self._log(f"{home.label} cannot write: {error.message}")
            self._make_datastore(home)
            return False
        except Killed:
            self._log(f"{home.label} died after a commit, before it kept the head")
            return False
        life.bell.ring()
        id_ = feed_pb2.OperationId()
        row = home.catalog._one(
            "SELECT o.writer, o.random FROM operations o JOIN feeds f ON f.id = o.feed JOIN entries e"
            " ON e.feed = o.feed AND e.seq = o.seq WHERE e.hash = ?", position.hash,
        )  # fmt: skip
        assert row is not None
        id_.writer, id_.random = str(row[0]), row[1]  # type: ignore[assignment]  # a column of bytes
        self.promises.made.append(Promise(home, home, content_of(data), id_, position.hash, standing))
        return True

    def _content(self, home: Home, path: bytes) -> bytes:
        """What a home sees at a path; b"": nothing."""
        node = home.catalog.find(path)
        content = home.catalog.content(node) if node is not None and not node.is_directory else None
        return content_of(content.data) if isinstance(content, Inline) else b""

    def _make_datastore(self, home: Home) -> None:
        """erin has none at first."""
        assert home.life is not None
        try:
            home.catalog.create_datastore(self._path(home), 1, 2, {})
        except CollectiveError as error:
            self._log(f"{home.label} cannot make a DataStore either: {error.message}")
        except Killed:
            return
        else:
            home.life.bell.ring()

    def _write_to_another(self) -> None:
        """A put, a move or a removal in somebody else's DataStore: staged, or asked exactly."""
        home = self._somebody()
        if home is None:
            return
        life = home.life
        assert life is not None
        stores = [
            store
            for store in home.catalog.datastores()
            if store.owner != home.domain and store.readable and life.writing.numbers.may_write(store)
        ]
        if not stores:
            return
        store = self.random.choice(stores)
        for _ in range(self.random.choice([1, 1, 3, 10])):
            self.files += 1
            path = store.path + b"/" + self._name()
            try:
                seen = self._content(home, path)
                change = self._change(home, store.path, path)
                plan = home.catalog.plan(operation_id(home.domain), change, f"client@{home.domain}")
            except CollectiveError as error:
                self._log(f"{home.label} cannot plan {path!r}: {error.message}")
                continue
            if plan.store.owner == home.domain or not plan.staged:
                continue
            exact = self.random.random() < 0.3
            life.spawn(self._submit(life, plan.store.feed_id, plan.staged, seen, exact), "submit", told=True)
            self.street.run(0)
            if home.life is not life:
                return
        self._log(f"{home.label} wrote to {store.path.decode()} up to file {self.files}")

    def _change(
        self, home: Home, store: bytes, path: bytes
    ) -> control_pb2.PutFile | control_pb2.MovePath | control_pb2.RemovePath:
        standing = home.catalog.find(path)
        kind = self.random.random()
        if standing is not None and kind < 0.2:
            return control_pb2.MovePath(source=path, destination=store + b"/moved-%d" % self.files)
        if standing is not None and kind < 0.35:
            return control_pb2.RemovePath(path=path)
        data = b"%d" % self.files
        request = control_pb2.PutFile(
            path=path,
            content=feed_pb2.Content(size_bytes=len(data), inline=data),
            make_parents=True,
            expected_inode=standing.number if standing else 0,
            expected_version_id=(standing.version_id or b"") if standing else b"",
        )
        return request

    async def _submit(
        self, life: Life, store_id: bytes, staged: list[submit_pb2.StagedOperation], seen: bytes, exact: bool
    ) -> None:
        """As a person's command does; what is durable is promised."""
        store = life.catalog.store(store_id)
        promised = [self._promise(life.home, store.owner, one, seen) for one in staged]
        made = [one for one in promised if one is not None]
        if not exact:
            changes = await life.writing.submit.stage(store, staged)
            self.promises.made += made
            await changes.reply()
            return
        reply = await life.writing.submit.submit(store_id, staged, exact=True)
        for promise, outcome in zip(promised, reply.outcomes, strict=True):
            if promise is not None and outcome.outcome in (submit_pb2.APPLIED, submit_pb2.CONFLICT):
                self.promises.made.append(promise)

    def _promise(self, home: Home, owner: str, one: submit_pb2.StagedOperation, seen: bytes) -> Promise | None:
        operation = one.operation
        change = operation.WhichOneof("change")
        if change not in ("create", "set_content") or not getattr(operation, change).content.inline:
            return None
        content = getattr(operation, change).content.SerializeToString()
        return Promise(self.street.homes[owner], home, content, operation.id, replaces=seen)

    def _remove(self) -> None:
        """An owner takes away a file that nobody else ever wrote to."""
        home = self._somebody()
        if home is None:
            return
        assert home.life is not None
        here = [
            (name, node)
            for name, node in self._listed(home)
            if name.startswith(b"f") and home.catalog.find(self._path(home) + b"/" + name) is not None
        ]
        if not here:
            return
        name, _ = self.random.choice(here)
        (content,) = home.catalog._one("SELECT content FROM inodes WHERE number = ? AND store IN"
            " (SELECT id FROM feeds WHERE owner = ? AND kind = 'store')", dict(here)[name], home.domain) or (None,)  # fmt: skip
        id_ = operation_id(home.domain)
        life = home.life
        try:
            position = home.catalog.remove_path(id_, control_pb2.RemovePath(path=self._path(home) + b"/" + name), "x")
        except (CollectiveError, Killed) as error:
            self._log(f"{home.label} cannot remove: {error}")
            return
        life.bell.ring()
        if isinstance(content, bytes):
            self.promises.made.append(Promise(home, home, content, id_, position.hash, removed=True))
        self._log(f"{home.label} removed {name.decode()}")

    def _listed(self, home: Home) -> list[tuple[bytes, int]]:
        try:
            return [(n, node.number) for n, node in home.catalog.list(home.catalog.resolve(self._path(home)).ino)]
        except CollectiveError:
            return []

    # ------------------------------------------------------------ rights

    def _grant(self) -> None:
        owner, rights = self.random.choice([(2, [1]), (2, [1, 2]), (0, [1]), (1, [2, 3])])
        home, reader = self.homes[owner], self.homes[self.random.randrange(5)]
        if home.life is None or reader is home:
            return
        self._as_owner(
            home, lambda: home.catalog.grant(self._path(home), rights, f"{reader.label}@{FEDERATION}"),
            f"{home.label} gives {reader.label} rights {rights}",
        )  # fmt: skip

    def _withdraw(self) -> None:
        """A grant ends while changes and entries are on their way."""
        home = self.homes[self.random.randrange(3)]
        if home.life is None:
            return
        own = [store for store in home.catalog.datastores() if store.owner == home.domain]
        grants = [grant for store in own for grant in home.catalog.grants(store.feed_id)]
        if not grants:
            return
        grant = self.random.choice(grants)
        withdrawal = feed_pb2.MemberOperation(
            id=operation_id(home.domain), grant_withdrawal=feed_pb2.GrantWithdrawal(grant_id=grant.id)
        )
        self.checkers.note_allowed()
        done = self._as_owner(
            home, lambda: home.catalog.append_member([withdrawal]),
            f"{home.label} takes {list(grant.rights)} from {grant.subject}",
        )  # fmt: skip
        if done:
            self.checkers.note_withdrawal(home, own[0].feed_id)

    def _as_owner(self, home: Home, act: Callable[[], object], told: str) -> bool:
        life = home.life
        assert life is not None
        try:
            act()
        except (CollectiveError, Killed) as error:
            self._log(f"{told}: not now, {error}")
            return False
        life.bell.ring()
        self._log(told)
        return True

    def _remove_member(self) -> None:
        """The root holder removes a member, for good."""
        root, gone = self.homes[0], self.homes[4]
        if root.life is None or self.checkers.removed is not None:
            return
        removal = feed_pb2.RootOperation(
            id=operation_id(root.domain), remove_member=feed_pb2.RemoveMember(member_domain=gone.domain)
        )
        self.checkers.note_allowed()
        if self._as_owner(root, lambda: root.catalog.append_root([removal]), f"{gone.label} is removed"):
            self.checkers.removed = gone
            self.promises.recount(self.checkers.honest)

    # ------------------------------------------------------------ the network

    def _part(self) -> None:
        names = [home.domain for home in self.homes]
        self.random.shuffle(names)
        cut = self.random.randrange(1, len(names))
        self.street.network.block(names[:cut], names[cut:])
        self._log(f"parted: {names[:cut]} from {names[cut:]}")

    def _one_way(self) -> None:
        one, other = self.random.sample([home.domain for home in self.homes], 2)
        self.street.network.block([one], [other], one_way=True)
        self._log(f"{one} no longer reaches {other}")

    def _heal(self) -> None:
        self.street.network.heal()
        self._log("network healed")

    def _blink(self) -> None:
        """One member is cut off for so short a time that nobody suspects it, and misses what happens meanwhile."""
        names = [home.domain for home in self.homes]
        cut = self.random.choice(names)
        self.street.network.block([cut], names)
        self._log(f"{cut} is cut off for a moment")
        self.random.choice([self._write, self._move, self._write_to_another])()
        self.street.run(4.0)
        self._heal()

    # ------------------------------------------------------------ machines

    def _crash(self) -> None:
        if len(self._running()) > 1:
            home = self.random.choice(self._running())
            home.end()
            if self.random.random() < 0.3:  # gossip's state and the book are not synced
                home.gossip_state = b""
            self._log(f"{home.label} crashed{'' if home.gossip_state else ' and lost its gossip state'}")

    def _start(self) -> None:
        for home in self.homes:
            if home.life is None:
                home.start()
                self._log(f"{home.label} started")
                return

    def _flap(self) -> None:
        home = self._somebody()
        if home is None:
            return
        for number in range(4):
            self.street.loop.call_later(0.5 * number, home.end)
            self.street.loop.call_later(0.5 * number + 0.25, lambda: home.life or home.start())
        self._log(f"{home.label} flaps")

    def _leave(self) -> None:
        if len(self._running()) > 2:
            home = self.random.choice(self._running())
            assert home.life is not None
            home.life.leave()
            self.street.run(0.6)
            home.end()
            self._log(f"{home.label} left")

    def _move(self) -> None:
        """A member comes back under another address."""
        home = self._somebody()
        if home is not None:
            home.end()
            home.place = f"10.0.0.{self.random.randrange(1, 250)}:8001"
            home.start()
            self._log(f"{home.label} moved to {home.place}")

    def _fill_disk(self) -> None:
        home = self._somebody()
        if home is not None:
            home.fill_disk(True)
            life = home.life
            self.street.loop.call_later(10.0, lambda: home.life is life and home.fill_disk(False))
            self._log(f"the disk of {home.label} is full for a while")

    def _die_before_keeping(self) -> None:
        home = self._somebody()
        if home is not None:
            home.dies_before_keeping = True
            self._log(f"{home.label} will die between its next commit and its head")

    def _keep_copy(self) -> None:
        home = self.random.choice(self.homes)
        home.keep_copy()
        self._log(f"{home.label} keeps a copy of its database")

    def _set_back(self) -> None:
        """An older database, or none, in the place of a home's; it waits for everybody, or for some."""
        home = self.random.choice(self.homes)
        others = [other for other in self.homes if other is not home]
        knows_all = any(len(other.catalog.members()) == len(NAMES) for other in others)
        if not home.copies and not knows_all:
            return
        database = self.random.choice([*home.copies, None]) if knows_all else self.random.choice(home.copies)
        without = [other.domain for other in others if self.random.random() < 0.3]
        self._begin_again(home, database, without)

    def _lose_a_tail(self) -> None:
        """What others took goes with a database; its home goes on without asking anybody."""
        home = self._somebody()
        if home is None:
            return
        home.keep_copy()
        for _ in range(self.random.randint(1, 3)):
            if home.life is None or not self._put(home, self._name()):
                return
        self.street.run(self.random.choice([0.1, 1.0]))
        self._begin_again(home, home.copies[-1], [other.domain for other in self.homes if other is not home])

    def _begin_again(self, home: Home, database: bytes | None, without: list[str]) -> None:
        self.promises.note_entries()
        self.checkers.note_signed()
        self.checkers.note_allowed()
        self.somebody_wakes = True
        home.set_back(database)
        self.promises.recount(self.checkers.honest)
        self.checkers.forgive(home)
        home.start(*without)
        self._log(f"{home.label} starts on {'an older copy' if database else 'nothing'} without {without}")

    def _harm(self) -> None:
        assert self.hostile is not None
        self._log(self.hostile.act(self.checkers))

    def _mend(self) -> None:
        self.street.run(3)
        self.street.network.heal()
        self.street.network.loss = self.street.network.duplication = 0.0
        for home in self.homes:
            home.dies_before_keeping = False
            if home.life is None:
                home.start()
            home.fill_disk(False)
        self._log("everything healed")

    def _failed(self, what: str) -> StoryFailed:
        told = sorted([*self.events[-EVENTS_TOLD:], *(line for home in self.homes for line in home.witness.newest)])
        return StoryFailed(
            f"seed {self.seed}: {what}\nreplay: bin/test --sim --seed {self.seed}\n" + "\n".join(told[-120:])
        )


def failing_seed(stories: Callable[[int], Story], seeds: range) -> int | None:
    """The first seed whose story fails; None when all end well."""
    for seed in seeds:
        try:
            stories(seed).run()
        except StoryFailed:
            return seed
    return None
