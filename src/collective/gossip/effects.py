"""What the engine asks its driver to do, and what it tells people."""

from __future__ import annotations

from dataclasses import dataclass

from collective.gossip.dissemination import Place
from collective.gossip.membership import State
from collective.wire.feed_pb2 import Endpoint

__all__ = ["Deliver", "Effect", "Learned", "MemberView", "Persist", "Pull", "Send", "StateChanged"]


@dataclass(frozen=True)
class Send:
    """Hand this message to a peer; if that fails, say so by `unreachable`."""

    peer: str
    raw: bytes


@dataclass(frozen=True)
class Deliver:
    """Entries of one feed, in order, not verified yet, said to lead up to `place`; if they do not, say `refused`."""

    peer: str
    feed: bytes
    entries: tuple[bytes, ...]
    place: Place


@dataclass(frozen=True)
class Pull:
    """Ask a peer for what these feeds have past their heads here, apply it, then call `pulled`."""

    peer: str
    feeds: tuple[bytes, ...]


@dataclass(frozen=True)
class StateChanged:
    """What is thought of a member."""

    domain: str
    old: State
    new: State


@dataclass(frozen=True)
class Learned:
    """A member said where it can be reached."""

    domain: str
    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True)
class Persist:
    """Keep this durably before anything after it is carried out."""

    state: bytes


Effect = Send | Deliver | Pull | StateChanged | Learned | Persist


@dataclass(frozen=True)
class MemberView:
    """A member for people: `last_heard` monotonic seconds, `behind` entries it lacks, `ahead` entries lacking here.

    Both None as long as heads were never compared.
    """

    domain: str
    state: State
    last_heard: float | None
    incarnation: int
    behind: int | None
    ahead: int | None
