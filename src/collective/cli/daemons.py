"""`coordinator` and `node`: the long-lived processes in the foreground."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from collective.cli.words import home_of, start
from collective.core.errors import Misconfigured
from collective.core.sizes import parse_size
from collective.daemon.config import load_node_config
from collective.daemon.coordinator import run_coordinator
from collective.daemon.foundation import CoordinatorSettings
from collective.daemon.home import Home
from collective.daemon.node import NodeSettings, run_node
from collective.daemon.runtime import LogObserver, SystemClock, die_with_parent, raise_memory_thresholds, until_stopped
from collective.net.endpoints import parse_host_port

__all__ = ["coordinator", "node"]


@click.command()
@click.option("--federation", is_flag=True, help="Take part in the federation (always so; kept for the plan's lines).")
@click.option("--storage", default="", metavar="SIZE", help="Carry a storage node with this pledge, for example 25TB.")
@click.option("--storage-path", default="", help="Where its chunks lie (default: storage in the home).")
@click.option("--listen", default="", metavar="HOST:PORT", help="gRPC port (default 127.0.0.1:8001).")
@click.option("--lane", default="", metavar="HOST:PORT", help="Lane port (default: the gRPC port + 1).")
@click.option("--node-lane", default="", metavar="HOST:PORT", help="The carried node's lane (default: gRPC port + 2).")
@click.option("--config", "config_file", type=click.Path(path_type=Path, exists=True), help="The plan's JSON file.")
@click.option(
    "--without", multiple=True, metavar="MEMBER", help="Wake up in doubt without this member's answer (repeatable)."
)
@click.option("--come-back", is_flag=True, help="Be there again after `federation leave`.")
@click.option("--debug", is_flag=True, help="Log everything.")
@click.pass_context
def coordinator(
    context: click.Context,
    federation: bool,
    storage: str,
    storage_path: str,
    listen: str,
    lane: str,
    node_lane: str,
    config_file: Path | None,
    without: tuple[str, ...],
    come_back: bool,
    debug: bool,
) -> None:
    """Run this home's coordinator, with its storage node when --storage is given. Stops on SIGTERM."""
    home = home_of(context, config_file)
    section = home.config().coordinator
    grpc_address = listen or section.listen
    settings = CoordinatorSettings(
        listen=grpc_address,
        lane=lane or section.lane or _next_port(grpc_address, 1),
        node_lane=node_lane or _next_port(grpc_address, 2),
        storage_bytes=parse_size(storage) if storage else section.storage_capacity,
        storage_path=str(home.storage_path(storage_path)),
        without=without,
        come_back=come_back,
    )
    raise_memory_thresholds()
    start(_coordinate(home, settings, debug))


async def _coordinate(home: Home, settings: CoordinatorSettings, debug: bool) -> None:
    observer = LogObserver(sys.stderr, minimum="debug" if debug else "info")
    with until_stopped() as stop:
        await run_coordinator(home, settings, SystemClock(), observer, stop)


@click.command()
@click.option("--config", "config_file", type=click.Path(path_type=Path, exists=True), help="The plan's JSON file.")
@click.option("--name", default="", help="The node's name (default: from the config, else node-01).")
@click.option(
    "--coordinator", "coordinator_endpoint", default="", metavar="HOST:PORT", help="Its coordinator's gRPC port."
)
@click.option("--storage", default="", metavar="SIZE", help="How much it may hold.")
@click.option("--storage-path", default="", help="Where its chunks lie.")
@click.option("--lane", default="", metavar="HOST:PORT", help="Its lane port (default 127.0.0.1:8003).")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="rack=1, type=ssd, …")
@click.option("--embedded", is_flag=True, hidden=True)
@click.option("--parent", type=int, default=0, hidden=True)
@click.pass_context
def node(
    context: click.Context,
    config_file: Path | None,
    name: str,
    coordinator_endpoint: str,
    storage: str,
    storage_path: str,
    lane: str,
    labels: tuple[str, ...],
    embedded: bool,
    parent: int,
) -> None:
    """Run a storage node: its home holds a certificate made with `federation ca sign-component --type node`."""
    if parent:
        die_with_parent(parent)
    home = home_of(context)
    # the carried node is told everything by its coordinator; STORAGE_PATH and the like speak to separate nodes
    config = load_node_config(config_file, {} if embedded else os.environ)
    section = config.node
    local_part = name or (section.address.split("@")[0] if section.address else "node-01")
    where = coordinator_endpoint or section.coordinator_endpoint
    if not where:
        raise Misconfigured("the node does not know its coordinator", "name it with --coordinator HOST:PORT")
    size_bytes = parse_size(storage) if storage else section.storage_capacity
    if not size_bytes:
        raise Misconfigured("the node does not know how much it may hold", "say it with --storage 20TB")
    told = dict(pair.split("=", 1) for pair in labels if "=" in pair)
    settings = NodeSettings(
        name=local_part,
        coordinator=where,
        lane=lane or section.lane or "127.0.0.1:8003",
        storage_path=Path(storage_path or section.storage_path or home.path / "storage"),
        storage_bytes=size_bytes,
        labels={**section.labels, **told},
    )
    raise_memory_thresholds()
    start(_serve_node(home, settings))


async def _serve_node(home: Home, settings: NodeSettings) -> None:
    with until_stopped() as stop:
        await run_node(home, settings, SystemClock(), LogObserver(sys.stderr), stop)


def _next_port(address: str, step: int) -> str:
    """The port `step` above, or a free one when the first is free too."""
    host, port = parse_host_port(address)
    return f"{host}:{port + step if port else 0}"
