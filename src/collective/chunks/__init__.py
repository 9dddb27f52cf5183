"""Sealed chunks: splitting, sealing, naming, keeping on disks, ranking who keeps them. No names, no grants.

*Segment*: 64 KiB of plain bytes, sealed by itself. *Chunk*: up to 8 MiB of segments under one key, named by its id.
*Hash list*: the hash of each sealed segment; the id is the hash of the list. *Page*: 512 chunks of a version, listed;
a public page has their ids, the sealed page beside it their keys. *Store*: a disk of chunks. *Quarantine*: where
broken chunks are set aside.
"""

from collective.chunks.openfile import room_for
from collective.chunks.pages import compute_layout_hash, open_key_page, page_name, seal_key_page
from collective.chunks.placement import (
    CandidateMember,
    CandidateNode,
    Placed,
    PlacementInput,
    place_members,
    rank_hosts,
    rank_nodes,
)
from collective.chunks.scrub import Finding, Scrubber
from collective.chunks.seal import (
    HASH_BYTES,
    SealedChunk,
    chunk_id,
    derive_chunk_key,
    derive_store_secret,
    hash_segments,
    open_segments,
    seal_chunk,
    verify_hashes,
)
from collective.chunks.split import Run, runs_of
from collective.chunks.store import ChunkStore, StoreStatus

__all__ = [
    "HASH_BYTES",
    "CandidateMember",
    "CandidateNode",
    "ChunkStore",
    "Finding",
    "Placed",
    "PlacementInput",
    "Run",
    "Scrubber",
    "SealedChunk",
    "StoreStatus",
    "chunk_id",
    "compute_layout_hash",
    "derive_chunk_key",
    "derive_store_secret",
    "hash_segments",
    "open_key_page",
    "open_segments",
    "page_name",
    "place_members",
    "rank_hosts",
    "rank_nodes",
    "room_for",
    "runs_of",
    "seal_chunk",
    "seal_key_page",
    "verify_hashes",
]
