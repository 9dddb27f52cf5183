"""The status document: what `collective status --json` prints, made by the running coordinator."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from collective.catalog import Catalog
from collective.core.clock import Clock
from collective.core.sizes import format_size
from collective.gossip import State
from collective.health.changes import ChangesReport
from collective.health.doubt import doubt_document, doubt_findings
from collective.health.finding import Finding, verdict
from collective.health.holds import hold_findings, holds_document
from collective.identity import ComponentKind, Level, PeerIdentity
from collective.net.rpc import Caller, Row
from collective.transfer.gossip_view import PeerState
from collective.transfer.nodes import NodeDirectory, NodeRecord
from collective.transfer.refetch import Refetcher
from collective.transfer.repair import CopyMaker
from collective.wire import control_pb2, feed_pb2, lane_pb2

__all__ = ["StatusDesk", "status_rows"]

CERTIFICATE_WARNING_SECONDS = 30 * 86400.0


@dataclass(frozen=True)
class StatusDesk:
    """Answers `Control/Status`."""

    catalog: Catalog
    nodes: NodeDirectory
    peers: Callable[[], Mapping[str, PeerState]]
    copies: CopyMaker
    refetch: Refetcher
    clock: Clock
    own: PeerIdentity
    endpoints: Callable[[], Iterable[feed_pb2.Endpoint]]
    relayed_bytes: Callable[[], int]
    loop: Callable[[], lane_pb2.LoopHolds]

    @property
    def changes(self) -> ChangesReport:
        """The part about changes on their way and conflicts."""
        return ChangesReport(self.catalog)

    async def status(self, caller: Caller, request: control_pb2.StatusRequest) -> control_pb2.StatusReply:
        """A fresh look at the nodes, then everything as one JSON document."""
        await self.nodes.refresh()
        nodes, peers = self.nodes.all(), dict(sorted(self.peers().items()))
        # in a thread: a million files are counted in 0.2 s
        document = await asyncio.to_thread(self.document, nodes, peers, connections=request.connections)
        return control_pb2.StatusReply(json=json.dumps(document))

    def document(
        self, nodes: Sequence[NodeRecord], peers: Mapping[str, PeerState], *, connections: bool
    ) -> dict[str, object]:
        """The report as plain values; sizes in bytes, times in seconds."""
        findings = [
            *doubt_findings(self.catalog),
            *self._node_findings(nodes),
            *self._store_findings(),
            *self._peer_findings(peers),
            *self.changes.findings(self.clock.wall()),
            *self._own_findings(),
        ]
        document: dict[str, object] = {
            "health": verdict(findings),
            "findings": [finding.__dict__ for finding in findings],
            "address": str(self.own.address),
            "federation": self.own.federation_domain,
            "doubt": doubt_document(self.catalog),
            "nodes": [self._node(node) for node in nodes],
            "relayed_bytes": self.relayed_bytes(),
            "loop": holds_document(self.loop()),
            "peers": [self._peer(domain, state) for domain, state in peers.items()],
            "datastores": [self._store(store.feed_id) for store in self.catalog.datastores()],
            "pending": self.changes.pending(),
            "conflicts": self.changes.conflicts(),
        }
        if connections:
            document["connections"] = [
                {"peer": domain, "endpoint": state.endpoint, "connected": state.connected}
                for domain, state in peers.items()
            ]
        return document

    # ------------------------------------------------------------ parts of the document

    def _node(self, node: NodeRecord) -> dict[str, object]:
        status = node.status
        row: dict[str, object] = {
            "address": str(node.address),
            "lane": node.lane_addresses,
            "pledged_bytes": node.capacity_bytes,
            "answers": status is not None,
            "labels": node.labels,
        }
        if status is not None:
            row |= {
                "capacity_bytes": status.capacity_bytes,
                "used_bytes": status.used_bytes,
                "free_bytes": status.free_bytes,
                "chunks": status.chunk_count,
                "quarantined": status.quarantined_count,
                "served_bytes": status.served_bytes,
                "received_bytes": status.received_bytes,
                "storage_path": status.storage_path,
                "loop": holds_document(status.loop),
            }
        return row

    def _peer(self, domain: str, state: PeerState) -> dict[str, object]:
        return {
            "member": domain,
            "state": str(state.state),
            "entries_behind": state.behind,
            "entries_ahead": state.ahead,
            "connected": state.connected,
            "caught_up": state.caught_up,
            "endpoint": state.endpoint,
            "heard_seconds_ago": state.heard_seconds_ago,
            "reason": state.reason,
        }

    def _store(self, store_id: bytes) -> dict[str, object]:
        store = self.catalog.store(store_id)
        files, size_bytes = self.catalog.usage(store_id)
        below = self.catalog.versions_below_target(store_id)
        return {
            "path": store.path.decode(errors="replace"),
            "owner": store.owner,
            "strategy": feed_pb2.Strategy.Name(feed_pb2.Strategy.ValueType(store.strategy)).lower(),
            "replicas": store.replicas,
            "readable": store.readable,
            "files": files,
            "size_bytes": size_bytes,
            "below_target": below,
            "healthy": below == 0,
        }

    # ------------------------------------------------------------ findings

    def _node_findings(self, nodes: Sequence[NodeRecord]) -> Iterable[Finding]:
        for node in nodes:
            if node.status is None:
                yield Finding("error", f"{node.address} does not answer", "look at its log; start it again")
                continue
            yield from hold_findings(str(node.address), node.status.loop)
            if node.status.quarantined_count:
                yield Finding(
                    "warning",
                    f"{node.address} set {node.status.quarantined_count} broken chunks aside",
                    f"look at {node.status.storage_path}/quarantine and at the disk's health",
                )
            if node.status.capacity_bytes < node.capacity_bytes:
                yield Finding(
                    "warning",
                    f"{node.address} pledges {format_size(node.capacity_bytes)}, its disk has"
                    f" {format_size(node.status.capacity_bytes)}",
                    "lower --storage or give it a larger disk",
                )
            if node.status.free_bytes < node.status.capacity_bytes // 20:
                yield Finding("warning", f"{node.address} is nearly full", "add storage or remove files")

    def _store_findings(self) -> Iterable[Finding]:
        for store in self.catalog.datastores():
            if store.owner != self.own.member_domain:
                continue
            below = self.catalog.versions_below_target(store.feed_id)
            if below:
                reasons = "; ".join(
                    f"{member}: {reason}" for member, reason in sorted(dict(self.copies.reasons).items())
                )
                yield Finding(
                    "warning",
                    f"{store.path.decode(errors='replace')}: {below} files have fewer than {store.replicas} copies",
                    reasons or "copies are being made; add a member with room if this stays",
                )

        if lost := self.catalog.versions_lost():
            reasons = "; ".join(sorted({self.refetch.reasons.get(version, "") for _, version in lost} - {""}))
            whole = sum(1 for version in lost if self.catalog.holders(*version))
            if whole:
                yield Finding("warning", f"{whole} files are being made whole from other copies", reasons)
            if whole < len(lost):
                yield Finding(
                    "error",
                    f"{len(lost) - whole} files cannot be read whole: a chunk is broken and no other copy is known",
                    "put them again from where they came; what is left of them is still readable",
                )

    def _peer_findings(self, peers: Mapping[str, PeerState]) -> Iterable[Finding]:
        for domain, state in peers.items():
            if not state.connected and state.state is not State.LEFT:
                yield Finding("warning", f"{domain} cannot be reached", state.reason or "it is being dialled")
            elif state.state is State.LEFT and (count := self.catalog.copies_at(domain)):
                yield Finding(
                    "warning",
                    f"{domain} left; {count} copies of your files lie there and cannot be reached",
                    f"they count while {domain} is a member; it comes back by `coordinator --come-back` there",
                )

    def _own_findings(self) -> Iterable[Finding]:
        yield from hold_findings("the coordinator", self.loop())
        left = self.own.not_after - self.clock.wall()
        if left < CERTIFICATE_WARNING_SECONDS:
            yield Finding(
                "warning",
                f"the coordinator's certificate ends in {max(0, int(left // 86400))} days",
                "collective federation ca sign-component --type coordinator --name coord --renew",
            )


def status_rows(desk: StatusDesk) -> list[Row]:
    """The dispatch rows of Control that this room answers."""
    return [
        Row(
            method="/collective.v1.Control/Status",
            kinds=frozenset({ComponentKind.CLIENT}),
            local=True,
            right="admin of this member",
            level=Level.LOCAL,
            handler=desk.status,
            capability="admin",
        )
    ]
