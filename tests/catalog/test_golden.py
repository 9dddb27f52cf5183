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
    parse_entry,
    root_feed_id,
    verify_signature,
)
from collective.wire import feed_pb2

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
