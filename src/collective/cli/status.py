"""`status` and `ping`."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from collective.cli.old_addresses import full_address
from collective.cli.words import describe_peer, home_of, json_option, print_json, start
from collective.core.sizes import format_size
from collective.daemon.client import ping_member
from collective.daemon.control import open_control
from collective.daemon.home import Home
from collective.daemon.runtime import SystemClock
from collective.health import Finding, verdict
from collective.wire import control_pb2

__all__ = ["ping", "status"]

CONFLICTS_SHOWN = 5


@click.command()
@click.option("--show-connections", is_flag=True, help="With the path in use to each peer.")
@json_option
@click.pass_context
def status(context: click.Context, show_connections: bool, as_json: bool) -> None:
    """How this home, its nodes, its peers and its DataStores are."""
    document = start(_status(home_of(context), show_connections))
    if as_json:
        print_json(document)
        return
    reasons = "; ".join(finding["message"] for finding in document["findings"])
    click.echo(f"{document['health']}{': ' + reasons if reasons else ''}")
    for finding in document["findings"]:
        click.echo(f"  {finding['severity']}: {finding['message']}\n    {finding['mend']}")
    state = "" if document["running"] else "  (left the federation)" if document["left"] else "  (not running)"
    click.echo(f"{document['address']} of {document['federation']}{state}")
    for node in document["nodes"]:
        click.echo(_node_line(node))
    for peer in document["peers"]:
        state = describe_peer(peer)
        if not peer["connected"] and peer["reason"]:
            state += f": {peer['reason']}"
        where = f"  {peer['endpoint']}" if show_connections and peer["endpoint"] else ""
        click.echo(f"  peer {peer['member']}{where}  {state}")
    for store in document["datastores"]:
        click.echo(_store_line(store))
    for mount in document["mounts"]:
        waiting = f"{mount['pending']} changes on their way" if mount["pending"] else "everything handed over"
        trouble = f": {mount['trouble']}" if mount.get("trouble") else ""  # a mount of an older version says nothing
        click.echo(f"  mount {mount['directory']}  {waiting}{trouble}")
    for row in document["pending"]:
        reason = f": {row['reason']}" if row["reason"] else ""
        click.echo(f"  pending {row['owner']}  {row['changes']} changes {row['state']}{reason}  ({row['mend']})")
    for row in document["conflicts"][:CONFLICTS_SHOWN]:
        click.echo(f"  conflict {row['wanted']}  kept as {row['kept']}  ({row['reason']})")


async def _status(home: Home, connections: bool) -> dict[str, Any]:
    async with open_control(home, SystemClock()) as control:
        request = control_pb2.StatusRequest(connections=connections)
        reply = await control.call("Status", request, control_pb2.StatusReply)
        document: dict[str, Any] = json.loads(reply.json)
        document["running"], document["left"] = control.running, home.has_left()
        if not document["running"] and not document["left"]:
            stopped = Finding("warning", "the coordinator is not running", home.start_line)
            findings = [stopped, *(Finding(**row) for row in document["findings"])]
            document["health"], document["findings"] = verdict(findings), [vars(finding) for finding in findings]
        document["mounts"] = home.read_mounts()
        return document


def _node_line(node: dict[str, Any]) -> str:
    if not node["answers"]:
        return f"  node {node['address']}  does not answer"
    return (
        f"  node {node['address']}  {format_size(node['used_bytes'])} used of {format_size(node['capacity_bytes'])},"
        f" {node['chunks']} chunks, served {format_size(node['served_bytes'])}"
    )


def _store_line(store: dict[str, Any]) -> str:
    if not store["readable"]:
        return f"  {store['path']}@{store['owner']}  not readable from here (no READ grant, or its key is on the way)"
    copies = (
        "all copies there" if store["healthy"] else f"{store['below_target']} files below {store['replicas']} copies"
    )
    return f"  {store['path']}@{store['owner']}  {store['files']} files, {format_size(store['size_bytes'])}, {copies}"


@click.command()
@click.argument("member")
@click.option("--count", default=3, type=click.IntRange(1, 100))
@json_option
@click.pass_context
def ping(context: click.Context, member: str, count: int, as_json: bool) -> None:
    """Reach another member's coordinator (bob.media.collective or bob@media.collective)."""
    home = home_of(context)
    whom = full_address(home, member)
    times = []
    for _ in range(count):
        began = time.monotonic()
        address = start(ping_member(home, whom, SystemClock()))
        times.append((time.monotonic() - began) * 1000)
        if not as_json:
            click.echo(f"{address} answered in {times[-1]:.1f} ms (with connecting)")
    if as_json:
        print_json({"member": member, "milliseconds": times})
