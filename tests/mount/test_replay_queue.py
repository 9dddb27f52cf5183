"""When a batch goes, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise

import pytest
from simulation.loop import VirtualLoop

from collective.core.observe import SILENT
from collective.mount import replay_queue
from collective.mount.replay_queue import Queued, StoreQueue
from collective.mount.scheduling import Keys
from collective.wire import submit_pb2

STORE_ID = b"store"


class SlowCommitter:
    """Answers after `seconds`; `sent` is (when, how many) of each batch."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.sent: list[tuple[float, int]] = []

    async def submit(
        self, store_id: bytes, operations: Sequence[submit_pb2.StagedOperation], *, exact: bool
    ) -> Sequence[submit_pb2.OperationOutcome]:
        self.sent.append((round(asyncio.get_running_loop().time(), 3), len(operations)))
        await asyncio.sleep(self.seconds)
        return [submit_pb2.OperationOutcome(outcome=submit_pb2.APPLIED) for _ in operations]


def sent_by(committer: SlowCommitter, every_seconds: float, operations: int) -> list[tuple[float, int]]:
    """What a program that makes a change every so often has sent."""
    loop = VirtualLoop()

    async def work() -> None:
        queue = StoreQueue(STORE_ID, committer, SILENT, lambda: None, lambda seqs: None)  # type: ignore[arg-type]
        running = asyncio.ensure_future(queue.run())
        for number in range(operations):
            queue.add(Queued([number], submit_pb2.StagedOperation()), Keys((number + 1,)))
            await asyncio.sleep(every_seconds)
        await asyncio.sleep(10)
        running.cancel()
        assert not len(queue)

    try:
        loop.run_until_complete(work())
    finally:
        loop.close()
    assert sum(size for _, size in committer.sent) == operations
    return committer.sent


def test_a_single_change_goes_after_20_ms() -> None:
    assert sent_by(SlowCommitter(0.001), 0.0, 1) == [(0.02, 1)]


def test_a_busy_program_sends_200_ms_after_the_first_of_a_batch() -> None:
    """Also when the batch before is answered meanwhile: what waited then does not wait another 200 ms."""
    times = [at for at, _ in sent_by(SlowCommitter(0.15), 0.01, 200)]
    steps = [later - earlier for earlier, later in pairwise(times)]
    assert times[0] == pytest.approx(0.2, abs=0.02)
    assert max(steps) <= 0.22


def test_a_batch_that_waited_for_the_one_before_goes_at_once() -> None:
    sent = sent_by(SlowCommitter(0.5), 0.01, 200)
    times = [at for at, _ in sent]
    assert all(later - earlier == pytest.approx(0.5, abs=0.01) for earlier, later in pairwise(times))


def test_a_full_batch_goes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_queue, "BATCH_OPERATIONS", 10)
    sent = sent_by(SlowCommitter(0.001), 0.001, 100)
    assert [size for _, size in sent] == [10] * 10
    assert sent[-1][0] < 0.15
