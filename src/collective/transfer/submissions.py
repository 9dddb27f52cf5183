"""Operations as they are handed in: what must be true of each before anybody looks at the tree.

Pure. An operation comes with everything needed to apply it; here it is held against itself: its id, the layout and
pages of its content, its size. Whether it may be done, and still fits, the catalogue judges.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterable, Iterator, Sequence

from collective.chunks import compute_layout_hash, page_name
from collective.core.address import parse_address
from collective.core.errors import CollectiveError, Corrupt, Refused
from collective.core.layout import INLINE_LIMIT_BYTES, MAX_CHUNK_SIZE_BYTES, VersionLayout, decode_page
from collective.transfer.leases import Directory
from collective.wire import feed_pb2, submit_pb2

__all__ = [
    "OPERATIONS_PER_SUBMIT",
    "content_of",
    "made_directories",
    "pieces",
    "refusal",
    "touched_directories",
    "verify_operation",
]

OPERATIONS_PER_SUBMIT = 1024
OPERATIONS_PER_ENTRY = 256
ENTRY_BYTES = 768 * 1024  # of operations; an entry holds 1 MiB with its layouts
ID_BYTES = 16


def content_of(operation: feed_pb2.TreeOperation) -> feed_pb2.Content | None:
    """The content that an operation brings."""
    change = operation.WhichOneof("change")
    if change == "set_content":
        return operation.set_content.content
    if change == "create" and operation.create.HasField("content"):
        return operation.create.content
    return None


def verify_operation(staged: submit_pb2.StagedOperation, writer: str) -> None:
    """The operation is whole, and its writer is the member that hands it in. Raises: Refused, Corrupt."""
    operation = staged.operation
    if operation.id.writer != writer or len(operation.id.random) != ID_BYTES:
        raise Refused(f"an operation of {operation.id.writer or 'nobody'} is handed in by {writer}")
    if operation.actor and parse_address(operation.actor).domain != writer:
        raise Refused(f"{writer} hands in what {operation.actor} asked for")
    if operation.WhichOneof("change") is None:
        raise Refused("the operation carries no change this version knows", "use the same version on both sides")
    content = content_of(operation)
    if content is not None and content.version_id:
        if staged.HasField("layout"):  # else a version that is there already, by reference
            _verify_layout(content, staged)
    elif staged.HasField("layout"):
        raise Corrupt("a layout came without a content that names it")
    elif content is not None and (
        content.size_bytes != len(content.inline) or len(content.inline) > INLINE_LIMIT_BYTES
    ):
        raise Corrupt(f"an inline content of {len(content.inline)} bytes says it has {content.size_bytes}")


def _verify_layout(content: feed_pb2.Content, staged: submit_pb2.StagedOperation) -> None:
    layout = staged.layout
    if content.inline or (content.version_id, content.size_bytes) != (layout.version_id, layout.size_bytes):
        raise Corrupt("the content names another version than the layout beside it")
    if list(content.key_pages) != list(layout.key_pages):
        raise Corrupt("the content names other sealed pages than the layout beside it")
    if [page_name(page) for page in staged.pages] != list(layout.pages):
        raise Corrupt("the pages sent are not the ones the layout names")
    if [page_name(page) for page in staged.key_pages] != list(layout.key_pages):
        raise Corrupt("the sealed pages sent are not the ones the layout names")
    chunks = [chunk for page in staged.pages for chunk in decode_page(page)]
    if not 0 < layout.chunk_size_bytes <= MAX_CHUNK_SIZE_BYTES:
        raise Corrupt(f"chunks of {layout.chunk_size_bytes} bytes are none")
    shape = VersionLayout(layout.size_bytes, layout.chunk_size_bytes)
    sizes = [chunk.size_bytes for chunk in chunks]
    # the count first: a size that somebody made up is not counted through
    if len(sizes) != shape.chunk_count or sizes != [shape.chunk_size(index) for index in range(len(sizes))]:
        raise Corrupt("the chunks listed do not add up to the file's size")
    if compute_layout_hash(layout) != layout.layout_hash:
        raise Corrupt("the layout is not the one its hash names")


def refusal(error: CollectiveError) -> submit_pb2.OperationOutcome:
    """The outcome of an operation that cannot be taken at all."""
    return submit_pb2.OperationOutcome(outcome=submit_pb2.REFUSED, reason=error.message, errno=errno.EIO)


def pieces(operations: Sequence[submit_pb2.StagedOperation]) -> Iterator[list[submit_pb2.StagedOperation]]:
    """The operations in order, in portions that fit into one entry each."""
    piece: list[submit_pb2.StagedOperation] = []
    size = 0
    for staged in operations:
        more = staged.operation.ByteSize() + staged.layout.ByteSize()
        if piece and (len(piece) >= OPERATIONS_PER_ENTRY or size + more > ENTRY_BYTES):
            yield piece
            piece, size = [], 0
        piece.append(staged)
        size += more
    if piece:
        yield piece


def touched_directories(store_id: bytes, operations: Iterable[submit_pb2.StagedOperation]) -> set[Directory]:
    """Every directory whose names an operation changes, those it removes or replaces included: they must be empty."""
    numbers: set[int] = set()
    for staged in operations:
        operation = staged.operation
        change = operation.WhichOneof("change")
        if change == "create":
            numbers.add(operation.create.parent)
        elif change == "link":
            numbers.add(operation.link.parent)
        elif change == "unlink":
            numbers |= {operation.unlink.parent, operation.unlink.inode}
        elif change == "rename":
            rename = operation.rename
            numbers |= {rename.from_parent, rename.to_parent, rename.replaced_inode}
    return {(store_id, number) for number in numbers if number}


def made_directories(
    store_id: bytes, operations: Iterable[submit_pb2.StagedOperation]
) -> Iterator[tuple[Directory, Directory]]:
    """(parent, directory) of each directory that is created."""
    for staged in operations:
        create = staged.operation.create
        if staged.operation.HasField("create") and stat.S_ISDIR(create.mode):
            yield (store_id, create.parent), (store_id, create.inode)
