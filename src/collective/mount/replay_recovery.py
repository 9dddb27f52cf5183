"""After a crash: what the journal holds goes back into the queues, in the order in which it was made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from collective.catalog import Inline
from collective.core.errors import CollectiveError
from collective.core.layout import INLINE_LIMIT_BYTES
from collective.mount.dirty import IN_FIRST_WRITE, NUMBER_MASK, DirtyFile, DirtyTable
from collective.mount.journal import Journal
from collective.mount.journal_records import (
    BaseRecord,
    FillRecord,
    FlushRecord,
    OperationRecord,
    TruncateRecord,
    WriteRecord,
)
from collective.mount.operations import fill_create
from collective.mount.replay_contents import Contents, Flush
from collective.mount.replay_queue import Queued, StoreQueue
from collective.mount.scheduling import Keys, keys_of
from collective.wire import feed_pb2, submit_pb2

__all__ = ["take_up"]

Changes = Mapping[int, Sequence[WriteRecord | TruncateRecord]]  # by ino, in order
QueueOperation = Callable[[bytes, feed_pb2.TreeOperation, int, bool], Queued]


def take_up(
    journal: Journal, dirty: DirtyTable, contents: Contents, queue_of: Callable[[bytes], StoreQueue],
    queue_operation: QueueOperation,
) -> Sequence[OperationRecord]:  # fmt: skip
    """Queue everything live and fill the dirty table; the operations, in order. Raises: Full, Unreachable."""
    operations = [record for record in journal.recovered if isinstance(record, OperationRecord)]
    changes: dict[int, list[WriteRecord | TruncateRecord]] = {}
    for change in journal.recovered:
        if isinstance(change, WriteRecord | TruncateRecord):
            changes.setdefault(change.ino, []).append(change)
    flushes = [record for record in journal.recovered if isinstance(record, FlushRecord)]
    flushes += _filled(journal, {record.seq: record for record in operations}, changes, contents)
    merged = {flush.create_seq for flush in flushes if flush.create_seq}
    files = _restore_files(journal, flushes, changes)
    steps: list[tuple[int, int, Callable[[], None]]] = []
    for record in operations:
        if record.seq not in merged:
            steps.append((record.seq, 0, _operation_step(record, queue_operation)))
    places: dict[int, int] = {}
    for flush in flushes:
        file = files.get(flush.ino)
        if file is not None and file.frozen is not None and file.frozen.upto == flush.upto:
            places[flush.ino] = flush.place
            steps.append((flush.place, 1, _flush_step(flush, file, contents, queue_of)))
        else:
            steps.append((flush.place, 1, _resend_step(flush, queue_of)))
    for file in files.values():
        dirty.add(file)
        # a file is closed now; where it was closed before a rename, the content came before the rename
        last = max(file.records[-1] if file.records else file.upto, places.get(file.ino, 0))
        steps.append((last, 2, _content_step(file, contents, last)))
    for _, _, step in sorted(steps, key=lambda found: found[:2]):
        step()
    return operations


def _filled(
    journal: Journal, operations: Mapping[int, OperationRecord], changes: Changes, contents: Contents
) -> Iterator[FlushRecord]:
    """The fill records as the flush records they stand for. One that no create, or no content, belongs to comes from
    another journal or a damaged disk; it is settled, and the file's changes go the usual way."""
    for record in journal.recovered:
        if not isinstance(record, FillRecord):
            continue
        create = operations.get(record.create_seq)
        data = None
        if create is not None and create.operation.create.inode == record.ino & NUMBER_MASK:
            data = _data_of_fill(record, create.store_id, changes, contents)
        if create is None or data is None:
            journal.settle([record.seq])
            continue
        staged = submit_pb2.StagedOperation(operation=create.operation)
        fill_create(staged.operation.create, data, record.mtime_ns)
        yield FlushRecord(record.seq, record.ino, create.store_id, staged, record.upto, create.seq, create.seq)


def _data_of_fill(record: FillRecord, store_id: bytes, changes: Changes, contents: Contents) -> bytes | None:
    """None when the journal has it no more, or it is damaged."""
    taken = [change for change in changes.get(record.ino, ()) if change.seq <= record.upto]
    file = DirtyFile(record.ino, store_id, Inline(b""), 0, 0, 0)
    for change in taken:
        file.change(change)
    if not taken or file.size_bytes > INLINE_LIMIT_BYTES:
        return None
    try:
        return contents.written(file)
    except CollectiveError:
        return None


def _restore_files(journal: Journal, flushes: Sequence[FlushRecord], changes: Changes) -> dict[int, DirtyFile]:
    bases: dict[int, BaseRecord] = {}
    unneeded: list[int] = []
    for record in journal.recovered:
        if isinstance(record, BaseRecord):
            if (older := bases.get(record.ino)) is not None:
                unneeded.append(older.seq)
            bases[record.ino] = record
    for ino, (first, *_) in changes.items():
        if ino not in bases and isinstance(first, WriteRecord) and first.store_id:
            bases[ino] = BaseRecord(IN_FIRST_WRITE, ino, first.store_id, feed_pb2.Content(), 0, 0, 0)
    files: dict[int, DirtyFile] = {}
    for ino, base in bases.items():
        under_way = [flush for flush in flushes if flush.ino == ino and flush.upto > base.upto]
        upto = max((flush.upto for flush in under_way), default=0)
        file = DirtyFile.restore(base, changes.get(ino, ()), upto)
        if under_way:
            last = max(under_way, key=lambda flush: flush.seq)
            content = content_of_flush(last)
            file.refreeze(content, last.upto, (last.keep_start, last.keep_end), last=last.last)
        if file.dirty:
            files[ino] = file
        else:
            unneeded.append(base.seq)
    # without a base record nobody was told yet that it was written
    unneeded += [record.seq for ino, records in changes.items() if ino not in bases for record in records]
    journal.settle(unneeded)
    return files


def content_of_flush(flush: FlushRecord) -> feed_pb2.Content:
    """What a flush record's operation carries: in a content of its own, or in the create it went into."""
    operation = flush.staged.operation
    return operation.create.content if operation.HasField("create") else operation.set_content.content


def _operation_step(record: OperationRecord, queue_operation: QueueOperation) -> Callable[[], None]:
    def step() -> None:
        queue_operation(record.store_id, record.operation, record.seq, record.of_directory)

    return step


def _keys_of_flush(flush: FlushRecord) -> Keys:
    return keys_of(flush.staged.operation, of_directory=False)


def _flush_step(
    record: FlushRecord, file: DirtyFile, contents: Contents, queue_of: Callable[[bytes], StoreQueue]
) -> Callable[[], None]:
    def step() -> None:
        queue = queue_of(record.store_id)
        item = Queued([record.create_seq] if record.create_seq else [], record.staged)
        flush = Flush(file, queue, item, record.place, growing=False, last=record.last, frozen=file.frozen)
        flush.flush_seq, flush.content = record.seq, content_of_flush(record)
        contents.take_up(flush)
        queue.add(item, _keys_of_flush(record))

    return step


def _resend_step(record: FlushRecord, queue_of: Callable[[bytes], StoreQueue]) -> Callable[[], None]:
    def step() -> None:
        seqs = [record.seq, record.create_seq] if record.create_seq else [record.seq]
        queue_of(record.store_id).add(Queued(seqs, record.staged), _keys_of_flush(record))

    return step


def _content_step(file: DirtyFile, contents: Contents, place: int) -> Callable[[], None]:
    return lambda: contents.ask(file, last=True, place=place)
