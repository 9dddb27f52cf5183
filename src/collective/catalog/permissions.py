"""May she: grants in the owner's feed, judged for one subject, right and path.

A grant gives rights at its path and below. There are no denials; whoever is in doubt gets less. The owner's own
components hold all rights. Only grants in the owner's own feed count, and only until they end, by the clock of
whoever judges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from collective.core.address import FederatedAddress, parse_pattern
from collective.core.errors import Refused
from collective.wire import feed_pb2

__all__ = ["Verdict", "judge", "path_covers"]


@dataclass(frozen=True)
class Verdict:
    """`allowed`, and why or why not, in words for people."""

    allowed: bool
    reason: str


def path_covers(path: bytes, below: bytes) -> bool:
    """Whether `below` is the path or lies under it."""
    return below == path or below.startswith(path.rstrip(b"/") + b"/")


def judge(
    grants: Iterable[feed_pb2.Grant],
    *,
    owner: str,
    store_path: bytes,
    subject: FederatedAddress,
    right: int,
    now: float,
    removed: bool = False,
    sub_path: bytes | None = b"",
    open_sub_path: Callable[[bytes], bytes | None] = lambda sealed: None,
) -> Verdict:
    """The verdict over the owner's grants for a path `sub_path` inside a DataStore; None: anywhere in it. `now` in
    seconds since 1970.

    A grant on a folder inside names it sealed; `open_sub_path` opens that where the DataStore's key is. Where it cannot
    be opened the grant gives nothing.
    """
    name = feed_pb2.Right.Name(right)  # type: ignore[arg-type]  # any int of the enum
    if removed:
        return Verdict(False, f"{subject.domain} was removed from the federation")
    if subject.domain == owner:
        return Verdict(True, "the owner holds all rights")
    ended = False
    for grant in grants:
        if right not in grant.rights or not path_covers(grant.path, store_path):
            continue
        if grant.sealed_sub_path:
            folder = open_sub_path(grant.sealed_sub_path)
            if folder is None or not (sub_path is None or path_covers(folder, sub_path)):
                continue
        try:
            matches = parse_pattern(grant.subject).matches(subject)
        except Refused:
            continue  # a pattern of a later version gives nothing
        if not matches:
            continue
        if grant.valid_until_milliseconds and grant.valid_until_milliseconds <= now * 1000:
            ended = True
            continue
        return Verdict(True, f"{grant.subject} may {name} in {grant.path.decode(errors='replace')}")
    if ended:
        return Verdict(False, f"the grant of {name} to {subject} has ended")
    return Verdict(False, f"nobody granted {name} to {subject}")
