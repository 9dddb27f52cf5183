"""Errors are kinds of what the caller can do about them.

Every error a room raises is one of these kinds. `ERROR_CODES` is the one table that says what a kind is at each
edge of the house: the exit code of a command, the errno a file system call gets, the gRPC status code on the wire.
Foreign exceptions (OSError, sqlite3, grpc, ssl) become one of these at the adapter that met them, nowhere else.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

__all__ = [
    "ERROR_CODES",
    "CollectiveError",
    "Conflict",
    "Corrupt",
    "ErrorCodes",
    "Full",
    "Misconfigured",
    "NotFound",
    "Refused",
    "Unreachable",
    "codes_of",
    "error_named",
]


class CollectiveError(Exception):
    """What happened (`message`), and what to do next (`hint`, one line, may be empty)."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class Refused(CollectiveError):
    """The caller may not: no right, no trust, wrong component, or the request makes no sense."""


class Unreachable(CollectiveError):
    """Nobody who could answer did. Trying again later may help."""


class NotFound(CollectiveError):
    """It is known not to be there; never said of what could not be asked."""


class Conflict(CollectiveError):
    """Something else is there already, or changed meanwhile."""


class Corrupt(CollectiveError):
    """Bytes are not what they were signed, sealed or hashed as."""


class Full(CollectiveError):
    """A disk, pledge or limit is used up."""


class Misconfigured(CollectiveError):
    """A file, setting, key or mode is wrong here, at home; its owner can mend it."""


@dataclass(frozen=True)
class ErrorCodes:
    """What one kind is at each edge: `exit_code` of the command line, `errno` for FUSE, `grpc_status` as int."""

    exit_code: int
    errno: int
    grpc_status: int


ERROR_CODES: dict[type[CollectiveError], ErrorCodes] = {
    Refused: ErrorCodes(1, errno.EACCES, 7),  # PERMISSION_DENIED
    Unreachable: ErrorCodes(3, errno.EIO, 14),  # UNAVAILABLE
    NotFound: ErrorCodes(1, errno.ENOENT, 5),  # NOT_FOUND
    Conflict: ErrorCodes(1, errno.EEXIST, 6),  # ALREADY_EXISTS
    Corrupt: ErrorCodes(1, errno.EIO, 15),  # DATA_LOSS
    Full: ErrorCodes(1, errno.ENOSPC, 8),  # RESOURCE_EXHAUSTED
    Misconfigured: ErrorCodes(1, errno.EINVAL, 9),  # FAILED_PRECONDITION
}


def codes_of(error: CollectiveError) -> ErrorCodes:
    """The row of the error's kind (the nearest kind for a subclass)."""
    for kind in type(error).__mro__:
        if kind in ERROR_CODES:
            return ERROR_CODES[kind]
    return ErrorCodes(1, errno.EIO, 2)  # UNKNOWN


def error_named(kind: str, message: str, hint: str = "") -> CollectiveError:
    """The error that another process told us of; an unknown kind becomes the plain one."""
    for candidate in ERROR_CODES:
        if candidate.__name__ == kind:
            return candidate(message, hint)
    return CollectiveError(message, hint)
