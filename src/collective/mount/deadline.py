"""A deadline that costs nothing where nothing waits: most operations of a mount are answered from memory."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from types import coroutine
from typing import Any, TypeVar

__all__ = ["within"]

T = TypeVar("T")


async def within(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """Run `work`; a timer is set only if it waits. Raises: TimeoutError after `seconds`, and what `work` raises."""
    try:
        awaited = work.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    async with asyncio.timeout(seconds):
        return await _resume(work, awaited)


@coroutine
def _resume(work: Coroutine[Any, Any, T], awaited: Any) -> Generator[Any, Any, T]:
    """Go on with a coroutine that waits for `awaited` already: what `await` does from its second step on."""
    while True:
        failure: BaseException | None = None
        sent = None
        try:
            sent = yield awaited
        except BaseException as error:
            failure = error
        try:
            awaited = work.send(sent) if failure is None else work.throw(failure)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
