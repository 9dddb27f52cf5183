"""What a member's own people ask of their coordinator about DataStores, grants and names. Rows of `Control`.

Over the Unix socket the caller is whoever may open the home; over the network it is an admin client of this member.
Without a running coordinator the same handlers run in the command's own process, under the home's lock.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from collective.catalog import Catalog, DataStore, Node
from collective.core.address import FederatedAddress, member_domain, member_identity, parse_address
from collective.core.clock import Clock
from collective.core.errors import Refused
from collective.identity import ComponentKind, Level
from collective.net.rpc import Caller, Row
from collective.transfer.events import ChangeBell
from collective.wire import control_pb2, feed_pb2

__all__ = ["CommandDesk", "actor_of", "admin_rows", "control_rows", "domain_meant"]

FILES_PER_MESSAGE = 512


@dataclass(frozen=True)
class CommandDesk:
    """Answers the local socket and admin clients."""

    catalog: Catalog
    bell: ChangeBell
    clock: Clock
    own_address: FederatedAddress
    write: Callable[[Callable[[], None]], Awaitable[None]]

    # ------------------------------------------------------------ DataStores and grants

    async def create_datastore(
        self, caller: Caller, request: control_pb2.CreateDataStoreRequest
    ) -> control_pb2.DataStoreReply:
        owner = domain_meant(self.catalog, self.own_address, request.owner)
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
        info = await asyncio.to_thread(self._info, made[0])
        return control_pb2.DataStoreReply(datastore=info, created=not existed, notes=notes)

    async def list_datastores(
        self, caller: Caller, request: control_pb2.ListDataStoresRequest
    ) -> control_pb2.ListDataStoresReply:
        infos = [await asyncio.to_thread(self._info, store) for store in self.catalog.datastores()]
        return control_pb2.ListDataStoresReply(datastores=infos)

    async def show_datastore(
        self, caller: Caller, request: control_pb2.ShowDataStoreRequest
    ) -> control_pb2.DataStoreReply:
        store, rest = self.catalog.datastore_at(
            request.path, domain_meant(self.catalog, self.own_address, request.owner) if request.owner else None
        )
        if rest:
            raise Refused(
                f"{request.path.decode(errors='replace')} is a folder of the DataStore"
                f" {store.path.decode(errors='replace')}, not a DataStore itself"
            )
        return control_pb2.DataStoreReply(datastore=await asyncio.to_thread(self._info, store))

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
                    granted_by=str(actor_of(caller, self.own_address)),
                )
            )
            self.catalog.tend(self.clock.wall())

        await self._change(grant)
        notes = []
        if "*" in request.subject:
            notes.append("this pattern also counts for members who join later")
        if feed_pb2.SHARE in request.rights:
            notes.append("SHARE is kept and has no effect yet")
        if feed_pb2.WRITE in request.rights and feed_pb2.READ not in request.rights:
            notes.append(
                "WRITE without READ is a drop box: small new files can be put in, nothing can be listed or read"
            )
        return control_pb2.GrantRightsReply(grant=granted[0], notes=notes)

    # ------------------------------------------------------------ names

    async def list_files(
        self, caller: Caller, request: control_pb2.ListFilesRequest
    ) -> AsyncIterator[control_pb2.ListFilesReply]:
        owner = self._owner(request.owner)
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

    def _owner(self, owner: str) -> str | None:
        return domain_meant(self.catalog, self.own_address, owner) if owner else None

    def _info(self, store: DataStore) -> control_pb2.DataStoreInfo:
        """In a thread: files and copies are counted."""
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


def actor_of(caller: Caller, own_address: FederatedAddress) -> FederatedAddress:
    """Who asks: the certificate's word, on the home's own socket this home."""
    return caller.identity.address if caller.identity is not None else own_address


def domain_meant(catalog: Catalog, own_address: FederatedAddress, owner: str) -> str:
    """The member domain that a person meant: empty for ours, an identity, a component or a plain domain."""
    if not owner:
        return own_address.domain
    known = {member.domain for member in catalog.members()} | {own_address.domain}
    if "@" not in owner:
        return owner
    address = parse_address(owner)
    return address.domain if address.domain in known else member_domain(owner)


def admin_rows(handlers: Mapping[str, Callable[[Caller, Any], Any]]) -> list[Row]:
    """Dispatch rows of Control by the method's short name, for whoever governs this home."""
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


def control_rows(desk: CommandDesk) -> list[Row]:
    """The dispatch rows of Control about DataStores, grants and names."""
    handlers: dict[str, Callable[[Caller, Any], Any]] = {
        "CreateDataStore": desk.create_datastore,
        "ListDataStores": desk.list_datastores,
        "ShowDataStore": desk.show_datastore,
        "GrantRights": desk.grant_rights,
        "ListFiles": desk.list_files,
    }
    return admin_rows(handlers)
