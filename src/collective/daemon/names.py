"""Commands on names: each is one call to the home's coordinator, or to the home itself."""

from __future__ import annotations

import os

from collective.core.clock import Clock
from collective.daemon.control import open_control
from collective.daemon.home import Home
from collective.wire import control_pb2, feed_pb2

__all__ = ["list_path", "make_directory", "move_path", "new_commit", "remove_path"]


def new_commit(writer: str = "") -> control_pb2.CommitRequest:
    """A commit with a fresh id: sending it twice changes nothing the second time."""
    return control_pb2.CommitRequest(id=feed_pb2.OperationId(writer=writer, random=os.urandom(16)))


async def list_path(home: Home, path: bytes, owner: str, recursive: bool, clock: Clock) -> list[control_pb2.FileInfo]:
    """What is at a path: the file itself, or a folder's entries sorted by path."""
    request = control_pb2.ListFilesRequest(path=path, owner=owner, recursive=recursive)
    files: list[control_pb2.FileInfo] = []
    async with open_control(home, clock) as control:
        async for reply in control.stream("ListFiles", request, control_pb2.ListFilesReply):
            files.extend(reply.files)
    return sorted(files, key=lambda info: info.path.split(b"/"))


async def remove_path(home: Home, path: bytes, owner: str, recursive: bool, clock: Clock) -> None:
    """Remove a name, with everything below when `recursive`."""
    request = new_commit()
    request.remove_path.CopyFrom(control_pb2.RemovePath(path=path, owner=owner, recursive=recursive))
    await _commit(home, request, clock)


async def move_path(home: Home, source: bytes, destination: bytes, owner: str, clock: Clock) -> None:
    """Rename within one DataStore."""
    request = new_commit()
    request.move_path.CopyFrom(control_pb2.MovePath(source=source, destination=destination, owner=owner))
    await _commit(home, request, clock)


async def make_directory(home: Home, path: bytes, owner: str, parents: bool, clock: Clock) -> None:
    """Make a folder."""
    request = new_commit()
    request.make_directory.CopyFrom(control_pb2.MakeDirectory(path=path, owner=owner, mode=0o755, parents=parents))
    await _commit(home, request, clock)


async def _commit(home: Home, request: control_pb2.CommitRequest, clock: Clock) -> control_pb2.CommitReply:
    async with open_control(home, clock) as control:
        return await control.call("Commit", request, control_pb2.CommitReply)
