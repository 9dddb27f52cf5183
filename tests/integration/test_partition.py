"""Three homes on three hosts, the line between them cut while both sides write, healed: one tree, nothing lost."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.homes import Federation, Home, wait_for
from support.networks import Network, require_namespaces

LEVEL_SECONDS = 10.0


@pytest.fixture
def network() -> Iterator[Network]:
    require_namespaces()
    made = Network()
    try:
        yield made
    finally:
        made.heal()
        made.close()


def tree(home: Home) -> dict[str, tuple[Any, ...]]:
    """Path -> what must be equal everywhere."""
    rows = home.ok("ls", "-R", "/media", "--json").json["files"]
    return {
        row["path"].split("@")[0]: (row["mode"], row["size_bytes"], row["mtime_nanoseconds"], row["inode"])
        for row in rows
    }


def contents(home: Home, folder: Path) -> dict[str, bytes]:
    """Everything of the library, fetched."""
    home.ok("get", "/media", folder)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Side:
    """One home that puts files and remembers every content that was acknowledged."""

    def __init__(self, home: Home, folder: Path) -> None:
        self.home, self.source = home, folder / f"{home.name}-source"
        self.written: dict[str, bytes] = {}

    def put(self, path: str, content: bytes) -> None:
        self.source.write_bytes(content)
        self.home.ok("put", self.source, path, "--quiet", "--level", "local")
        self.written[path] = content


def joined(federation: Federation, network: Network) -> tuple[Home, Home, Home]:
    """alice with /media, to which bob and carol may write; each on a host of their own, all caught up."""
    alice = federation.found("alice", **placed(network, "alice"))
    alice.ok("datastore", "create", "/media", "--replicas", "2")
    alice.start()
    others = []
    for name in ("bob", "carol"):
        home = federation.join(name, **placed(network, name))
        home.start()
        others.append(home)
    for name in ("bob", "carol"):
        alice.ok("datastore", "grant", "/media", "read,write,delete", f"{name}@media.collective")
    federation.connected()
    return alice, others[0], others[1]


def placed(network: Network, name: str) -> dict[str, Any]:
    host = network.host(name)
    return {"address": host.address, "prefix": host.prefix}


def partition(federation: Federation, network: Network, tmp_path: Path, seconds: float) -> None:
    alice, bob, carol = joined(federation, network)
    here, there = Side(alice, tmp_path), Side(carol, tmp_path)
    for name in ("edited", "moved", "deleted", "kept", "folder/inside"):
        here.put(f"/media/{name}", os.urandom(50_000))
    wait_for(lambda: all(tree(home) == tree(alice) for home in (bob, carol)), "everybody to have the first files")
    before = dict(here.written)
    began = time.monotonic()
    network.cut("alice", "carol")
    network.cut("bob", "carol")
    wait_for(lambda: not peer(carol, "alice")["connected"], "carol to miss alice")
    # the same names, renames across, deletes against edits, on both sides
    here.put("/media/edited", b"alice's edit" * 5_000)
    there.put("/media/edited", b"carol's edit" * 5_000)
    alice.ok("mv", "/media/moved", "/media/moved by alice")
    carol.ok("mv", "/media/moved", "/media/moved by carol")
    alice.ok("rm", "/media/deleted")
    there.put("/media/deleted", b"carol still edits what alice deleted" * 2_000)
    here.put("/media/new", b"alice's new file")
    there.put("/media/new", b"carol's new file")
    alice.ok("mv", "/media/folder", "/media/folder renamed")
    there.put("/media/folder/carol adds", os.urandom(70_000))
    here.put("/media/both/alice", b"a folder that both made: alice's")
    there.put("/media/both/carol", b"a folder that both made: carol's")
    assert tree(carol)["/media/new"][1] == len(b"carol's new file"), "what is staged shows at its writer at once"
    assert carol.status()["pending"], "and is told as pending"
    wait_for(lambda: time.monotonic() > began + seconds, "the partition to last", seconds + 10)
    network.heal()
    healed = time.monotonic()
    wait_for(lambda: not waiting(carol), "what was staged to be sent", 60)
    wait_for(lambda: tree(alice) == tree(bob) == tree(carol), "one tree everywhere", 60)
    took = time.monotonic() - healed
    assert took < LEVEL_SECONDS, f"the trees were level after {took:.1f} s"
    found = contents(bob, tmp_path / "back")
    overwritten = {before["/media/edited"], before["/media/deleted"]}  # by alice, in the feed
    missing = [
        path
        for side in (here, there)
        for path, content in [*before.items(), *side.written.items()]
        if content not in found.values() and content not in overwritten
    ]
    assert not missing, f"{missing} was acknowledged and is nowhere in {sorted(found)}"
    told = {row["wanted"].rsplit("/", 1)[-1] for row in alice.status()["conflicts"]}
    assert {"edited", "deleted", "new"} <= told, told
    assert any(row["state"] == "refused" for row in carol.ok("pending", "--json").json["pending"]), "the second rename"


def peer(home: Home, name: str) -> dict[str, Any]:
    return next(row for row in home.status()["peers"] if row["member"].startswith(name))


def waiting(home: Home) -> list[dict[str, Any]]:
    return [row for row in home.ok("pending", "--json").json["pending"] if row["state"] != "refused"]


@pytest.mark.long
@pytest.mark.timeout(200)
def test_a_short_partition(federation: Federation, network: Network, tmp_path: Path) -> None:
    """As below, as short as its commands take."""
    partition(federation, network, tmp_path, seconds=0.0)


@pytest.mark.byhand
@pytest.mark.timeout(300)
def test_a_minutes_partition(federation: Federation, network: Network, tmp_path: Path) -> None:
    """A minute apart: trees equal within 10 s of healing, both sides' bytes there or named as conflicts."""
    partition(federation, network, tmp_path, seconds=60.0)
