"""A deadline that costs nothing where nothing waits: most operations of a mount are answered from memory."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from dataclasses import dataclass
from types import coroutine
from typing import Any, TypeVar

__all__ = ["Waiting", "within"]

T = TypeVar("T")


@dataclass(slots=True)
class Waiting:
    """How many wait at this moment."""

    count: int = 0


async def within(seconds: float, work: Coroutine[Any, Any, T], waiting: Waiting) -> T:
    """Run `work`; a timer is set only if it waits, and then it is counted. Raises: TimeoutError after `seconds`, and
    what `work` raises."""
    try:
        awaited = work.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    waiting.count += 1
    try:
        async with asyncio.timeout(seconds):
            return await _resume(work, awaited)
    finally:
        waiting.count -= 1


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
