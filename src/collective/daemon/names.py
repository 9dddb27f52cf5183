"""Commands on names: each is one call to the home's coordinator, or to the home itself."""

from __future__ import annotations

import os

from collective.core.clock import Clock
from collective.daemon.control import open_control
from collective.daemon.home import Home
from collective.wire import control_pb2, feed_pb2

__all__ = [
    "copy_path",
    "discard_pending",
    "list_path",
    "list_pending",
    "list_versions",
    "make_directory",
    "move_path",
    "new_commit",
    "remove_path",
    "restore_version",
]


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


async def remove_path(home: Home, path: bytes, owner: str, recursive: bool, clock: Clock) -> control_pb2.CommitReply:
    """Remove a name, with everything below when `recursive`."""
    request = new_commit()
    request.remove_path.CopyFrom(control_pb2.RemovePath(path=path, owner=owner, recursive=recursive))
    return await _commit(home, request, clock)


async def move_path(home: Home, source: bytes, destination: bytes, owner: str, clock: Clock) -> control_pb2.CommitReply:
    """Rename within one DataStore."""
    request = new_commit()
    request.move_path.CopyFrom(control_pb2.MovePath(source=source, destination=destination, owner=owner))
    return await _commit(home, request, clock)


async def make_directory(home: Home, path: bytes, owner: str, parents: bool, clock: Clock) -> control_pb2.CommitReply:
    """Make a folder."""
    request = new_commit()
    request.make_directory.CopyFrom(control_pb2.MakeDirectory(path=path, owner=owner, mode=0o755, parents=parents))
    return await _commit(home, request, clock)


async def copy_path(
    home: Home, source: bytes, destination: bytes, owner: str, recursive: bool, clock: Clock
) -> control_pb2.CommitReply:
    """Copy within one DataStore; no byte moves, both names lead to the same version."""
    request = new_commit()
    request.copy_path.CopyFrom(
        control_pb2.CopyPath(source=source, destination=destination, owner=owner, recursive=recursive)
    )
    return await _commit(home, request, clock)


async def list_versions(home: Home, path: bytes, owner: str, clock: Clock) -> list[control_pb2.FileVersion]:
    """What a file was, newest first."""
    request = control_pb2.ListVersionsRequest(path=path, owner=owner)
    async with open_control(home, clock) as control:
        return list((await control.call("ListVersions", request, control_pb2.ListVersionsReply)).versions)


async def restore_version(
    home: Home, path: bytes, owner: str, seq: int, destination: bytes, clock: Clock
) -> control_pb2.CommitReply:
    """Bring a version back, in its place or at `destination`; `seq` 0: the newest that is not current."""
    request = new_commit()
    request.restore_version.CopyFrom(
        control_pb2.RestoreVersion(path=path, owner=owner, seq=seq, destination=destination)
    )
    return await _commit(home, request, clock)


async def list_pending(home: Home, clock: Clock) -> list[control_pb2.PendingChange]:
    """Changes to other members' DataStores that have not arrived there yet, or were refused."""
    async with open_control(home, clock) as control:
        reply = await control.call("ListPending", control_pb2.ListPendingRequest(), control_pb2.ListPendingReply)
        return list(reply.changes)


async def discard_pending(home: Home, numbers: list[int], clock: Clock) -> int:
    """Forget refused changes; how many."""
    request = control_pb2.DiscardPendingRequest(numbers=numbers)
    async with open_control(home, clock) as control:
        return (await control.call("DiscardPending", request, control_pb2.DiscardPendingReply)).discarded


async def _commit(home: Home, request: control_pb2.CommitRequest, clock: Clock) -> control_pb2.CommitReply:
    async with open_control(home, clock) as control:
        return await control.call("Commit", request, control_pb2.CommitReply)
