"""`datastore create | list | show | grant`."""

from __future__ import annotations

import datetime
from typing import TypeVar

import click
from google.protobuf.message import Message

from collective.cli.old_addresses import full_address
from collective.cli.words import home_of, json_option, note, path_and_owner, print_json, start
from collective.core.errors import Misconfigured, Refused
from collective.core.sizes import format_size, parse_duration
from collective.daemon.client import known_domains
from collective.daemon.control import open_control
from collective.daemon.home import Home
from collective.daemon.runtime import SystemClock
from collective.wire import control_pb2, feed_pb2

__all__ = ["datastore"]

_Reply = TypeVar("_Reply", bound=Message)
LAST_MOMENT_SECONDS = 253_402_300_000.0  # the end of the year 9999, as far as dates can be shown
RIGHTS = {"read": feed_pb2.READ, "write": feed_pb2.WRITE, "delete": feed_pb2.DELETE, "share": feed_pb2.SHARE}


@click.group()
def datastore() -> None:
    """Make DataStores, look at them, say who may do what in them."""


@datastore.command()
@click.argument("path")
@click.option("--owner", default="", help="The owner's identity; a DataStore is made at its owner's home.")
@click.option("--strategy", type=click.Choice(["media", "backup", "hybrid"]), help="Default: by the path's name.")
@click.option("--replicas", type=click.IntRange(1, 16), help="Copies asked for (default: 2, backup 3).")
@json_option
@click.pass_context
def create(
    context: click.Context, path: str, owner: str, strategy: str | None, replicas: int | None, as_json: bool
) -> None:
    """Make a DataStore at PATH, or apply these settings to the one that is there."""
    home = home_of(context)
    request = control_pb2.CreateDataStoreRequest(
        path=path_and_owner(path, set())[0],
        owner=full_address(home, owner),
        strategy=feed_pb2.Strategy.Value(strategy.upper()) if strategy else feed_pb2.STRATEGY_UNSPECIFIED,
        replicas=replicas or 0,
    )
    reply = start(_call(home, "CreateDataStore", request, control_pb2.DataStoreReply()))
    for text in reply.notes:
        note(text)
    if as_json:
        print_json({"created": reply.created, **_as_dict(reply.datastore)})
    else:
        click.echo(f"{'Made' if reply.created else 'Set'} {_one_line(reply.datastore)}")


@datastore.command(name="list")
@json_option
@click.pass_context
def list_(context: click.Context, as_json: bool) -> None:
    """All DataStores this home knows of."""
    request = control_pb2.ListDataStoresRequest()
    reply = start(_call(home_of(context), "ListDataStores", request, control_pb2.ListDataStoresReply()))
    if as_json:
        print_json({"datastores": [_as_dict(info) for info in reply.datastores]})
        return
    for info in reply.datastores:
        click.echo(_one_line(info))


@datastore.command()
@click.argument("path")
@json_option
@click.pass_context
def show(context: click.Context, path: str, as_json: bool) -> None:
    """One DataStore with its grants and hosts."""
    home = home_of(context)
    plain, owner = path_and_owner(path, known_domains(home))
    request = control_pb2.ShowDataStoreRequest(path=plain, owner=owner)
    reply = start(_call(home, "ShowDataStore", request, control_pb2.DataStoreReply()))
    if as_json:
        print_json(_as_dict(reply.datastore))
        return
    click.echo(_one_line(reply.datastore))
    click.echo(f"  hosts: {', '.join(reply.datastore.hosts) or 'none yet'}")
    for grant_ in reply.datastore.grants:
        click.echo(f"  {_grant_line(grant_)}")


@datastore.command()
@click.argument("path")
@click.argument("rights")
@click.argument("subject")
@click.option("--until", default="", help="An end: 30d, or a date such as 2027-01-31.")
@json_option
@click.pass_context
def grant(context: click.Context, path: str, rights: str, subject: str, until: str, as_json: bool) -> None:
    """Give SUBJECT (bob@media.collective) RIGHTS (read,write,delete) in PATH."""
    wanted = []
    for word in rights.lower().replace("+", ",").split(","):
        if word not in RIGHTS:
            raise Refused(f"{word!r} is not a right", f"rights are {', '.join(RIGHTS)}, joined by commas")
        wanted.append(RIGHTS[word])
    home = home_of(context)
    request = control_pb2.GrantRightsRequest(
        path=path_and_owner(path, set())[0],
        rights=wanted,
        subject=full_address(home, subject),
        valid_until_milliseconds=_until_milliseconds(until),
    )
    reply = start(_call(home, "GrantRights", request, control_pb2.GrantRightsReply()))
    for text in reply.notes:
        note(text)
    if as_json:
        print_json({"path": path, **_grant_dict(reply.grant)})
    else:
        click.echo(f"Granted in {path}: {_grant_line(reply.grant)}")


async def _call(home: Home, name: str, request: Message, reply: _Reply) -> _Reply:
    async with open_control(home, SystemClock()) as control:
        return await control.call(name, request, type(reply))


def _until_milliseconds(text: str) -> int:
    if not text:
        return 0
    now = SystemClock().wall()
    try:
        moment = datetime.datetime.fromisoformat(text)
        seconds = (moment if moment.tzinfo is not None else moment.astimezone()).timestamp()
    except (ValueError, OverflowError):
        try:
            seconds = now + parse_duration(text)
        except Misconfigured:
            raise Refused(f"{text!r} is neither a duration nor a date", "write 30d or 2027-01-31") from None
    if not now < seconds < LAST_MOMENT_SECONDS:
        raise Refused(f"{text!r} is no time that a grant can end at", "write one to come, such as 30d or 2027-01-31")
    return int(seconds * 1000)


def _one_line(info: control_pb2.DataStoreInfo) -> str:
    strategy = feed_pb2.Strategy.Name(info.strategy).lower()
    state = "" if info.readable else "  not readable from here"
    below = f"  {info.versions_below_target} files below their copies" if info.versions_below_target else ""
    return (
        f"{info.path.decode(errors='replace')}  owner {info.owner}  {strategy}, {info.replicas} copies"
        f"  {info.file_count} files, {format_size(info.size_bytes)}{below}{state}"
    )


def _grant_line(grant_: feed_pb2.Grant) -> str:
    rights = ",".join(feed_pb2.Right.Name(right).lower() for right in grant_.rights)
    if not grant_.valid_until_milliseconds:
        return f"{grant_.subject} may {rights}"
    end = datetime.datetime.fromtimestamp(grant_.valid_until_milliseconds / 1000).astimezone()
    return f"{grant_.subject} may {rights} until {end:%Y-%m-%d %H:%M}"


def _grant_dict(grant_: feed_pb2.Grant) -> dict[str, object]:
    return {
        "subject": grant_.subject,
        "rights": [feed_pb2.Right.Name(right) for right in grant_.rights],
        "valid_until_milliseconds": grant_.valid_until_milliseconds,
        "granted_by": grant_.granted_by,
    }


def _as_dict(info: control_pb2.DataStoreInfo) -> dict[str, object]:
    return {
        "path": info.path.decode(errors="replace"),
        "owner": info.owner,
        "strategy": feed_pb2.Strategy.Name(info.strategy).lower(),
        "replicas": info.replicas,
        "files": info.file_count,
        "size_bytes": info.size_bytes,
        "below_target": info.versions_below_target,
        "hosts": list(info.hosts),
        "readable": info.readable,
        "grants": [_grant_dict(grant_) for grant_ in info.grants],
    }
