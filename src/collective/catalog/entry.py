"""An entry's bytes: built once, signed, kept verbatim, verified without re-encoding.

    hash      = BLAKE3-256 in its own context over the length-framed header, public part and sealed part
    signature = Ed25519 over a tag and the hash
    sealed    = AES-256-GCM under HKDF-SHA256(DataStore key, salt), the header's bytes as associated data

The header carries the hash of the public part, so that the sealed part is bound to it too.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from blake3 import blake3
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from google.protobuf.message import DecodeError

from collective.core.errors import Corrupt, Misconfigured, Refused
from collective.core.sizes import MIB
from collective.wire import feed_pb2

__all__ = [
    "MAX_ENTRY_BYTES",
    "MAX_OPERATIONS",
    "ParsedEntry",
    "build_entry",
    "key_name_of",
    "member_feed_id",
    "open_sealed",
    "open_sub_path",
    "operation_hash",
    "parse_entry",
    "position_in",
    "position_of",
    "root_feed_id",
    "seal_sub_path",
    "verify_signature",
]

FORMAT = 1
MAX_OPERATIONS = 1024  # one signature covers up to so many …
MAX_ENTRY_BYTES = MIB + 64 * 1024  # … or 1 MiB of them, with room for the envelope
SALT_BYTES = 32
_HASH_CONTEXT = "collective 2026 feed entry 1"
_PUBLIC_CONTEXT = "collective 2026 entry public part 1"
_ROOT_CONTEXT = "collective 2026 root feed id 1"
_MEMBER_CONTEXT = "collective 2026 member feed id 1"
_OPERATION_CONTEXT = "collective 2026 operation id 1"
_KEY_CONTEXT = "collective 2026 datastore key name 1"
_SIGNATURE_TAG = b"collective feed entry 1\0"
_SEAL_INFO = b"collective entry seal 1"
_SUB_PATH_INFO = b"collective grant sub-path 1"


def root_feed_id(root_certificate_der: bytes) -> bytes:
    """32 bytes."""
    return blake3(root_certificate_der, derive_key_context=_ROOT_CONTEXT).digest()


def member_feed_id(first_ca_certificate_der: bytes) -> bytes:
    """32 bytes; unchanged when the CA rotates."""
    return blake3(first_ca_certificate_der, derive_key_context=_MEMBER_CONTEXT).digest()


def key_name_of(key: bytes) -> bytes:
    """A DataStore key's name: its hash."""
    return blake3(key, derive_key_context=_KEY_CONTEXT).digest()


def operation_hash(operation_id: feed_pb2.OperationId) -> bytes:
    """32 bytes: what says in public that an operation is settled, without saying whose or which."""
    return blake3(operation_id.random + operation_id.writer.encode(), derive_key_context=_OPERATION_CONTEXT).digest()


@dataclass(frozen=True)
class ParsedEntry:
    """An entry's parts; `raw` is what arrived, `header_bytes` what the hash and the seal cover."""

    raw: bytes
    header_bytes: bytes
    header: feed_pb2.Header
    public_part: bytes
    sealed_part: bytes
    signature: bytes
    hash: bytes


def parse_entry(raw: bytes) -> ParsedEntry:
    """Take the bytes apart and check their form; not yet their signature. Raises: Corrupt, Misconfigured."""
    if len(raw) > MAX_ENTRY_BYTES:
        raise Corrupt(f"an entry of {len(raw)} bytes is larger than any can be")
    try:
        envelope = feed_pb2.Entry.FromString(raw)
        header = feed_pb2.Header.FromString(envelope.header)
    except DecodeError as error:
        raise Corrupt("an entry cannot be decoded") from error
    if envelope.SerializeToString() != raw:
        raise Corrupt("an entry's envelope carries more than an entry")
    if header.format != FORMAT:
        raise Misconfigured(f"an entry has form {header.format}, this version reads form {FORMAT}", "update Collective")
    if len(header.feed_id) != 32 or len(header.epoch_id) != 16 or header.seq < 1 or header.epoch_number < 1:
        raise Corrupt("an entry's header is broken")
    if blake3(envelope.public_part, derive_key_context=_PUBLIC_CONTEXT).digest() != header.public_hash:
        raise Corrupt("an entry's public part is not the one its header names")
    if bool(envelope.sealed_part) != bool(header.salt) or bool(header.salt) != bool(header.key_name):
        raise Corrupt("an entry's sealed part and its header disagree")
    return ParsedEntry(
        raw=raw,
        header_bytes=envelope.header,
        header=header,
        public_part=envelope.public_part,
        sealed_part=envelope.sealed_part,
        signature=envelope.signature,
        hash=_hash(envelope.header, envelope.public_part, envelope.sealed_part),
    )


def _hash(header: bytes, public: bytes, sealed: bytes) -> bytes:
    hasher = blake3(derive_key_context=_HASH_CONTEXT)
    for part in (header, public, sealed):
        hasher.update(len(part).to_bytes(4, "big"))
        hasher.update(part)
    return hasher.digest()


def verify_signature(entry: ParsedEntry, public_key: Ed25519PublicKey) -> None:
    """Raises: Corrupt when the entry was not signed with this key as it is."""
    try:
        public_key.verify(entry.signature, _SIGNATURE_TAG + entry.hash)
    except InvalidSignature as error:
        raise Corrupt(
            f"entry {entry.header.seq} of feed {entry.header.feed_id.hex()[:12]} is not signed by its writer"
        ) from error


def build_entry(
    signing_key: Ed25519PrivateKey,
    previous: feed_pb2.Position,
    *,
    feed_id: bytes,
    lamport: int,
    wall_milliseconds: int,
    public_part: bytes,
    sealed_plain: bytes = b"",
    store_key: bytes = b"",
) -> ParsedEntry:
    """The next entry after `previous` (a Position without hash: the first of epoch 1). Raises: Refused (too large)."""
    header = feed_pb2.Header(
        format=FORMAT,
        feed_id=feed_id,
        epoch_number=previous.epoch_number,
        epoch_id=previous.epoch_id,
        seq=previous.seq + 1,
        previous_hash=previous.hash,
        lamport=lamport,
        wall_milliseconds=wall_milliseconds,
        public_hash=blake3(public_part, derive_key_context=_PUBLIC_CONTEXT).digest(),
    )
    if sealed_plain:
        header.salt = os.urandom(SALT_BYTES)
        header.key_name = key_name_of(store_key)
    header_bytes = header.SerializeToString(deterministic=True)
    sealed = b""
    if sealed_plain:
        sealed = AESGCM(_entry_key(store_key, header.salt)).encrypt(bytes(12), sealed_plain, header_bytes)
    digest = _hash(header_bytes, public_part, sealed)
    envelope = feed_pb2.Entry(
        header=header_bytes,
        public_part=public_part,
        sealed_part=sealed,
        signature=signing_key.sign(_SIGNATURE_TAG + digest),
    )
    raw = envelope.SerializeToString()
    if len(raw) > MAX_ENTRY_BYTES:
        raise Refused(f"an entry of {len(raw)} bytes is too large", "split the change")
    return ParsedEntry(raw, header_bytes, header, public_part, sealed, envelope.signature, digest)


def _entry_key(store_key: bytes, salt: bytes) -> bytes:
    return HKDF(hashes.SHA256(), 32, salt, _SEAL_INFO).derive(store_key)


def open_sealed(entry: ParsedEntry, store_key: bytes) -> bytes:
    """The sealed part's plain bytes. Raises: Corrupt."""
    try:
        return AESGCM(_entry_key(store_key, entry.header.salt)).decrypt(
            bytes(12), entry.sealed_part, entry.header_bytes
        )
    except InvalidTag as error:
        raise Corrupt(f"entry {entry.header.seq} does not open with its DataStore's key") from error


def seal_sub_path(store_key: bytes, store_id: bytes, path: bytes) -> bytes:
    """A folder inside a DataStore, as a public grant names it: nonce and AES-256-GCM under a key of its own."""
    nonce = os.urandom(12)
    return nonce + AESGCM(_sub_path_key(store_key)).encrypt(nonce, path, store_id)


def open_sub_path(store_key: bytes, store_id: bytes, sealed: bytes) -> bytes | None:
    """The folder, None when it was sealed under another key."""
    try:
        return AESGCM(_sub_path_key(store_key)).decrypt(sealed[:12], sealed[12:], store_id)
    except (InvalidTag, ValueError):
        return None


def _sub_path_key(store_key: bytes) -> bytes:
    return HKDF(hashes.SHA256(), 32, None, _SUB_PATH_INFO).derive(store_key)


def position_in(raw: bytes) -> feed_pb2.Position:
    """The name of an entry as it came. Raises: Corrupt."""
    return position_of(parse_entry(raw))


def position_of(entry: ParsedEntry) -> feed_pb2.Position:
    """The entry's name."""
    return feed_pb2.Position(
        epoch_number=entry.header.epoch_number,
        epoch_id=entry.header.epoch_id,
        seq=entry.header.seq,
        hash=entry.hash,
    )
