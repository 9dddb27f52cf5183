"""The mDNS process on this machine's loopback: found by name, gone on time, and what liars and floods can do to it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from support.catalogs import TestFederation
from support.writing import Events
from zeroconf import DNSAddress, DNSOutgoing, DNSPointer, DNSService, DNSText  # type: ignore[attr-defined]

from collective.daemon.mdns import MAX_PLACES, SERVICE, Announcement, own_interfaces
from collective.daemon.neighbours import Neighbours, is_wanted
from collective.daemon.runtime import SystemClock

ROOT = "5a" * 32
GROUP = ("224.0.0.251", 5353)
RESPONSE, IN, FLUSH, A, SRV, TXT, PTR = 0x8400, 1, 0x8000, 1, 33, 16, 12
FOR_EVER = 2**31 - 1


def announcement(name: str, port: int, root: str = ROOT) -> Announcement:
    return Announcement(f"{name}.media.collective", root, "127.0.0.1", port, port + 1)


class Child:
    """An mDNS process and the lines it is asked and tells."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def told(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        assert line, "the process ended"
        return dict(json.loads(line))

    async def ask(self, name: str) -> list[str]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"member": f"{name}.media.collective"}).encode() + b"\n")
        answer = await self.told()
        assert answer["member"] == f"{name}.media.collective"
        return list(answer["places"])

    async def end(self) -> int:
        """Nobody asks any more: the exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return await self.process.wait()

    def resident_bytes(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@asynccontextmanager
async def running(own: Announcement) -> AsyncIterator[Child]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "collective.cli.main", "mdns", "--member", own.member, "--root", own.root,
        "--host", own.host, "--port", str(own.port), "--lane", str(own.lane),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    child = Child(process)
    try:
        assert await child.told() == {"announced": ["127.0.0.1"]}
        yield child
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@contextmanager
def sender() -> Iterator[socket.socket]:
    """Somebody on this network who sends what he likes."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        yield made


def lie(instance: str, port: int, *addresses: str, seconds: int = FOR_EVER) -> bytes:
    """A packet that says where a member is, and that nothing else is true."""
    out, host = DNSOutgoing(RESPONSE), f"{instance}.local."
    name = f"{instance}.{SERVICE}"
    out.add_answer_at_time(DNSPointer(SERVICE, PTR, IN, seconds, name), 0)
    out.add_answer_at_time(DNSService(name, SRV, IN | FLUSH, seconds, 0, 0, port, host), 0)
    out.add_answer_at_time(DNSText(name, TXT, IN | FLUSH, seconds, b""), 0)
    for address in addresses:
        out.add_answer_at_time(DNSAddress(host, A, IN | FLUSH, seconds, socket.inet_aton(address)), 0)
    (packet,) = out.packets()
    return packet


async def repeating(packets: list[bytes], pause_seconds: float) -> None:
    with sender() as sending:
        while True:
            for packet in packets:
                sending.sendto(packet, GROUP)
            await asyncio.sleep(pause_seconds)


@asynccontextmanager
async def meanwhile(work: Any) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    await asyncio.sleep(0)  # it has begun
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_the_name_of_a_member() -> None:
    """Everybody of a federation computes the same, as docs/protocol/discovery has it, and it is one DNS label."""
    here = announcement("alice", 8001)
    assert here.instance("bob.media.collective") == "bob-79a8915ffa2cca89"
    assert announcement("carol", 1).instance("bob.media.collective") == here.instance("bob.media.collective")
    other = announcement("alice", 8001, root="5b" * 32)
    assert other.instance("bob.media.collective") != here.instance("bob.media.collective"), "another federation"
    assert len(here.instance(f"{'b' * 63}.media.collective")) <= 63


@pytest.mark.parametrize(
    ("configured", "host", "wanted"),
    [
        (None, "127.0.0.1", False), (None, "::1", False), (None, "localhost", False), (None, "0.0.0.0", True),
        (None, "192.168.1.10", True), (None, "nas.example.org", True),
        (True, "127.0.0.1", True), (False, "0.0.0.0", False),
    ],
)  # fmt: skip
def test_who_is_announced(configured: bool | None, host: str, wanted: bool) -> None:
    """A home that others can reach, unless the configuration says otherwise."""
    assert is_wanted(configured, host) is wanted


def test_own_addresses() -> None:
    """Where one listens everywhere loopback is not told to others; elsewhere it is that address alone."""
    assert not any(interface.ip.is_loopback or interface.version == 6 for interface in own_interfaces("0.0.0.0"))
    assert [str(interface.ip) for interface in own_interfaces("127.0.0.1")] == ["127.0.0.1"]


@pytest.mark.long
async def test_found_by_name_and_gone_on_time(multicast: None) -> None:
    """Asked and answered between two processes; one that ends says so; somebody else is nobody."""
    async with running(announcement("alice", 18001)) as alice, running(announcement("bob", 18101)) as bob:
        assert await alice.ask("bob") == ["127.0.0.1:18101"]
        assert await bob.ask("alice") == ["127.0.0.1:18001"]
        assert await alice.ask("carol") == []
        assert await bob.end() == 0
        assert await alice.ask("bob") == []
        async with running(announcement("bob", 18102)):
            assert await alice.ask("bob") == ["127.0.0.1:18102"], "the same member, at another place"
        alice.process.send_signal(signal.SIGTERM)
        assert await alice.process.wait() == 0


@pytest.mark.long
async def test_a_liar_hides_nobody_and_sends_nobody_away(multicast: None) -> None:
    """Others' answers for a member come beside its own, as places on this network alone."""
    away = ("8.8.8.8", "224.0.0.1", "0.0.0.0", "255.255.255.255", "192.168.1.66")
    async with running(announcement("alice", 18001)) as alice, running(announcement("bob", 18101)):
        instance = announcement("alice", 1).instance("bob.media.collective")
        async with meanwhile(repeating([lie(instance, 666, "127.0.0.66", *away), lie(instance, 22)], 0.02)):
            for _ in range(3):
                found = await alice.ask("bob")
                assert "127.0.0.1:18101" in found
                assert set(found) <= {"127.0.0.1:18101", "127.0.0.66:666", "127.0.0.66:22"}, found
        assert await alice.ask("bob") == ["127.0.0.1:18101"], "what was told for ever is asked again"
        with sender() as sending:
            for port in range(1000, 1500):
                sending.sendto(lie(f"{instance}", port, "127.0.0.66"), GROUP)
        assert len(await alice.ask("bob")) <= MAX_PLACES


@pytest.mark.long
async def test_a_flood_is_survived(multicast: None) -> None:
    """Tens of thousands of announcements and broken packets: memory stays bounded, and members are found after it."""
    async with running(announcement("alice", 18001)) as alice, running(announcement("bob", 18101)):
        await alice.ask("bob")
        before = alice.resident_bytes()
        with sender() as sending:
            for number in range(30_000):
                sending.sendto(lie(f"x{number}", number % 60_000 + 1, "127.0.0.66"), GROUP)
                if number % 3 == 0:
                    sending.sendto(os.urandom(number % 1400), GROUP)
                if number % 100 == 0:
                    await asyncio.sleep(0)
        for _ in range(5):
            if await alice.ask("bob") == ["127.0.0.1:18101"]:
                break
        else:
            pytest.fail("bob is not found any more")
        assert alice.resident_bytes() - before < 40 << 20


@pytest.fixture
def root(tmp_path: Path) -> Iterator[x509.Certificate]:
    federation = TestFederation(tmp_path)
    yield federation.authority.certificate
    federation.close()


@pytest.mark.long
async def test_the_asking_side(multicast: None, root: x509.Certificate, tmp_path: Path) -> None:
    """A process that is killed is started again; before it runs, and after, nobody is found and nothing is amiss."""
    events = Events()
    alice = Neighbours("alice.media.collective", root, tmp_path / "mdns.log", SystemClock(), events)
    assert await alice.places("bob.media.collective") == []
    bob = announcement("bob", 18101, root.fingerprint(SHA256()).hex())
    async with running(bob), meanwhile(alice.run("127.0.0.1", 18001, 18002)):
        assert await alice.places("bob.media.collective") == ["127.0.0.1:18101"]
        both = await asyncio.gather(alice.places("bob.media.collective"), alice.places("bob.media.collective"))
        assert both == [["127.0.0.1:18101"]] * 2
        assert alice._process is not None
        asked = asyncio.create_task(alice.places("carol.media.collective"))
        await asyncio.sleep(0)
        os.kill(alice._process.pid, signal.SIGKILL)
        assert await asked == []
        assert await alice.places("bob.media.collective") == ["127.0.0.1:18101"], "by the next one"
    assert [fields["exit_code"] for fields in events.named("mdns.ended")] == [-9]
    assert alice._process is None
    assert await alice.places("bob.media.collective") == []


@pytest.mark.parametrize("line", ["nonsense", "[]", "{}", '{"places": []}', "5", "x" * 100_000])
async def test_a_process_that_talks_nonsense(line: str, root: x509.Certificate, tmp_path: Path) -> None:
    """It is ended and started again, and its coordinator lives on."""
    events = Events()
    alice = Neighbours("alice.media.collective", root, tmp_path / "mdns.log", SystemClock(), events)
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\ncat <<'E'\n{line}\nE\nexec sleep 60\n")
    fake.chmod(0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(fake))
        async with meanwhile(alice.run("127.0.0.1", 1, 2)):
            while len(events.named("mdns.ended")) < 2:
                await asyncio.sleep(0.01)
    assert events.named("mdns.broken")
