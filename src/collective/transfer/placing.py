"""Who shall hold what: the catalogue's facts, handed to the pure ranking of `chunks.placement`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from collective.catalog import Catalog, DataStore, Member
from collective.chunks import CandidateMember, PlacementInput, place_members, rank_hosts
from collective.transfer.nodes import NodeDirectory
from collective.wire import feed_pb2

__all__ = ["ChooseMembers", "choose_hosts", "member_chooser", "place_again"]

ChooseMembers = Callable[[DataStore, bytes, int, str], Sequence[str]]
"""(DataStore, version id, bytes, writer's domain) -> member domains that shall hold it, the writer's first."""
PLACED_AT_ONCE = 8  # each asks how much every member hosts: 0.1 s with 50,000 versions
HOSTS_AT_LEAST = 2  # other members that follow a store feed sealed, so that names survive like bytes


def choose_hosts(store_id: bytes, replicas: int, others: Sequence[str]) -> list[str]:
    """The other members that follow a DataStore's feed, by rendezvous order: stable when members come and go."""
    return rank_hosts(store_id, others)[: max(HOSTS_AT_LEAST, replicas)]


def member_chooser(catalog: Catalog, nodes: NodeDirectory, own_domain: str) -> ChooseMembers:
    """A function that ranks the members which may hold a version of an own DataStore.

    What another member wrote goes to the owner too, whatever the ranking says: the writer pushes to the owner, and
    the owner to the rest.
    """

    hosted: dict[str, tuple[int, int]] = {}  # member -> (change counter, bytes): asked of every version, once a change

    def hosted_bytes(domain: str) -> int:
        counter = catalog.change_counter()
        known = hosted.get(domain)
        if known is None or known[0] != counter:
            known = hosted[domain] = (counter, catalog.hosted_bytes(domain))
        return known[1]

    def choose(store: DataStore, version_id: bytes, sealed_bytes: int, writer: str) -> Sequence[str]:
        allowed = {own_domain, writer, *store.hosts}
        candidates = [
            _candidate(member, own_domain, nodes, hosted_bytes(member.domain))
            for member in catalog.members()
            if not member.removed and member.domain in allowed
        ]
        chosen = place_members(
            PlacementInput(
                key=version_id,
                strategy=store.strategy,
                copies=store.replicas,
                writer=writer,
                needed_bytes=sealed_bytes,
                members=candidates,
            )
        ).members
        if writer == own_domain:
            return chosen
        others = [domain for domain in chosen[1:] if domain != own_domain]
        return [writer, own_domain, *others[: max(0, store.replicas - 2)]]

    return choose


def place_again(catalog: Catalog, choose: ChooseMembers) -> bool:
    """Place versions that found too few members when they were written, now that more are there; whether any was.

    A few in one turn of the writer thread; more in the next.
    """
    placed = 0
    for store_id, version_id, size_bytes in catalog.versions_short_of_members():
        if catalog.is_in_doubt(store_id):
            continue  # nothing is signed there now
        now_held = catalog.placed_members(store_id, version_id)
        chosen = choose(catalog.store(store_id), version_id, size_bytes, now_held[0])
        members = [*now_held, *(domain for domain in chosen if domain not in now_held)]
        members = members[: max(len(now_held), catalog.store(store_id).replicas)]
        if len(members) > len(now_held):
            catalog.append_store(store_id, placements=[feed_pb2.Placement(version_id=version_id, members=members)])
            placed += 1
            if placed == PLACED_AT_ONCE:
                break
    return placed > 0


def _candidate(member: Member, own_domain: str, nodes: NodeDirectory, hosted_bytes: int) -> CandidateMember:
    """What is known of a member: its pledge and nodes from its card, what it hosts already from its statements."""
    card = member.card
    capacity = sum(node.capacity_bytes for node in card.nodes) if card else 0
    pledge = card.pledge_bytes if card else 0
    free = max(0, min(capacity, pledge) - hosted_bytes)
    labels = dict(card.nodes[0].labels) if card and card.nodes else {}
    if member.domain == own_domain:
        statuses = [node.status for node in nodes.all() if node.status is not None]
        free = max((status.free_bytes for status in statuses), default=free)
    return CandidateMember(
        domain=member.domain, capacity_bytes=capacity, free_bytes=free, pledge_bytes=pledge, labels=labels, alive=True
    )
