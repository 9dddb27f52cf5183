"""Where a member may be that answers nowhere in the book: others are asked, one after the other.

    the book (transfer/peers)  --nobody there-->  mDNS, the own network  --nobody there-->  DNS

What comes back is a hint of anybody who cares to answer, and nothing is believed for it: there as everywhere only who
shows the certificate of the member that is meant hears a word. A liar costs a dial.

A member that cannot be found is searched for again after a pause that doubles, and at once when it showed itself.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

from collective.core.clock import Clock
from collective.wire import feed_pb2

__all__ = ["Finder", "LookUp"]

LookUp = Callable[[str], Awaitable[Sequence[str]]]  # member domain -> HOST:PORT of gRPC ports, the best first
FIRST_PAUSE_SECONDS = 5.0  # the dead are dialled as often
LAST_PAUSE_SECONDS = 60.0
HINTS_PER_SOURCE = 8  # each may cost the time that a dial takes


class Finder:
    """`sources` in the order in which they are asked, each with the type of its endpoints (lan, direct)."""

    def __init__(self, sources: Sequence[tuple[str, LookUp]], clock: Clock) -> None:
        self._sources = sources
        self._clock = clock
        self._rests: dict[str, tuple[float, float]] = {}  # member -> (not before, the pause after that)

    async def search(self, domain: str) -> AsyncGenerator[feed_pb2.Endpoint, None]:
        """Places to dial. A source is asked when those before it are used up; none so soon after the last search."""
        now = self._clock.monotonic()
        not_before, pause = self._rests.get(domain, (now, FIRST_PAUSE_SECONDS))
        if now < not_before:
            return
        self._rests[domain] = now + pause, min(2 * pause, LAST_PAUSE_SECONDS)
        for kind, look_up in self._sources:
            for place in (await look_up(domain))[:HINTS_PER_SOURCE]:
                yield feed_pb2.Endpoint(type=kind, grpc=place)

    def heard(self, domain: str) -> None:
        """The member showed itself: it may be where the last search did not find it."""
        self._rests.pop(domain, None)
