"""The stored forms of feeds do not change by accident: an entry written once still reads the same."""

from __future__ import annotations

import json
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from collective.catalog.entry import (
    build_entry,
    key_name_of,
    member_feed_id,
    open_sealed,
    open_sub_path,
    operation_hash,
    parse_entry,
    root_feed_id,
    verify_signature,
)
from collective.catalog.folding import public_snapshot_key
from collective.catalog.naming import conflict_name
from collective.catalog.obstacles import token_of
from collective.catalog.snapshot import parse_block, read_head
from collective.wire import feed_pb2, submit_pb2

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "feeds"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
STORE_KEY = bytes(range(100, 132))


def test_ids() -> None:
    """Feed ids and key names, by their contexts."""
    told = json.loads((GOLDEN / "ids.json").read_text())
    assert root_feed_id(b"a root certificate").hex() == told["root_feed_id"]
    assert member_feed_id(b"a member CA certificate").hex() == told["member_feed_id"]
    assert key_name_of(STORE_KEY).hex() == told["key_name"]


def test_an_entry_written_once_reads_the_same() -> None:
    """Header, hash, signature and sealed part of the committed bytes."""
    told = json.loads((GOLDEN / "entry.json").read_text())
    entry = parse_entry(bytes.fromhex(told["entry"]))
    verify_signature(entry, KEY.public_key())
    assert entry.hash.hex() == told["hash"]
    assert (entry.header.seq, entry.header.epoch_number, entry.header.lamport) == (8, 3, 41)
    assert entry.header.previous_hash == b"p" * 32
    assert entry.header.key_name == key_name_of(STORE_KEY)
    sealed = feed_pb2.StoreSealed.FromString(open_sealed(entry, STORE_KEY))
    assert sealed.operations[0].create.name == b"film.mkv"
    public = feed_pb2.StorePublic.FromString(entry.public_part)
    assert public.layouts[0].version_id == b"v" * 16


def test_without_a_sealed_part_the_bytes_are_the_same_each_time() -> None:
    """No salt, no chance: the same input is the same entry, byte for byte."""
    told = json.loads((GOLDEN / "entry.json").read_text())
    previous = feed_pb2.Position(epoch_number=1, epoch_id=b"e" * 16, seq=1, hash=b"h" * 32)
    body = feed_pb2.MemberBody(
        operations=[
            feed_pb2.MemberOperation(
                id=feed_pb2.OperationId(writer="alice.media.collective", random=b"r" * 16),
                holding=feed_pb2.Holding(feed_id=b"f" * 32, head=previous),
            )
        ]
    )
    entry = build_entry(
        KEY,
        previous,
        feed_id=b"m" * 32,
        lamport=7,
        wall_milliseconds=1_700_000_000_000,
        public_part=body.SerializeToString(),
    )
    assert entry.raw.hex() == told["plain_entry"]


def staged_operation() -> submit_pb2.StagedOperation:
    """One of everything that a staged change carries."""
    operation = feed_pb2.TreeOperation(
        id=feed_pb2.OperationId(writer="bob.media.collective", random=b"r" * 16),
        actor="client@bob.media.collective",
        time_nanoseconds=1_795_392_000_123_456_789,
        expectations=[
            feed_pb2.Expectation(link=feed_pb2.ExpectedLink(parent=1, name=b"film.mkv")),
            feed_pb2.Expectation(content=feed_pb2.ExpectedContent(inode=7, inline_hash=b"h" * 32)),
        ],
        create=feed_pb2.Create(
            parent=1, name=b"film.mkv", inode=65_538, mode=0o100644,
            content=feed_pb2.Content(
                size_bytes=9 << 20, version_id=b"v" * 16, key_pages=[b"k" * 32], key_name=b"n" * 32
            ),
        ),
    )  # fmt: skip
    layout = feed_pb2.Layout(
        version_id=b"v" * 16, size_bytes=9 << 20, chunk_size_bytes=8 << 20, pages=[b"p" * 32], key_pages=[b"k" * 32]
    )
    return submit_pb2.StagedOperation(operation=operation, layout=layout, pages=[b"page"], key_pages=[b"keys"])


def test_a_staged_change_reads_the_same() -> None:
    """What lies staged at one version is sent by the next."""
    told = json.loads((GOLDEN / "writing.json").read_text())
    staged = submit_pb2.StagedOperation.FromString(bytes.fromhex(told["staged_operation"]))
    assert staged == staged_operation()
    assert staged.SerializeToString(deterministic=True).hex() == told["staged_operation"]


def test_what_is_derived_from_a_change() -> None:
    """The public hash of its id, the names of contents, the conflict name."""
    told = json.loads((GOLDEN / "writing.json").read_text())
    id_ = staged_operation().operation.id
    assert operation_hash(id_).hex() == told["operation_hash"]
    assert token_of(feed_pb2.Content(size_bytes=3, inline=b"abc")).hex() == told["inline_token"]
    assert token_of(feed_pb2.Content()).hex() == told["empty_token"]
    name = conflict_name(b"film.mkv", id_.writer, 1_795_392_000_123_456_789, id_.random)
    assert name.decode() == told["conflict_name"]


def test_a_folder_in_a_grant_opens_with_the_key() -> None:
    """A sealed sub-path, and no other key or DataStore opens it."""
    sealed = bytes.fromhex(json.loads((GOLDEN / "writing.json").read_text())["sealed_sub_path"])
    assert open_sub_path(STORE_KEY, b"f" * 32, sealed) == b"movies/kids"
    assert open_sub_path(bytes(32), b"f" * 32, sealed) is None
    assert open_sub_path(STORE_KEY, b"g" * 32, sealed) is None


def test_leases_stand_in_the_sealed_part() -> None:
    """Numbers leased by an entry of this form are leased for ever."""
    told = json.loads((GOLDEN / "writing.json").read_text())
    sealed = feed_pb2.StoreSealed.FromString(bytes.fromhex(told["sealed_with_lease"]))
    (lease,) = sealed.leases
    assert (lease.member_domain, lease.first, lease.count) == ("bob.media.collective", 65_538, 65_536)
    assert sealed.next_number == 131_074


def test_epochs_and_snapshots_written_once_read_the_same() -> None:
    """An entry that opens an epoch, a pointer, a snapshot's head and rows, and the key of public snapshots."""
    told = json.loads((GOLDEN / "waking.json").read_text())
    base = feed_pb2.Position(epoch_number=1, epoch_id=b"e" * 16, seq=7, hash=b"h" * 32)
    opening = feed_pb2.StorePublic(epoch_start=feed_pb2.EpochStart(base=base))
    entry = build_entry(
        KEY,
        feed_pb2.Position(epoch_number=3, epoch_id=b"n" * 16, seq=7, hash=b"h" * 32),
        feed_id=b"s" * 32,
        lamport=9,
        wall_milliseconds=1_700_000_000_000,
        public_part=opening.SerializeToString(),
    )
    assert entry.raw.hex() == told["opening_entry"]
    head = read_head(bytes.fromhex(told["snapshot_head"]), b"s" * 32, sealed=True)
    assert (head.base, head.base_lamport) == (base, 8)
    rows = parse_block(bytes.fromhex(told["snapshot_rows"]))
    assert (rows.table, rows.row_count) == ("links", 2)
    assert [(column.name, list(column.integers), list(column.strings)) for column in rows.columns] == [
        ("parent", [1, -1], []),
        ("name", [], [b"film.mkv", b""]),
        ("inode", [2, 3], []),
    ]
    assert list(rows.columns[1].absent) == [1]
    (pointer,) = feed_pb2.StorePublic.FromString(bytes.fromhex(told["pointer"])).snapshots
    assert (pointer.base, pointer.public_version, pointer.sealed_version) == (base, b"p" * 16, b"q" * 16)
    assert public_snapshot_key(b"s" * 32).hex() == told["public_snapshot_key"]
