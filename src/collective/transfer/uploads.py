"""Before and after the bytes: where to seal and send a new content, and how far its copies have come.

The process that holds the plain bytes (a command, a mount) asks `begin`, seals and sends by itself, commits, and may
then wait with `await_level`. Contents go to the writer's own nodes, also those for another member's DataStore: the
owner gets its copy afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from collective.catalog import Catalog, DataStore
from collective.core.clock import Clock
from collective.core.errors import Refused
from collective.core.layout import CHUNK_SIZE_BACKUP_BYTES, CHUNK_SIZE_BYTES, INLINE_LIMIT_BYTES, sealed_size
from collective.transfer.events import ChangeBell
from collective.transfer.nodes import NodeDirectory, TicketOffice
from collective.wire import control_pb2, feed_pb2

__all__ = ["LEVEL_LOCAL", "LEVEL_TWO", "UploadDesk", "sealed_bytes"]

LEVEL_LOCAL, LEVEL_TWO = "local", "two"
LOOK_SECONDS = 5.0  # how often a waiting caller's level is looked at when no bell rings


def sealed_bytes(size_bytes: int, chunk_size_bytes: int) -> int:
    """What a content takes on a node at most, trailers aside."""
    whole, rest = divmod(size_bytes, chunk_size_bytes)
    return whole * sealed_size(chunk_size_bytes) + (sealed_size(rest) if rest else 0)


@dataclass(frozen=True)
class UploadDesk:
    """Answers BeginUpload and AwaitLevel, for commands and mounts alike."""

    catalog: Catalog
    nodes: NodeDirectory
    tickets: TicketOffice
    bell: ChangeBell
    clock: Clock
    own_domain: str
    store_secret: Callable[[bytes], bytes]

    async def begin(self, store: DataStore, size_bytes: int) -> control_pb2.BeginUploadReply:
        """Everything the process that holds the plain bytes needs to seal and send them. Raises: Refused, Full."""
        chunk_size = CHUNK_SIZE_BACKUP_BYTES if store.strategy == feed_pb2.BACKUP else CHUNK_SIZE_BYTES
        key = self.catalog.store_key(store.key_name)
        if key is None and size_bytes > INLINE_LIMIT_BYTES:
            raise Refused(
                "this home does not hold the DataStore's key",
                f"its owner gives it: collective datastore grant {store.path.decode(errors='replace')} read …",
            )
        reply = control_pb2.BeginUploadReply(
            store_id=store.feed_id,
            store_secret=self.store_secret(store.feed_id),
            store_key=key or b"",
            key_name=store.key_name,
            chunk_size_bytes=chunk_size,
            default_level=LEVEL_TWO if store.strategy == feed_pb2.BACKUP else LEVEL_LOCAL,
        )
        if size_bytes > INLINE_LIMIT_BYTES:
            sealed = sealed_bytes(size_bytes, chunk_size)
            signed, upload_id = self.tickets.upload(self.own_domain, store.feed_id, sealed)
            reply.signed_ticket, reply.upload_id = signed, upload_id
            best = await self.nodes.for_writing(upload_id, sealed, store.strategy)
            reply.nodes.append(best.location())
        return reply

    async def await_level(self, request: control_pb2.AwaitLevelRequest) -> control_pb2.AwaitLevelReply:
        """Wait until two members hold it, or the time is over; the reply says how far it came. Without version and
        position it is everything that was changed in the DataStore before."""
        deadline = self.clock.monotonic() + request.timeout_milliseconds / 1000
        while True:
            counter = self.catalog.change_counter()
            if not request.version_id and not request.position.seq:
                request.position.CopyFrom(self._last_entry(request.store_id))
            if request.version_id:
                holders = self.catalog.holders(request.store_id, request.version_id)
            elif request.position.seq:
                holders = self._holders_of_entry(request.store_id, request.position)
            else:
                holders = [self.own_domain]  # staged here, and in no entry yet
            level = LEVEL_TWO if len(holders) >= 2 else LEVEL_LOCAL
            left = deadline - self.clock.monotonic()
            if level == LEVEL_TWO or request.level != LEVEL_TWO or left <= 0:
                reason = "" if level == request.level else "no second member has said yet that it holds it"
                return control_pb2.AwaitLevelReply(level=level, holders=holders, reason=reason)
            await self.bell.wait_past(counter, min(left, LOOK_SECONDS))

    def _last_entry(self, store_id: bytes) -> feed_pb2.Position:
        """The entry that carries the last change made here; an empty one while changes wait for their owner."""
        if store_id in self.catalog.stores_with_staged_work():
            return feed_pb2.Position()
        return self.catalog.heads().get(store_id, feed_pb2.Position())

    def _holders_of_entry(self, store_id: bytes, position: feed_pb2.Position) -> list[str]:
        """This home too, once it has the entry."""
        here = [self.own_domain] if self.catalog.has_entry(store_id, position) else []
        return list(dict.fromkeys([*here, *self.catalog.holders_of_entry(store_id, position)]))
