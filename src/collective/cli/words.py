"""Words shared by the commands: how a home, an address and an endpoint are written, and how answers are printed."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Self, TypeVar

import click

from collective.core.address import parse_address
from collective.core.errors import Conflict, Misconfigured, Refused
from collective.daemon.config import default_home
from collective.daemon.home import Home
from collective.daemon.runtime import run
from collective.net.endpoints import parse_host_port
from collective.wire import control_pb2, feed_pb2

__all__ = [
    "NewFile",
    "describe_peer",
    "endpoint_option",
    "home_of",
    "json_option",
    "note",
    "parse_endpoint",
    "path_and_owner",
    "print_json",
    "shown_name",
    "start",
    "tell_commit",
]

Result = TypeVar("Result")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def home_of(context: click.Context, config_file: Path | None = None) -> Home:
    """The home that `--home`, COLLECTIVE_HOME or the default names."""
    root = context.find_root().obj
    return Home((Path(root) if root is not None else default_home()).absolute(), config_file)


def start(main: Coroutine[Any, Any, Result]) -> Result:
    """Run a command's coroutine."""
    return run(main)


def note(text: str) -> None:
    """Something the person should know, on stderr."""
    click.echo(f"note: {text}", err=True)


def tell_commit(reply: control_pb2.CommitReply) -> None:
    """What the person should know about a change that was made: kept under another name, or not arrived yet."""
    for text in reply.notes:
        note(text)
    if reply.staged:
        note("`collective pending` lists what is kept here")


def describe_peer(peer: dict[str, Any]) -> str:
    """A member as the running coordinator sees it: state, how far behind, when it was last heard."""
    parts = [peer["state"]]
    if peer["entries_behind"]:
        parts.append(f"{peer['entries_behind']} entries behind")
    if peer["entries_ahead"]:
        parts.append(f"{peer['entries_ahead']} entries ahead of this home")
    if peer["heard_seconds_ago"] is not None:
        parts.append(f"heard {peer['heard_seconds_ago']:.0f} s ago")
    return ", ".join(parts)


def print_json(document: object) -> None:
    """One object on one line, the last of stdout."""
    click.echo(json.dumps(document))
    sys.stdout.flush()


def path_and_owner(text: str, known_domains: set[str]) -> tuple[bytes, str]:
    """(path, owner's domain or "") of an address as typed.

    A suffix `@…` is a domain only when the roster knows it: `/media/logo@2x.png` is a name. Paths are bytes.
    """
    raw = text.encode(errors="surrogateescape")
    if not raw.startswith(b"/"):
        raise Refused(f"{text!r} is not a path in the library", "write it from the top: /media/movies/film.mkv")
    _, separator, suffix = raw.rpartition(b"@")
    if separator:
        domain = suffix.decode(errors="replace").lower()
        if domain in known_domains:
            return parse_address(raw).resource, domain
    return _clean(raw, text), ""


def _clean(raw: bytes, text: str) -> bytes:
    parts = [part for part in raw.split(b"/") if part]
    for part in parts:
        if part in (b".", b".."):
            raise Refused(f"{text!r} has a '.' or '..' in it", "write the path without them")
        if len(part) > 255:
            raise Refused(f"a name in {text[:40]!r}… is {len(part)} bytes long", "names hold up to 255 bytes")
        if b"\0" in part:
            raise Refused("a name holds a NUL byte")
    return b"/" + b"/".join(parts)


def shown_name(name: bytes) -> str:
    """A name from the library for people's terminals: whatever steers one, or is no text, as an escape."""
    text = name.decode(errors="backslashreplace")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def parse_endpoint(text: str) -> feed_pb2.Endpoint:
    """`TYPE:HOST:PORT[,LANEPORT]` or `HOST:PORT` (direct)."""
    first, _, rest = text.partition(":")
    kind, address = (first, rest) if first in ("lan", "direct", "vpn") else ("direct", text)
    address, _, lane_port = address.partition(",")
    hint = "write it as lan:192.168.1.20:8001 (TYPE:HOST:PORT, 127.0.0.1:8001,9002 for another lane than the next port)"
    try:
        _, port = parse_host_port(address)
        lane = f"{address.rpartition(':')[0]}:{lane_port or port + 1}"
        _, lane_number = parse_host_port(lane)
    except Misconfigured as error:
        raise Refused(f"{text!r} is not an endpoint: {error.message}", hint) from error
    if not port or not lane_number:
        raise Refused(f"{text!r} is not an endpoint: nobody can be reached at port 0", hint)
    return feed_pb2.Endpoint(type=kind, grpc=address, lane=lane)


class NewFile:
    """A private file for an answer that cannot be had twice: there, with room, before the question is asked.

    As a context: what was not written when it ends in an error is taken away again.
    """

    ROOM_BYTES = 4 << 20

    def __init__(self, path: Path) -> None:
        """Raises: Conflict (there already), Misconfigured (no such folder, no right, no room)."""
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise Conflict(f"{path} is there already", "name another file") from None
        except OSError as error:
            raise Misconfigured(f"{path} cannot be written: {error.strerror}") from error
        try:
            os.posix_fallocate(self._descriptor, 0, self.ROOM_BYTES)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                self.__exit__(type(error), error, None)
                raise Misconfigured(f"{path} cannot be written: {error.strerror}", "make room") from error

    def write(self, content: bytes) -> None:
        """The whole content, synced."""
        view = memoryview(content)
        while view:
            view = view[os.write(self._descriptor, view) :]
        os.ftruncate(self._descriptor, len(content))
        os.fsync(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        os.close(self._descriptor)
        if kind is not None:
            self._path.unlink(missing_ok=True)


endpoint_option = click.option(
    "--endpoint", "endpoints", multiple=True, metavar="TYPE:HOST:PORT", help="Where others reach this home."
)
