"""Pages had back: after a lost database the chunks still lie on the disks, their lists only with other holders.

Looked for once, after a new epoch opened; a round that could not reach everybody is made again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from collective.catalog import Catalog
from collective.chunks import page_name
from collective.core.errors import CollectiveError
from collective.core.observe import Observer
from collective.transfer.holders import TicketProvider
from collective.transfer.waking import Write

__all__ = ["PageMender"]

PAGES_PER_CALL = 32
VERSIONS_PER_SLICE = 256
PAUSE_SECONDS = 30.0


@dataclass
class PageMender:
    """Fetches the pages of versions that this home holds and lists no more."""

    catalog: Catalog
    provider: TicketProvider
    own_domain: str
    observer: Observer
    write: Write
    _not_before: float = 0.0

    async def tick(self, now: float) -> None:
        """One look through all versions, when one is due; `now` in monotonic seconds."""
        if now < self._not_before or not self.catalog.pages_wanted():
            return
        self._not_before = now + PAUSE_SECONDS
        missing = fetched = 0
        after = b""
        while versions := self.catalog.versions_here(after, VERSIONS_PER_SLICE):
            after = versions[-1][1]
            for store_id, version_id in versions:
                names = self.catalog.pages_missing(store_id, version_id)
                for start in range(0, len(names), PAGES_PER_CALL):
                    part = names[start : start + PAGES_PER_CALL]
                    done = await self._fetch(store_id, version_id, part)
                    fetched, missing = fetched + done * len(part), missing + (not done) * len(part)
        if not missing:
            await self.write(self.catalog.pages_settled)
        self.observer.event("waking.pages", fetched=fetched, missing=missing)

    async def _fetch(self, store_id: bytes, version_id: bytes, names: list[bytes]) -> bool:
        """From the first holder that has them all; whether any had."""
        for holder in self.catalog.holders(store_id, version_id):
            if holder == self.own_domain:
                continue
            try:
                pages = await self.provider.fetch_pages(holder, store_id, version_id, names)
            except CollectiveError as error:
                self.observer.event("waking.pages_failed", holder=holder, reason=error.message)
                continue
            if [page_name(page) for page in pages] == names:
                await self.write(partial(self.catalog.put_pages, dict(zip(names, pages, strict=True))))
                return True
        return False
