"""One seed's story: members write while the network, the machines and one of them misbehave; then all heals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from simulation.chance import seeded
from simulation.checkers import Checkers
from simulation.homes import Home, Life
from simulation.hostile import Hostile
from simulation.ledgers import NAMES, Template
from simulation.mishaps import Mishaps
from simulation.promises import Promise, Promises, content_of
from simulation.street import Killed, Street
from simulation.world import Network
from support.catalogs import FEDERATION, operation_id, put

from collective.catalog import DataStore, Inline
from collective.core.errors import CollectiveError
from collective.wire import control_pb2, feed_pb2, submit_pb2

__all__ = ["Story", "StoryFailed"]

YEAR = 365 * 86400.0
FEEDS_LEVEL_SECONDS = 10.0  # after everything healed …
LEVEL_SECONDS = 15.0  # … with what waited for an owner; a call that began before it may have to end
WAKING_SECONDS = 60.0  # … and when somebody has to ask everybody first
UNDER_WAY_SECONDS = 2.0  # what was said before the healing, by whom did not know better, has come by then
STEPS = 14
QUIET_SECONDS = 8.0  # afterwards, in most stories …
LONG_QUIET_SECONDS = 32.0  # … and in some longer than from one comparison of heads to the next
LONG_QUIET_EVERY = 4
REAL_SIGNATURES_EVERY = 16  # gossip's; entries are always signed and verified
SHARED_NAMES = 4
EVENTS_TOLD = 120


class StoryFailed(AssertionError):
    """A checker found something; names the seed."""


class Story:
    """The members of one seed. Who misbehaves, and how, is drawn first; what happens then is drawn step by step."""

    def __init__(
        self,
        seed: int,
        template: Template,
        folder: Path,
        steps: int = STEPS,
        network_class: Callable[..., Network] = Network,
    ) -> None:
        self.seed = seed
        self.random = random = Random(seed)
        network = network_class(
            loss=random.choice([0.0, 0.02, 0.1, 0.2]),
            duplication=random.choice([0.0, 0.1]),
            most_delay=random.choice([0.002, 0.02, 0.1]),
            refuses=random.random() < 0.5,
        )
        self.folder = folder
        self.street = Street(seed, network, real_signatures=seed % REAL_SIGNATURES_EVERY == 0)
        self.steps = steps
        self.files = 0
        self.somebody_wakes = False
        for name in NAMES:
            skew = random.choice([0.0, 0.0, 300.0, -YEAR, 10 * YEAR])
            Home(self.street, name, template, folder / name, skew)
        self.homes = list(self.street.homes.values())
        self.mishaps = Mishaps(self.street, random)
        self.promises = Promises()
        self.checkers = Checkers(self.street, self.promises)
        self.hostile: Hostile | None = None
        if random.random() < 0.25:
            self.hostile = Hostile(self.homes[3], self.street, random)
            self.checkers.hostile = self.homes[3]
        self.acts = self._choose_acts()

    def _choose_acts(self) -> list[Callable[[], None]]:
        may = self.mishaps
        acts = [self._write] * 5 + [self._write_to_another] * 4 + [self._remove, self._grant]
        acts += [may.part, may.one_way, may.heal, may.crash, may.crash, may.flap, may.start, may.start]
        acts += [may.leave, may.move, self._blink, self._withdraw, self._withdraw_unheard]
        if self.random.random() < 0.5:
            acts += [may.keep_copy, may.keep_copy, self._set_back, self._lose_a_tail]
        if self.random.random() < 0.3:
            acts += [may.fill_disk, may.die_before_keeping]
        if self.random.random() < 0.2:
            acts += [self._remove_member]
        if self.hostile is not None:
            acts += [self._harm] * 6
        return acts

    def run(self) -> None:
        """Raises: StoryFailed."""
        try:
            with seeded(self.seed):
                self.street.introduce()
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
            self.mishaps.heal()
            self.street.run(6)
            self._blink()  # the last that happens: nothing later brings what was missed
        self._mend()
        feeds_seconds, all_seconds = FEEDS_LEVEL_SECONDS, LEVEL_SECONDS
        if self.somebody_wakes:
            feeds_seconds = all_seconds = WAKING_SECONDS
        took = self.street.run_until(self.checkers.behind, feeds_seconds)
        self.street.run_until(self.checkers.unlevel, all_seconds - took)
        self.promises.note_entries()
        healthy_since = self.street.now
        self.street.run(UNDER_WAY_SECONDS)
        then = self.checkers.heads()
        for home in self.checkers.honest:
            self._put(home, b"last-%d" % self.files)
        self.street.run(LONG_QUIET_SECONDS if self.seed % LONG_QUIET_EVERY == 0 else QUIET_SECONDS)
        self.checkers.check_healed(healthy_since, then, self.folder / "rebuilt")

    # ------------------------------------------------------------ writing

    def _path(self, home: Home) -> bytes:
        return b"/" + home.label.encode()

    def _name(self) -> bytes:
        """One that others may use too, or one of its own."""
        if self.random.random() < 0.5:
            return b"shared-%d" % self.random.randrange(SHARED_NAMES)
        return b"f%d" % self.files

    def _write(self) -> None:
        home = self.mishaps.somebody()
        if home is None:
            return
        for _ in range(self.random.choice([1, 1, 5, 20])):
            if not self._put(home, self._name()):
                return
        self.mishaps.log(f"{home.label} wrote up to file {self.files}")

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
            self.mishaps.log(f"{home.label} cannot write: {error.message}")
            self._make_datastore(home)
            return False
        except Killed:
            self.mishaps.log(f"{home.label} died after a commit, before it kept the head")
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
            self.mishaps.log(f"{home.label} cannot make a DataStore either: {error.message}")
        except Killed:
            return
        else:
            home.life.bell.ring()

    def _write_to_another(self) -> None:
        home = self.mishaps.somebody()
        stores = self._writable(home) if home is not None else []
        if home is not None and stores:
            self._change_some(home, self.random.choice(stores))

    def _writable(self, home: Home) -> list[DataStore]:
        """Others' DataStores that a home may change, as far as it knows."""
        life = home.life
        assert life is not None
        return [
            store
            for store in home.catalog.datastores()
            if store.owner != home.domain and store.readable and life.writing.numbers.may_write(store, None)
        ]

    def _change_some(self, home: Home, store: DataStore) -> None:
        """Puts, moves, removals in somebody else's DataStore: staged, or asked exactly."""
        life = home.life
        assert life is not None
        for _ in range(self.random.choice([1, 1, 3, 10])):
            self.files += 1
            path = store.path + b"/" + self._name()
            try:
                seen = self._content(home, path)
                change = self._change(home, store.path, path)
                plan = home.catalog.plan(operation_id(home.domain), change, f"client@{home.domain}")
            except CollectiveError as error:
                self.mishaps.log(f"{home.label} cannot plan {path!r}: {error.message}")
                continue
            if plan.store.owner == home.domain or not plan.staged:
                continue
            exact = self.random.random() < 0.3
            life.spawn(self._submit(life, plan.store.feed_id, plan.staged, seen, exact), "submit", told=True)
            self.street.run(0)
            if home.life is not life:
                return
        self.mishaps.log(f"{home.label} wrote to {store.path.decode()} up to file {self.files}")

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
        return control_pb2.PutFile(
            path=path,
            content=feed_pb2.Content(size_bytes=len(data), inline=data),
            make_parents=True,
            expected_inode=standing.number if standing else 0,
            expected_version_id=(standing.version_id or b"") if standing else b"",
        )

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
                promise.was_staged = False
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
        home = self.mishaps.somebody()
        if home is None:
            return
        life = home.life
        assert life is not None
        paths = [self._path(home) + b"/" + name for name in self._names(home) if name.startswith(b"f")]
        if not paths:
            return
        path = self.random.choice(paths)
        content, id_ = self._content(home, path), operation_id(home.domain)
        try:
            position = home.catalog.remove_path(id_, control_pb2.RemovePath(path=path), f"client@{home.domain}")
        except (CollectiveError, Killed) as error:
            self.mishaps.log(f"{home.label} cannot remove {path.decode()}: {error}")
            return
        life.bell.ring()
        self.promises.made.append(Promise(home, home, content, id_, position.hash, removed=True))
        self.mishaps.log(f"{home.label} removed {path.decode()}")

    def _names(self, home: Home) -> list[bytes]:
        try:
            return [name for name, _ in home.catalog.list(home.catalog.resolve(self._path(home)).ino)]
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
        grants = self._grants(home) if home.life is not None else []
        if grants:
            self._take_away(home, [self.random.choice(grants)])

    def _withdraw_unheard(self) -> None:
        """Whoever writes loses the right, and does not hear of it before the owner is met again."""
        writer = self.mishaps.somebody()
        stores = self._writable(writer) if writer is not None else []
        if writer is None or not stores:
            return
        store = self.random.choice(stores)
        owner = self.street.homes[store.owner]
        self.street.network.block([writer.domain], [home.domain for home in self.homes])
        self._change_some(writer, store)
        if owner.life is not None:
            right = self.random.choice([feed_pb2.READ, feed_pb2.WRITE])
            mine = f"{writer.label}@{FEDERATION}"
            self._take_away(owner, [one for one in self._grants(owner) if one.subject == mine and right in one.rights])
        self.street.run(1)
        self.mishaps.heal()

    def _grants(self, home: Home) -> list[feed_pb2.Grant]:
        own = [store for store in home.catalog.datastores() if store.owner == home.domain]
        return [grant for store in own for grant in home.catalog.grants(store.feed_id)]

    def _take_away(self, home: Home, grants: Sequence[feed_pb2.Grant]) -> None:
        withdrawals = [
            feed_pb2.MemberOperation(
                id=operation_id(home.domain), grant_withdrawal=feed_pb2.GrantWithdrawal(grant_id=grant.id)
            )
            for grant in grants
        ]
        told = ", ".join(f"{list(grant.rights)} from {grant.subject}" for grant in grants)
        self.checkers.note_allowed()
        if grants and self._as_owner(
            home, lambda: home.catalog.append_member(withdrawals), f"{home.label} takes {told}"
        ):
            for store in home.catalog.datastores():
                if store.owner == home.domain:
                    self.checkers.note_withdrawal(home, store.feed_id)

    def _as_owner(self, home: Home, act: Callable[[], object], told: str) -> bool:
        life = home.life
        assert life is not None
        try:
            act()
        except (CollectiveError, Killed) as error:
            self.mishaps.log(f"{told}: not now, {error}")
            return False
        life.refresh_trust()
        life.bell.ring()
        self.mishaps.log(told)
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

    def _blink(self) -> None:
        """One member is cut off for so short a time that nobody suspects it, and misses what happens meanwhile."""
        names = [home.domain for home in self.homes]
        cut = self.random.choice(names)
        self.street.network.block([cut], names)
        self.mishaps.log(f"{cut} is cut off for a moment")
        self.random.choice([self._write, self.mishaps.move, self._write_to_another])()
        self.street.run(4.0)
        self.mishaps.heal()

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
        """What others took, or handed in, goes with a database; its home goes on without asking anybody."""
        home = self.mishaps.somebody()
        if home is None:
            return
        home.keep_copy()
        others = [other for other in self.homes if other is not home]
        for other in others if self.random.random() < 0.5 else ():
            for store in self._writable(other) if other.life is not None else ():
                if store.owner == home.domain:
                    self._change_some(other, store)
        for _ in range(self.random.randint(1, 3)):
            if home.life is None or not self._put(home, self._name()):
                return
        self.street.run(self.random.choice([0.1, 1.0]))
        self._begin_again(home, self.random.choice(home.copies), [other.domain for other in others])

    def _begin_again(self, home: Home, database: bytes | None, without: list[str]) -> None:
        self.promises.note_entries()
        self.checkers.note_signed()
        self.checkers.note_allowed()
        self.checkers.note_committed(home)
        self.somebody_wakes = True
        home.set_back(database)
        self.promises.lose(home)
        self.promises.recount(self.checkers.honest)
        self.checkers.forgive(home)
        home.start(*without)
        self.mishaps.log(f"{home.label} starts on {'an older copy' if database else 'nothing'} without {without}")

    def _harm(self) -> None:
        assert self.hostile is not None
        self.mishaps.log(self.hostile.act(self.checkers))

    def _mend(self) -> None:
        self.street.run(3)
        self.street.network.mend()
        for home in self.homes:
            home.dies_before_keeping = False
            if home.life is None:
                home.start()
            home.fill_disk(False)
        self.mishaps.log("everything healed")

    def _failed(self, what: str) -> StoryFailed:
        told = sorted(
            [*self.mishaps.events[-EVENTS_TOLD:], *(line for home in self.homes for line in home.witness.newest)]
        )
        return StoryFailed(
            f"seed {self.seed}: {what}\nreplay: bin/test --sim --seed {self.seed}\n" + "\n".join(told[-120:])
        )
