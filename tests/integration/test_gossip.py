"""Real coordinators that know one address: they find each other, hear news at once, and notice a death."""

from __future__ import annotations

import json
import select
import sqlite3
import statistics
import subprocess
import time
from pathlib import Path

import pytest
from support.homes import Federation, Home, wait_for


def heads(home: Home) -> dict[bytes, int]:
    """How far each feed has got in a home's database."""
    with sqlite3.connect(f"file:{home.path / 'catalog.db'}?mode=ro", uri=True) as connection:
        found = {bytes(feed): int(seq) for feed, seq in connection.execute("SELECT feed_id, seq FROM feeds")}
    connection.close()
    return found


def wait_for_news(home: Home, before: dict[bytes, int], seconds: float) -> dict[bytes, int]:
    """Watch a home's own database closely until a feed moves; what moved."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if moved := {feed: seq for feed, seq in heads(home).items() if seq > before.get(feed, 0)}:
            return moved
        select.select([], [], [], 0.001)
    raise AssertionError(f"nothing was written at {home.name}")


def wait_for_heads(home: Home, wanted: dict[bytes, int], seconds: float) -> None:
    """Watch a home's database closely until it has these heads."""
    deadline = time.monotonic() + seconds
    while any(heads(home).get(feed, 0) < seq for feed, seq in wanted.items()):
        assert time.monotonic() < deadline, f"the news did not arrive at {home.name}"
        select.select([], [], [], 0.001)


def states(home: Home) -> dict[str, str]:
    return {peer["member"].split(".")[0]: peer["state"] for peer in home.status()["peers"]}


@pytest.fixture
def three(federation: Federation) -> Federation:
    """alice, bob and carol; bob and carol know alice's address from their bundle, nobody knows another."""
    federation.found("alice").start()
    federation.join("bob").start()
    federation.join("carol").start()
    federation.connected()
    return federation


class TestGossip:
    def test_three_homes_discover_each_other_from_one_address(self, three: Federation) -> None:
        """bob and carol were only told alice's address; they end up talking to each other."""
        for home in three.homes.values():
            assert set(states(home).values()) == {"alive"}
            assert len(states(home)) == 2
        carol = json.loads((three.homes["bob"].path / "peers.json").read_text())["carol.media.collective"]
        assert carol[0]["grpc"].endswith(str(three.homes["carol"].ports[0]))
        for home in three.homes.values():
            members = {row["domain"]: row for row in home.ok("federation", "members", "--json").json["members"]}
            assert {row["state"] for domain, row in members.items() if not domain.startswith(home.name)} == {"alive"}

    @pytest.mark.timeout(300)
    def test_a_file_put_at_any_shows_at_the_others_at_once(self, three: Federation, tmp_path: Path) -> None:
        """Entries of each home's DataStore stand in the others' databases: median under 100 ms, none over 2 s."""
        (tmp_path / "small").write_bytes(b"news")
        times = []
        for home in three.homes.values():
            home.ok("datastore", "create", f"/{home.name}")
            home.ok("datastore", "grant", f"/{home.name}", "read", "*@*.collective")
        three.connected()
        homes = list(three.homes.values())
        for number in range(3 * len(homes)):
            home = homes[number % len(homes)]
            before = heads(home)
            command = home.command("put", tmp_path / "small", f"/{home.name}/file-{number}")
            with subprocess.Popen(command, stdout=subprocess.DEVNULL) as put:
                written = wait_for_news(home, before, 40)
                seen = time.monotonic()
                for other in homes:
                    if other is not home:
                        wait_for_heads(other, written, 20)
                times.append(time.monotonic() - seen)
                assert put.wait(40) == 0
        print(f"median {statistics.median(times) * 1000:.1f} ms, worst {max(times) * 1000:.1f} ms")
        assert statistics.median(times) < 0.1
        assert max(times) < 2.0

    @pytest.mark.long
    @pytest.mark.timeout(300)
    def test_a_killed_home_is_known_dead_soon(self, three: Federation) -> None:
        """A fourth home is killed; the others know it in under 15 s, and when it is back they know that too."""
        dave = three.join("dave")
        dave.start()
        wait_for(lambda: all(states(home).get("dave") == "alive" for home in list(three.homes.values())[:3]), "dave")
        dave.kill()
        killed = time.monotonic()
        survivors = [three.homes[name] for name in ("alice", "bob", "carol")]
        wait_for(lambda: all(states(home)["dave"] == "dead" for home in survivors), "dave's death", 25)
        took = time.monotonic() - killed
        print(f"known dead after {took:.1f} s")
        assert took < 15 + 3, "15 s, and the status commands of three homes"
        dave.start()
        wait_for(lambda: all(states(home)["dave"] == "alive" for home in survivors), "dave to be heard again")

    @pytest.mark.timeout(300)
    def test_feeds_travel_through_whoever_is_there(self, three: Federation, tmp_path: Path) -> None:
        """carol is down while alice writes; then alice goes, and carol gets alice's entries from bob."""
        alice, bob, carol = three.homes["alice"], three.homes["bob"], three.homes["carol"]
        alice.ok("datastore", "create", "/a")
        alice.ok("datastore", "grant", "/a", "read", "*@*.collective")
        three.connected()
        carol.stop()
        (tmp_path / "small").write_bytes(b"while carol is away")
        alice.ok("put", tmp_path / "small", "/a/news")
        written = heads(alice)
        wait_for(lambda: all(heads(bob).get(feed, 0) >= seq for feed, seq in written.items()), "bob to have it")
        alice.kill()
        carol.start()
        wait_for(lambda: carol.run("ls", "/a").out.split() == ["news"], "carol to hear of it from bob")

    def test_messages_stand_in_the_debug_log(self, federation: Federation) -> None:
        """With --debug the exchanged messages are logged."""
        federation.found("alice").start("--debug")
        federation.join("bob").start("--debug")
        federation.connected()
        log = (federation.homes["alice"].path / "coordinator.log").read_text()
        assert '"event": "debug.gossip.received"' in log
        assert '"event": "debug.gossip.sent"' in log
        assert '"type": "HEARTBEAT"' in log
