"""`mdns`: a coordinator's own process on the local network; for nobody to call by hand."""

from __future__ import annotations

import click

from collective.daemon.mdns import Announcement, run_mdns
from collective.daemon.runtime import run

__all__ = ["mdns"]


@click.command(hidden=True)
@click.option("--member", required=True)
@click.option("--root", required=True)
@click.option("--host", required=True)
@click.option("--port", type=int, required=True)
@click.option("--lane", type=int, required=True)
def mdns(member: str, root: str, host: str, port: int, lane: int) -> None:
    """Announce a coordinator and answer its questions until stdin ends."""
    run(run_mdns(Announcement(member=member, root=root, host=host, port=port, lane=lane)))
