"""`put | get | ls | rm | mv | mkdir`."""

from __future__ import annotations

import datetime
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from collective.cli.words import home_of, json_option, note, path_and_owner, print_json, shown_name, start, tell_commit
from collective.core.errors import Refused
from collective.core.sizes import format_size
from collective.daemon.client import known_domains
from collective.daemon.getting import GetResult, get_path
from collective.daemon.names import list_path, make_directory, move_path, remove_path
from collective.daemon.putting import PutResult, put_path
from collective.daemon.runtime import SystemClock, raise_memory_thresholds
from collective.wire import control_pb2

__all__ = ["get", "ls", "mkdir", "mv", "put", "rm"]

Advance = Callable[[int, int], None]
"""(bytes done, bytes in all)"""


@contextmanager
def _progress(label: str, wanted: bool) -> Iterator[Advance]:
    """A bar on stderr when that is a terminal; else nothing."""
    if not wanted or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("address")
@click.option("--level", type=click.Choice(["local", "two"]), help="Wait for this (default: local, backups two).")
@click.option("--timeout", default=600.0, show_default=True, help="Seconds to wait for the level.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
@json_option
@click.pass_context
def put(
    context: click.Context, source: Path, address: str, level: str | None, timeout: float, quiet: bool, as_json: bool
) -> None:
    """Store the file or folder SOURCE at ADDRESS (/media/movies/film.mkv). Repeating it sends only what is missing."""
    home = home_of(context)
    path, owner = path_and_owner(address, known_domains(home))
    if address.endswith("/") and source.name:
        path = path.rstrip(b"/") + b"/" + source.name.encode(errors="surrogateescape")
    raise_memory_thresholds()
    with _progress(source.name, not quiet and not as_json) as advance:
        result = start(put_path(home, source, path, owner, level, timeout, advance, SystemClock()))
    _tell_put(result, address, as_json)
    if result.asked == "two" and result.level != "two":
        if level is None:
            note(
                f"THIS IS NOT SAFE YET: {address} belongs at level two and only this home holds it ({result.reason});"
                " it goes on being copied, `collective status` tells when both copies are there"
            )
            return
        raise Refused(
            f"{address} is stored, but only at level {result.level}: {result.reason}",
            "it goes on being copied; `collective status` tells when both copies are there",
        )


def _tell_put(result: PutResult, address: str, as_json: bool) -> None:
    rate = result.bytes / result.seconds / 1e6 if result.seconds else 0.0
    if as_json:
        print_json(
            {
                "address": address,
                "files": result.files,
                "bytes": result.bytes,
                "sent_bytes": result.sent_bytes,
                "seconds": round(result.seconds, 3),
                "level_seconds": round(result.level_seconds, 3),
                "mb_per_s": round(rate, 1),
                "level": result.level,
                "skipped": result.skipped,
                "staged": result.staged,
                "notes": result.notes,
                "holders": result.holders,
            }
        )
        return
    click.echo(
        f"Stored {result.files} file{'s' if result.files != 1 else ''}, {format_size(result.bytes)} at {rate:.0f} MB/s;"
        f" level {result.level}" + (f", held by {', '.join(result.holders)}" if result.holders else "")
    )
    if result.sent_bytes < result.bytes:
        click.echo(f"  {format_size(result.bytes - result.sent_bytes)} were there already and not sent again")
    for text in dict.fromkeys(result.notes):
        note(text)
    if result.staged:
        note(f"{result.staged} of them wait here; `collective pending` lists them")
    if result.skipped:
        note(f"{result.skipped} links, devices and sockets were left out")


@click.command()
@click.argument("address")
@click.argument("destination", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--quiet", is_flag=True, help="No progress bar.")
@json_option
@click.pass_context
def get(context: click.Context, address: str, destination: Path, quiet: bool, as_json: bool) -> None:
    """Fetch ADDRESS into DESTINATION (`-`: stdout). A broken transfer goes on where it stopped."""
    home = home_of(context)
    path, owner = path_and_owner(address, known_domains(home))
    raise_memory_thresholds()
    to_stdout = str(destination) == "-"
    with _progress(address.rsplit("/", 1)[-1], not quiet and not as_json) as advance:
        result = start(get_path(home, path, owner, None if to_stdout else destination, advance, SystemClock()))
    if not to_stdout:
        _tell_get(result, destination, as_json)


def _tell_get(result: GetResult, destination: Path, as_json: bool) -> None:
    rate = result.bytes / result.seconds / 1e6 if result.seconds else 0.0
    if as_json:
        print_json(
            {
                "destination": str(destination),
                "files": result.files,
                "bytes": result.bytes,
                "resumed_bytes": result.resumed_bytes,
                "seconds": round(result.seconds, 3),
                "mb_per_s": round(rate, 1),
                "served_by": result.served_by,
            }
        )
        return
    served = ", ".join(f"{member} {format_size(count)}" for member, count in sorted(result.served_by.items()))
    click.echo(
        f"Fetched {result.files} file{'s' if result.files != 1 else ''}, {format_size(result.bytes)} at {rate:.0f} MB/s"
        + (f" from {served}" if served else "")
    )


@click.command()
@click.argument("address", default="/")
@click.option("-l", "long", is_flag=True, help="With size, time and holders.")
@click.option("-R", "recursive", is_flag=True, help="With everything below.")
@json_option
@click.pass_context
def ls(context: click.Context, address: str, long: bool, recursive: bool, as_json: bool) -> None:
    """List names; always from this home's own database, whoever is away."""
    home = home_of(context)
    path, owner = path_and_owner(address, known_domains(home))
    files = start(list_path(home, path, owner, recursive, SystemClock()))
    if as_json:
        print_json({"files": [_file_dict(info) for info in files]})
        return
    for info in files:
        click.echo(_file_line(info, path, long))


def _file_line(info: control_pb2.FileInfo, top: bytes, long: bool) -> str:
    inside = info.path[len(top.rstrip(b"/")) + 1 :] if info.path.startswith(top.rstrip(b"/") + b"/") else info.path
    name = shown_name(inside) + ("/" if stat.S_ISDIR(info.mode) else "")
    if not long:
        return name
    moment = datetime.datetime.fromtimestamp(info.mtime_nanoseconds / 1e9).astimezone()
    holders = ",".join(holder.split(".")[0] for holder in info.holders) or "-"
    return f"{stat.filemode(info.mode)} {info.size_bytes:>14} {moment:%Y-%m-%d %H:%M} {holders:<16} {name}"


def _file_dict(info: control_pb2.FileInfo) -> dict[str, object]:
    return {
        "path": info.path.decode(errors="surrogateescape"),
        "directory": stat.S_ISDIR(info.mode),
        "mode": info.mode,
        "size_bytes": info.size_bytes,
        "mtime_nanoseconds": info.mtime_nanoseconds,
        "inode": info.inode,
        "version": info.version_id.hex(),
        "holders": list(info.holders),
        "owner": info.owner,
    }


@click.command()
@click.argument("addresses", nargs=-1, required=True)
@click.option("-r", "recursive", is_flag=True, help="Folders with everything in them.")
@click.pass_context
def rm(context: click.Context, addresses: tuple[str, ...], recursive: bool) -> None:
    """Remove names. The bytes stay where they are for now; nothing is deleted from disks yet."""
    home = home_of(context)
    known = known_domains(home)
    for address in addresses:
        path, owner = path_and_owner(address, known)
        tell_commit(start(remove_path(home, path, owner, recursive, SystemClock())))


@click.command()
@click.argument("source")
@click.argument("destination")
@click.pass_context
def mv(context: click.Context, source: str, destination: str) -> None:
    """Rename SOURCE to DESTINATION within one DataStore."""
    home = home_of(context)
    known = known_domains(home)
    source_path, owner = path_and_owner(source, known)
    destination_path, _ = path_and_owner(destination, known)
    tell_commit(start(move_path(home, source_path, destination_path, owner, SystemClock())))


@click.command()
@click.argument("address")
@click.option("-p", "parents", is_flag=True, help="Parents too; no error when it is there.")
@click.pass_context
def mkdir(context: click.Context, address: str, parents: bool) -> None:
    """Make a folder."""
    home = home_of(context)
    path, owner = path_and_owner(address, known_domains(home))
    tell_commit(start(make_directory(home, path, owner, parents, SystemClock())))
