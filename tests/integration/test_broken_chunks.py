"""A byte flips on a disk: the copy is no longer counted, and becomes whole again by itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.homes import Federation, Home, wait_for

SIZE_BYTES = (17 << 20) + 5


def flip_a_byte(home: Home) -> Path:
    """Break one stored chunk of a home in its middle; the file."""
    chunks = [path for path in (home.path / "storage" / "chunks").rglob("*-*") if path.is_file()]
    broken = max(chunks, key=lambda path: (path.stat().st_size, path.name))
    middle = broken.stat().st_size // 2
    with broken.open("r+b") as file:
        file.seek(middle)
        byte = file.read(1)
        file.seek(middle)
        file.write(bytes([byte[0] ^ 1]))
        file.flush()
        os.fsync(file.fileno())
    return broken


def holders(home: Home) -> list[str]:
    listed: list[str] = home.ok("ls", "-l", "/media/film", "--json").json["files"][0]["holders"]
    return sorted(name.split(".")[0] for name in listed)


@pytest.fixture
def film(federation: Federation, tmp_path: Path) -> bytes:
    """alice's film with a copy at bob's."""
    alice = federation.found("alice")
    alice.ok("datastore", "create", "/media", "--replicas", "2")
    alice.start()
    federation.join("bob").start()
    federation.connected()
    content = os.urandom(SIZE_BYTES)
    (tmp_path / "film").write_bytes(content)
    put = alice.ok("put", tmp_path / "film", "/media/film", "--level", "two", "--json").json
    assert put["level"] == "two"
    return content


@pytest.mark.long
@pytest.mark.parametrize("whose", ["alice", "bob"])
def test_a_flipped_byte_is_found_and_made_good(federation: Federation, film: bytes, tmp_path: Path, whose: str) -> None:
    """The scrub finds it; the owner's comes back from the host, the host's from the owner."""
    alice, home = federation.homes["alice"], federation.homes[whose]
    broken = flip_a_byte(home)
    wait_for(lambda: (home.path / "storage" / "quarantine" / broken.name).exists(), "the broken chunk to be set aside")
    other = "bob" if whose == "alice" else "alice"
    log = home.path / "coordinator.log"
    wait_for(lambda: "refetch.lost" in log.read_text(), "the loss to be stated")
    wait_for(broken.exists, "the chunk to come back")
    wait_for(lambda: holders(alice) == ["alice", "bob"], "both copies to be counted again")
    alice.ok("get", "/media/film", tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == film
    # what came back is whole: with the other home gone, everything is read from this one
    federation.homes[other].kill()
    if whose == "alice":
        (tmp_path / "got").unlink()
        alice.ok("get", "/media/film", tmp_path / "got")
        assert (tmp_path / "got").read_bytes() == film


@pytest.mark.long
def test_a_chunk_lost_for_good_leaves_the_rest_readable(federation: Federation, tmp_path: Path) -> None:
    """With one copy only nothing can be made good: status says so, and what is there is still given out."""
    alice = federation.found("alice")
    alice.ok("datastore", "create", "/media", "--replicas", "1")
    alice.start()
    content = os.urandom(SIZE_BYTES)
    (tmp_path / "film").write_bytes(content)
    alice.ok("put", tmp_path / "film", "/media/film")
    flip_a_byte(alice)
    wait_for(lambda: holders(alice) == [], "the only copy not to be counted")
    status = alice.status()
    assert status["health"] == "HEALTH_ERR"
    assert any("cannot be read whole" in finding["message"] for finding in status["findings"])
    assert status["datastores"][0]["below_target"] == 1
    failed = alice.run("get", "/media/film", tmp_path / "got")
    assert failed.code == 1, "there is nobody to wait for"
    assert not (tmp_path / "got").exists()
    alice.ok("put", tmp_path / "film", "/media/again")
    wait_for(lambda: holders(alice) == ["alice"], "the same chunk, put again, to make the first film whole")
