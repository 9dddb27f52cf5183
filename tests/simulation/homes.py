"""Simulated homes: real catalogues under the coordinator's real drivers, in virtual time, on a street of one seed.

What a `Home` has on its disk outlives it: database, kept heads, gossip's state, the book of endpoints. A `Life` is one
run of its coordinator: gossip, pulls and pushes, staging and forwarding, waking up, background care, joined as
daemon/parts joins them, over `Wire` instead of gRPC. Everything in it is the product's own code; not simulated: chunks
and nodes, mounts, certificates on connections (the wire knows who calls; a removed member is refused).
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from blake3 import blake3
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import DecodeError, Message
from simulation.ledgers import Template
from simulation.street import LIFE, HomeClock, Killed, Street, Witness, look_at
from simulation.wire import Wire
from simulation.world import stand_in_sign, stand_in_verify

from collective.catalog import Catalog, FolderHeadKeeper
from collective.core.address import FederatedAddress
from collective.core.errors import CollectiveError, Corrupt, Misconfigured, Refused
from collective.daemon.tending import guarded
from collective.daemon.writing import Writing
from collective.gossip import LAN, Self, State
from collective.gossip.messages import TAG
from collective.net.rpc import Caller
from collective.transfer.asking import Coordinators
from collective.transfer.events import ChangeBell
from collective.transfer.finding import Finder
from collective.transfer.forward import Forwarder
from collective.transfer.gossip_view import MemberKeys
from collective.transfer.gossiping import Gossiping, GossipParts
from collective.transfer.numbers import NumberStock
from collective.transfer.peers import PeerBook
from collective.transfer.serve_leases import LeaseDesk
from collective.transfer.submit import SubmitDesk
from collective.transfer.sync import EntryServer, EntryTaker
from collective.transfer.waking import HandBackDesk, HandOver, Recall
from collective.wire import control_pb2, feed_pb2
from collective.wire.gossip_pb2 import SignedGossip

__all__ = ["Home", "Life"]

Result = TypeVar("Result")
Request = TypeVar("Request", bound=Message)
TEND_LEAST_SECONDS, TEND_MOST_SECONDS = 0.5, 3.0
OVERHEARD = 100


class CheapKeys(MemberKeys):
    """Gossip's signatures as hashes: unforgeable within one process, at a hundredth of the price."""

    def verify(self, domain: str, data: bytes, signature: bytes, certificates: Sequence[bytes]) -> None:
        if domain in self.view.removed:
            raise Refused(f"{domain} was removed from the federation")
        stand_in_verify(domain, data, signature, certificates)


class Heads:
    """The kept heads of a home: small files, on a disk that may be full, written by a process that may be killed."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._files = FolderHeadKeeper([home.folder / "heads"])
        self.newest = self._files.newest
        self.feeds = self._files.feeds
        self.recovered = self._files.recovered
        self.settle = self._files.settle

    def keep(self, feed_id: bytes, position: feed_pb2.Position) -> None:
        if self._home.dies_before_keeping:
            self._home.dies_before_keeping = False
            self._home.end()
            raise Killed
        if self._home.disk_is_full:
            raise Misconfigured("the head of a feed cannot be kept: No space left on device")
        self._files.keep(feed_id, position)


class Home:
    """One member: its disk, and its coordinator while it runs."""

    def __init__(self, street: Street, label: str, template: Template, folder: Path, skew: float) -> None:
        self.street = street
        self.label = label
        self.template = template
        self.keys = template.federation.keys[label]
        self.domain = self.keys.member_domain
        self.folder = template.copy(label, folder)
        self.skew = skew
        self.place = f"{self.domain}:8001"
        self.gossip_state = b""
        self.book: dict[str, list[feed_pb2.Endpoint]] = {}
        self.copies: list[bytes] = []  # of the database, as backups would have it
        self.dies_before_keeping = False
        self.disk_is_full = False
        self.listens = False  # keeps what is told here
        self.overheard: list[bytes] = []
        self._said: set[bytes] = set()  # hashes of all that gossip signed
        self.witness = Witness(self)
        self.life: Life | None = None
        self._resting: Catalog | None = None
        street.homes[self.domain] = self

    @property
    def catalog(self) -> Catalog:
        """The running coordinator's; of one that is down a copy to look into."""
        if self.life is not None:
            return self.life.catalog
        if self._resting is None:
            self._resting = self.open(HomeClock(self.street, self.skew, 0.0))
        return self._resting

    def wall(self) -> float:
        """Its clock, seconds since 1970."""
        return HomeClock(self.street, self.skew, 0.0).wall()

    def open(self, clock: HomeClock) -> Catalog:
        return self.template.open(self.label, self.folder, Heads(self), clock, self.witness)

    def sign(self, data: bytes) -> bytes:
        """What gossip says in its name."""
        self._said.add(blake3(data).digest())
        return self.keys.signing_key.sign(data) if self.street.real_signatures else stand_in_sign(self.domain)(data)

    def has_said(self, raw: bytes) -> bool:
        """Whether it made this message, in any of its lives."""
        return blake3(TAG + SignedGossip.FromString(raw).message).digest() in self._said

    def start(self, *without: str) -> Home:
        """Begin a life. `without`: members whose answers are not waited for after a doubtful start."""
        self._rest_no_more()
        self.life = Life(self, without)
        self.life.begin()
        return self

    def end(self) -> None:
        """Kill the coordinator, at any point whatsoever."""
        life, self.life = self.life, None
        if life is not None:
            life.end()
        self.disk_is_full = False
        self._rest_no_more()

    def _rest_no_more(self) -> None:
        if self._resting is not None:
            self._resting.close()
            self._resting = None

    def keep_copy(self) -> None:
        """A backup of the database as it is now."""
        self.catalog._writing.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.copies = [*self.copies[-2:], (self.folder / "catalog.db").read_bytes()]

    def set_back(self, database: bytes | None) -> None:
        """Kill it and put an older database, or none, in the place of its own; the heads beside it stay."""
        self.end()
        for path in self.folder.glob("catalog.db*"):
            path.unlink()
        if database is not None:
            (self.folder / "catalog.db").write_bytes(database)

    def fill_disk(self, full: bool) -> None:
        """No page more for the database, no head kept; or room again."""
        self.disk_is_full = full
        (pages,) = self.catalog._writing.execute("PRAGMA page_count").fetchone()
        self.catalog._writing.execute(f"PRAGMA max_page_count = {pages if full else (1 << 30)}")

    def answer(self, caller: str, method: str, kind: type[Message], raw: bytes) -> asyncio.Task[Message]:
        """A call arrived. The life that took it may end over it."""
        assert self.life is not None
        return self.life.spawn(self.life.handle(caller, method, kind, raw), f"{method} of {caller}", told=True)


class Life:
    """One run of a home's coordinator."""

    def __init__(self, home: Home, without: Iterable[str]) -> None:
        street = home.street
        self.home = home
        self.ended = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self.clock = clock = HomeClock(street, home.skew, street.random.uniform(0, 1e6))
        self.catalog = catalog = home.open(clock)
        catalog.excuse(without)
        self._removed: set[object] = set()
        self.refresh_trust()
        observer = home.witness
        self.bell = bell = ChangeBell(catalog.change_counter)
        self.wire: Any = Wire(street, self)
        self.book = PeerBook(catalog, home.book, self._save_book)
        address = FederatedAddress("coord", home.domain)
        taker = EntryTaker(catalog, bell, self.wire, observer, self.write, self._after_receive, self._no_snapshot)
        self.gossiping = self._join_gossip(taker, address)
        self.recall = Recall(catalog, taker, self.book, bell, clock, observer)
        self.hand_over = HandOver(catalog, self.book, self.wire, bell, clock, observer, self.write)
        self.hand_back = HandBackDesk(catalog, bell, observer, self.write)
        self.entries = EntryServer(catalog, clock)
        self.writing = self._join_writing(address)

    def _join_gossip(self, taker: EntryTaker, address: FederatedAddress) -> Gossiping:
        home, street = self.home, self.home.street
        keys, template = home.keys, home.template
        judge = MemberKeys if street.real_signatures else CheapKeys
        parts = GossipParts(
            catalog=self.catalog,
            bell=self.bell,
            book=self.book,
            finder=Finder([("direct", self._by_domain)], self.clock),
            channels=self.wire,
            clock=self.clock,
            observer=home.witness,
            own=Self(
                address,
                certificates=(
                    keys.signing_certificate.public_bytes(Encoding.DER),
                    template.authorities[home.label],
                ),
                endpoints=(feed_pb2.Endpoint(type="lan", grpc=home.place),),
            ),
            sign=home.sign,
            keys=judge(template.root_certificate, template.domain),
            settings=LAN,
            bootstrap=[],
            only=None,
            load=lambda: home.gossip_state,
            save=self._save_gossip,
            taker=taker,
            read=self.write,
        )
        return Gossiping(parts, Random(street.random.getrandbits(64)))

    async def _by_domain(self, domain: str) -> list[str]:
        """What DNS says of a member that told nothing: a place where nobody is."""
        return [] if self.book.endpoints(domain) else [f"{domain}:8001"]

    def _join_writing(self, address: FederatedAddress) -> Writing:
        catalog, bell, clock, observer = self.catalog, self.bell, self.clock, self.home.witness
        coordinators, domain, life = Coordinators(self.wire, self.book), self.home.domain, self.gossiping.life
        leases = LeaseDesk(
            clock, observer, out_before=False, mark=lambda out: None, space=lambda: (0, 0), journals=dict
        )  # fmt: skip
        forwarder = Forwarder(catalog, coordinators, bell, clock, observer, life, self.write)
        return Writing(
            leases=leases,
            forwarder=forwarder,
            submit=SubmitDesk(
                catalog, leases, forwarder, lambda store, version, size, writer: [writer, store.owner], bell, clock,
                observer, domain, self.write,
            ),
            numbers=NumberStock(catalog, coordinators, bell, clock, observer, address, life, self.write),
            uploads=None,  # type: ignore[arg-type]  # there are no chunks here
            bell=bell,
            catalog=catalog,
            observer=observer,
            own_domain=domain,
        )  # fmt: skip

    def begin(self) -> None:
        for work in (
            self.gossiping.run(), self.recall.run(), self.hand_over.run(), self.writing.run(), self._tend_for_ever()
        ):  # fmt: skip
            self.spawn(work, work.__qualname__)

    def end(self) -> None:
        self.ended = True
        for task in self._tasks:
            task.cancel()
        self.catalog.close()

    def spawn(self, work: Coroutine[Any, Any, Result], name: str, *, told: bool = False) -> asyncio.Task[Result]:
        """Run in this life and no longer. `told`: a refusal is somebody else's to hear, not a surprise."""
        context = contextvars.copy_context()
        context.run(LIFE.set, self)
        task = self.home.street.loop.create_task(work, name=name, context=context)
        if told:
            task.add_done_callback(lambda done: look_at(done, CollectiveError))
        return task

    def owns(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[Any]) -> None:
        """What nobody looks at is a surprise, unless this life was over."""
        self._tasks.discard(task)
        if self.ended:
            look_at(task, BaseException)

    # ------------------------------------------------------------ what is asked of it

    async def handle(self, caller: str, method: str, kind: type[Message], raw: bytes) -> Message:
        self.check_member(caller)
        request: Any = self.read(kind, raw)
        if self.home.listens and method == "Gossip":
            self.home.overheard = [*self.home.overheard[-OVERHEARD:], raw]
        match method:
            case "Gossip":
                return await self.gossiping.handle(caller, request)
            case "HandBack":
                return await self.hand_back.hand_back(Caller(None), request)
            case "Submit":
                return await self.writing.submit.receive(caller, request)
            case "LeaseNumbers":
                return await self.writing.numbers.lease(caller, request)
        raise NotImplementedError(method)

    def read(self, kind: type[Request], raw: bytes) -> Request:
        """As gRPC does before anybody is asked. Raises: Corrupt."""
        try:
            return kind.FromString(raw)
        except DecodeError as error:
            self.home.witness.event("wire.unreadable", bytes=len(raw))
            raise Corrupt("what came cannot be read") from error

    async def follow(self, caller: str, request: control_pb2.FollowRequest) -> AsyncIterator[control_pb2.FollowReply]:
        self.check_member(caller)
        async for reply in self.entries.follow(caller, request):
            yield reply

    def refresh_trust(self) -> None:
        """Who was removed, as daemon/foundation tells the trust store whenever entries came or were made."""
        self._removed = {domain for (domain,) in self.catalog._all("SELECT domain FROM members WHERE removed")}

    def check_member(self, domain: str) -> None:
        """What the trust store does on every connection. Raises: Refused."""
        if domain in self._removed:
            raise Refused(f"{domain} was removed from the federation")

    # ------------------------------------------------------------ its work

    async def write(self, change: Callable[[], Result]) -> Result:
        await asyncio.sleep(0)  # as on the writer's thread: others may come in between
        return change()

    async def _after_receive(self) -> None:
        self.refresh_trust()

    async def _no_snapshot(self, peer: str, entry: bytes) -> bool:
        raise Refused("no snapshots here")

    async def _tend_for_ever(self) -> None:
        """Keys, hosts, statements, epochs and replays, as daemon/tending does at every change."""
        while True:
            await guarded(self.home.witness, "tend", self._tend)
            counter = self.catalog.change_counter()
            await asyncio.sleep(TEND_LEAST_SECONDS)
            await self.bell.wait_past(counter, TEND_MOST_SECONDS)

    async def _tend(self) -> None:
        if await self.write(lambda: self.catalog.tend(self.clock.wall())):
            self.bell.ring()

    def _save_gossip(self, state: bytes) -> None:
        if not self.ended:
            self.home.gossip_state = state

    def _save_book(self, told: Any) -> None:
        if not self.ended:
            self.home.book = {domain: list(places) for domain, places in told.items()}

    # ------------------------------------------------------------ what people do

    def state_of(self, domain: str) -> State | None:
        view = self.gossiping.states().get(domain)
        return view.state if view is not None else None

    def leave(self) -> None:
        """Say goodbye to everybody."""
        engine = self.gossiping._engine
        self.gossiping._carry_out(engine.leave(self.clock.monotonic()))
