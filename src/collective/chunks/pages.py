"""Names of pages and layouts, and the sealed pages that carry the chunk keys.

    page name   = BLAKE3, in its own context, of the page's bytes (public or sealed)
    sealed page = format byte, salt of 32 bytes, AES-256-GCM(HKDF-SHA256(DataStore key, salt), keys of 32 bytes each)
    layout hash = BLAKE3, in its own context, of size, chunk size, coding and the public pages' names

The key of a hole is 32 zero bytes. The salt is drawn from the content, so that an unchanged page keeps its name.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from collective.core.errors import Corrupt
from collective.core.layout import CHUNKS_PER_PAGE
from collective.wire import feed_pb2

__all__ = ["compute_layout_hash", "open_key_page", "page_name", "seal_key_page"]

KEY_BYTES = 32
PAGE_NAME_BYTES = 32
_FORMAT = b"\x01"
_SALT_BYTES = 32
_HOLE_KEY = bytes(KEY_BYTES)
_PAGE_CONTEXT = "collective 2026 page name 1"
_LAYOUT_CONTEXT = "collective 2026 layout hash 1"
_SALT_CONTEXT = b"collective key page salt 1\0"
_KEY_INFO = b"collective key page 1"
_LAYOUT_HEAD = struct.Struct(">QIIII")


def page_name(page: bytes) -> bytes:
    """32 bytes."""
    return blake3(page, derive_key_context=_PAGE_CONTEXT).digest()


def compute_layout_hash(layout: feed_pb2.Layout) -> bytes:
    """What tickets and offers bind to. The members and the version id are not part of it. Raises: Corrupt."""
    if any(len(name) != PAGE_NAME_BYTES for name in layout.pages):
        raise Corrupt("a layout lists a page whose name is not of 32 bytes")
    head = _LAYOUT_HEAD.pack(
        layout.size_bytes, layout.chunk_size_bytes, layout.coding.k, layout.coding.m, len(layout.pages)
    )
    return blake3(head + b"".join(layout.pages), derive_key_context=_LAYOUT_CONTEXT).digest()


def _page_key(store_key: bytes, salt: bytes) -> bytes:
    return HKDF(hashes.SHA256(), KEY_BYTES, salt, _KEY_INFO).derive(store_key)


def seal_key_page(store_key: bytes, keys: Sequence[bytes | None]) -> bytes:
    """The sealed page beside a public one; None for a hole."""
    if len(keys) > CHUNKS_PER_PAGE:
        raise ValueError(f"a page holds {CHUNKS_PER_PAGE} keys, not {len(keys)}")
    if any(key is not None and len(key) != KEY_BYTES for key in keys):
        raise ValueError(f"a chunk key has {KEY_BYTES} bytes")
    plain = b"".join(key or _HOLE_KEY for key in keys)
    salt = blake3(_SALT_CONTEXT + plain, key=store_key).digest()
    sealed = AESGCM(_page_key(store_key, salt)).encrypt(bytes(12), plain, _FORMAT + salt)
    return _FORMAT + salt + sealed


def open_key_page(store_key: bytes, page: bytes) -> tuple[bytes | None, ...]:
    """The keys, None for holes. Raises: Corrupt."""
    if page[:1] != _FORMAT or len(page) < 1 + _SALT_BYTES + 16:
        raise Corrupt("a page of chunk keys has an unknown form")
    head, sealed = page[: 1 + _SALT_BYTES], page[1 + _SALT_BYTES :]
    try:
        plain = AESGCM(_page_key(store_key, head[1:])).decrypt(bytes(12), sealed, head)
    except InvalidTag as error:
        raise Corrupt("a page of chunk keys does not open with the DataStore's key") from error
    if len(plain) % KEY_BYTES or len(plain) > KEY_BYTES * CHUNKS_PER_PAGE:
        raise Corrupt("a page of chunk keys has a broken length")
    keys = (plain[start : start + KEY_BYTES] for start in range(0, len(plain), KEY_BYTES))
    return tuple(None if key == _HOLE_KEY else key for key in keys)
