"""Operations of careless and hostile writers, and what must hold of every tree whatever they sign."""

from __future__ import annotations

import random

from support.catalogs import operation_id

from collective.catalog import Catalog
from collective.wire import feed_pb2

NUMBERS = [1, 1, 2, 3, 4, 5, 6, 7, 8, 9]
NAMES = [b"a", b"b", b"c", b"dd", b"\xff"]


def likely_operation(rng: random.Random, time_ns: int) -> feed_pb2.TreeOperation:
    """An operation among few numbers and names, so that many of them make sense, and many do not."""
    number, name = (lambda: rng.choice(NUMBERS)), (lambda: rng.choice(NAMES))
    operation = feed_pb2.TreeOperation(id=operation_id("bob"), time_nanoseconds=rng.choice([0, time_ns]))
    inline = rng.randbytes(rng.randint(0, 9))
    match rng.randrange(10):
        case 0 | 1 | 2:
            mode = rng.choice([0o100644, 0o040755, 0o040755, 0o120777, 0o010600])
            change = feed_pb2.Create(parent=number(), name=name(), inode=number(), mode=mode, symlink_target=b"x/y")
            if rng.random() < 0.5:
                change.content.CopyFrom(feed_pb2.Content(size_bytes=len(inline), inline=inline))
            operation.create.CopyFrom(change)
        case 3:
            operation.link.CopyFrom(feed_pb2.Link(inode=number(), parent=number(), name=name()))
        case 4:
            operation.unlink.CopyFrom(feed_pb2.Unlink(parent=number(), name=name(), inode=rng.choice([0, number()])))
        case 5 | 6:
            change_name = feed_pb2.Rename(
                inode=number(), from_parent=number(), from_name=name(), to_parent=number(), to_name=name(),
                replaced_inode=rng.choice([0, number()]), flags=rng.choice([0, 0, 0, 1, 2]),
            )  # fmt: skip
            operation.rename.CopyFrom(change_name)
        case 7:
            operation.set_attributes.CopyFrom(
                feed_pb2.SetAttributes(inode=number(), mode=rng.randrange(1 << 12), mtime_nanoseconds=rng.randrange(9))
            )
        case 8:
            operation.set_xattr.CopyFrom(
                feed_pb2.SetXattr(inode=number(), name=name(), value=inline, removed=rng.random() < 0.3)
            )
        case _:
            content = feed_pb2.Content(size_bytes=len(inline), inline=inline)
            if rng.random() < 0.3:
                content = feed_pb2.Content(size_bytes=rng.randrange(1 << 40), version_id=rng.randbytes(16))
            operation.set_content.CopyFrom(feed_pb2.SetContent(inode=number(), content=content))
    return operation


def random_operation(rng: random.Random) -> feed_pb2.TreeOperation:
    """A signed operation of a careless or hostile owner: anything at all."""
    number = lambda: rng.choice([0, 1, 2, 3, 4, 5, 6, 1 << 39, (1 << 64) - 1])  # noqa: E731
    name = lambda: rng.choice([b"a", b"b", b"c", b"", b".", b"..", b"x/y", b"n\0", b"n" * 256])  # noqa: E731
    time_ns = rng.choice([0, 1, -1, (1 << 63) - 1])
    kind = rng.randrange(7)
    operation = feed_pb2.TreeOperation(id=operation_id())
    if kind == 0:
        mode = rng.choice([0o100644, 0o040755, 0o120777, 0, 0o060000])
        content = feed_pb2.Content(
            size_bytes=rng.choice([0, 3, 1 << 63]), inline=rng.choice([b"", b"abc", b"x" * 5000])
        )
        operation.create.CopyFrom(
            feed_pb2.Create(parent=number(), name=name(), inode=number(), mode=mode, content=content)
        )
    elif kind == 1:
        operation.link.CopyFrom(feed_pb2.Link(inode=number(), parent=number(), name=name(), mtime_nanoseconds=time_ns))
    elif kind == 2:
        operation.unlink.CopyFrom(feed_pb2.Unlink(parent=number(), name=name(), inode=number()))
    elif kind == 3:
        operation.rename.CopyFrom(
            feed_pb2.Rename(
                inode=number(), from_parent=number(), from_name=name(), to_parent=number(), to_name=name(),
                replaced_inode=number(), flags=rng.randrange(4),
            )
        )  # fmt: skip
    elif kind == 4:
        operation.set_attributes.CopyFrom(
            feed_pb2.SetAttributes(inode=number(), mode=rng.randrange(1 << 32), mtime_nanoseconds=time_ns)
        )
    elif kind == 5:
        operation.set_xattr.CopyFrom(feed_pb2.SetXattr(inode=number(), name=name(), value=b"v"))
    else:
        operation.set_content.CopyFrom(feed_pb2.SetContent(inode=number(), content=feed_pb2.Content(inline=b"")))
    return operation


def check_tree(catalog: Catalog) -> None:
    """What must hold of every tree: links lead to inodes, counts are right, everything hangs below the root."""
    orphans = catalog._all(
        "SELECT l.name FROM links l LEFT JOIN inodes i ON i.store = l.store AND i.number = l.inode"
        " WHERE i.number IS NULL"
    )
    assert orphans == []
    for store, number, mode, count in catalog._all("SELECT store, number, mode, link_count FROM inodes"):
        assert isinstance(mode, int)
        names = catalog._all("SELECT parent FROM links WHERE store = ? AND inode = ?", store, number)
        if mode & 0o170000 == 0o040000:
            folders = catalog._all(
                "SELECT 1 FROM links l JOIN inodes i ON i.store = l.store AND i.number = l.inode"
                " WHERE l.store = ? AND l.parent = ? AND (i.mode & 61440) = 16384",
                store, number,
            )  # fmt: skip
            assert count == 2 + len(folders)
            assert len(names) == (0 if number == 1 else 1)
        else:
            assert count == len(names)
        seen = set()
        at = number
        while at != 1:
            assert at not in seen, "a cycle"
            seen.add(at)
            ((at,),) = catalog._all("SELECT parent FROM links WHERE store = ? AND inode = ? LIMIT 1", store, at)
