"""The journal's stored form stands still: a golden segment, read by the document alone and by the code.

The file changes only together with the segment's form number (docs/protocol/journal.md).
"""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest
from blake3 import blake3

from collective.core.observe import SILENT
from collective.core.sizes import KIB
from collective.mount.journal_folder import JournalFolder
from collective.mount.journal_records import (
    BaseRecord,
    FillRecord,
    FlushRecord,
    OperationRecord,
    TruncateRecord,
    WriteRecord,
)
from collective.mount.journal_room import JournalSettings
from collective.wire import feed_pb2, submit_pb2

FOLDER = Path(__file__).parents[1] / "golden" / "mount"
GOLDEN = FOLDER / "journal-2.segment"
SETTINGS = JournalSettings(reserve_bytes=0, reserve_share=0.0)
STORE = bytes(range(32))
INO = 7 << 40 | 100
BLOB = bytes(number * 7 % 251 for number in range(256 * KIB))
OPERATION = feed_pb2.TreeOperation(
    id=feed_pb2.OperationId(writer="alice.media.collective", random=bytes(16)),
    time_nanoseconds=77,
    create=feed_pb2.Create(parent=1, name=b"film", inode=100, mode=0o100644),
)
BASE = BaseRecord(
    0, INO, STORE, feed_pb2.Content(size_bytes=3, inline=b"abc"), 9, 5, 6, 2, 8, 16, provisional=True
)  # fmt: skip
FLUSH = FlushRecord(
    0, INO, STORE, submit_pb2.StagedOperation(operation=OPERATION, pages=[b"page"]), 4, 3, 2, 8, 16, last=False
)  # fmt: skip
FILL = FillRecord(0, INO, 5, 2, 80)


async def write_one_of_each(mounts: Path) -> bytes:
    """A journal with a record of each kind, made now; the bytes of its segment."""
    folder = JournalFolder(mounts, SETTINGS, b"boot id", SILENT)
    journal = await folder.open()
    journal.append_operation(STORE, OPERATION, of_directory=True)
    journal.append_base(BASE)
    small = await journal.append_write(INO, 10, b"small", 77)
    await journal.append_write(INO, 4096, BLOB, 78)
    journal.append_truncate(INO, 12, 79, unowned=True)
    journal.hold_flush(FLUSH)
    journal.hold_flush(FILL)
    await journal.append_write(INO + 1, 20, b"first", 81, store_id=STORE)
    journal.settle([small])
    journal.write_held()
    made = next(mounts.glob("*/*.segment")).read_bytes()
    await journal.close()
    folder.release()
    return made


async def test_the_form_is_the_golden_one(tmp_path: Path) -> None:
    """What is written today is what was written then, byte for byte."""
    assert await write_one_of_each(tmp_path / "mounts") == GOLDEN.read_bytes()


def test_the_document_is_enough_to_read_it() -> None:
    """Without the code under test: lengths, kinds, seqs, checksums, and where the blob's data lies."""
    data = GOLDEN.read_bytes()
    assert data[:16] == b"CJOURNAL" + struct.pack(">II", 2, 1)
    at, found, blob_at = 16, [], 0
    while at < len(data):
        length, kind, flags, zero, seq = struct.unpack_from(">IBBHQ", data, at)
        payload = data[at + 24 : at + 24 + length]
        covered = data[at : at + 16] + (b"" if kind == 4 else payload)
        assert data[at + 16 : at + 24] == blake3(covered).digest()[:8]
        assert zero == 0
        found.append((kind, flags, seq))
        if kind == 4:
            blob_at = at + 24
        if kind == 5:
            ino, offset, time, segment, position, size = struct.unpack_from(">QQqIQI", payload)
            assert (ino, offset, time, segment, position, size) == (INO, 4096, 78, 1, blob_at, len(BLOB))
            assert data[position : position + size] == BLOB
            assert payload[40:] == blake3(BLOB).digest()[:8]
        if kind == 9:
            assert payload == struct.pack(">Q", 4)
        if kind == 10:
            assert payload == struct.pack(">QQQq", INO, 5, 2, 80)
        if kind == 11:
            assert payload == struct.pack(">QQq", INO + 1, 20, 81) + STORE + b"first"
        at += 24 + length
    assert at == len(data)
    assert found == [
        (1, 0, 1), (2, 1, 2), (7, 1, 3), (3, 0, 4), (4, 0, 0), (5, 0, 5), (6, 1, 6), (8, 0, 7), (10, 0, 8),
        (11, 0, 9), (9, 0, 0),
    ]  # fmt: skip


@pytest.mark.parametrize("form", [1, 2])
async def test_the_golden_journal_is_taken_up(tmp_path: Path, form: int) -> None:
    """Also after a reboot, and what an older version left: everything but what is settled or unowned."""
    (tmp_path / "journal-1").mkdir()
    shutil.copy(FOLDER / f"journal-{form}.segment", tmp_path / "journal-1" / "00000001.segment")
    folder = JournalFolder(tmp_path, SETTINGS, b"another boot", SILENT)
    journal = await folder.open()
    operation, base, write, flush, *since = journal.recovered
    assert isinstance(operation, OperationRecord)
    assert (operation.store_id, operation.operation, operation.of_directory) == (STORE, OPERATION, True)
    assert isinstance(base, BaseRecord)
    assert base.content == BASE.content
    assert isinstance(write, WriteRecord)
    assert journal.read(write.seq, 0, write.size_bytes) == BLOB
    assert isinstance(flush, FlushRecord)
    assert flush.staged == FLUSH.staged
    if form == 1:
        assert since == []
    else:
        fill, first = since
        assert fill == FILL._replace(seq=8)
        assert isinstance(first, WriteRecord)
        assert (first.store_id, journal.read(first.seq, 0, first.size_bytes)) == (STORE, b"first")
    assert not any(isinstance(record, TruncateRecord) for record in journal.recovered)
    await journal.close()
    folder.release()
