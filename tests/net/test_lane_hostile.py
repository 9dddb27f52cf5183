"""What a lane does about those who are not what they should be, or do what they should not."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Sequence

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from typing_extensions import Buffer

from collective.core.errors import Refused, Unreachable
from collective.core.sizes import MIB
from collective.identity import ComponentKind, Level
from collective.net.lane import LaneCaller, LaneLimits
from collective.net.lane_frames import HEADER, HEADER_BYTES, MAX_BODY_BYTES, FrameHeader, FrameKind, pack_header
from collective.net.tls import client_context, server_context
from collective.wire import lane_pb2

ECHO, WAIT, BYTES = 1, 2, 3
Answer = tuple[bytes, Sequence[Buffer]]


async def echo(caller: LaneCaller, head: bytes, body: memoryview) -> Answer:
    return head, [body]


async def wait(caller: LaneCaller, head: bytes, body: memoryview) -> Answer:
    await asyncio.Event().wait()
    return b"", []


async def many_bytes(caller: LaneCaller, head: bytes, body: memoryview) -> Answer:
    return b"", [bytes(int(head))]


HANDLERS = {ECHO: echo, WAIT: wait, BYTES: many_bytes}


def frame(kind: int, call_id: int = 0, method: int = 0, head: bytes = b"", body: bytes = b"") -> bytes:
    return pack_header(kind, 1, method, call_id, len(head), len(body)) + head + body


def hello(version: int = 1, oldest: int = 1) -> bytes:
    greeting = lane_pb2.LaneHello(version=version, oldest_version=oldest, software="somebody")
    return frame(FrameKind.HELLO, head=greeting.SerializeToString())


class RawPeer:
    """The bare stream behind a TLS connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def dial(cls, port: int, context: ssl.SSLContext | None) -> RawPeer:
        return cls(*await asyncio.open_connection("127.0.0.1", port, ssl=context))

    def send(self, *frames: bytes) -> None:
        self.writer.write(b"".join(frames))

    async def frame(self) -> tuple[FrameHeader, bytes, bytes]:
        header = FrameHeader(*HEADER.unpack(await self.reader.readexactly(HEADER_BYTES)))
        return (
            header,
            await self.reader.readexactly(header.head_bytes),
            await self.reader.readexactly(header.body_bytes),
        )

    async def goodbye(self) -> str:
        """The reason the other side gives before it closes; '' when it just closes."""
        async with asyncio.timeout(10):
            while True:
                try:
                    header, head, _ = await self.frame()
                except (asyncio.IncompleteReadError, ConnectionError):
                    return ""
                if header.kind == FrameKind.ERROR and not header.call_id:
                    return lane_pb2.LaneError.FromString(head).message

    async def close(self) -> None:
        self.writer.transport.abort()


@pytest.fixture
async def raw(park):
    """Dials the port as bob's client, bare; all are closed at the end."""
    peers = []

    async def dial(port: int, context: ssl.SSLContext | None = None, *, tls: bool = True) -> RawPeer:
        chosen = (context or client_context(park.federation.credentials("bob", "client"))) if tls else None
        peers.append(await RawPeer.dial(port, chosen))
        return peers[-1]

    yield dial
    for peer in peers:
        await peer.close()


async def still_answers(park, port: int) -> None:
    """A good peer is served as before."""
    lane = await park.connect(port)
    assert (await lane.call(ECHO, b"good", b"bytes", timeout_seconds=5)).body == b"bytes"


# ---------------------------------------------------------------- who it is


async def test_without_a_certificate(park, raw, recorder):
    """Closed at once, with the reason."""
    _, port = await park.serve(HANDLERS, observer=recorder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=park.federation.root.certificate.public_bytes(Encoding.PEM).decode())
    peer = await raw(port, context)
    peer.send(hello(), frame(FrameKind.REQUEST, 1, ECHO))
    assert await peer.goodbye() == "no certificate was shown"
    assert (await recorder.seen("lane.refused"))["reason"] == "no certificate was shown"
    await still_answers(park, port)


async def test_strangers(park, strange_federation):
    """Certificates of another federation with the same names are refused, on either side."""
    _, port = await park.serve(HANDLERS)
    with pytest.raises((Refused, Unreachable)):
        await park.connect(port, credentials=strange_federation.credentials("bob", "client"))
    home, park.federation = park.federation, strange_federation
    _, strange_port = await park.serve(HANDLERS)
    park.federation = home
    with pytest.raises(Refused, match="not of this federation"):
        await park.connect(strange_port)
    await still_answers(park, port)


async def test_the_wrong_component(park, federation):
    """Who answers must be the one that was meant."""
    _, port = await park.serve(HANDLERS)
    for member, part in (("bob", "node-01"), ("alice", "coord")):
        with pytest.raises(Refused, match=r"is node-01@alice\.media\.collective, not"):
            await park.connect(port, expected=federation.address(member, part))


async def test_level_and_kind(park, federation):
    """A server may be for its own member only, or for some kinds of components."""
    _, port = await park.serve(HANDLERS, level=Level.LOCAL, kinds=frozenset({ComponentKind.COORDINATOR}))
    for member, part in (("bob", "coord"), ("alice", "client")):
        with pytest.raises(Refused):
            await park.connect(port, credentials=federation.credentials(member, part))
    lane = await park.connect(port, credentials=federation.credentials("alice", "coord"))
    assert (await lane.call(ECHO, b"own", timeout_seconds=5)).head == b"own"


async def test_revoked_while_connected(park, federation):
    """Trust taken away cuts the open connection, and whoever waits on it learns why."""
    for trust_of_server in (True, False):
        _, port = await park.serve(HANDLERS)
        credentials = federation.make("bob", "client")
        lane = await park.connect(port, credentials=credentials)
        call = asyncio.create_task(lane.call(WAIT, b"", timeout_seconds=30))
        await lane.call(ECHO, b"", timeout_seconds=5)
        if trust_of_server:
            park.server_trust.revoke(credentials.identity.fingerprint)
        else:
            park.client_trust.revoke(federation.credentials("alice", "node-01").identity.fingerprint)
        with pytest.raises(Refused, match="revoked"):
            await call
        with pytest.raises(Refused):
            await lane.call(ECHO, b"", timeout_seconds=5)
    with pytest.raises(Refused, match="revoked"):
        await park.connect(port)


async def test_a_removed_member_is_cut_and_others_are_not(park, federation):
    """Removal ends the connections of that member alone."""
    _, port = await park.serve(HANDLERS)
    theirs, own = (
        await park.connect(port),
        await park.connect(port, credentials=federation.credentials("alice", "coord")),
    )
    park.server_trust.remove_member("bob.media.collective")
    async with asyncio.timeout(5):
        await theirs.closed.wait()
    assert theirs.is_closed
    assert (await own.call(ECHO, b"own", timeout_seconds=5)).head == b"own"


async def test_a_certificate_that_expires_while_connected(park, federation):
    """It is looked at now and then: when its time is over, so is the connection."""
    _, port = await park.serve(HANDLERS, limits=LaneLimits(stall_seconds=0.2, greeting_seconds=0.2))
    lane = await park.connect(port)
    park.clock.ahead_seconds = 7 * 86400.0
    async with asyncio.timeout(5):
        await lane.closed.wait()
    with pytest.raises(Refused):
        await park.connect(port)


async def test_old_tls_is_refused(park, raw):
    """TLS 1.2 gets no connection."""
    _, port = await park.serve(HANDLERS)
    context = client_context(park.federation.credentials("bob", "client"))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await raw(port, context)
    await still_answers(park, port)


async def test_no_session_is_kept(park):
    """There are no tickets with which a later connection could skip showing its certificate."""
    _, port = await park.serve(HANDLERS)
    context = client_context(park.federation.credentials("bob", "client"))

    def exchange() -> ssl.SSLSession | None:
        with (
            socket.create_connection(("127.0.0.1", port)) as bare,
            context.wrap_socket(bare) as secured,
        ):
            secured.settimeout(5)
            secured.sendall(hello())
            assert secured.recv(HEADER_BYTES)
            assert secured.version() == "TLSv1.3"
            return secured.session

    session = await asyncio.to_thread(exchange)
    assert session is None or not session.has_ticket


# ---------------------------------------------------------------- what it says


@pytest.mark.parametrize("versions", [(5, 2), (0, 0)])
async def test_a_caller_of_another_version(park, raw, versions):
    """Told which versions both sides speak, then closed."""
    _, port = await park.serve(HANDLERS)
    peer = await raw(port)
    peer.send(hello(*versions))
    assert "speaks lane versions" in await peer.goodbye()


async def test_a_newer_caller_that_still_speaks_ours(park, raw):
    """Version N+1 with N-1 kept is welcome."""
    _, port = await park.serve(HANDLERS)
    peer = await raw(port)
    peer.send(hello(2, 1), frame(FrameKind.REQUEST, 7, ECHO, b"head", b"body"))
    assert (await peer.frame())[0].kind == FrameKind.HELLO
    header, head, body = await peer.frame()
    assert (header.kind, header.call_id, head, body) == (FrameKind.REPLY, 7, b"head", b"body")


async def answer_with(park, first: bytes) -> int:
    """A server that says `first` to whoever comes, and nothing else."""

    async def arrived(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        await reader.read(-1)
        writer.close()

    context = server_context(park.federation.credentials("alice", "node-01"))
    server = await asyncio.start_server(arrived, "127.0.0.1", 0, ssl=context)

    async def close() -> None:
        server.close()

    park._closers.append(close)
    return server.sockets[0].getsockname()[1]


async def test_a_server_of_another_version(park):
    """The caller refuses it by itself."""
    with pytest.raises(Refused, match="update the older"):
        await park.connect(await answer_with(park, hello(5, 2)))


async def test_a_server_that_says_nothing_or_nonsense(park):
    """Given up after the time allowed; nonsense at once."""
    with pytest.raises(Unreachable, match="in time"):
        await park.connect(await answer_with(park, b""), timeout_seconds=0.3)
    with pytest.raises(Exception, match="not the lane's protocol"):
        await park.connect(await answer_with(park, b"HTTP/1.1 400 Bad Request\r\n\r\n"))


REQUEST = frame(FrameKind.REQUEST, 1, WAIT)
VIOLATIONS = {
    "garbage": ([hello(), b"\xff" * 64], "protocol"),
    "no greeting": ([REQUEST], "did not greet"),
    "two greetings": ([hello(), hello()], "second greeting"),
    "a greeting that cannot be decoded": ([frame(FrameKind.HELLO, head=b"\xff\xff\xff")], "decoded"),
    "a greeting with a body": ([frame(FrameKind.HELLO, head=b"", body=b"x")], "limit"),
    "a head too large": ([hello(), HEADER.pack(1 << 17, 0, 1, 1, 1, 1)], "limit"),
    "a body too large": ([hello(), HEADER.pack(0, MAX_BODY_BYTES + 1, 1, 1, 1, 1)], "limit"),
    "an id twice": ([hello(), REQUEST, REQUEST], "used twice"),
    "id zero": ([hello(), frame(FrameKind.REQUEST, 0, WAIT)], "used twice"),
    "an answer to nothing": ([hello(), frame(FrameKind.REPLY, 9)], "nothing that was asked"),
    "an error to nothing": ([hello(), frame(FrameKind.ERROR, 9)], "nothing that was asked"),
    "a body in an error": ([hello(), frame(FrameKind.ERROR, 9, body=b"x")], "none belongs"),
    "65 calls": ([hello(), *(frame(FrameKind.REQUEST, i, WAIT) for i in range(1, 66))], "more calls"),
    "33 MiB": (
        [
            hello(),
            *(frame(FrameKind.REQUEST, i, WAIT, body=bytes(8 * MIB)) for i in range(1, 5)),
            HEADER.pack(0, MIB, 1, 1, WAIT, 9),
        ],
        "more bytes",
    ),
}


@pytest.mark.parametrize("what", list(VIOLATIONS))
async def test_violations_end_the_connection(park, raw, recorder, what):
    """Told the reason, cut, and its handlers end; others do not notice."""
    frames, reason = VIOLATIONS[what]
    server, port = await park.serve(HANDLERS, observer=recorder)
    peer = await raw(port)
    peer.send(*frames)
    assert reason in await peer.goodbye()
    assert reason in (await recorder.seen("lane.broken"))["reason"]
    await peer.close()
    await still_answers(park, port)
    assert server.connection_count == 1


async def test_cancelling_what_is_not_there(park, raw):
    """A CANCEL for an unknown or answered call is nothing."""
    _, port = await park.serve(HANDLERS)
    peer = await raw(port)
    peer.send(hello(), frame(FrameKind.CANCEL, 5), frame(FrameKind.REQUEST, 5, ECHO, b"x"))
    await peer.frame()
    assert (await peer.frame())[1] == b"x"
    peer.send(frame(FrameKind.CANCEL, 5), frame(FrameKind.REQUEST, 5, ECHO, b"y"))
    assert (await peer.frame())[1] == b"y"


# ---------------------------------------------------------------- what it does not do


QUICK = LaneLimits(greeting_seconds=0.2, stall_seconds=0.2, idle_seconds=0.2)


@pytest.mark.parametrize("said", ["nothing", "handshake", "part of a greeting", "greeting", "part of a call"])
async def test_half_open_peers_are_closed(park, raw, said):
    """Whoever stops anywhere is closed after the time allowed, and counted out."""
    server, port = await park.serve(HANDLERS, limits=QUICK)
    peer = await raw(port, tls=said != "nothing")
    if said == "part of a greeting":
        peer.send(hello()[:10])
    elif said in ("greeting", "part of a call"):
        peer.send(hello(), b"" if said == "greeting" else REQUEST[:10])
    await peer.goodbye()
    async with asyncio.timeout(5):
        while server.connection_count:
            await asyncio.get_running_loop().run_in_executor(None, os.sched_yield)


async def test_a_caller_that_takes_nothing_is_cut(park, raw, recorder):
    """Answers that are not taken do not stay in memory."""
    _, port = await park.serve(HANDLERS, limits=LaneLimits(stall_seconds=0.3), observer=recorder)
    peer = await raw(port)
    peer.writer.transport.pause_reading()
    peer.send(hello(), *(frame(FrameKind.REQUEST, i, BYTES, str(8 * MIB).encode()) for i in range(1, 9)))
    assert (await recorder.seen("lane.stalled"))["backlog_bytes"] > 0


async def test_large_answers_take_memory_only_while_there_is_room(park, raw):
    """Sixty-four large questions at once, and nothing taken: a few answers exist, and all come when they are taken."""
    made = []
    slow = asyncio.Event()

    async def large(caller: LaneCaller, head: bytes, body: memoryview) -> Answer:
        memory = await caller.memory(8 * MIB)
        memory[:] = head[:1] * len(memory)
        made.append(head)
        await slow.wait()  # all that may run at once stand here together
        return b"", [memory]

    _, port = await park.serve({**HANDLERS, BYTES: large})
    peer = await raw(port)
    peer.writer.transport.pause_reading()
    peer.send(hello(), *(frame(FrameKind.REQUEST, call_id, BYTES, str(call_id).encode()) for call_id in range(1, 65)))
    await still_answers(park, port)
    async with asyncio.timeout(10):
        while not made:
            await asyncio.sleep(0)
    assert len(made) <= 2
    slow.set()
    await still_answers(park, port)
    assert len(made) <= 4
    peer.writer.transport.resume_reading()
    async with asyncio.timeout(60):
        answered = 0
        while answered < 64:
            header, _, body = await peer.frame()
            if header.kind == FrameKind.REPLY:
                answered += 1
                first = str(header.call_id).encode()[:1]
                assert bytes(body) == first * (8 * MIB), "no answer is written over before it is sent"
    assert len(made) == 64


async def test_a_working_connection_is_not_idle(park):
    """A long question keeps its connection, however quiet it is."""
    _, port = await park.serve(HANDLERS, limits=QUICK)
    lane = await park.connect(port)
    with pytest.raises(Unreachable, match="within 1 s"):
        await lane.call(WAIT, b"", timeout_seconds=1.0)
    assert not lane.is_closed


async def test_connections_are_counted(park, raw):
    """Per address and in all, handshakes included; who leaves makes room."""
    _, port = await park.serve(HANDLERS, limits=LaneLimits(max_connections_per_address=3))
    _, narrow = await park.serve(HANDLERS, limits=LaneLimits(max_connections=3))
    for each in (port, narrow):
        silent = [await raw(each, tls=False) for _ in range(2)]
        lane = await park.connect(each)
        with pytest.raises(Unreachable):
            await park.connect(each)
        await lane.close()
        await silent[0].close()
        async with asyncio.timeout(5):
            while True:
                try:
                    lane = await park.connect(each)
                except Unreachable:
                    continue
                break


async def test_idle_connections_do_not_slow_a_good_peer(park, raw):
    """With 200 that do nothing, calls are answered as before."""
    _, port = await park.serve(HANDLERS)
    for _ in range(200):
        await raw(port, tls=False)
    lane = await park.connect(port)
    for i in range(200):
        assert (await lane.call(ECHO, str(i).encode(), timeout_seconds=1)).head == str(i).encode()


async def test_a_dialled_place_that_is_empty(park):
    """Nothing listens: Unreachable, naming who and where."""
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    with pytest.raises(Unreachable, match=f"node-01@alice.media.collective at 127.0.0.1:{port}"):
        await park.connect(port)
    assert not park.client_trust._subscribers, "a connection that never was is not told of changes"
