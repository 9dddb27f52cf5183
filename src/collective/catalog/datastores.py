"""Making DataStores, granting in them, and the background care of one's own: hosts, wraps, new keys."""

from __future__ import annotations

import os

from collective.catalog import keyring
from collective.catalog.entry import key_name_of, seal_sub_path
from collective.catalog.ledger import Ledger
from collective.catalog.models import DataStore
from collective.catalog.numbers import BLOCK_COUNT, add_numbers
from collective.catalog.permissions import path_covers
from collective.catalog.tree import ROOT_NUMBER
from collective.core.address import parse_pattern, validate_name
from collective.core.errors import Conflict, Misconfigured, NotFound, Refused
from collective.wire import feed_pb2

__all__ = ["create_datastore", "grant", "tend"]

KEY_BYTES = 32
DEFAULT_REPLICAS = {feed_pb2.MEDIA: 2, feed_pb2.HYBRID: 2, feed_pb2.BACKUP: 3}
MAX_PATH_BYTES = 1024


def operation_id(ledger: Ledger) -> feed_pb2.OperationId:
    return feed_pb2.OperationId(writer=ledger.own_domain, random=os.urandom(16))


def create_datastore(ledger: Ledger, path: bytes, strategy: int, replicas: int, metadata: dict[str, str]) -> DataStore:
    """Make a DataStore at a path, or apply the settings given to one's own that is there.

    `strategy` and `replicas` 0: the default by the path's name. Raises: Refused, Conflict.
    """
    _check_path(path)
    with ledger.change():
        own = [store for store in ledger.datastores() if store.owner == ledger.own_domain]
        for store in own:
            if store.path == path:
                return _change_settings(ledger, store, strategy, replicas, metadata)
        _check_free(ledger, path, own)
        chosen = strategy or (feed_pb2.BACKUP if path.split(b"/")[1].startswith(b"backup") else feed_pb2.MEDIA)
        feed_id, key = os.urandom(32), os.urandom(KEY_BYTES)
        copies = replicas or DEFAULT_REPLICAS[chosen]  # type: ignore[index]  # the three strategies
        definition = feed_pb2.DataStoreDefinition(
            feed_id=feed_id,
            path=path,
            strategy=chosen,  # type: ignore[arg-type]  # an int of the enum
            replicas=copies,
            inode_prefix=_free_prefix(ledger, feed_id),
            hosts=_hosts(ledger, feed_id, copies),
            key_name=key_name_of(key),
            metadata=metadata,
            trash_seconds=30 * 86400,
        )
        own_card_key = ledger.own.wrapping_key.public_key().public_bytes_raw()
        wrap = keyring.wrap_for(feed_id, key, ledger.own_domain, own_card_key)
        ledger.append_member(
            [
                feed_pb2.MemberOperation(id=operation_id(ledger), datastore=definition),
                feed_pb2.MemberOperation(id=operation_id(ledger), key_wrap=wrap),
            ]
        )
        keyring.keep_key(ledger, feed_id, key)
        block = feed_pb2.NumberLease(member_domain=ledger.own_domain, first=ROOT_NUMBER + 1, count=BLOCK_COUNT)
        ledger.append_store(feed_id, start=ledger.store_start(), leases=[block])
        add_numbers(ledger, feed_id, range(block.first, block.first + block.count))
        return ledger.store(feed_id)


def _check_path(path: bytes) -> None:
    if not path.startswith(b"/") or path == b"/" or path.endswith(b"/") or len(path) > MAX_PATH_BYTES:
        raise Refused(f"{path.decode(errors='replace')!r} cannot be a DataStore's path", "write it as /media/movies")
    for name in path[1:].split(b"/"):
        validate_name(name)
        if b"@" in name:
            raise Refused(f"{name.decode(errors='replace')!r}: a DataStore's path holds no @")


def _check_free(ledger: Ledger, path: bytes, own: list[DataStore]) -> None:
    """A DataStore never hides what is there already."""
    outer = [store for store in own if path_covers(store.path, path)]
    if not outer:
        return
    nearest = max(outer, key=lambda store: len(store.path))
    try:
        standing = ledger.resolve(path, ledger.own_domain)
    except NotFound:
        return
    if standing.store_id == nearest.feed_id:
        what = "a folder" if standing.is_directory else "a file"
        raise Conflict(
            f"{path.decode(errors='replace')} is {what} of {nearest.path.decode()} already", "move it away first"
        )


def _free_prefix(ledger: Ledger, feed_id: bytes) -> int:
    """24 bits of the id's hash, or the next free value; never 0, which is for folders that only lead somewhere."""
    taken = {store.inode_prefix for store in ledger.datastores()}
    prefix = int.from_bytes(key_name_of(feed_id)[:3], "big")
    while prefix == 0 or prefix in taken:
        prefix = (prefix + 1) % (1 << 24)
    return prefix


def _hosts(ledger: Ledger, feed_id: bytes, replicas: int) -> list[str]:
    others = [member.domain for member in ledger.members() if not member.removed and member.domain != ledger.own_domain]
    return sorted(ledger.choose_hosts(feed_id, replicas, others))


def _definition(ledger: Ledger, store_id: bytes) -> feed_pb2.DataStoreDefinition:
    row = ledger._one("SELECT definition FROM datastores WHERE feed_id = ?", store_id)
    assert row is not None
    assert isinstance(row[0], bytes)
    return feed_pb2.DataStoreDefinition.FromString(row[0])


def _change_settings(
    ledger: Ledger, store: DataStore, strategy: int, replicas: int, metadata: dict[str, str]
) -> DataStore:
    definition = _definition(ledger, store.feed_id)
    before = definition.SerializeToString(deterministic=True)
    if strategy:
        definition.strategy = strategy  # type: ignore[assignment]  # an int of the enum
    if replicas:
        definition.replicas = replicas
    definition.metadata.update(metadata)
    if definition.SerializeToString(deterministic=True) != before:
        ledger.append_member([feed_pb2.MemberOperation(id=operation_id(ledger), datastore=definition)])
    return ledger.store(store.feed_id)


def grant(
    ledger: Ledger, path: bytes, rights: list[int], subject: str, *, valid_until: int, granted_by: str
) -> feed_pb2.Grant:
    """Give rights in an own DataStore, in a folder of one, or at a path above several.

    READ is given per DataStore, the others on folders too (named sealed). `valid_until` in milliseconds, 0: no end.

    Raises: Refused, NotFound.
    """
    pattern = parse_pattern(subject)
    own = [store for store in ledger.datastores() if store.owner == ledger.own_domain]
    covered = [store for store in own if path_covers(path, store.path)]
    if not rights:
        raise Refused("a grant gives at least one right")
    sealed_folder = b""
    if not covered:
        store, sealed_folder = _sealed_folder(ledger, path, rights)
        covered, path = [store], store.path
    made = feed_pb2.Grant(
        id=os.urandom(16),
        subject=str(pattern),
        feed_id=covered[0].feed_id if covered[0].path == path else b"",
        path=path,
        sealed_sub_path=sealed_folder,
        rights=rights,  # type: ignore[arg-type]  # ints of the enum
        valid_until_milliseconds=valid_until,
        granted_by=granted_by,
    )
    ledger.append_member([feed_pb2.MemberOperation(id=operation_id(ledger), grant=made)])
    return next(grant for grant in ledger.grants(covered[0].feed_id) if grant.id == made.id)


def _sealed_folder(ledger: Ledger, path: bytes, rights: list[int]) -> tuple[DataStore, bytes]:
    """The DataStore that a folder lies in, and the folder as a grant names it."""
    own = [store for store in ledger.datastores() if store.owner == ledger.own_domain]
    inside = [store for store in own if path_covers(store.path, path)]
    if not inside:
        raise NotFound(f"there is no DataStore of yours at or below {path.decode(errors='replace')}")
    store = max(inside, key=lambda one: len(one.path))
    if feed_pb2.READ in rights:
        raise Refused(
            f"{path.decode(errors='replace')} is a folder inside {store.path.decode()}",
            "READ is given per DataStore; make a DataStore of the folder, or grant the whole",
        )
    if not ledger.resolve(path, ledger.own_domain).is_directory:
        raise Refused(f"{path.decode(errors='replace')} is no folder")
    key = ledger.store_key(store.key_name)
    if key is None:
        raise Misconfigured("the DataStore's key is missing here")
    return store, seal_sub_path(key, store.feed_id, path[len(store.path) :].strip(b"/"))


def tend(ledger: Ledger, now: float) -> bool:
    """Background care; whether anything was appended or opened. `now` in seconds since 1970.

    Keys for us are opened; own DataStores get their hosts, a new key when somebody lost READ, and missing wraps.
    """
    with ledger.change():
        changed = keyring.open_wraps(ledger) > 0
        for store in ledger.datastores():
            with ledger.change() as connection:
                changed = ledger.open_waiting(connection, store.feed_id) > 0 or changed
            if store.owner == ledger.own_domain and not ledger.is_in_doubt(store.feed_id):
                changed = _tend_own(ledger, store, now) or changed
        if ledger.own_is_admitted() and not ledger.is_doubtful():
            wraps = keyring.missing_wraps(ledger, now)
            if wraps:
                ledger.append_member(
                    [feed_pb2.MemberOperation(id=operation_id(ledger), key_wrap=wrap) for wrap in wraps]
                )
                changed = True
    return changed


def _tend_own(ledger: Ledger, store: DataStore, now: float) -> bool:
    if ledger.is_doubtful():
        return False
    hosts = _hosts(ledger, store.feed_id, store.replicas)
    rotate = _somebody_lost_read(ledger, store, now)
    if list(store.hosts) == hosts and not rotate:
        return False
    definition = _definition(ledger, store.feed_id)
    del definition.hosts[:]
    definition.hosts.extend(hosts)
    operations = []
    if rotate:
        key = os.urandom(KEY_BYTES)
        definition.key_name = keyring.keep_key(ledger, store.feed_id, key)
        readers = list(keyring.readers_of(ledger, store, now))
        operations += [
            feed_pb2.MemberOperation(
                id=operation_id(ledger), key_wrap=keyring.wrap_for(store.feed_id, key, domain, card_key)
            )
            for domain, card_key in readers
        ]
    operations.append(feed_pb2.MemberOperation(id=operation_id(ledger), datastore=definition))
    ledger.append_member(operations)
    return True


def _somebody_lost_read(ledger: Ledger, store: DataStore, now: float) -> bool:
    """Whether the current key was wrapped for a member that may not read any more."""
    may_read = {domain for domain, _ in keyring.readers_of(ledger, store, now)}
    rows = ledger._all(
        "SELECT DISTINCT recipient FROM wraps WHERE feed_id = ? AND key_name = ?", store.feed_id, store.key_name
    )
    return any(recipient not in may_read and recipient != ledger.own_domain for (recipient,) in rows)
