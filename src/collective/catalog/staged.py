"""Changes on their way to the owner of their DataStore: the writer's side (docs/protocol/staging.md).

A change that another member has to commit is kept in the table `staged` until its entry came back by the feed and is
applied, in that very transaction (catalog/apply). Until then this home shows it (catalog/reader) and holds its content.
In doubt (catalog/waking) this home's own DataStores are written to in the same way: nobody can commit just now.

    waiting   not sent, or sent and not answered
    done      the owner has it in its feed; the entry is on its way here
    refused   the owner will not do it; stays, readable and listed, until somebody discards it (a removal, a move or
              attributes that were refused are listed, and what the owner has is shown again)

What this home, as the owner, refuses of its own mounts' changes is kept here as refused too: whoever made it was told
long ago that all is well, and shall find it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from collective.catalog.facts import as_bytes, as_int
from collective.catalog.ledger import Ledger
from collective.catalog.models import DataStore
from collective.catalog.placements import put_pages
from collective.core.errors import Full, NotFound, Refused
from collective.core.sizes import MIB
from collective.wire import feed_pb2, submit_pb2

__all__ = [
    "Pending",
    "StagedRow",
    "discard",
    "has_work",
    "is_staged",
    "keep_refused",
    "note_outcomes",
    "pending",
    "send_again",
    "stage",
    "staged_batch",
    "stores_with_work",
]

MAX_STAGED_PER_STORE = 1_000_000  # changes that may wait for one owner; by then somebody should look
ALREADY_APPLIED = 0  # instead of a number
WAITING, DONE, REFUSED = "waiting", "done", "refused"
_KEEPS_CONTENT = frozenset({"create", "link", "set_content"})


@dataclass(frozen=True)
class StagedRow:
    """One change as it is sent; `number` is its name here."""

    number: int
    staged: submit_pb2.StagedOperation


@dataclass(frozen=True)
class Pending:
    """One staged change, for people."""

    number: int
    store_id: bytes
    owner: str
    path: bytes  # in the joined tree, as far as it can be told
    change: str
    state: str
    reason: str
    since_milliseconds: int


def stage(ledger: Ledger, store_id: bytes, staged: Sequence[submit_pb2.StagedOperation], *, now: float) -> list[int]:
    """Keep changes for the owner, in order; their numbers here. Staging the same id again is the same row.

    A change that is in the feed here already is not staged again: its number is 0. `now` in seconds since 1970.
    Raises: Refused (a change without id), Full.
    """
    with ledger.change() as connection:
        store = ledger.store(store_id)
        (count,) = connection.execute("SELECT count(*) FROM staged WHERE feed_id = ?", (store_id,)).fetchone()
        if count + len(staged) > MAX_STAGED_PER_STORE:
            raise Full(f"{count} changes wait for {store.owner} already", "see what is pending: collective pending")
        numbers = [_stage_one(ledger, store_id, one, int(now * 1000)) for one in staged]
        _note_staged(ledger)
        return numbers


def keep_refused(
    ledger: Ledger, store_id: bytes, refused: Sequence[tuple[submit_pb2.StagedOperation, str]], *, now: float
) -> None:
    """Keep changes that will not be committed, and why. May be repeated. `now` in seconds since 1970."""
    with ledger.change():
        for staged, reason in refused:
            number = _stage_one(ledger, store_id, staged, int(now * 1000))
            if number != ALREADY_APPLIED:
                _set_refused(ledger, number, staged.operation, reason)
        _note_staged(ledger)


def _stage_one(ledger: Ledger, store_id: bytes, staged: submit_pb2.StagedOperation, since_ms: int) -> int:
    operation = staged.operation
    if operation.id.writer != ledger.own_domain or len(operation.id.random) != 16:
        raise Refused("a change without an id of this home cannot be staged")
    with ledger.change() as connection:
        key = (operation.id.writer, operation.id.random)
        row = connection.execute("SELECT number FROM staged WHERE writer = ? AND random = ?", key).fetchone()
        if row is not None:
            return as_int(row[0])
        if connection.execute("SELECT 1 FROM operations WHERE writer = ? AND random = ?", key).fetchone():
            return ALREADY_APPLIED
        put_pages(ledger, dict(zip(staged.layout.pages, staged.pages, strict=True)))
        put_pages(ledger, dict(zip(staged.layout.key_pages, staged.key_pages, strict=True)))
        bare = submit_pb2.StagedOperation(operation=operation)
        if staged.HasField("layout"):
            bare.layout.CopyFrom(staged.layout)
        raw = bare.SerializeToString()
        size = len(raw) + sum(map(len, staged.pages)) + sum(map(len, staged.key_pages))
        cursor = connection.execute(
            "INSERT INTO staged (feed_id, writer, random, state, since_ms, size_bytes, version_id, operation)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (store_id, *key, WAITING, since_ms, size, staged.layout.version_id or None, raw),
        )
        return as_int(cursor.lastrowid)


def _note_staged(ledger: Ledger) -> None:
    """Let every reader look again."""
    with ledger.change() as connection:
        connection.execute("UPDATE meta SET value = value + 1 WHERE key IN ('staged', 'changes')")


def stores_with_work(ledger: Ledger) -> list[bytes]:
    """The DataStores with changes that wait to be sent."""
    rows = ledger._all("SELECT DISTINCT feed_id FROM staged WHERE state = ?", WAITING)
    return [as_bytes(feed) for (feed,) in rows]


def has_work(ledger: Ledger, store_id: bytes) -> bool:
    """Whether a change waits to be sent, before which no later one may be done."""
    return ledger._one("SELECT 1 FROM staged WHERE feed_id = ? AND state = ? LIMIT 1", store_id, WAITING) is not None


def staged_batch(ledger: Ledger, store_id: bytes, limit: int = 256, max_bytes: int = 4 * MIB) -> list[StagedRow]:
    """The next changes to be sent, in order, complete with their pages; at least one when there is any."""
    rows = ledger._all(
        "SELECT number, size_bytes, operation FROM staged WHERE feed_id = ? AND state = ? ORDER BY number LIMIT ?",
        store_id, WAITING, limit,
    )  # fmt: skip
    batch: list[StagedRow] = []
    total = 0
    for number, size, raw in rows:
        total += as_int(size)
        if batch and total > max_bytes:
            break
        staged = submit_pb2.StagedOperation.FromString(as_bytes(raw))
        staged.pages.extend(_pages(ledger, staged.layout.pages))
        staged.key_pages.extend(_pages(ledger, staged.layout.key_pages))
        batch.append(StagedRow(as_int(number), staged))
    return batch


def _pages(ledger: Ledger, names: Iterable[bytes]) -> list[bytes]:
    pages = []
    for name in names:
        page = ledger.page(name)
        if page is None:
            raise NotFound(f"page {name.hex()[:12]} of a staged version is missing here")
        pages.append(page)
    return pages


def note_outcomes(ledger: Ledger, numbers: Sequence[int], outcomes: Sequence[submit_pb2.OperationOutcome]) -> None:
    """What the owner answered to a batch. May be repeated.

    What it has in its feed stays until the entry is applied here; where this home cannot open that feed the answer
    is all there will ever be, and the row goes at once.
    """
    with ledger.change() as connection:
        for number, outcome in zip(numbers, outcomes, strict=True):
            row = connection.execute("SELECT feed_id, operation FROM staged WHERE number = ?", (number,)).fetchone()
            if row is None:
                continue
            if outcome.outcome in (submit_pb2.REFUSED, submit_pb2.MISSED):
                operation = submit_pb2.StagedOperation.FromString(row[1]).operation
                _set_refused(ledger, number, operation, outcome.reason)
            elif outcome.outcome in (submit_pb2.APPLIED, submit_pb2.CONFLICT):
                if ledger.store(as_bytes(row[0])).readable:
                    _set_state(ledger, number, DONE, outcome.reason)
                else:
                    connection.execute("DELETE FROM staged WHERE number = ?", (number,))
        _note_staged(ledger)


def _set_refused(ledger: Ledger, number: int, operation: feed_pb2.TreeOperation, reason: str) -> None:
    with ledger.change() as connection:
        _set_state(ledger, number, REFUSED, reason)
        if operation.WhichOneof("change") not in _KEEPS_CONTENT:
            connection.execute("UPDATE staged SET shown = 0 WHERE number = ?", (number,))


def _set_state(ledger: Ledger, number: int, state: str, reason: str) -> None:
    with ledger.change() as connection:
        connection.execute("UPDATE staged SET state = ?, reason = ? WHERE number = ?", (state, reason, number))


def is_staged(ledger: Ledger, id_: feed_pb2.OperationId) -> bool:
    """Whether a request of this home waits here already: repeated, it need not be planned again."""
    query = "SELECT 1 FROM staged WHERE writer = ? AND random = ?"
    return ledger._one(query, ledger.own_domain, id_.random) is not None


def send_again(ledger: Ledger, store_id: bytes) -> int:
    """Send what the owner has but whose entry never came, once more: it may have been set back. How many.

    Sending twice changes nothing, so this may be done whenever the owner comes back.
    """
    with ledger.change() as connection:
        return connection.execute(
            "UPDATE staged SET state = ? WHERE feed_id = ? AND state = ?", (WAITING, store_id, DONE)
        ).rowcount


def pending(ledger: Ledger, limit: int = 1000) -> list[Pending]:
    """What waits and what was refused, the oldest first."""
    rows = ledger._all(
        "SELECT number, feed_id, state, reason, since_ms, operation FROM staged WHERE state <> ? ORDER BY number"
        " LIMIT ?", DONE, limit,
    )  # fmt: skip
    told = []
    for number, feed_id, state, reason, since, raw in rows:
        store = ledger.store(as_bytes(feed_id))
        operation = submit_pb2.StagedOperation.FromString(as_bytes(raw)).operation
        told.append(
            Pending(
                number=as_int(number),
                store_id=store.feed_id,
                owner=store.owner,
                path=_path(ledger, store, operation),
                change=_WORDS.get(operation.WhichOneof("change") or "", "change"),
                state=str(state),
                reason=str(reason),
                since_milliseconds=as_int(since),
            )
        )
    return told


_WORDS = {
    "create": "create",
    "link": "link",
    "unlink": "remove",
    "rename": "rename",
    "set_attributes": "attributes",
    "set_xattr": "attributes",
    "set_content": "write",
}


def _path(ledger: Ledger, store: DataStore, operation: feed_pb2.TreeOperation) -> bytes:
    match operation.WhichOneof("change"):
        case "create":
            return ledger.path_of(store, operation.create.parent) + b"/" + operation.create.name
        case "link":
            return ledger.path_of(store, operation.link.parent) + b"/" + operation.link.name
        case "unlink":
            return ledger.path_of(store, operation.unlink.parent) + b"/" + operation.unlink.name
        case "rename":
            return ledger.path_of(store, operation.rename.to_parent) + b"/" + operation.rename.to_name
        case "set_content":
            return ledger.path_of(store, operation.set_content.inode)
        case "set_attributes":
            return ledger.path_of(store, operation.set_attributes.inode)
        case _:
            return ledger.path_of(store, operation.set_xattr.inode)


def discard(ledger: Ledger, numbers: Iterable[int]) -> int:
    """Drop refused changes for good; how many there were. Others than refused ones stay."""
    with ledger.change() as connection:
        dropped = 0
        for number in numbers:
            dropped += connection.execute(
                "DELETE FROM staged WHERE number = ? AND state = ?", (number, REFUSED)
            ).rowcount
        if dropped:
            _note_staged(ledger)
        return dropped
