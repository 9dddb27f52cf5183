"""Real processes: a member leaves on purpose; the others know it left, not died; it comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.homes import Federation, Home, wait_for

pytestmark = pytest.mark.timeout(300)


def state_at(home: Home, member: str) -> str:
    """What a home thinks of a member, as `federation members` tells it."""
    rows = {row["domain"]: row for row in home.ok("federation", "members", "--json").json["members"]}
    return str(rows[f"{member}.media.collective"]["state"])


def times_thought_dead(home: Home, member: str) -> int:
    """A member that was admitted and has not started yet is, once."""
    lines = (home.path / "coordinator.log").read_text().splitlines()
    return sum("gossip.member" in line and f'"{member}.' in line and '"now": "dead"' in line for line in lines)


@pytest.fixture
def three(federation: Federation, tmp_path: Path) -> Federation:
    """alice, bob and carol; carol has a file that lies nowhere else."""
    federation.found("alice").start()
    federation.join("bob").start()
    carol = federation.join("carol")
    carol.start()
    federation.connected()
    carol.ok("datastore", "create", "/c", "--replicas", "1")
    (tmp_path / "film").write_bytes(b"x" * 100_000)
    carol.ok("put", tmp_path / "film", "/c/film")
    return federation


@pytest.mark.long
def test_a_member_leaves_and_comes_back(three: Federation) -> None:
    """What it means is said first; the others see it as left, also who was away meanwhile; then it is back."""
    alice, bob, carol = three.homes.values()
    asked = carol.run("federation", "leave")
    assert asked.code == 1
    assert "/c: 1 of your 1 files here" in asked.out
    assert "--yes" in asked.err
    assert state_at(alice, "carol") == "alive"
    bob.stop()
    wait_for(lambda: state_at(carol, "bob") == "dead", "carol to see that bob is away")
    dead = times_thought_dead(alice, "carol")
    left = carol.ok("federation", "leave", "--yes", "--json").json
    assert left["left"]
    assert left["told"] == ["alice.media.collective"]
    assert left["not_told"] == ["bob.media.collective"]
    assert carol.ended() == 0
    wait_for(lambda: state_at(alice, "carol") == "left", "alice to know that carol left")
    bob.start()
    wait_for(lambda: state_at(bob, "carol") == "left", "bob to hear it from alice")
    assert times_thought_dead(alice, "carol") == dead
    findings = " ".join(finding["message"] for finding in alice.status()["findings"])
    assert "carol.media.collective cannot be reached" not in findings
    again = carol.run("coordinator", "--federation")
    assert again.code == 1
    assert "--come-back" in again.err
    carol.start("--come-back")
    wait_for(lambda: state_at(alice, "carol") == state_at(bob, "carol") == "alive", "carol to be there again")


def test_the_root_holder_is_told_what_only_it_can_do(federation: Federation) -> None:
    """Whoever holds the root key hears that nobody can be admitted meanwhile; with no coordinator nobody is told."""
    alice = federation.found("alice")
    refused = alice.run("federation", "leave", "--yes")
    assert refused.code == 3
    assert "no coordinator is running" in refused.err
    alice.start()
    assert "nobody can be admitted" in alice.run("federation", "leave").out
