"""A member that lies: it has its own keys, the messages that came to it, and every entry that it may follow.

Its coordinator is the product's own; beside it this says what no coordinator would say. Nothing it does may harm
anybody else; a fork of a feed of its own must be noticed and kept as evidence.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

from simulation.homes import Home, Life
from simulation.street import Killed, Street

from collective.catalog.entry import build_entry, position_of
from collective.core.address import FederatedAddress
from collective.core.errors import CollectiveError
from collective.gossip.messages import TAG
from collective.wire import control_pb2, feed_pb2, submit_pb2
from collective.wire.gossip_pb2 import HEARTBEAT, GossipMessage, Push, SignedGossip, Suspicion

if TYPE_CHECKING:
    from simulation.checkers import Checkers

__all__ = ["Hostile"]

CALL_SECONDS = 3.0
HUGE_BYTES = 2 << 20
FEDERATION_SERVICE = "/collective.v1.Federation"


class Hostile:
    """What one member does to the others. Each act tells what it was."""

    def __init__(self, home: Home, street: Street, random: Random) -> None:
        self.home = home
        self.street = street
        self.random = random
        self.forked = False
        home.listens = True

    def act(self, checkers: Checkers) -> str:
        life = self.home.life
        if life is None:
            return f"{self.home.label} would lie and does not run"
        victim = self.random.choice([other for other in self.street.homes.values() if other is not self.home])
        acts: list[Callable[[Life, Home], str]] = [self._alter, self._sign_for_another, self._too_much, self._hand_back]
        acts += [self._replay, self._accuse, self._submit, self._skip]
        if not self.forked and self.random.random() < 0.3:
            return self.fork(life, victim, checkers)
        return f"{self.home.label} to {victim.label}: {self.random.choice(acts)(life, victim)}"

    # ------------------------------------------------------------ entries

    def _entries_of(self, life: Life, victim: Home) -> list[tuple[bytes, bytes]]:
        """(feed, entry) of newest entries of feeds that are not its own."""
        found = []
        for feed, head in life.catalog.heads().items():
            if not life.catalog.is_own(feed) and life.catalog.entries_after(feed, head.seq - 1):
                found.append((feed, life.catalog.entries_after(feed, head.seq - 1)[0]))
        return found

    def _alter(self, life: Life, victim: Home) -> str:
        """Somebody's newest entry with a byte flipped, as if it were the next."""
        feed, raw = self.random.choice(self._entries_of(life, victim))
        broken = bytearray(raw)
        broken[self.random.randrange(len(raw))] ^= 1 << self.random.randrange(8)
        head = life.catalog.heads()[feed]
        head.seq += 1
        self._push(life, victim, feed, head, [bytes(broken)])
        return "an entry with a flipped bit"

    def _sign_for_another(self, life: Life, victim: Home) -> str:
        """The next entry of somebody else's feed, well made, under its own key."""
        feed, _ = self.random.choice(self._entries_of(life, victim))
        head = life.catalog.heads()[feed]
        body = feed_pb2.MemberBody(
            operations=[
                feed_pb2.MemberOperation(
                    id=feed_pb2.OperationId(writer=self.home.domain, random=os.urandom(16)),
                    grant=feed_pb2.Grant(id=os.urandom(16), path=b"/", rights=[1, 2, 3], subject="*@*.collective"),
                )
            ]
        )
        entry = build_entry(
            self.home.keys.signing_key, head, feed_id=feed, lamport=1 << 40, wall_milliseconds=0,
            public_part=body.SerializeToString(), sealed_plain=b"", store_key=b"",
        )  # fmt: skip
        self._push(life, victim, feed, position_of(entry), [entry.raw])
        return "an entry of another's feed that it signed itself"

    def _too_much(self, life: Life, victim: Home) -> str:
        feed, raw = self.random.choice(self._entries_of(life, victim))
        head = life.catalog.heads()[feed]
        head.seq += 1
        self._push(life, victim, feed, head, [raw + bytes(HUGE_BYTES)])
        return "an entry that is too large"

    def _skip(self, life: Life, victim: Home) -> str:
        """The newer of two entries of its own, as if it were the next."""
        feed = life.catalog.own_member_feed()
        try:
            for _ in range(2):
                life.catalog.grant(b"/dave", [feed_pb2.READ], f"{victim.label}@media.collective")
        except CollectiveError as error:
            return f"it could not append: {error.message}"
        except Killed:
            return "it died over an entry"
        head, theirs = life.catalog.heads()[feed], victim.catalog.heads().get(feed)
        entries = life.catalog.entries_after(feed, head.seq - 1)
        head.seq = (theirs.seq if theirs is not None else 0) + 1
        self._push(life, victim, feed, head, entries)
        return "an entry without the one before it"

    def _hand_back(self, life: Life, victim: Home) -> str:
        _, raw = self.random.choice(self._entries_of(life, victim))
        broken = bytearray(raw)
        broken[-1] ^= 1
        request = control_pb2.HandBackRequest(entries=[bytes(broken), raw])
        self._call(life, victim, "HandBack", request, control_pb2.HandBackReply)
        return "entries handed back that were never taken"

    def fork(self, life: Life, victim: Home, checkers: Checkers) -> str:
        """Two next entries of its own member feed: one for a victim, the other for everybody else."""
        folder = self.home.folder.parent / "twin"
        self.home.keep_copy()
        folder.mkdir()
        (folder / "catalog.db").write_bytes(self.home.copies[-1])
        twin = self.home.template.open(self.home.label, folder, _NoHeads(), life.clock, self.home.witness)
        try:
            feed = twin.own_member_feed()
            if feed not in twin.heads():
                return f"{self.home.label} has no feed to fork: its database was lost"
            seq = twin.heads()[feed].seq
            for catalog in (twin, life.catalog):
                catalog.grant(b"/dave", [feed_pb2.READ], f"{victim.label}@media.collective")
            position, entries = twin.heads()[feed], twin.entries_after(feed, seq)
        except CollectiveError as error:
            return f"{self.home.label} could not fork its feed: {error.message}"
        except Killed:
            return f"{self.home.label} died over a fork of its feed"
        finally:
            twin.close()
            shutil.rmtree(folder)
        self.forked = True
        checkers.forked_on_purpose[feed] = life.catalog.heads()[feed].hash, position.hash
        life.bell.ring()
        self._push(life, victim, feed, position, entries)
        return f"{self.home.label} forks its feed before {victim.label}"

    # ------------------------------------------------------------ gossip

    def _replay(self, life: Life, victim: Home) -> str:
        """What another member said, verbatim and once more: as its own message, and as a rumour."""
        if not self.home.overheard:
            return "it heard nothing to replay"
        old = self.random.choice(self.home.overheard)
        self._call(life, victim, "Gossip", SignedGossip.FromString(old), control_pb2.GossipReply)
        self._gossip(life, victim, GossipMessage(statements=[SignedGossip.FromString(old)]))
        return "a message that another sent long ago"

    def _accuse(self, life: Life, victim: Home) -> str:
        """Everybody is dead, in this life and in the next."""
        everybody = list(self.street.homes)
        engine = life.gossiping._engine
        suspicions = [
            Suspicion(member=domain, incarnation=peer.incarnation + self.random.randrange(2), accusers=everybody)
            for domain, peer in engine.membership.peers.items()
        ]
        self._gossip(life, victim, GossipMessage(suspicions=suspicions))
        return "everybody is dead"

    def _push(self, life: Life, victim: Home, feed: bytes, head: feed_pb2.Position, entries: list[bytes]) -> None:
        first = head.seq - len(entries) + 1
        push = Push(head=feed_pb2.FeedHead(feed_id=feed, head=head), first_seq=first, entries=entries)
        self._gossip(life, victim, GossipMessage(pushes=[push]))

    def _gossip(self, life: Life, victim: Home, message: GossipMessage) -> None:
        """Signed with its own key, with a fresh stamp: only what it says is a lie."""
        statements = life.gossiping._engine.statements
        message.type, message.recipient = HEARTBEAT, victim.domain
        encoded = statements.fill(message).SerializeToString()
        signed = SignedGossip(message=encoded, signature=statements.sign(TAG + encoded))
        self._call(life, victim, "Gossip", signed, control_pb2.GossipReply)

    # ------------------------------------------------------------ changes

    def _submit(self, life: Life, victim: Home) -> str:
        """Changes under another's name, under numbers nobody leased, and where it may not write."""
        stores = [store for store in life.catalog.datastores() if store.owner == victim.domain]
        if not stores:
            return "it knows no DataStore there"
        may = life.writing.numbers.may_write(stores[0], None)
        writer = self.home.domain if may else self.random.choice([self.home.domain, victim.domain])
        create = feed_pb2.Create(
            parent=1,
            name=b"evil-%d" % self.random.randrange(99),
            inode=self.random.randrange(1, 1 << 39),
            mode=0o100644,
        )
        operation = feed_pb2.TreeOperation(
            id=feed_pb2.OperationId(writer=writer, random=os.urandom(16)), actor=f"client@{writer}", create=create
        )
        request = submit_pb2.SubmitRequest(
            store_id=stores[0].feed_id, operations=[submit_pb2.StagedOperation(operation=operation)]
        )
        self._call(life, victim, "Submit", request, submit_pb2.SubmitReply)
        return "a change that it may not make"

    def _call(self, life: Life, victim: Home, method: str, request: Any, reply_type: Any) -> None:
        async def call() -> None:
            await life.wire.unary(
                FederatedAddress("coord", victim.domain), victim.place, f"{FEDERATION_SERVICE}/{method}", request,
                reply_type, CALL_SECONDS,
            )  # fmt: skip

        life.spawn(call(), f"a hostile {method}", told=True)


class _NoHeads:
    """A second copy of a home betrays itself to nobody."""

    def keep(self, feed_id: bytes, position: feed_pb2.Position) -> None:
        return None

    def newest(self, feed_id: bytes) -> feed_pb2.Position | None:
        return None

    def feeds(self) -> set[bytes]:
        return set()

    def recovered(self) -> bool:
        return False

    def settle(self) -> None:
        return None
