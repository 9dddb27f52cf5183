"""What the demo found out: the last line of `--json`, and what of the promise it did not keep."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

__all__ = ["PAUSE_LIMIT_KILLED_SECONDS", "PAUSE_LIMIT_STOPPED_SECONDS", "DemoReport", "Playback", "shortcomings"]

PAUSE_LIMIT_KILLED_SECONDS = 1.0  # a killed process resets its connections: the reader knows at once
PAUSE_LIMIT_STOPPED_SECONDS = 5.0  # a stopped one is silent: only time tells


@dataclass(frozen=True)
class DemoReport:
    """The keys of the last line, in this order. `mb_per_s` is the unpaced cold read, in 10**6 bytes a second."""

    members: int
    bytes: int
    sha256_equal: bool
    mb_per_s: float
    killed: str
    bytes_from_second_holder: int
    longest_pause_seconds: float

    def last_line(self) -> str:
        """One JSON object on one line."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Playback:
    """What the player says when it is done; `frames` were decoded, `longest_pause_at` is a byte offset."""

    bytes: int
    sha256: str
    first_byte_seconds: float
    longest_pause_seconds: float
    longest_pause_at: int
    frames: int
    decoder_exit: int


def shortcomings(report: DemoReport, playback: Playback, film_bytes: int, pause_limit_seconds: float) -> list[str]:
    """What was promised and did not happen, in plain words; empty when all of it is true."""
    found = []
    if not report.sha256_equal:
        found.append("what the player read is not what alice stored: the hashes differ")
    if playback.bytes != film_bytes:
        found.append(f"the player got {playback.bytes} of {film_bytes} bytes")
    if playback.decoder_exit != 0:
        found.append(f"the decoder ended with exit code {playback.decoder_exit}")
    if playback.frames <= 0:
        found.append("the decoder saw no picture")
    if report.bytes_from_second_holder <= 0:
        found.append("the second holder served nothing after the first was gone")
    if report.longest_pause_seconds >= pause_limit_seconds:
        found.append(
            f"playback stood still for {report.longest_pause_seconds:.2f} s, the limit is {pause_limit_seconds:g} s"
        )
    return found
