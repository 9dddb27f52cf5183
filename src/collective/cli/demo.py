"""`collective demo`: three homes on this machine, one film, and the home it plays from goes away half-way through.

It types the commands a person would, and tells what they do.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

import click
from rich.console import Console

from collective.cli.demo_acts import FILM_ADDRESS, SAMPLE_ADDRESS, SAMPLE_BYTES, found_homes, get_film, store_film
from collective.cli.demo_film import Film, need_ffmpeg, pace_of
from collective.cli.demo_homes import DemoHome, wait_until
from collective.cli.demo_mount import CACHE_SIZE, DemoMount, missing_for_mount, timed_read
from collective.cli.demo_report import (
    PAUSE_LIMIT_KILLED_SECONDS,
    PAUSE_LIMIT_STOPPED_SECONDS,
    DemoReport,
    shortcomings,
)
from collective.cli.demo_story import Story
from collective.cli.demo_watch import Player, Watched, watch
from collective.core.errors import CollectiveError
from collective.core.sizes import format_size

__all__ = ["demo"]

PLAYER_LOG = "player.log"
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command()
@click.option("--film", type=click.Path(path_type=Path), help="Play this video instead of one made on the spot.")
@click.option("--stop-instead", is_flag=True, help="Freeze alice (SIGSTOP) instead of killing her (SIGKILL).")
@click.option("--stream", is_flag=True, help="Stream through the client, as where FUSE is missing.")
@click.option("--keep", is_flag=True, help="Leave the three homes and the logs where they are.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object as the last line of stdout; the tale on stderr.")
def demo(film: Path | None, stop_instead: bool, stream: bool, keep: bool, as_json: bool) -> None:
    """Three homes on this machine, one film, one of them killed. About a minute."""
    story = Story(Console(stderr=as_json, highlight=False, soft_wrap=True))
    began = time.monotonic()
    with _ending_cleanly():
        report, failed = _perform(story, film, stop_instead, stream, keep)
    story.figure("Whole demo", f"{time.monotonic() - began:.0f} s")
    for text in failed:
        story.bad(text)
    if not failed:
        story.good("All of it is true: the film played to its end, and its bytes are alice's bytes.")
    if as_json:
        click.echo(report.last_line())
    if failed:
        raise CollectiveError("the demo did not keep what it promises: " + "; ".join(failed))


@contextmanager
def _ending_cleanly() -> Iterator[None]:
    """SIGTERM and SIGHUP end it as Ctrl-C does, so that everything started is stopped."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in _ENDING}
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _uninterrupted() -> None:
    """From here on nothing interrupts: what was started is being stopped."""
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _folder(story: Story, keep: bool) -> Iterator[Path]:
    """The demo's folder, gone at the end unless it is kept."""
    folder = Path(tempfile.mkdtemp(prefix="collective-demo-"))
    try:
        yield folder
    finally:
        if keep:
            story.say(f"Kept: {folder} (homes alice, bob and carol, their logs, the film).")
            story.say(f"Look around, for example: collective --home {folder}/alice ls -l /media/movies")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _perform(
    story: Story, film_file: Path | None, stop_instead: bool, stream: bool, keep: bool
) -> tuple[DemoReport, list[str]]:
    """All acts; everything started ends with this call, in the opposite order, whatever happens."""
    need_ffmpeg(story.say)
    missing = "it was asked to stream" if stream else missing_for_mount()
    with ExitStack() as stack:
        folder = stack.enter_context(_folder(story, keep))
        try:
            story.act("A film")
            film = get_film(story, folder, film_file)
            story.act("Three homes")
            alice, bob, carol = found_homes(story, stack, folder, film.size_bytes)
            story.act("alice stores it")
            store_film(story, film, folder, alice, bob, carol)
            story.act("carol watches it")
            if missing:
                story.say(f"Not mounting: {missing}. carol streams through the client instead.")
                player, speed = _through_client(carol, folder, film)
            else:
                player, speed = _through_mount(story, stack, carol, folder, film)
            stack.callback(player.stop)
            story.figure("Cold read of a second file", f"{speed:.0f} MB/s (unpaced, from another home, read only once)")
            watched = _watch(story, player, film, alice, bob, stop_instead)
            report, failed = _judge(story, film, watched, speed, stop_instead)
            if failed and (complaints := player.complaints()):
                story.say(f"The player's log ends with: {complaints}")
            return report, failed
        finally:
            story.act("Tidying up")
            _uninterrupted()


def _through_mount(story: Story, stack: ExitStack, carol: DemoHome, folder: Path, film: Film) -> tuple[Player, float]:
    """Mount at carol's; the film's player, and MB/s of the sample read from the mount."""
    mount = DemoMount(carol, folder / "library")
    stack.callback(mount.stop)
    mount.start()
    sample = Path(str(mount.directory) + SAMPLE_ADDRESS)
    wait_until(sample.exists, "the sample in the mount")
    count, seconds = timed_read(sample)
    if count != SAMPLE_BYTES:
        raise CollectiveError(f"the mount gave {count} of {SAMPLE_BYTES} bytes of the sample")
    story.say(f"The mount keeps at most {CACHE_SIZE} in memory; the film is {format_size(film.size_bytes)}.")
    pace = pace_of(film.size_bytes, film.seconds)
    return Player.of_file(str(mount.directory) + FILM_ADDRESS, pace, folder / PLAYER_LOG), count / seconds / 1e6


def _through_client(carol: DemoHome, folder: Path, film: Film) -> tuple[Player, float]:
    """The player of what `get … -` writes, and MB/s of the sample fetched into a file."""
    speed = float(carol.ask("get", SAMPLE_ADDRESS, str(folder / "sample.got"), tell=True)["mb_per_s"])
    carol.tell("get", FILM_ADDRESS, "-")
    words = carol.words("get", FILM_ADDRESS, "-", "--quiet")
    return Player.of_command(words, pace_of(film.size_bytes, film.seconds), folder / PLAYER_LOG), speed


def _watch(story: Story, player: Player, film: Film, alice: DemoHome, bob: DemoHome, stop_instead: bool) -> Watched:
    number = signal.SIGSTOP if stop_instead else signal.SIGKILL
    play_seconds = film.size_bytes / pace_of(film.size_bytes, film.seconds)
    with story.playing(film.size_bytes) as at:

        def gone(processes: list[int]) -> None:
            pids = ", ".join(map(str, processes))
            act = "frozen (SIGSTOP)" if stop_instead else "killed (kill -9)"
            story.bad(f"alice's coordinator and node are {act}: processes {pids}. The film plays on.")

        return watch(player, film.size_bytes, play_seconds, alice, bob, number, at, gone)


def _judge(
    story: Story, film: Film, watched: Watched, mb_per_s: float, stop_instead: bool
) -> tuple[DemoReport, list[str]]:
    playback = watched.playback
    report = DemoReport(
        members=3,
        bytes=film.size_bytes,
        sha256_equal=playback.sha256 == film.sha256,
        mb_per_s=round(mb_per_s, 1),
        killed="alice (stopped)" if stop_instead else "alice",
        bytes_from_second_holder=watched.second_bytes,
        longest_pause_seconds=playback.longest_pause_seconds,
    )
    story.figure("Decoded", f"{playback.frames} pictures, decoder's exit code {playback.decoder_exit}")
    story.figure("SHA-256", f"{'equal' if report.sha256_equal else 'NOT equal'}: {playback.sha256[:16]}…")
    story.figure("From bob after alice was gone", format_size(watched.second_bytes))
    story.figure("Longest pause", f"{playback.longest_pause_seconds:.2f} s, {_where(watched)}")
    story.figure("First byte", f"{playback.first_byte_seconds * 1000:.0f} ms after opening")
    limit = PAUSE_LIMIT_STOPPED_SECONDS if stop_instead else PAUSE_LIMIT_KILLED_SECONDS
    return report, shortcomings(report, playback, film.size_bytes, limit)


def _where(watched: Watched) -> str:
    whole = max(1, watched.playback.bytes)
    pause, gone = 100 * watched.playback.longest_pause_at / whole, 100 * watched.killed_at / whole
    return f"at {pause:.0f} % of the film (alice was gone at {gone:.0f} %)"
