"""What was signed last is known on a separate node's disk too, and a database put back betrays itself there."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.homes import DEADLINE_SECONDS, Federation, Home, free_ports, wait_for

from collective.wire import feed_pb2


class SeparateNode:
    """A node with a home and a disk of its own beside alice's coordinator."""

    def __init__(self, alice: Home, folder: Path) -> None:
        self.disk = folder / "disk"
        self.alice = alice
        self.home = Home(folder / "node-home", "node-02")
        self.log = folder / "node.log"
        (self.port,) = free_ports(1)
        self.process: subprocess.Popen[bytes] | None = None
        identity = self.home.path / "identity"
        alice.ok("federation", "ca", "sign-component", "--type", "node", "--name", "node-02", "--out", identity)

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.home.command(
                    "node", "--name", "node-02", "--coordinator", f"127.0.0.1:{self.alice.ports[0]}",
                    "--storage", "1GB", "--storage-path", self.disk, "--lane", f"127.0.0.1:{self.port}",
                ),
                stdout=log, stderr=log,
            )  # fmt: skip
        wait_for(lambda: any(row["answers"] for row in self.alice.status()["nodes"]), "the node to be registered")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(DEADLINE_SECONDS)
            self.process = None

    def heads(self) -> dict[str, feed_pb2.Position]:
        return read_heads(self.disk / "heads")


def read_heads(folder: Path) -> dict[str, feed_pb2.Position]:
    return {
        path.name: feed_pb2.Position.FromString(path.read_bytes()) for path in folder.glob("*") if path.suffix != ".new"
    }


@pytest.fixture
def node(federation: Federation, tmp_path: Path) -> Iterator[SeparateNode]:
    """alice without storage of her own, and her separate node; both run."""
    alice = federation.found("alice", storage="")
    alice.ok("datastore", "create", "/media")
    made = SeparateNode(alice, tmp_path)
    alice.start()
    made.start()
    wait_for(lambda: on_the_card(alice), "the card to name the node")
    yield made
    made.kill()


def on_the_card(alice: Home) -> bool:
    connection = sqlite3.connect(f"file:{alice.path / 'catalog.db'}?mode=ro", uri=True)
    try:
        return any(b"node-02@" in card for (card,) in connection.execute("SELECT card FROM cards"))
    finally:
        connection.close()


def put_small(alice: Home, folder: Path, name: str) -> None:
    (folder / name).write_text(name)
    alice.ok("put", folder / name, f"/media/{name}")


@pytest.mark.long
def test_the_node_has_every_head_when_an_entry_is_acknowledged(node: SeparateNode, tmp_path: Path) -> None:
    """At once while it is connected; after it was away as soon as it is back; and it never goes back."""
    alice = node.alice
    wait_for(lambda: node.heads() == read_heads(alice.path / "heads"), "the node to have caught up")
    for number in range(3):
        put_small(alice, tmp_path, f"connected-{number}")
        assert node.heads() == read_heads(alice.path / "heads"), "no later than the acknowledgement"
    assert node.process is not None
    node.process.send_signal(signal.SIGSTOP)
    for number in range(4):
        put_small(alice, tmp_path, f"hanging-{number}")
    waited = (alice.path / "coordinator.log").read_text().count("heads.node_late")
    assert waited <= 1, "a node that hangs is waited for once, not for every entry"
    node.process.send_signal(signal.SIGCONT)
    wait_for(lambda: node.heads() == read_heads(alice.path / "heads"), "the node to have caught up after its sleep")
    node.kill()
    put_small(alice, tmp_path, "while-away")
    assert node.heads() != read_heads(alice.path / "heads")
    node.start()
    wait_for(lambda: node.heads() == read_heads(alice.path / "heads"), "the node to have caught up again")


@pytest.mark.long
def test_a_home_put_back_whole_is_betrayed_by_its_node(
    node: SeparateNode, federation: Federation, tmp_path: Path
) -> None:
    """Database and local heads of an older day: neither the coordinator nor a command signs on top of them.

    bob, who may know what came after, is away; without him the home goes on in a new epoch, which the node keeps too.
    """
    alice = node.alice
    federation.join("bob")
    put_small(alice, tmp_path, "before")
    assert alice.stop() == 0
    shutil.copytree(alice.path, tmp_path / "backup", ignore=shutil.ignore_patterns("*.sock"))
    alice.start()
    wait_for(lambda: any(row["answers"] for row in alice.status()["nodes"]), "the node to be registered again")
    put_small(alice, tmp_path, "after")
    alice.kill()
    shutil.rmtree(alice.path)
    shutil.copytree(tmp_path / "backup", alice.path)
    betrayed = node.heads()
    assert "in doubt" in alice.ok("mkdir", "/media/offline").err
    alice.start()
    assert any("older than what was already told" in finding["message"] for finding in alice.status()["findings"])
    assert alice.status()["doubt"]["awaited"] == ["bob.media.collective"]
    assert "in doubt" in alice.ok("mkdir", "/media/online").err
    assert set(alice.ok("ls", "/media").out.split()) == {"before", "offline/", "online/"}, "kept, and shown"
    assert node.heads() == betrayed, "and nothing is signed"
    alice.stop()
    alice.start("--without", "bob")
    wait_for(lambda: alice.status()["doubt"] is None and not alice.status()["pending"], "what was kept to be signed")
    assert set(alice.ok("ls", "/media").out.split()) == {"before", "offline/", "online/"}
    alice.ok("mkdir", "/media/after")
    wait_for(lambda: node.heads() == read_heads(alice.path / "heads"), "the node to keep the heads of the new epoch")
