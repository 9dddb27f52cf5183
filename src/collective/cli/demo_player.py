"""The demo's player: reads a film at the pace of watching it, hashes what it got and has ffmpeg decode just that.

A process of its own, so that a read that hangs can be ended from outside. It reads a path (a file of the mount) or
`-` (a stream), and writes JSON lines: `{"at": BYTES, …}` while it plays, and a `Playback` at the end. The decoder is
fed by a thread through a queue, so that only the source can make the pace falter, never the decoder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import queue
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import IO

from collective.cli.demo_report import Playback

__all__ = ["Decoder", "Pacing", "main", "play"]

BLOCK_BYTES = 1 << 20
QUEUE_BLOCKS = 256  # the decoder may be this many MiB behind before it holds the reader up
TELL_SECONDS = 0.25


@dataclass
class Pacing:
    """When each byte is due, and how late the latest one was.

    The clock starts when the first block is there. A late block does not move the ones after it: the reader hurries
    until it is in step again, so one hold-up spread over several reads counts as the one pause it is to a watcher.
    """

    bytes_per_second: float
    started: float | None = None
    longest_pause_seconds: float = 0.0
    longest_pause_at: int = 0

    def wait_seconds(self, offset: int, now: float) -> float:
        """How long until the byte at `offset` is due; 0 when it is, or nothing has started."""
        if self.started is None:
            return 0.0
        return max(0.0, self.started + offset / self.bytes_per_second - now)

    def arrived(self, offset: int, now: float) -> None:
        """The block that begins at `offset` is there."""
        if self.started is None:
            self.started = now - offset / self.bytes_per_second
        late = now - (self.started + offset / self.bytes_per_second)
        if late > self.longest_pause_seconds:
            self.longest_pause_seconds = late
            self.longest_pause_at = offset


@dataclass
class Decoder:
    """ffmpeg decoding the first video track of its stdin to nothing, counting frames."""

    process: subprocess.Popen[bytes]
    _blocks: queue.Queue[bytes] = field(default_factory=lambda: queue.Queue(QUEUE_BLOCKS))
    _threads: list[threading.Thread] = field(default_factory=list)
    frames: int = 0

    @classmethod
    def start(cls) -> Decoder:
        words = ["ffmpeg", "-v", "error", "-nostats", "-progress", "pipe:1"]
        words += ["-i", "pipe:0", "-map", "0:v:0", "-f", "null", "-"]
        decoder = cls(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        for work in (decoder._feed, decoder._count):
            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            decoder._threads.append(thread)
        return decoder

    def give(self, block: bytes) -> None:
        """Hand it the next bytes; waits only when it is far behind."""
        self._blocks.put(block)

    def finish(self) -> int:
        """No more bytes come: its exit code."""
        self._blocks.put(b"")
        for thread in self._threads:
            thread.join()
        return self.process.wait()

    def _feed(self) -> None:
        assert self.process.stdin is not None
        listening = True
        while block := self._blocks.get():
            if listening:
                try:
                    self.process.stdin.write(block)
                except BrokenPipeError:
                    listening = False  # it ended; its exit code tells, the reader goes on hashing
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            listening = False

    def _count(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                name, _, value = line.decode(errors="replace").partition("=")
                if name == "frame" and value.strip().isdigit():
                    self.frames = int(value)


def play(source: IO[bytes], decoder: Decoder, pacing: Pacing, tell: Callable[[dict[str, object]], None]) -> Playback:
    """Read `source` (unbuffered) to its end at the pace; `tell` hears how far it is a few times a second."""
    opened = time.monotonic()
    digest = hashlib.sha256()
    offset = 0
    told = first_byte_seconds = 0.0
    while True:
        if pause := pacing.wait_seconds(offset, time.monotonic()):
            time.sleep(pause)
        block = source.read(BLOCK_BYTES)
        now = time.monotonic()
        if not block:
            break
        if offset == 0:
            first_byte_seconds = now - opened
        pacing.arrived(offset, now)
        digest.update(block)
        decoder.give(block)
        offset += len(block)
        if now - told >= TELL_SECONDS:
            told = now
            tell({"at": offset, "longest_pause_seconds": round(pacing.longest_pause_seconds, 3)})
    decoder_exit = decoder.finish()
    return Playback(
        bytes=offset,
        sha256=digest.hexdigest(),
        first_byte_seconds=round(first_byte_seconds, 3),
        longest_pause_seconds=round(pacing.longest_pause_seconds, 3),
        longest_pause_at=pacing.longest_pause_at,
        frames=decoder.frames,
        decoder_exit=decoder_exit,
    )


def main() -> None:
    """`python -m collective.cli.demo_player SOURCE --bytes-per-second N`"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="a path, or - for stdin")
    parser.add_argument("--bytes-per-second", type=float, required=True)
    arguments = parser.parse_args()
    descriptor = 0 if arguments.source == "-" else os.open(arguments.source, os.O_RDONLY | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) as source:
        playback = play(source, Decoder.start(), Pacing(arguments.bytes_per_second), _print)
    _print({"done": asdict(playback)})


def _print(document: dict[str, object]) -> None:
    print(json.dumps(document), flush=True)


if __name__ == "__main__":
    main()
