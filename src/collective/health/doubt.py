"""What a home that woke up in doubt, or met two signed histories of one feed, says of it: first of all it says."""

from __future__ import annotations

from collections.abc import Iterator

from collective.catalog import Catalog
from collective.health.finding import Finding

__all__ = ["doubt_document", "doubt_findings"]


def doubt_document(catalog: Catalog) -> dict[str, object] | None:
    """`feeds` in words, `awaited` member domains, `mend` the command; None when nothing is in doubt."""
    doubts = catalog.doubts()
    if not doubts:
        return None
    return {
        "feeds": sorted({_feed_in_words(catalog, feed_id) for feed_id in doubts}),
        "reasons": sorted(set(doubts.values())),
        "awaited": catalog.awaited(),
        "mend": catalog.mend_doubt(),
    }


def doubt_findings(catalog: Catalog) -> Iterator[Finding]:
    """What doubts and forks there are."""
    doubts = catalog.doubts()
    if doubts:
        feeds = ", ".join(sorted({_feed_in_words(catalog, feed_id) for feed_id in doubts}))
        reasons = "; ".join(sorted(set(doubts.values())))
        mend = catalog.mend_doubt()
        yield Finding(
            "error",
            f"in doubt about {feeds}: {reasons}; nothing is signed there, what is changed meanwhile is kept ({mend})",
            mend,
        )
    for feed_id in catalog.forked_feeds():
        own = catalog.is_own(feed_id)
        yield Finding(
            "error",
            f"two different entries are signed for one place of {_feed_in_words(catalog, feed_id)}; both are kept,"
            f" nothing more of it is {'signed' if own else 'taken'}",
            "find the second copy of this home and stop it"
            if own
            else "its owner has two writers: a copied home, or a stolen key; tell them",
        )


def _feed_in_words(catalog: Catalog, feed_id: bytes) -> str:
    if not feed_id:
        return "all own feeds"
    if feed_id == catalog.root_feed():
        return "the list of members"
    for member in catalog.members():
        if member.feed_id == feed_id:
            return f"the feed of {member.domain}"
    for store in catalog.datastores():
        if store.feed_id == feed_id:
            return f"{store.path.decode(errors='replace')}@{store.owner}"
    return f"a feed that is not known here any more ({feed_id.hex()[:12]})"
