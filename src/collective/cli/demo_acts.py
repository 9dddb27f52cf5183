"""The demo's first acts: a film, three homes, and the film stored twice."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from collective.cli.demo_film import Film, make_film, make_noise, need_room, pace_of, take_film
from collective.cli.demo_homes import DemoHome, wait_until
from collective.cli.demo_story import Story
from collective.core.errors import CollectiveError
from collective.core.sizes import format_size

__all__ = ["FILM_ADDRESS", "SAMPLE_ADDRESS", "SAMPLE_BYTES", "found_homes", "get_film", "store_film"]

FILM_ADDRESS = "/media/movies/film.mkv"
SAMPLE_ADDRESS = "/media/movies/sample.bin"
SAMPLE_BYTES = 256 << 20
ROOM_BYTES = 2_500_000_000  # film and sample: the originals and two copies of each
SMALL_PLEDGE = "100MB"  # less than either file: carol is never asked to hold a copy


def get_film(story: Story, folder: Path, film_file: Path | None) -> Film:
    if film_file is None:
        need_room(folder, ROOM_BYTES)
        story.say("Making a film of 25 s that is larger than every cache on the way …")
        film = make_film(folder / "film.mkv")
    else:
        size_bytes = film_file.stat().st_size if film_file.is_file() else 0
        need_room(folder, ROOM_BYTES + 3 * size_bytes)
        film = take_film(film_file, folder)
    pace = pace_of(film.size_bytes, film.seconds)
    story.figure("Film", f"{format_size(film.size_bytes)}, plays at {pace / 1e6:.1f} MB/s, SHA-256 {film.sha256[:16]}…")
    return film


def found_homes(story: Story, stack: ExitStack, folder: Path, film_bytes: int) -> tuple[DemoHome, DemoHome, DemoHome]:
    """alice founds, admits bob and carol by bundles; all three run and know each other."""
    story.say("Each home has its own folder, certificate authority, coordinator, storage node and ports.")
    large = f"{(film_bytes + SAMPLE_BYTES) * 3}"
    alice = DemoHome("alice", folder / "alice", large, story.command)
    bob = DemoHome("bob", folder / "bob", large, story.command)
    carol = DemoHome("carol", folder / "carol", SMALL_PLEDGE, story.command)
    alice.run(
        "federation", "init", "--domain", "media.collective", "--member", "alice",
        "--endpoint", alice.endpoint, "--no-datastores",
    )  # fmt: skip
    stack.callback(alice.stop)
    alice.start()
    for home in (bob, carol):
        bundle = str(folder / f"{home.name}.bundle")
        alice.run("federation", "bundle", "--member", home.name, "--out", bundle)
        home.run("federation", "join", "--bundle", bundle, "--endpoint", home.endpoint)
        stack.callback(home.stop)
        home.start()
    for home in (alice, bob, carol):
        wait_until(lambda home=home: home.hears(2), f"{home.name} meeting the other two")  # type: ignore[misc]
    story.say("All three know each other. carol pledges 100 MB: too little to be given a copy, so she only watches.")
    return alice, bob, carol


def store_film(story: Story, film: Film, folder: Path, alice: DemoHome, bob: DemoHome, carol: DemoHome) -> None:
    """The DataStore, carol's grant, the two files, each durably at two members before we go on."""
    alice.run("datastore", "create", "/media/movies", "--strategy", "media", "--replicas", "2")
    alice.run("datastore", "grant", "/media/movies", "read", carol.identity)
    sample = folder / "sample.bin"
    make_noise(sample, SAMPLE_BYTES)
    alice.ask("put", str(sample), SAMPLE_ADDRESS, "--level", "two", timeout_seconds=300, tell=True)
    put = alice.ask("put", str(film.path), FILM_ADDRESS, "--level", "two", timeout_seconds=3600, tell=True)
    story.figure("Put", f"{put['mb_per_s']:.0f} MB/s; two members held it {put['level_seconds']:.1f} s after the start")
    if not any(bob.name in holder for holder in put["holders"]):
        raise CollectiveError(f"bob should hold the second copy, but it is at {', '.join(put['holders'])}")
    story.say("bob holds the second copy. He was granted nothing: he keeps sealed chunks whose names he cannot read.")
    wait_until(lambda: _sees_film(carol), "carol seeing the film")
    story.say("carol was granted READ, and sees it.")


def _sees_film(home: DemoHome) -> bool:
    try:
        return any(str(row["path"]).endswith("film.mkv") for row in home.ask("ls", "/media/movies")["files"])
    except CollectiveError:
        return False  # the DataStore's key is on the way to her
