"""What a member's own people ask of their coordinator: DataStores, grants, names, uploads. The rows of `Control`.

Over the Unix socket the caller is whoever may open the home; over the network it is an admin client of this member.
Without a running coordinator the same handlers run in the command's own process, under the home's lock.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from collective.catalog import Catalog, DataStore, Node, Position
from collective.chunks import compute_layout_hash, page_name
from collective.core.address import FederatedAddress, member_domain, member_identity, parse_address
from collective.core.clock import Clock
from collective.core.errors import Conflict, Corrupt, Refused
from collective.core.layout import (
    CHUNK_SIZE_BACKUP_BYTES,
    CHUNK_SIZE_BYTES,
    INLINE_LIMIT_BYTES,
    VersionLayout,
    decode_page,
    sealed_size,
)
from collective.identity import ComponentKind, Level
from collective.net.rpc import Caller, Row
from collective.transfer.events import ChangeBell
from collective.transfer.nodes import NodeDirectory, TicketOffice
from collective.transfer.placing import ChooseMembers
from collective.wire import control_pb2, feed_pb2

__all__ = ["CommandDesk", "control_rows"]

FILES_PER_MESSAGE = 512
LEVEL_LOCAL, LEVEL_TWO = "local", "two"


@dataclass(frozen=True)
class CommandDesk:
    """Answers the local socket and admin clients."""

    catalog: Catalog
    nodes: NodeDirectory
    tickets: TicketOffice
    bell: ChangeBell
    clock: Clock
    own_address: FederatedAddress
    store_secret: Callable[[bytes], bytes]
    choose_members: ChooseMembers
    write: Callable[[Callable[[], None]], Awaitable[None]]

    # ------------------------------------------------------------ DataStores and grants

    async def create_datastore(
        self, caller: Caller, request: control_pb2.CreateDataStoreRequest
    ) -> control_pb2.DataStoreReply:
        owner = self._domain_of(request.owner)
        if owner != self.own_address.domain:
            raise Refused(
                f"{request.owner} is another member; a DataStore is made by its owner",
                f"run this at {member_identity(owner)}'s home, or leave --owner out",
            )
        notes: list[str] = []
        existed = any(store.path == request.path and store.owner == owner for store in self.catalog.datastores())
        if existed:
            notes.append("it was there already; the settings given were applied")
        made: list[DataStore] = []

        def create() -> None:
            made.append(
                self.catalog.create_datastore(request.path, request.strategy, request.replicas, dict(request.metadata))
            )

        await self._change(create)
        return control_pb2.DataStoreReply(datastore=self._info(made[0]), created=not existed, notes=notes)

    async def list_datastores(
        self, caller: Caller, request: control_pb2.ListDataStoresRequest
    ) -> control_pb2.ListDataStoresReply:
        return control_pb2.ListDataStoresReply(datastores=[self._info(store) for store in self.catalog.datastores()])

    async def show_datastore(
        self, caller: Caller, request: control_pb2.ShowDataStoreRequest
    ) -> control_pb2.DataStoreReply:
        store, rest = self.catalog.datastore_at(request.path, self._domain_of(request.owner) if request.owner else None)
        if rest:
            raise Refused(
                f"{request.path.decode(errors='replace')} is a folder of the DataStore"
                f" {store.path.decode(errors='replace')}, not a DataStore itself"
            )
        return control_pb2.DataStoreReply(datastore=self._info(store))

    async def grant_rights(
        self, caller: Caller, request: control_pb2.GrantRightsRequest
    ) -> control_pb2.GrantRightsReply:
        granted: list[feed_pb2.Grant] = []

        def grant() -> None:
            granted.append(
                self.catalog.grant(
                    request.path,
                    list(request.rights),
                    request.subject,
                    valid_until=request.valid_until_milliseconds,
                    granted_by=str(self._actor(caller)),
                )
            )
            self.catalog.tend(self.clock.wall())

        await self._change(grant)
        notes = []
        if "*" in request.subject:
            notes.append("this pattern also counts for members who join later")
        if set(request.rights) - {feed_pb2.READ}:
            notes.append("only READ has an effect yet; the other rights are kept and will count when writing is built")
        return control_pb2.GrantRightsReply(grant=granted[0], notes=notes)

    # ------------------------------------------------------------ writing

    async def begin_upload(
        self, caller: Caller, request: control_pb2.BeginUploadRequest
    ) -> control_pb2.BeginUploadReply:
        """Everything the process that holds the plain bytes needs to seal and send them."""
        store, rest = self._own_store(request.path, request.owner)
        if not rest:
            raise Conflict(f"{request.path.decode(errors='replace')} is a DataStore, not a file")
        chunk_size = CHUNK_SIZE_BACKUP_BYTES if store.strategy == feed_pb2.BACKUP else CHUNK_SIZE_BYTES
        key = self.catalog.store_key(store.key_name)
        if key is None:
            raise Refused("this home does not hold the DataStore's key")
        reply = control_pb2.BeginUploadReply(
            store_id=store.feed_id,
            store_secret=self.store_secret(store.feed_id),
            store_key=key,
            key_name=store.key_name,
            chunk_size_bytes=chunk_size,
            default_level=LEVEL_TWO if store.strategy == feed_pb2.BACKUP else LEVEL_LOCAL,
        )
        standing = self._standing(request.path)
        if standing is not None:
            reply.current_inode = standing.number
            reply.current_version_id = standing.version_id or b""
        if request.size_bytes > INLINE_LIMIT_BYTES:
            sealed = _sealed_bytes(request.size_bytes, chunk_size)
            signed, upload_id = self.tickets.upload(self.own_address.domain, store.feed_id, sealed)
            reply.signed_ticket, reply.upload_id = signed, upload_id
            best = await self.nodes.for_writing(upload_id, sealed, store.strategy)
            reply.nodes.append(best.location())
        return reply

    async def commit(self, caller: Caller, request: control_pb2.CommitRequest) -> control_pb2.CommitReply:
        """Append one change. The reply is the acknowledgement at level `local`."""
        change = request.WhichOneof("change")
        positions: list[Position] = []
        actor = str(self._actor(caller))
        request.id.writer = self._actor(caller).domain
        if change == "put_file":
            put = request.put_file
            store, _ = self._own_store(put.path, put.owner)
            if put.content.version_id:
                self._check_layout(put)
                put.layout.members[:] = self.choose_members(
                    store, put.layout.version_id, _sealed_bytes(put.layout.size_bytes, put.layout.chunk_size_bytes)
                )

            def write() -> None:
                if put.content.version_id:
                    self.catalog.put_pages(
                        dict(zip([*put.layout.pages, *put.layout.key_pages], [*put.pages, *put.key_pages], strict=True))
                    )
                positions.append(self.catalog.put_file(request.id, put, actor))

        elif change == "remove_path":
            store, _ = self._own_store(request.remove_path.path, request.remove_path.owner)

            def write() -> None:
                positions.append(self.catalog.remove_path(request.id, request.remove_path, actor))

        elif change == "move_path":
            store, _ = self._own_store(request.move_path.source, request.move_path.owner)

            def write() -> None:
                positions.append(self.catalog.move_path(request.id, request.move_path, actor))

        elif change == "make_directory":
            store, _ = self._own_store(request.make_directory.path, request.make_directory.owner)

            def write() -> None:
                positions.append(self.catalog.make_directory(request.id, request.make_directory, actor))

        else:
            raise Refused("the commit carries no change this version knows", "use the same version on both sides")
        await self._change(write)
        return control_pb2.CommitReply(
            position=positions[0],
            store_id=store.feed_id,
            version_id=request.put_file.content.version_id,
            level=LEVEL_LOCAL,
        )

    async def await_level(self, caller: Caller, request: control_pb2.AwaitLevelRequest) -> control_pb2.AwaitLevelReply:
        """Wait until two members hold it, or the time is over; the reply says how far it came."""
        deadline = self.clock.monotonic() + request.timeout_milliseconds / 1000
        while True:
            counter = self.catalog.change_counter()
            if request.version_id:
                holders = self.catalog.holders(request.store_id, request.version_id)
            else:
                holders = self.catalog.holders_of_entry(request.store_id, request.position)
            level = LEVEL_TWO if len(holders) >= 2 else LEVEL_LOCAL
            left = deadline - self.clock.monotonic()
            if level == LEVEL_TWO or request.level != LEVEL_TWO or left <= 0:
                reason = "" if level == request.level else "no second member has said yet that it holds it"
                return control_pb2.AwaitLevelReply(level=level, holders=holders, reason=reason)
            await self.bell.wait_past(counter, min(left, 5.0))

    # ------------------------------------------------------------ names

    async def list_files(
        self, caller: Caller, request: control_pb2.ListFilesRequest
    ) -> AsyncIterator[control_pb2.ListFilesReply]:
        owner = self._domain_of(request.owner) if request.owner else None
        node = self.catalog.resolve(request.path, owner)
        if not node.is_directory:
            yield control_pb2.ListFilesReply(files=[self._file(request.path, node)])
            return
        waiting = [(request.path.rstrip(b"/"), node)]
        while waiting:
            folder, node = waiting.pop()
            after = b""
            while page := self.catalog.list(node.ino, after, FILES_PER_MESSAGE):
                after = page[-1][0]
                yield control_pb2.ListFilesReply(
                    files=[self._file(folder + b"/" + name, child) for name, child in page]
                )
                if request.recursive:
                    waiting.extend(
                        (folder + b"/" + name, child) for name, child in page if child.is_directory and child.readable
                    )

    # ------------------------------------------------------------ inside

    async def _change(self, change: Callable[[], None]) -> None:
        try:
            await self.write(change)
        finally:
            self.bell.ring()

    def _actor(self, caller: Caller) -> FederatedAddress:
        return caller.identity.address if caller.identity is not None else self.own_address

    def _domain_of(self, owner: str) -> str:
        """The member domain that a person meant: empty for ours, an identity, a component or a plain domain."""
        if not owner:
            return self.own_address.domain
        known = {member.domain for member in self.catalog.members()} | {self.own_address.domain}
        if "@" not in owner:
            return owner
        address = parse_address(owner)
        return address.domain if address.domain in known else member_domain(owner)

    def _own_store(self, path: bytes, owner: str) -> tuple[DataStore, bytes]:
        store, rest = self.catalog.datastore_at(path, self._domain_of(owner) if owner else None)
        if store.owner != self.own_address.domain:
            raise Refused(
                f"{path.decode(errors='replace')} lies in a DataStore of {member_identity(store.owner)}",
                "writing to another member's DataStore is not built yet; write at its owner's home",
            )
        return store, rest

    def _standing(self, path: bytes) -> Node | None:
        return self.catalog.find(path, self.own_address.domain)

    def _check_layout(self, put: control_pb2.PutFile) -> None:
        """The pages are what the layout names and add up to its size. Raises: Corrupt."""
        layout = put.layout
        if [page_name(page) for page in put.pages] != list(layout.pages):
            raise Corrupt("the pages sent are not the ones the layout names")
        if [page_name(page) for page in put.key_pages] != list(layout.key_pages):
            raise Corrupt("the sealed pages sent are not the ones the layout names")
        chunks = [chunk for page in put.pages for chunk in decode_page(page)]
        shape = VersionLayout(layout.size_bytes, layout.chunk_size_bytes)
        if [chunk.size_bytes for chunk in chunks] != [shape.chunk_size(index) for index in range(shape.chunk_count)]:
            raise Corrupt("the chunks listed do not add up to the file's size")
        if compute_layout_hash(layout) != layout.layout_hash:
            raise Corrupt("the layout is not the one its hash names")

    def _info(self, store: DataStore) -> control_pb2.DataStoreInfo:
        files, size_bytes = self.catalog.usage(store.feed_id)
        return control_pb2.DataStoreInfo(
            path=store.path,
            owner=member_identity(store.owner),
            strategy=feed_pb2.Strategy.ValueType(store.strategy),
            replicas=store.replicas,
            grants=self.catalog.grants(store.feed_id),
            hosts=list(store.hosts),
            file_count=files,
            size_bytes=size_bytes,
            versions_below_target=self.catalog.versions_below_target(store.feed_id),
            feed_id=store.feed_id,
            readable=store.readable,
            metadata=dict(store.metadata),
        )

    def _file(self, path: bytes, node: Node) -> control_pb2.FileInfo:
        holders = self.catalog.holders(node.store_id, node.version_id) if node.store_id and node.version_id else []
        return control_pb2.FileInfo(
            path=path,
            mode=node.mode,
            size_bytes=node.size_bytes,
            mtime_nanoseconds=node.mtime_ns,
            inode=node.ino,
            store_id=node.store_id or b"",
            version_id=node.version_id or b"",
            holders=holders,
            owner=node.owner,
            link_count=node.link_count,
            symlink_target=node.symlink_target or b"",
        )


def _sealed_bytes(size_bytes: int, chunk_size_bytes: int) -> int:
    whole, rest = divmod(size_bytes, chunk_size_bytes)
    return whole * sealed_size(chunk_size_bytes) + (sealed_size(rest) if rest else 0)


def control_rows(desk: CommandDesk) -> list[Row]:
    """The dispatch rows of Control that this room answers."""
    handlers: dict[str, Callable[[Caller, Any], Any]] = {
        "CreateDataStore": desk.create_datastore,
        "ListDataStores": desk.list_datastores,
        "ShowDataStore": desk.show_datastore,
        "GrantRights": desk.grant_rights,
        "BeginUpload": desk.begin_upload,
        "Commit": desk.commit,
        "AwaitLevel": desk.await_level,
        "ListFiles": desk.list_files,
    }
    return [
        Row(
            method=f"/collective.v1.Control/{name}",
            kinds=frozenset({ComponentKind.CLIENT}),
            local=True,
            right="admin of this member",
            level=Level.LOCAL,
            handler=handler,
            capability="admin",
        )
        for name, handler in handlers.items()
    ]
