"""The records of a mount's journal, as bytes and back (docs/protocol/journal.md). Pure.

    record  = u32 payload length, u8 kind, u8 flags, u16 zero, u64 seq, 8 bytes of checksum, payload
    checksum = the first 8 bytes of BLAKE3 over the 16 bytes before it and the payload (of a blob: those 16 alone)

A *blob* is room for data that a thread fills while smaller records go on behind it; the write record that names it
comes only when it is filled, and carries the data's own checksum.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from blake3 import blake3
from google.protobuf.message import DecodeError
from typing_extensions import Buffer

from collective.core.errors import Corrupt
from collective.wire import feed_pb2, submit_pb2

__all__ = [
    "CHECKSUM_BYTES",
    "HEADER_BYTES",
    "BaseRecord",
    "FillRecord",
    "FlushRecord",
    "Header",
    "Kind",
    "OperationRecord",
    "Record",
    "TruncateRecord",
    "WriteRecord",
    "checksum",
    "decode",
    "pack_blob_header",
    "pack_record",
    "pack_seqs",
    "unpack_header",
    "unpack_seqs",
    "verify",
]

CHECKSUM_BYTES = 8
STORE_ID_BYTES = 32
JOINED_BYTES = 64 << 10  # copying less costs less than handing over one buffer more
OF_DIRECTORY = 1  # flag of an operation: what it names is a directory
UNOWNED = 1  # flag of a write or truncation: the file has no name any more, nothing of it outlives the mount
PROVISIONAL = 1  # flag of a base: it was sent while the file was being written, its last version is still due

_HEAD = struct.Struct(">IBBHQ")
HEADER_BYTES = _HEAD.size + CHECKSUM_BYTES
_WRITE = struct.Struct(">QQq")
_FIRST_WRITE = struct.Struct(">QQq32s")
_WRITE_AT = struct.Struct(">QQqIQI8s")
_TRUNCATE = struct.Struct(">QQq")
_BASE = struct.Struct(">QQQQQqq32s")
_FLUSH = struct.Struct(">QQQQQQ?32s")
_FILL = struct.Struct(">QQQq")


class Kind(IntEnum):
    BOOT = 1  # payload: the boot id of the machine that wrote what follows
    OPERATION = 2
    WRITE = 3  # data inline
    BLOB = 4
    WRITE_AT = 5  # data in a blob
    TRUNCATE = 6
    BASE = 7
    FLUSH = 8
    SETTLED = 9  # payload: u64 seqs that count no more; has no seq itself, like a blob
    FILL = 10
    FIRST_WRITE = 11  # data inline


class Header(NamedTuple):
    size_bytes: int
    kind: int
    flags: int
    seq: int
    checksum: bytes


class OperationRecord(NamedTuple):
    """A change of the tree, complete but for content. `of_directory`: what it names is a directory."""

    seq: int
    store_id: bytes
    operation: feed_pb2.TreeOperation
    of_directory: bool = False


class WriteRecord(NamedTuple):
    """Data of `size_bytes` at `offset` of an inode; the bytes are read from the journal by `seq`.

    `segment` and `position` say where the data lies: in the record itself, or in a blob (then with its checksum).
    `store_id`: of the first of a file's changes, that the file lies in this DataStore and had no content; else empty.
    """

    seq: int
    ino: int
    offset: int
    size_bytes: int
    time_ns: int
    segment: int = 0
    position: int = 0
    blob_checksum: bytes = b""
    unowned: bool = False
    store_id: bytes = b""


class TruncateRecord(NamedTuple):
    seq: int
    ino: int
    size_bytes: int
    time_ns: int
    unowned: bool = False


class BaseRecord(NamedTuple):
    """What an inode's dirty extents lie on: `content` as it stood, or as a flush made it. (Where that was nothing the
    first write says so itself.)

    Records up to seq `upto` are in `content` already, but for the bytes in [keep_start, keep_end). `size_bytes` and
    `mtime_ns` are the file's, which may be longer than `content` by bytes that are in the journal alone.
    """

    seq: int
    ino: int
    store_id: bytes
    content: feed_pb2.Content
    size_bytes: int
    mtime_ns: int
    time_ns: int
    upto: int = 0
    keep_start: int = 0
    keep_end: int = 0
    provisional: bool = False

    def encode(self) -> bytes:
        head = _BASE.pack(
            self.ino, self.upto, self.keep_start, self.keep_end, self.size_bytes, self.mtime_ns, self.time_ns,
            self.store_id,
        )  # fmt: skip
        return head + self.content.SerializeToString()


class FlushRecord(NamedTuple):
    """The exact operation that carries an inode's content up to seq `upto` (but for [keep_start, keep_end)), written
    before it is sent. `place` is its place in the order of changes; `create_seq` the create it was merged into, or 0;
    `last`: the file was closed, and is as long as the content."""

    seq: int
    ino: int
    store_id: bytes
    staged: submit_pb2.StagedOperation
    upto: int
    place: int
    create_seq: int = 0
    keep_start: int = 0
    keep_end: int = 0
    last: bool = True

    def encode(self) -> bytes:
        head = _FLUSH.pack(
            self.ino, self.upto, self.place, self.create_seq, self.keep_start, self.keep_end, self.last, self.store_id
        )
        return head + self.staged.SerializeToString()


class FillRecord(NamedTuple):
    """The create `create_seq` is sent with the content that the changes of the inode up to seq `upto` make, and with
    `mtime_ns`: a flush record that need not repeat what the journal holds already."""

    seq: int
    ino: int
    upto: int
    create_seq: int
    mtime_ns: int

    def encode(self) -> bytes:
        return _FILL.pack(self.ino, self.upto, self.create_seq, self.mtime_ns)


Record = OperationRecord | WriteRecord | TruncateRecord | BaseRecord | FlushRecord | FillRecord


def checksum(*parts: Buffer) -> bytes:
    """8 bytes over the parts joined."""
    hasher = blake3(parts[0])
    for part in parts[1:]:
        hasher.update(part)
    return hasher.digest(CHECKSUM_BYTES)


def pack_record(kind: Kind, flags: int, seq: int, *parts: Buffer) -> list[Buffer]:
    """A record whose payload is the parts joined, as buffers to be written one behind the other."""
    size = sum(map(len, parts))  # type: ignore[arg-type]  # bytes and flat views
    head = _HEAD.pack(size, kind, flags, 0, seq)
    if size > JOINED_BYTES:
        return [head + checksum(head, *parts), *parts]
    payload = b"".join(parts)
    return [b"".join((head, blake3(head + payload).digest(CHECKSUM_BYTES), payload))]


def pack_blob_header(size_bytes: int) -> bytes:
    """Before so many bytes of room."""
    head = _HEAD.pack(size_bytes, Kind.BLOB, 0, 0, 0)
    return head + checksum(head)


def unpack_header(raw: Buffer) -> Header:
    """Raises: Corrupt when it is too short to be one."""
    if len(memoryview(raw)) < HEADER_BYTES:
        raise Corrupt("a record's header is cut off")
    size, kind, flags, _, seq = _HEAD.unpack_from(raw)
    return Header(size, kind, flags, seq, bytes(memoryview(raw)[_HEAD.size : HEADER_BYTES]))


def verify(header: Header, raw_header: bytes, payload: Buffer) -> None:
    """That a record is as it was written. Raises: Corrupt."""
    if checksum(raw_header[: _HEAD.size], payload) != header.checksum:
        raise Corrupt("a record's checksum does not hold")


def pack_write(ino: int, offset: int, time_ns: int, store_id: bytes) -> tuple[Kind, bytes]:
    """The kind of the record, and what comes before the data."""
    if store_id:
        return Kind.FIRST_WRITE, _FIRST_WRITE.pack(ino, offset, time_ns, store_id)
    return Kind.WRITE, _WRITE.pack(ino, offset, time_ns)


def pack_write_at(record: WriteRecord) -> bytes:
    return _WRITE_AT.pack(
        record.ino, record.offset, record.time_ns, record.segment, record.position, record.size_bytes,
        record.blob_checksum,
    )  # fmt: skip


def pack_truncate(ino: int, size_bytes: int, time_ns: int) -> bytes:
    return _TRUNCATE.pack(ino, size_bytes, time_ns)


def pack_seqs(seqs: Sequence[int]) -> bytes:
    return struct.pack(f">{len(seqs)}Q", *seqs)


def unpack_seqs(payload: bytes) -> Sequence[int]:
    """Raises: Corrupt."""
    if len(payload) % 8:
        raise Corrupt("a list of settled records has a broken length")
    return struct.unpack(f">{len(payload) // 8}Q", payload)


def decode(header: Header, payload: bytes, segment: int, position: int) -> Record | None:
    """The record that a verified payload holds; `position` is where the payload begins in `segment`.

    None for kinds that are no change by themselves (boot marks, blobs, settlements). Raises: Corrupt.
    """
    try:
        return _decode(header, payload, segment, position)
    except (struct.error, DecodeError) as error:
        raise Corrupt(f"a record of kind {header.kind} has an unknown form") from error


def _decode(header: Header, payload: bytes, segment: int, position: int) -> Record | None:
    seq, flags = header.seq, header.flags
    match header.kind:
        case Kind.OPERATION:
            operation = feed_pb2.TreeOperation.FromString(payload[STORE_ID_BYTES:])
            return OperationRecord(seq, payload[:STORE_ID_BYTES], operation, bool(flags & OF_DIRECTORY))
        case Kind.WRITE:
            ino, offset, time_ns = _WRITE.unpack_from(payload)
            size = len(payload) - _WRITE.size
            return WriteRecord(
                seq, ino, offset, size, time_ns, segment, position + _WRITE.size, b"", bool(flags & UNOWNED)
            )
        case Kind.FIRST_WRITE:
            ino, offset, time_ns, store_id = _FIRST_WRITE.unpack_from(payload)
            size, position = len(payload) - _FIRST_WRITE.size, position + _FIRST_WRITE.size
            return WriteRecord(seq, ino, offset, size, time_ns, segment, position, b"", bool(flags & UNOWNED), store_id)
        case Kind.WRITE_AT:
            ino, offset, time_ns, blob_segment, blob_position, size, blob_checksum = _WRITE_AT.unpack(payload)
            return WriteRecord(
                seq, ino, offset, size, time_ns, blob_segment, blob_position, blob_checksum, bool(flags & UNOWNED)
            )
        case Kind.TRUNCATE:
            ino, size, time_ns = _TRUNCATE.unpack(payload)
            return TruncateRecord(seq, ino, size, time_ns, bool(flags & UNOWNED))
        case Kind.BASE:
            ino, upto, keep_start, keep_end, size, mtime_ns, time_ns, store_id = _BASE.unpack_from(payload)
            content = feed_pb2.Content.FromString(payload[_BASE.size :])
            provisional = bool(flags & PROVISIONAL)
            return BaseRecord(
                seq, ino, store_id, content, size, mtime_ns, time_ns, upto, keep_start, keep_end, provisional
            )
        case Kind.FLUSH:
            ino, upto, place, create_seq, keep_start, keep_end, last, store_id = _FLUSH.unpack_from(payload)
            staged = submit_pb2.StagedOperation.FromString(payload[_FLUSH.size :])
            return FlushRecord(seq, ino, store_id, staged, upto, place, create_seq, keep_start, keep_end, last)
        case Kind.FILL:
            return FillRecord(seq, *_FILL.unpack(payload))
        case Kind.BOOT | Kind.BLOB | Kind.SETTLED:
            return None
    raise Corrupt(f"a record of unknown kind {header.kind}")
