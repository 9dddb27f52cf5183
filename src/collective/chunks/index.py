"""Which chunks a folder holds: sorted records in one bytearray per folder, since millions of Python objects cost too
much. 36 bytes a chunk, about 150 in a dict: 90 MB for the 2.5 million of a 20 TB node, 0.9 GB for 25 million.
Measured with a million: 1.2 s to load, 3 us to look up, 6 us to add.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

__all__ = ["ChunkIndex"]

_ID_BYTES = 32
_RECORD_BYTES = 36


class ChunkIndex:
    """id (32 bytes) -> sealed size. Lookup is a binary search, adding moves the folder's tail (256 folders)."""

    def __init__(self) -> None:
        self._folders = [bytearray() for _ in range(256)]
        self._count = 0
        self.total_bytes = 0

    def __len__(self) -> int:
        return self._count

    def load(self, folder: int, chunks: Iterable[tuple[bytes, int]]) -> None:
        """Fill one empty folder at once."""
        rows = sorted(id_ + size.to_bytes(4, "big") for id_, size in chunks)
        self._folders[folder] = bytearray().join(rows)
        self._count += len(rows)
        self.total_bytes += sum(int.from_bytes(row[_ID_BYTES:], "big") for row in rows)

    def size_of(self, id_: bytes) -> int | None:
        """The sealed size, None when the chunk is not there (or the id none)."""
        if len(id_) != _ID_BYTES:
            return None
        rows, at = self._find(id_)
        row = rows[at : at + _RECORD_BYTES]
        return int.from_bytes(row[_ID_BYTES:], "big") if row[:_ID_BYTES] == id_ else None

    def add(self, id_: bytes, size_bytes: int) -> None:
        """Add a chunk; adding it again changes nothing."""
        rows, at = self._find(id_)
        if rows[at : at + _ID_BYTES] != id_:
            rows[at:at] = id_ + size_bytes.to_bytes(4, "big")
            self._count += 1
            self.total_bytes += size_bytes

    def remove(self, id_: bytes) -> None:
        """Forget a chunk; forgetting it again changes nothing."""
        rows, at = self._find(id_)
        row = rows[at : at + _RECORD_BYTES]
        if row[:_ID_BYTES] == id_:
            del rows[at : at + _RECORD_BYTES]
            self._count -= 1
            self.total_bytes -= int.from_bytes(row[_ID_BYTES:], "big")

    def after(self, id_: bytes) -> tuple[bytes, int] | None:
        """The chunk that follows an id (b"" for the first), in id order; for walks that go on where they stopped."""
        folder = id_[0] if id_ else 0
        rows = self._folders[folder]
        if id_:
            _, at = self._find(id_)
            if rows[at : at + _ID_BYTES] == id_:
                at += _RECORD_BYTES
        else:
            at = 0
        while at >= len(rows):
            folder += 1
            if folder == 256:
                return None
            rows, at = self._folders[folder], 0
        row = bytes(rows[at : at + _RECORD_BYTES])
        return row[:_ID_BYTES], int.from_bytes(row[_ID_BYTES:], "big")

    def __iter__(self) -> Iterator[tuple[bytes, int]]:
        found = self.after(b"")
        while found is not None:
            yield found
            found = self.after(found[0])

    def _find(self, id_: bytes) -> tuple[bytearray, int]:
        """The folder's records and the byte where the id stands or belongs."""
        rows = self._folders[id_[0]]
        low, high = 0, len(rows) // _RECORD_BYTES
        while low < high:
            middle = (low + high) // 2
            if rows[middle * _RECORD_BYTES : middle * _RECORD_BYTES + _ID_BYTES] < id_:
                low = middle + 1
            else:
                high = middle
        return rows, low * _RECORD_BYTES
