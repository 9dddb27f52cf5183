"""A relay of TCP connections in a thread of the test, as any box between two homes could be; it may mean harm."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from random import Random
from types import TracebackType

__all__ = ["TRICKS", "Relay"]

TRICKS = ("flip", "cut", "repeat", "swap", "old")
PIECE_BYTES = 16 * 1024


class Relay:
    """Passes connections to `port` on through `self.port`. A context manager; `meddling` is the part of all pieces that
    it alters, from any thread; `done` counts its tricks by name."""

    def __init__(self, port: int, seed: int = 7) -> None:
        self.meddling = 0.0
        self.done: Counter[str] = Counter()
        self.port = 0
        self._target = port
        self._chance = Random(seed)
        self._old: list[bytes] = [b"\x17\x03\x03\x00\x10" + bytes(16)]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="relay")
        self._ready = threading.Event()
        self._stop = asyncio.Event()

    def __enter__(self) -> Relay:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError):
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
            with contextlib.closing(back):
                ways = [
                    asyncio.ensure_future(self._pass(reader, back)),
                    asyncio.ensure_future(self._pass(there, writer)),
                ]
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                for way in ways:
                    way.cancel()
                await asyncio.wait(ways)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held = b""
        with contextlib.suppress(OSError):
            while piece := await reader.read(PIECE_BYTES):
                trick = self._chance.choice(TRICKS) if self._chance.random() < self.meddling else ""
                if trick:
                    self.done[trick] += 1
                if trick == "cut":
                    writer.write(piece[: len(piece) // 2])
                    return
                if trick == "swap":
                    held += piece
                    continue
                writer.write(self._altered(piece, trick) + held)
                held = b""
                self._old = [*self._old[-20:], piece]
                await writer.drain()

    def _altered(self, piece: bytes, trick: str) -> bytes:
        match trick:
            case "flip":
                place = self._chance.randrange(len(piece))
                return piece[:place] + bytes([piece[place] ^ 1 << self._chance.randrange(8)]) + piece[place + 1 :]
            case "repeat":
                return piece + piece
            case "old":  # a piece of any connection that passed here, of other members too
                return self._chance.choice(self._old)
            case _:
                return piece
