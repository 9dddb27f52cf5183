"""The demo's last line has exactly the promised keys, and nothing that fell short passes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from collective.cli.demo_report import DemoReport, Playback, shortcomings

REPORT = DemoReport(
    members=3,
    bytes=1000,
    sha256_equal=True,
    mb_per_s=301.5,
    killed="alice",
    bytes_from_second_holder=400,
    longest_pause_seconds=0.2,
)
PLAYBACK = Playback(
    bytes=1000,
    sha256="ab",
    first_byte_seconds=0.01,
    longest_pause_seconds=0.2,
    longest_pause_at=500,
    frames=600,
    decoder_exit=0,
)


def test_last_line_is_one_object_with_exactly_these_keys() -> None:
    line = REPORT.last_line()
    assert "\n" not in line
    assert list(json.loads(line)) == [
        "members", "bytes", "sha256_equal", "mb_per_s", "killed", "bytes_from_second_holder", "longest_pause_seconds",
    ]  # fmt: skip


def test_a_whole_playback_falls_short_of_nothing() -> None:
    assert shortcomings(REPORT, PLAYBACK, 1000, 1.0) == []


@pytest.mark.parametrize(
    ("report", "playback", "word"),
    [
        (replace(REPORT, sha256_equal=False), PLAYBACK, "hashes differ"),
        (replace(REPORT, bytes_from_second_holder=0), PLAYBACK, "second holder"),
        (replace(REPORT, longest_pause_seconds=1.0), PLAYBACK, "stood still"),
        (REPORT, replace(PLAYBACK, bytes=999), "999 of 1000"),
        (REPORT, replace(PLAYBACK, decoder_exit=1), "exit code 1"),
        (REPORT, replace(PLAYBACK, frames=0), "no picture"),
    ],
)
def test_each_broken_promise_is_named(report: DemoReport, playback: Playback, word: str) -> None:
    found = shortcomings(report, playback, 1000, 1.0)
    assert len(found) == 1
    assert word in found[0]
