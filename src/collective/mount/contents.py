"""Contents being read: one per version, shared by every open of it, kept a while after the last close.

Players open and close a file for each read; what a content learned about its readers (`readahead`) and the source of
its bytes must outlive that. Idle contents go least recently used first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field

from collective.mount.names import ContentReference, Source
from collective.mount.patience import Outage
from collective.mount.readahead import ReadAhead
from collective.mount.settings import MountSettings

__all__ = ["Content", "ContentTable", "content_key"]


def content_key(reference: ContentReference) -> tuple[bytes, bytes]:
    """What makes two contents the same bytes."""
    return (reference.store_id, reference.version_id)


@dataclass(eq=False, slots=True)
class Content:
    """`users` are open handles, `busy` counts reads and fetches under way; `source` is opened by the first read."""

    reference: ContentReference
    readahead: ReadAhead
    users: int = 0
    busy: int = 0
    source: Source | None = None
    outage: Outage = field(default_factory=Outage)

    @property
    def key(self) -> Hashable:
        return content_key(self.reference)

    @property
    def size_bytes(self) -> int:
        return self.reference.size_bytes

    @property
    def idle(self) -> bool:
        return not self.users and not self.busy


class ContentTable:
    """At most `settings.idle_contents` idle contents and all that are in use."""

    def __init__(self, settings: MountSettings) -> None:
        self._settings = settings
        self._contents: OrderedDict[Hashable, Content] = OrderedDict()  # least recently opened first

    def __len__(self) -> int:
        return len(self._contents)

    def acquire(self, reference: ContentReference) -> Content:
        """The content of `reference` with one user more."""
        key = content_key(reference)
        content = self._contents.get(key)
        if content is None:
            # Half the memory at most is bytes nobody asked for yet, whatever the setting says.
            maximum_bytes = min(self._settings.read_ahead_bytes, self._settings.cache_size_bytes // 2)
            readahead = ReadAhead(
                reference.size_bytes,
                maximum_bytes=maximum_bytes,
                initial_bytes=self._settings.initial_read_ahead_bytes,
            )
            content = self._contents[key] = Content(reference, readahead)
        self._contents.move_to_end(key)
        content.users += 1
        return content

    def release(self, content: Content) -> list[Content]:
        """One user less. Returns the contents that are forgotten now; the caller closes their sources."""
        content.users -= 1
        idle = [candidate for candidate in self._contents.values() if candidate.idle]
        forgotten = idle[: max(0, len(idle) - self._settings.idle_contents)]
        for candidate in forgotten:
            del self._contents[candidate.key]
        return forgotten

    def clear(self) -> list[Content]:
        """Forget all, used or not."""
        contents = list(self._contents.values())
        self._contents.clear()
        return contents
