"""A chunk's file: the sealed bytes, then a trailer of one version byte and the hash list."""

from __future__ import annotations

import errno
import os

from collective.chunks.seal import HASH_BYTES, verify_hashes
from collective.core.errors import Corrupt
from collective.core.layout import SEALED_SEGMENT_BYTES

__all__ = ["BrokenFileError", "read_exactly", "read_trailer", "write_chunk"]

TRAILER_VERSION = b"\x01"


class BrokenFileError(Exception):
    """A chunk's file is not what was put there."""


def read_exactly(descriptor: int, out: memoryview, offset: int) -> None:
    """Fill `out` from a place in the file. Raises: BrokenFileError (short, or a bad sector), OSError."""
    done = 0
    while done < len(out):
        try:
            got = os.preadv(descriptor, [out[done:]], offset + done)
        except OSError as error:
            if error.errno == errno.EIO:
                raise BrokenFileError(f"the disk cannot read it at byte {offset + done}") from error
            raise
        if got == 0:
            raise BrokenFileError(f"the file ends at byte {offset + done}")
        done += got


def read_trailer(descriptor: int, id_: bytes, size: int) -> bytes:
    """The verified hash list behind the sealed bytes. Raises: BrokenFileError, OSError."""
    trailer = bytearray(1 + HASH_BYTES * -(-size // SEALED_SEGMENT_BYTES))
    read_exactly(descriptor, memoryview(trailer), size)
    hashes = bytes(trailer[1:])
    try:
        verify_hashes(id_, hashes, size)
    except Corrupt as error:
        raise BrokenFileError(error.message) from error
    if trailer[:1] != TRAILER_VERSION:
        raise BrokenFileError(f"a trailer of version {trailer[0]}")
    return hashes


def write_chunk(descriptor: int, sealed: memoryview, hashes: bytes) -> None:
    """Write sealed bytes and their trailer. Raises: OSError."""
    buffers = [sealed, memoryview(TRAILER_VERSION + hashes)]
    while buffers:
        written = os.writev(descriptor, buffers)
        while buffers and written >= len(buffers[0]):
            written -= len(buffers.pop(0))
        if written:
            buffers[0] = buffers[0][written:]
