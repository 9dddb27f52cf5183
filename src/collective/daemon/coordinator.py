"""The coordinator process: opens the home, joins the rooms together, serves until it is told to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

from collective.core.clock import Clock
from collective.core.errors import Misconfigured
from collective.core.observe import Observer
from collective.daemon.config import unbuilt_keys
from collective.daemon.foundation import CoordinatorSettings, open_foundation
from collective.daemon.home import Home
from collective.daemon.neighbours import is_wanted
from collective.daemon.parts import Parts, assemble
from collective.daemon.runtime import ready
from collective.daemon.supervise import Heirs, NodeChild
from collective.net.endpoints import NetworkEndpoint, parse_host_port, reached_from_here
from collective.net.lane import LaneServer
from collective.net.rpc import RpcServer
from collective.wire import feed_pb2

__all__ = ["run_coordinator"]

NODE_START_SECONDS = 20.0
STOP_GRACE_SECONDS = 2.0


async def run_coordinator(
    home: Home, settings: CoordinatorSettings, clock: Clock, observer: Observer, stop: asyncio.Event
) -> None:
    """Serve until `stop` is set. Raises: Misconfigured, Conflict (home or port in use)."""
    with home.locked():
        if home.has_left() and not settings.come_back:
            raise Misconfigured("this home left the federation", "to come back: collective coordinator --come-back")
        home.come_back()
        ground = open_foundation(home, clock, observer, settings)
        ground.catalog.excuse(settings.without)
        parts = assemble(ground, stop.set)
        for warning in unbuilt_keys(ground.config):
            observer.event("config.warning", message=warning)
        credentials = ground.household.coordinator
        server = RpcServer(parts.rows(), ground.trust, credentials, clock, observer)
        lane = LaneServer(credentials, ground.trust, parts.lane_handlers(), clock=clock, observer=observer)
        try:
            await ground.hear_separate_nodes()
            parts.writing.leases.look()  # before anybody can ask for one
            grpc_port = await server.start(settings.listen)
            lane_host, lane_port = parse_host_port(settings.lane)
            lane_port = await lane.start(lane_host, lane_port)
            here = feed_pb2.Endpoint(
                type="lan",
                grpc=reached_from_here(parse_host_port(settings.listen)[0], grpc_port),
                lane=reached_from_here(lane_host, lane_port),
            )
            home.note_listening(here)
            await server.start_unix(home.socket)
            await _serve(parts, settings, here, stop)
        finally:
            await server.stop(STOP_GRACE_SECONDS)
            await lane.stop()
            await parts.close()
            home.socket.unlink(missing_ok=True)


async def _serve(parts: Parts, settings: CoordinatorSettings, here: feed_pb2.Endpoint, stop: asyncio.Event) -> None:
    """`here`: the ports that are listened on, as this machine reaches them."""
    ground = parts.foundation
    host, port = parse_host_port(settings.listen)[0], parse_host_port(here.grpc)[1]
    async with asyncio.TaskGroup() as group:
        tasks: list[asyncio.Task[None]] = []

        def begin(name: str, work: Coroutine[object, object, None]) -> None:
            tasks.append(group.create_task(work, name=name))

        begin("heirs", Heirs(ground.home.path, parts.writing.leases, ground.clock, ground.observer).run())
        if settings.storage_bytes:
            log = ground.home.path / "node.log"
            child = NodeChild(_node_arguments(parts, settings, here.grpc), log, ground.clock, ground.observer)
            begin("node", child.run())
            if not await ground.nodes.wait_registered(NODE_START_SECONDS):
                for task in tasks:
                    task.cancel()
                raise Misconfigured(
                    f"the storage node did not start within {NODE_START_SECONDS:.0f} s", f"its log says why: {log}"
                )
            await ground.nodes.refresh()
        tending = parts.tending(settings)
        await tending.begin(ground.config.datastores)
        begin("loop watch", parts.watch.run())
        if is_wanted(ground.config.network.mdns, host):
            begin("neighbours", parts.neighbours.run(host, port, parse_host_port(here.lane)[1]))
        begin("gossip", parts.gossiping.run())
        begin("introductions", parts.introductions.run())
        begin("recall", parts.recall.run())
        begin("hand over", parts.hand_over.run())
        begin("snapshots", parts.snapshots.run())
        begin("background", tending.every_change())
        begin("copies", tending.make_copies())
        begin("writing", parts.writing.run())
        begin("refetch", tending.make_whole())
        ready(f"ready: {ground.own.address} on {NetworkEndpoint('lan', host, port).address}")
        await stop.wait()
        await parts.writing.leases.close()  # mounts hand in what they have while the node still runs
        for task in tasks:
            task.cancel()


def _node_arguments(parts: Parts, settings: CoordinatorSettings, grpc_address: str) -> list[str]:
    arguments = ["--home", str(parts.foundation.home.path), "node", "--embedded", "--coordinator", grpc_address]
    arguments += ["--storage", str(settings.storage_bytes), "--storage-path", settings.storage_path]
    return [*arguments, "--lane", settings.node_lane]
