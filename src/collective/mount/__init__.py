"""The library as a folder: names without a call, bytes from wherever they are, read-only for now.

Words: a *content* is one version of a file being read; a *slot* holds a chunk's plain bytes, segment by segment; a
*stream* is one sequential reader of a content; a *flight* is one fetch on its way into a slot. From a read request to
bytes: `fuse` (the only module that imports pyfuse3) -> `filesystem` -> `reading` -> `cache`, with `readahead` deciding
what else to fetch. Bytes come through `OpenSource`, names through `Names`.

The adapter stays out of this door: `from collective.mount.fuse import run_mount`.
"""

from collective.mount.mountpoint import clean_stale, mark_unmounted, unmount
from collective.mount.names import ContentReference, InlineContent, Names, Node, OpenSource, Source
from collective.mount.settings import MountSettings

__all__ = [
    "ContentReference",
    "InlineContent",
    "MountSettings",
    "Names",
    "Node",
    "OpenSource",
    "Source",
    "clean_stale",
    "mark_unmounted",
    "unmount",
]
