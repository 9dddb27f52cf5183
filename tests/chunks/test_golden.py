"""The stored forms stand still: golden values, and an opening by the document alone.

The file is made once by hand and changes only together with a new format byte (docs/protocol/chunks.md).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from collective.chunks import (
    ChunkStore,
    compute_layout_hash,
    derive_chunk_key,
    derive_store_secret,
    open_key_page,
    page_name,
    rank_hosts,
    seal_chunk,
    seal_key_page,
)
from collective.core.layout import ChunkReference, encode_page
from collective.wire import feed_pb2

GOLDEN = Path(__file__).parents[1] / "golden" / "chunks"
MEMBER_SECRET = bytes(range(32))
STORE_ID = bytes(range(32, 64))
STORE_KEY = bytes(range(64, 96))
SMALL = b"A film plays from another home.\n"
LARGE = bytes(number * 7 % 251 for number in range(65_536 + 100))
MEMBERS = ["alice.media.collective", "bob.media.collective", "carol.media.collective", "dave.media.collective"]


@pytest.fixture(scope="module")
def golden() -> Any:
    return json.loads((GOLDEN / "forms.json").read_text())


def forms() -> dict[str, object]:
    """Every form of the room, made now from fixed inputs."""
    secret = derive_store_secret(MEMBER_SECRET, STORE_ID)
    small_key, large_key = derive_chunk_key(secret, SMALL), derive_chunk_key(secret, LARGE)
    small, large = seal_chunk(small_key, SMALL), seal_chunk(large_key, LARGE)
    public = encode_page([ChunkReference(large.id, len(LARGE)), ChunkReference(None, 8 << 20)])
    keys = seal_key_page(STORE_KEY, [large_key, None])
    layout = feed_pb2.Layout(
        size_bytes=len(LARGE) + (8 << 20),
        chunk_size_bytes=8 << 20,
        coding=feed_pb2.Coding(k=1, m=1),
        pages=[page_name(public)],
    )
    return {
        "store secret": secret.hex(),
        "small chunk": {
            "key": small_key.hex(),
            "sealed": bytes(small.sealed).hex(),
            "hashes": small.hashes.hex(),
            "id": small.id.hex(),
        },
        "large chunk": {
            "key": large_key.hex(),
            "blake3 of sealed": blake3(large.sealed).hexdigest(),
            "hashes": large.hashes.hex(),
            "id": large.id.hex(),
        },
        "public page": {"page": public.hex(), "name": page_name(public).hex()},
        "key page": {"page": keys.hex(), "name": page_name(keys).hex()},
        "layout hash": compute_layout_hash(layout).hex(),
        "ranking": rank_hosts(STORE_ID, MEMBERS),
    }


def test_every_form_is_the_one_that_was_written_down(golden: Any) -> None:
    assert forms() == golden


async def test_a_stored_chunk_is_the_golden_file_under_the_golden_name(golden: Any, tmp_path: Path) -> None:
    store = ChunkStore.open(tmp_path, capacity_bytes=1 << 30)
    id_ = bytes.fromhex(golden["small chunk"]["id"])
    await store.put(id_, bytes.fromhex(golden["small chunk"]["sealed"]))
    await store.close()
    kept = GOLDEN / f"{id_.hex()}-48"
    stored = tmp_path / "chunks" / id_.hex()[:2] / kept.name
    assert stored.read_bytes() == kept.read_bytes()


async def test_a_disk_written_by_an_earlier_version_is_read(golden: Any, tmp_path: Path) -> None:
    id_ = bytes.fromhex(golden["small chunk"]["id"])
    folder = tmp_path / "chunks" / id_.hex()[:2]
    folder.mkdir(parents=True)
    kept = GOLDEN / f"{id_.hex()}-48"
    (folder / kept.name).write_bytes(kept.read_bytes())
    store = ChunkStore.open(tmp_path, capacity_bytes=1 << 30)
    store.check(id_)
    assert store.read_hashes(id_).hex() == golden["small chunk"]["hashes"]
    await store.close()


def test_the_golden_chunk_opens_by_the_document_alone(golden: Any) -> None:
    """As another program would, knowing docs/protocol/chunks.md and none of our code."""
    chunk = golden["small chunk"]
    key, sealed = bytes.fromhex(chunk["key"]), bytes.fromhex(chunk["sealed"])
    store_secret = blake3(b"collective store secret 1\0" + STORE_ID, key=MEMBER_SECRET).digest()
    assert key == blake3(b"\x01" + SMALL, key=store_secret).digest()
    assert chunk["hashes"] == blake3(sealed).hexdigest()
    assert chunk["id"] == blake3(blake3(sealed).digest(), derive_key_context="collective 2026 chunk id 1").hexdigest()
    nonce = bytes(7) + (0).to_bytes(4, "big") + b"\x01"
    assert AESGCM(key).decrypt(nonce, sealed, None) == SMALL
    large = golden["large chunk"]
    first = AESGCM(bytes.fromhex(large["key"])).encrypt(bytes(12), LARGE[:65_536], None)
    last = AESGCM(bytes.fromhex(large["key"])).encrypt(bytes(7) + bytes([0, 0, 0, 1, 1]), LARGE[65_536:], None)
    assert large["hashes"] == blake3(first).hexdigest() + blake3(last).hexdigest()
    assert large["blake3 of sealed"] == blake3(first + last).hexdigest()


def test_the_golden_key_page_opens(golden: Any) -> None:
    keys = open_key_page(STORE_KEY, bytes.fromhex(golden["key page"]["page"]))
    assert keys == (bytes.fromhex(golden["large chunk"]["key"]), None)
