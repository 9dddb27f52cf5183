"""Real processes with a relay between them that alters what passes: nothing of it is believed, all of it is mended."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from support.homes import Federation, Home, free_ports, wait_for
from support.relays import TRICKS, Relay

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]  # many commands, each a process of its own


def names(home: Home, path: str) -> set[str]:
    return set(home.run("ls", path).out.split())


def test_homes_behind_an_untrusted_relay(federation: Federation, tmp_path: Path) -> None:
    """alice is told of, and reached, through a relay alone. While it meddles, what bob gets is right or refused; when
    it stops, both homes are level, nobody was led to believe in two histories, and nothing unforeseen was met."""
    ports = free_ports(3)
    with Relay(ports[0]) as control, Relay(ports[1]) as lane:
        alice = federation.found("alice", ports=ports, told_ports=[control.port, lane.port])
        alice.start()
        bob = federation.join("bob")
        bob.start()
        federation.connected()
        assert alice.status()["peers"][0]["connected"]
        alice.ok("datastore", "create", "/media")
        alice.ok("datastore", "grant", "/media", "read", "bob@media.collective")
        content = os.urandom(3 << 20)
        (tmp_path / "film").write_bytes(content)
        alice.ok("put", tmp_path / "film", "/media/film")
        wait_for(lambda: names(bob, "/media") == {"film"}, "bob to list the film")

        control.meddling = lane.meddling = 0.2
        for number in range(12):
            alice.ok("mkdir", f"/media/{number}")
            got = bob.run("get", "/media/film", tmp_path / f"got-{number}")
            if got.code == 0:
                assert (
                    hashlib.sha256((tmp_path / f"got-{number}").read_bytes()).digest()
                    == hashlib.sha256(content).digest()
                )
        wait_for(lambda: set(control.done) == set(TRICKS), "every trick to be tried")
        control.meddling = lane.meddling = 0.0

        everything = {"film", *(f"{number}/" for number in range(12))}
        wait_for(lambda: names(bob, "/media") == everything, "bob to have all names")
        federation.connected()
        bob.ok("get", "/media/film", tmp_path / "last")
        assert (tmp_path / "last").read_bytes() == content
        for home in (alice, bob):
            log = (home.path / "coordinator.log").read_text()
            assert "two different entries" not in home.ok("status").out
            for event in ("unexpected", "rpc.handler_failed", "Traceback"):
                assert event not in log
