"""`cp | versions | restore | pending`."""

from __future__ import annotations

import datetime

import click

from collective.cli.words import home_of, json_option, path_and_owner, print_json, start, tell_commit
from collective.core.errors import NotFound
from collective.core.sizes import format_size
from collective.daemon.client import known_domains
from collective.daemon.names import copy_path, discard_pending, list_pending, list_versions, restore_version
from collective.daemon.runtime import SystemClock
from collective.wire import control_pb2

__all__ = ["cp", "pending", "restore", "versions"]


@click.command()
@click.argument("source")
@click.argument("destination")
@click.option("-r", "recursive", is_flag=True, help="Folders with everything in them.")
@click.pass_context
def cp(context: click.Context, source: str, destination: str, recursive: bool) -> None:
    """Copy SOURCE to DESTINATION within one DataStore. No byte is moved: both names share the stored content."""
    home = home_of(context)
    known = known_domains(home)
    source_path, owner = path_and_owner(source, known)
    destination_path, _ = path_and_owner(destination, known)
    tell_commit(start(copy_path(home, source_path, destination_path, owner, recursive, SystemClock())))


@click.command()
@click.argument("address")
@json_option
@click.pass_context
def versions(context: click.Context, address: str, as_json: bool) -> None:
    """What the file at ADDRESS was, newest first. The first column is what `restore --version` takes."""
    home = home_of(context)
    path, owner = path_and_owner(address, known_domains(home))
    found = start(list_versions(home, path, owner, SystemClock()))
    if as_json:
        print_json({"address": address, "versions": [_version_dict(version) for version in found]})
        return
    for version in found:
        state = "current" if version.current else f"until {_moment(version.replaced_nanoseconds)}"
        if version.removed:
            state += ", removed"
        click.echo(
            f"{version.seq:>12}  {_moment(version.mtime_nanoseconds)}  {format_size(version.size_bytes):>10}"
            f"  {version.actor}  {state}"
        )


@click.command()
@click.argument("address")
@click.option("--version", "seq", type=click.IntRange(0), default=0, help="As `versions` lists it (default: the last).")
@click.option("--as", "destination", default="", metavar="ADDRESS", help="Bring it back under this name instead.")
@click.pass_context
def restore(context: click.Context, address: str, seq: int, destination: str) -> None:
    """Bring an earlier version of ADDRESS back, also of a file that was removed. What is there now stays a version."""
    home = home_of(context)
    known = known_domains(home)
    path, owner = path_and_owner(address, known)
    target = path_and_owner(destination, known)[0] if destination else b""
    tell_commit(start(restore_version(home, path, owner, seq, target, SystemClock())))


@click.command()
@click.option("--discard", "numbers", type=int, multiple=True, metavar="N", help="Forget this refused change.")
@json_option
@click.pass_context
def pending(context: click.Context, numbers: tuple[int, ...], as_json: bool) -> None:
    """Changes that wait for their DataStore's owner (this home itself, while in doubt), or that it refused."""
    home = home_of(context)
    if numbers:
        discarded = start(discard_pending(home, list(numbers), SystemClock()))
        if discarded < len(set(numbers)):
            raise NotFound(
                f"{discarded} of {len(set(numbers))} were discarded",
                "only refused changes can be; what still waits is sent when its owner is back",
            )
        click.echo(f"Discarded {discarded}.")
        return
    changes = start(list_pending(home, SystemClock()))
    if as_json:
        print_json({"pending": [_change_dict(change) for change in changes]})
        return
    for change in changes:
        reason = f": {change.reason}" if change.reason else ""
        path = change.path.decode(errors="backslashreplace")
        click.echo(f"{change.number:>8}  {change.change:<8} {path}@{change.owner}  {change.state}{reason}")


def _moment(nanoseconds: int) -> str:
    return f"{datetime.datetime.fromtimestamp(nanoseconds / 1e9).astimezone():%Y-%m-%d %H:%M:%S}"


def _version_dict(version: control_pb2.FileVersion) -> dict[str, object]:
    return {
        "version": version.seq,
        "size_bytes": version.size_bytes,
        "mtime_nanoseconds": version.mtime_nanoseconds,
        "replaced_nanoseconds": version.replaced_nanoseconds,
        "actor": version.actor,
        "current": version.current,
        "removed": version.removed,
    }


def _change_dict(change: control_pb2.PendingChange) -> dict[str, object]:
    return {
        "number": change.number,
        "owner": change.owner,
        "path": change.path.decode(errors="replace"),
        "change": change.change,
        "state": change.state,
        "reason": change.reason,
        "staged_milliseconds": change.staged_milliseconds,
    }
