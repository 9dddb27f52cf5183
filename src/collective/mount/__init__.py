"""The library as a folder: names without a call, bytes from wherever they are, changes journalled before they are seen.

Words: a *content* is one version of a file being read; a *slot* holds a chunk's plain bytes, segment by segment; a
*stream* is one sequential reader of a content; a *flight* is one fetch on its way into a slot. A *dirty* file has
changes that are not in the library; the *journal* has them first, the *replay* brings them there; the *overlay* shows
what is under way; a *lease* is the right to change a directory from memory.

    a read     fuse (session) -> handlers -> filesystem -> files -> reading -> cache, with `readahead` deciding
    a change   handlers -> filesystem -> changing -> commit (leases, or an exact call) -> journal -> overlay
    a write    handlers -> filesystem -> files -> journal -> dirty extents
    later      replay -> committing (the coordinator, the nodes) -> the names show it -> the overlay forgets it

`fuse` and `handlers` alone import pyfuse3. Bytes come through `OpenSource`, names through `Names`; `writing` puts the
half together that writes. The adapter stays out of this door: `from collective.mount.fuse import run_mount`.
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
