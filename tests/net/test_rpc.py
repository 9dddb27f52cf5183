"""The dispatch table over real gRPC: every row with every kind of certificate, errors, the local socket, failures."""

from __future__ import annotations

import asyncio
import signal
import ssl
import stat
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory

from collective.core.errors import ERROR_CODES, CollectiveError, Full, Misconfigured, Refused, Unreachable
from collective.identity import ComponentKind, Level, save_certificate
from collective.net.channels import Channels, LocalChannel
from collective.net.rpc import MESSAGE_LIMIT_BYTES, Caller, Row, RpcServer, contract_methods
from collective.net.tls import client_context
from collective.net.versions import Spoken
from collective.wire import control_pb2

PING = "/collective.v1.Federation/Ping"
FOLLOW = "/collective.v1.Federation/Follow"
PARTS = {"coord": ComponentKind.COORDINATOR, "node-01": ComponentKind.NODE, "client": ComponentKind.CLIENT}
ALL_KINDS = frozenset(PARTS.values())


def types_of(method: str) -> tuple[Any, Any]:
    described = contract_methods()[method]
    return message_factory.GetMessageClass(described.input_type), message_factory.GetMessageClass(described.output_type)


def answering(method: str) -> Callable[[Caller, Any], Any]:
    """A handler that answers the empty message."""
    reply_type = types_of(method)[1]

    async def unary(caller: Caller, request: Any) -> Any:
        return reply_type()

    async def stream(caller: Caller, request: Any) -> AsyncIterator[Any]:
        yield reply_type()

    return stream if contract_methods()[method].server_streaming else unary


def table(**special: Any) -> list[Row]:
    """A row per method; over all of them every level, every single kind and both answers to `local` occur."""
    rows = []
    for number, method in enumerate(sorted(contract_methods())):
        short = method.rpartition("/")[2]
        kinds = frozenset({list(PARTS.values())[number % 3]}) if number % 2 else ALL_KINDS
        level = (Level.FEDERATED, Level.LOCAL, Level.PEER)[number % 3]
        row = Row(method, kinds, number % 2 == 0, "a right", level, answering(method))
        rows.append(special.get(short, row))
    return rows


def open_row(method: str, handler: Callable[[Caller, Any], Any], local: bool = True) -> Row:
    return Row(method, ALL_KINDS, local, "anybody", Level.FEDERATED, handler)


class Wires:
    """One control server of alice's coordinator, and channels of others to it."""

    def __init__(self, federation, clock, observer) -> None:
        self.federation, self.clock, self.observer = federation, clock, observer
        self.trust = federation.trust("alice")
        self.peer = federation.address("alice", "coord")
        self.closers = []
        self.endpoint = ""

    async def serve(self, rows: list[Row]) -> RpcServer:
        server = RpcServer(rows, self.trust, self.federation.credentials("alice", "coord"), self.clock, self.observer)
        self.closers.append(lambda: server.stop(0))
        self.endpoint = f"127.0.0.1:{await server.start('127.0.0.1:0')}"
        return server

    def channels(self, member: str = "bob", part: str = "coord", credentials=None) -> Channels:
        channels = Channels(
            credentials or self.federation.credentials(member, part), self.federation.trust(member), self.clock
        )
        self.closers.insert(0, channels.close)
        return channels

    async def ask(self, channels: Channels, method: str, request: Any = None) -> Any:
        request_type, reply_type = types_of(method)
        request = request_type() if request is None else request
        if contract_methods()[method].server_streaming:
            replies = channels.stream(self.peer, self.endpoint, method, request, reply_type)
            return [reply async for reply in replies]
        return await channels.unary(self.peer, self.endpoint, method, request, reply_type, 10)


@pytest.fixture
async def wires(federation, clock, recorder):
    parts = Wires(federation, clock, recorder)
    yield parts
    for closer in parts.closers:
        await closer()


async def test_every_row_with_every_certificate(wires):
    """Who is let in is exactly who the row names: kind and level, for each member and each kind of component."""
    rows = table()
    await wires.serve(rows)
    tried = set()
    for member in ("alice", "bob"):
        for part, kind in PARTS.items():
            channels = wires.channels(member, part)
            for row in rows:
                allowed = kind in row.kinds and (row.level is not Level.LOCAL or member == "alice")
                tried.add(allowed)
                if allowed:
                    assert await wires.ask(channels, row.method) is not None
                else:
                    with pytest.raises(Refused):
                        await wires.ask(channels, row.method)
    assert tried == {True, False}


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_tls_1_3_and_nothing_older(wires, version):
    """A member's own right certificate does not help an old client."""
    await wires.serve(table())
    context = client_context(wires.federation.credentials("bob", "coord"))
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1_2, version
    context.set_alpn_protocols(["h2"])
    host, port = wires.endpoint.split(":")
    opening = asyncio.open_connection(host, int(port), ssl=context)
    if version is ssl.TLSVersion.TLSv1_2:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await opening
    else:
        _, writer = await opening
        assert writer.get_extra_info("ssl_object").version() == "TLSv1.3"
        writer.close()


async def test_peer_level_asks_for_a_configured_peer(wires):
    """PEER lets in only members that were configured."""
    row = Row(PING, ALL_KINDS, False, "", Level.PEER, answering(PING))
    await wires.serve(table(Ping=row))
    channels = wires.channels()
    await wires.ask(channels, PING)
    wires.trust.set_peers([])
    with pytest.raises(Refused):
        await wires.ask(channels, PING)


async def test_capabilities(wires):
    """A row may ask for a word in the certificate that this caller does not carry."""
    row = Row(PING, ALL_KINDS, False, "", Level.FEDERATED, answering(PING), capability="admin")
    await wires.serve(table(Ping=row))
    with pytest.raises(Refused, match="admin"):
        await wires.ask(wires.channels("bob", "node-01"), PING)


@pytest.mark.parametrize("change", ["missing", "unknown", "twice"])
def test_a_table_that_is_not_the_contract_stops_the_start(federation, change):
    """A method without a row, a row without a method, a second row for a method: none of them starts."""
    rows = table()
    if change == "missing":
        rows.pop()
    elif change == "unknown":
        rows.append(open_row("/collective.v1.Federation/Unheard", answering(PING)))
    else:
        rows.append(rows[0])
    with pytest.raises(Misconfigured, match="dispatch table"):
        RpcServer(rows, federation.trust("alice"), federation.credentials("alice", "coord"), None)


@pytest.mark.parametrize("kind", list(ERROR_CODES))
async def test_errors_keep_kind_words_and_hint(wires, kind):
    """A handler's error is raised again at the caller, from a call and from the middle of a stream."""

    async def fail(caller, request):
        raise kind("es ist kaputt: ä", "flick es: ß")

    async def begin_and_fail(caller, request):
        yield control_pb2.FollowReply()
        raise kind("es ist kaputt: ä", "flick es: ß")

    await wires.serve(table(Ping=open_row(PING, fail), Follow=open_row(FOLLOW, begin_and_fail)))
    channels = wires.channels()
    for method in (PING, FOLLOW):
        with pytest.raises(kind) as raised:
            await wires.ask(channels, method)
        assert type(raised.value) is kind
        assert (raised.value.message, raised.value.hint) == ("es ist kaputt: ä", "flick es: ß")


async def test_unexpected_exceptions_tell_the_caller_nothing(wires, recorder):
    """What broke inside is told to the observer alone."""

    async def fail(caller, request):
        raise ZeroDivisionError("secret detail")

    async def begin_and_fail(caller, request):
        yield control_pb2.FollowReply()
        raise ZeroDivisionError("secret detail")

    await wires.serve(table(Ping=open_row(PING, fail), Follow=open_row(FOLLOW, begin_and_fail)))
    channels = wires.channels()
    for method in (PING, FOLLOW):
        with pytest.raises(CollectiveError) as raised:
            await wires.ask(channels, method)
        assert type(raised.value) is CollectiveError
        assert "secret" not in str(raised.value)
    assert "secret detail" in (await recorder.seen("rpc.handler_failed"))["error"]


async def test_a_peers_unreachable_does_not_end_other_calls(wires):
    """An error that the peer raised says nothing about the channel: a stream on it goes on."""
    more = asyncio.Event()

    async def fail(caller, request):
        raise Unreachable("somebody else is away")

    async def follow(caller, request):
        yield control_pb2.FollowReply()
        await more.wait()
        yield control_pb2.FollowReply(caught_up=True)

    await wires.serve(table(Ping=open_row(PING, fail), Follow=open_row(FOLLOW, follow)))
    channels = wires.channels()
    stream = channels.stream(wires.peer, wires.endpoint, FOLLOW, control_pb2.FollowRequest(), control_pb2.FollowReply)
    await anext(stream)
    with pytest.raises(Unreachable, match="somebody else"):
        await wires.ask(channels, PING)
    more.set()
    assert (await anext(stream)).caught_up
    await stream.aclose()


async def test_closing_channels_is_no_cancellation(wires):
    """A call whose channel is closed under it fails with Unreachable; only a cancelled task sees CancelledError."""
    begun = asyncio.Event()

    async def wait(caller, request):
        begun.set()
        await asyncio.Event().wait()

    await wires.serve(table(Ping=open_row(PING, wait)))
    channels = wires.channels()
    call = asyncio.create_task(wires.ask(channels, PING))
    await begun.wait()
    await channels.close()
    with pytest.raises(Unreachable, match="cut off"):
        await call
    begun.clear()
    call = asyncio.create_task(wires.ask(wires.channels(), PING))
    await begun.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_deadlines_and_absent_peers_are_unreachable(wires):
    """No answer in time, and nobody there: Unreachable, naming who and where."""

    async def wait(caller, request):
        await asyncio.Event().wait()

    server = await wires.serve(table(Ping=open_row(PING, wait)))
    channels = wires.channels()
    with pytest.raises(Unreachable, match="coord@alice"):
        await channels.unary(wires.peer, wires.endpoint, PING, control_pb2.PingRequest(), control_pb2.PingReply, 0.2)
    await server.stop(0)
    with pytest.raises(Unreachable, match=wires.endpoint):
        await wires.ask(channels, PING)


async def test_another_component_in_its_place_is_refused(wires, federation):
    """Who answers must be the component that was meant, not merely somebody of the federation."""
    await wires.serve(table())
    wires.peer = federation.address("bob", "coord")
    with pytest.raises(Refused, match="not its own"):
        await wires.ask(wires.channels("alice"), PING)


async def test_strangers_are_refused_both_ways(wires, strange_federation):
    """A member of another federation neither gets in nor is believed."""
    stranger = strange_federation
    await wires.serve(table())
    theirs = Channels(stranger.credentials("bob", "coord"), stranger.trust("bob"), wires.clock)
    ours_to_them = RpcServer(table(), stranger.trust("alice"), stranger.credentials("alice", "coord"), wires.clock)
    with pytest.raises(CollectiveError):
        await theirs.unary(wires.peer, wires.endpoint, PING, control_pb2.PingRequest(), control_pb2.PingReply, 5)
    port = await ours_to_them.start("127.0.0.1:0")
    with pytest.raises(Refused):
        await wires.channels().unary(
            wires.peer, f"127.0.0.1:{port}", PING, control_pb2.PingRequest(), control_pb2.PingReply, 5
        )
    await theirs.close()
    await ours_to_them.stop(0)


async def test_without_a_certificate_nobody_comes_in(wires, federation):
    """The handshake itself asks for a client certificate."""
    await wires.serve(table())
    root = federation.credentials("bob", "coord").root_pem
    options = (("grpc.ssl_target_name_override", wires.peer.dns_name()),)
    async with grpc.aio.secure_channel(wires.endpoint, grpc.ssl_channel_credentials(root), options=options) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.unary_unary(PING)(b"", timeout=5)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_trust_lost_counts_at_the_next_call_and_message(wires, federation):
    """A revoked caller is refused at its next call on the open connection, and its stream gets no further message."""
    credentials = federation.make("bob", "coord")
    more = asyncio.Event()

    async def follow(caller, request):
        yield control_pb2.FollowReply()
        await more.wait()
        yield control_pb2.FollowReply(caught_up=True)

    await wires.serve(table(Ping=open_row(PING, answering(PING)), Follow=open_row(FOLLOW, follow)))
    channels = wires.channels(credentials=credentials)
    await wires.ask(channels, PING)
    stream = channels.stream(wires.peer, wires.endpoint, FOLLOW, control_pb2.FollowRequest(), control_pb2.FollowReply)
    await anext(stream)
    wires.trust.revoke(credentials.identity.fingerprint)
    more.set()
    with pytest.raises(Refused):
        await anext(stream)
    with pytest.raises(Refused):
        await wires.ask(channels, PING)


async def test_a_removed_member_is_not_called_and_its_streams_end(wires, federation):
    """Removal closes our channels to that member."""

    async def follow(caller, request):
        yield control_pb2.FollowReply()
        await asyncio.Event().wait()

    await wires.serve(table(Follow=open_row(FOLLOW, follow)))
    trust = federation.trust("bob")
    channels = Channels(federation.credentials("bob", "coord"), trust, wires.clock)
    stream = channels.stream(wires.peer, wires.endpoint, FOLLOW, control_pb2.FollowRequest(), control_pb2.FollowReply)
    await anext(stream)
    trust.remove_member("alice.media.collective")
    with pytest.raises(Unreachable):
        await anext(stream)
    with pytest.raises(Refused, match="removed"):
        await wires.ask(channels, PING)
    await channels.close()


async def test_the_local_socket(wires, tmp_path):
    """0600; only rows marked local answer; there the caller has no identity."""
    callers = []

    async def remember(caller, request):
        callers.append(caller)
        return control_pb2.PingReply()

    rows = table(Ping=open_row(PING, remember))
    server = await wires.serve(rows)
    path = tmp_path / "control.sock"
    path.write_text("left behind by a crash")
    await server.start_unix(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    channel = LocalChannel(path)
    assert await channel.ready(5)
    for row in rows:
        request_type, reply_type = types_of(row.method)
        streaming = contract_methods()[row.method].server_streaming
        try:
            if streaming:
                assert [reply async for reply in channel.stream(row.method, request_type(), reply_type)]
            else:
                await channel.unary(row.method, request_type(), reply_type, 5)
            assert row.local
        except Refused:
            assert not row.local
    assert callers == [Caller(None)]
    await channel.close()


async def test_no_coordinator_at_the_socket(tmp_path):
    """Nobody listens: not ready, Unreachable."""
    channel = LocalChannel(tmp_path / "control.sock")
    assert not await channel.ready(5)
    with pytest.raises(Unreachable):
        await channel.unary(PING, control_pb2.PingRequest(), control_pb2.PingReply, 5)
    await channel.close()


async def test_bad_places_are_told(wires, tmp_path):
    """A port in use, a socket path too long: the owner is told what to do."""
    server = await wires.serve(table())
    with pytest.raises(Misconfigured, match="already in use"):
        await server.start(wires.endpoint)
    with pytest.raises(Misconfigured, match="too long"):
        await server.start_unix(tmp_path / ("x" * 100))


async def test_messages_over_the_limit(wires):
    """What is too large fails at once as Full, and the channel goes on."""
    await wires.serve(table(Ping=open_row(PING, answering(PING))))
    channels = wires.channels()
    with pytest.raises(Full):
        await wires.ask(channels, PING, control_pb2.PingRequest(payload=bytes(MESSAGE_LIMIT_BYTES + 1)))
    await wires.ask(channels, PING)


async def test_many_calls_at_once(wires):
    """300 calls at the same time on one channel are all answered."""

    async def echo(caller, request):
        return control_pb2.PingReply(payload=request.payload)

    await wires.serve(table(Ping=open_row(PING, echo)))
    channels = wires.channels()
    replies = await asyncio.gather(
        *(wires.ask(channels, PING, control_pb2.PingRequest(payload=str(i).encode())) for i in range(300))
    )
    assert [reply.payload for reply in replies] == [str(i).encode() for i in range(300)]


async def test_a_suspended_peer_is_noticed(wires, federation, tmp_path):
    """A peer that is stopped, not dead, is Unreachable within a few seconds, though no deadline was given."""
    credentials = federation.credentials("alice", "coord")
    credentials.save(tmp_path, "coord")
    save_certificate(tmp_path / "member-ca.crt", credentials.member_ca)
    save_certificate(tmp_path / "root-ca.crt", credentials.root)
    script = Path(__file__).with_name("serve_rpc.py")
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    try:
        wires.endpoint = f"127.0.0.1:{int(await process.stdout.readline())}"
        stream = wires.channels().stream(
            wires.peer, wires.endpoint, FOLLOW, control_pb2.FollowRequest(), control_pb2.FollowReply
        )
        await anext(stream)
        process.send_signal(signal.SIGSTOP)
        begun = time.monotonic()
        with pytest.raises(Unreachable):
            await anext(stream)
        assert time.monotonic() - begun < 5.0
    finally:
        process.kill()
        await process.wait()


async def test_control_versions_are_negotiated(wires, monkeypatch):
    """N speaks with N-1 and with N+1 that still speaks N; two that share no version part with a reason."""
    await wires.serve([open_row(method, answering(method)) for method in contract_methods()])
    channels = wires.channels()
    for spoken in (Spoken("control", 1, 1), Spoken("control", 2, 1)):
        monkeypatch.setattr("collective.net.channels.CONTROL", spoken)
        assert await wires.ask(channels, PING) == control_pb2.PingReply()
        assert await wires.ask(channels, FOLLOW) == [control_pb2.FollowReply()]
    monkeypatch.setattr("collective.net.channels.CONTROL", Spoken("control", 3, 2))
    for method in (PING, FOLLOW):
        with pytest.raises(Refused, match="speaks control versions 2-3, this side 1-1") as caught:
            await wires.ask(channels, method)
        assert "update the older" in str(caught.value.hint)
    monkeypatch.setattr("collective.net.rpc.CONTROL", Spoken("control", 2, 2))
    monkeypatch.setattr("collective.net.channels.CONTROL", Spoken("control", 1, 1))
    with pytest.raises(Refused, match="1-1, this side 2-2"):
        await wires.ask(channels, PING)
    monkeypatch.setattr("collective.net.channels._spoken", lambda: (("collective-versions", "soon"),))
    with pytest.raises(Refused, match="cannot be read"):
        await wires.ask(channels, PING)


async def test_a_peer_that_names_no_version_speaks_the_first(wires, monkeypatch):
    """Served by who still speaks it, refused by who does not."""
    await wires.serve([open_row(method, answering(method)) for method in contract_methods()])
    monkeypatch.setattr("collective.net.channels._spoken", lambda: ())
    assert await wires.ask(wires.channels(), PING) == control_pb2.PingReply()
    monkeypatch.setattr("collective.net.rpc.CONTROL", Spoken("control", 3, 2))
    with pytest.raises(Refused, match="1-1"):
        await wires.ask(wires.channels(), PING)


async def test_a_call_under_way_keeps_its_channel(wires, monkeypatch):
    """More places than channels: what is idle makes room; a stream is never cut for it."""
    monkeypatch.setattr("collective.net.channels.MAX_CHANNELS", 2)
    go_on = asyncio.Event()

    async def slow(caller: Caller, request: Any) -> AsyncIterator[Any]:
        yield control_pb2.FollowReply()
        await go_on.wait()
        yield control_pb2.FollowReply(caught_up=True)

    await wires.serve([*(row for row in table() if row.method not in (FOLLOW, PING)),
                       open_row(FOLLOW, slow), open_row(PING, answering(PING))])  # fmt: skip
    channels = wires.channels()
    port = wires.endpoint.rpartition(":")[2]
    stream = channels.stream(wires.peer, wires.endpoint, FOLLOW, control_pb2.FollowRequest(), control_pb2.FollowReply)
    assert await anext(stream) == control_pb2.FollowReply()
    for place in ("localhost:", "LOCALHOST:", "ipv4:127.0.0.1:", "dns:localhost:"):  # one server, a channel each
        await channels.unary(wires.peer, place + port, PING, control_pb2.PingRequest(), control_pb2.PingReply, 10)
        assert {key[1] for key in channels._open} == {wires.endpoint, place + port}
    go_on.set()
    assert await anext(stream) == control_pb2.FollowReply(caught_up=True)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    assert not channels._calls
