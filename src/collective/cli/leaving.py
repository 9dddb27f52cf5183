"""`federation leave`."""

from __future__ import annotations

import click

from collective.cli.words import home_of, json_option, print_json, start
from collective.core.errors import Refused
from collective.daemon.control import open_control
from collective.daemon.home import Home
from collective.daemon.runtime import SystemClock
from collective.wire import control_pb2

__all__ = ["leave"]


@click.command()
@click.option("--yes", is_flag=True, help="Really leave; without it only what that means is said.")
@json_option
@click.pass_context
def leave(context: click.Context, yes: bool, as_json: bool) -> None:
    """Leave the federation on purpose: the others are told, this home's coordinator stops."""
    reply = start(_leave(home_of(context), yes))
    if as_json:
        print_json(
            {
                "left": reply.left,
                "means": list(reply.means),
                "told": list(reply.told),
                "not_told": list(reply.not_told),
            }
        )
    else:
        _tell(reply)
    if not reply.left:
        raise Refused("nothing was done", "if that is what you want: collective federation leave --yes")


def _tell(reply: control_pb2.LeaveReply) -> None:
    click.echo("This home left, which means:" if reply.left else "Leaving means:")
    for sentence in reply.means:
        click.echo(f"  - {sentence}")
    if reply.left:
        click.echo(f"Told: {', '.join(reply.told) or 'nobody, since nobody was reached'}.")
        if reply.not_told:
            click.echo(f"Could not be told: {', '.join(reply.not_told)}; they hear it from the others.")
        click.echo("The coordinator stops. To come back: collective coordinator --come-back")


async def _leave(home: Home, really: bool) -> control_pb2.LeaveReply:
    async with open_control(home, SystemClock(), need_running=True) as control:
        return await control.call("Leave", control_pb2.LeaveRequest(really=really), control_pb2.LeaveReply)
