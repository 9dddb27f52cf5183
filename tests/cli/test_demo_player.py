"""The player keeps the pace, counts a hold-up as one pause, and decodes and hashes the very bytes it read."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from collective.cli.demo_player import Decoder, Pacing, play

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")


def test_the_clock_starts_with_the_first_block() -> None:
    pacing = Pacing(bytes_per_second=100)
    assert pacing.wait_seconds(0, 50.0) == 0
    pacing.arrived(0, 57.0)
    assert pacing.longest_pause_seconds == 0
    assert pacing.wait_seconds(200, 57.5) == pytest.approx(1.5)


def test_a_block_in_time_is_no_pause() -> None:
    pacing = Pacing(100)
    for second in range(5):
        pacing.arrived(second * 100, 10.0 + second)
    assert pacing.longest_pause_seconds == 0


def test_one_hold_up_over_several_reads_is_one_pause_of_its_whole_length() -> None:
    pacing = Pacing(100)
    pacing.arrived(0, 0.0)
    pacing.arrived(100, 1.6)
    pacing.arrived(200, 2.9)
    pacing.arrived(300, 3.1)
    assert pacing.longest_pause_seconds == pytest.approx(0.9)
    assert pacing.longest_pause_at == 200


def test_a_late_reader_does_not_wait() -> None:
    pacing = Pacing(100)
    pacing.arrived(0, 0.0)
    assert pacing.wait_seconds(100, 5.0) == 0


@needs_ffmpeg
def test_it_decodes_to_the_end_and_hashes_what_it_read(tmp_path: Path) -> None:
    film = tmp_path / "film.mkv"
    words = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc2=size=320x180:rate=24", "-t", "2"]
    subprocess.run([*words, "-c:v", "mpeg2video", str(film)], check=True)
    told: list[dict[str, object]] = []
    with film.open("rb", buffering=0) as source:
        playback = play(source, Decoder.start(), Pacing(100e6), told.append)
    assert playback.sha256 == hashlib.sha256(film.read_bytes()).hexdigest()
    assert playback.bytes == film.stat().st_size
    assert playback.frames == 48
    assert playback.decoder_exit == 0
    assert told


@needs_ffmpeg
def test_bytes_that_are_no_film_end_with_the_decoders_exit_code(tmp_path: Path) -> None:
    noise = tmp_path / "noise"
    noise.write_bytes(b"\x00\x01no film" * 400_000)
    with noise.open("rb", buffering=0) as source:
        playback = play(source, Decoder.start(), Pacing(1e9), lambda document: None)
    assert playback.decoder_exit != 0
    assert playback.bytes == noise.stat().st_size
