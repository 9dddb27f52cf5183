"""The control wire's answering side: gRPC over mutual TLS, and one dispatch table that says who may call what.

Every method of the contract has exactly one row; a method without a row, or a row without a method, stops the start.
The caller is judged at every call, by the certificate it showed: chain, level, component kind; on a stream again
before every message, so nothing leaves after trust was lost. On the home's Unix socket the caller is whoever may open
it, and only rows marked `local` answer there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from cryptography import x509
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from collective.core.clock import Clock
from collective.core.errors import CollectiveError, Misconfigured, Refused, codes_of
from collective.core.observe import SILENT, Observer
from collective.core.sizes import MIB
from collective.identity import ComponentKind, Credentials, Level, PeerIdentity, TrustStore
from collective.net.endpoints import check_bindable, parse_host_port
from collective.net.versions import CONTROL
from collective.wire import control_pb2

__all__ = ["MESSAGE_LIMIT_BYTES", "Caller", "Row", "RpcServer", "contract_methods"]

# A CompleteCopy of a 4 TB film carries 1,000 pages of each kind, 35 MB; what is larger is cut by its writer.
MESSAGE_LIMIT_BYTES = 64 * MIB
CALLS_AT_ONCE = 512
ERROR_KEY = "collective-error-bin"
VERSIONS_KEY = "collective-versions"
FIRST_VERSIONS = "1-1"  # of who says nothing
OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES),
    ("grpc.max_send_message_length", MESSAGE_LIMIT_BYTES),
    ("grpc.so_reuseport", 0),
    # a suspended peer is noticed by pings within 3.5 s; 2.5 s leave room for a thin line with full buffers
    ("grpc.keepalive_time_ms", 1000),
    ("grpc.keepalive_timeout_ms", 2500),
    ("grpc.http2.ping_timeout_ms", 2500),  # without this a ping's answer is waited for a minute
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.http2.max_pings_without_data", 0),
)


@dataclass(frozen=True)
class Caller:
    """Who calls; `identity` None on the home's own Unix socket."""

    identity: PeerIdentity | None


@dataclass(frozen=True)
class Row:
    """One method: who may call it and what answers. `right` is for people; rights on data are judged by the handler.

    `capability`: a word the caller's certificate must carry (`admin`), "" for none. `local`: answers on the socket.
    """

    method: str
    kinds: frozenset[ComponentKind]
    local: bool
    right: str
    level: Level
    handler: Callable[[Caller, Any], Any]
    capability: str = ""


def contract_methods() -> dict[str, MethodDescriptor]:
    """Every method of control.proto by its full name."""
    return {
        f"/{service.full_name}/{method.name}": method
        for service in control_pb2.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }


class RpcServer:
    """Serves the rows over TLS and over the home's socket."""

    def __init__(
        self,
        rows: Sequence[Row],
        trust: TrustStore,
        credentials: Credentials,
        clock: Clock,
        observer: Observer = SILENT,
    ) -> None:
        self._rows = {row.method: row for row in rows}
        self._trust = trust
        self._credentials = credentials
        self._clock = clock
        self._observer = observer
        self._servers: list[grpc.aio.Server] = []
        methods = contract_methods()
        missing, unknown = methods.keys() - self._rows.keys(), self._rows.keys() - methods.keys()
        if missing or unknown or len(rows) != len(self._rows):
            raise Misconfigured(
                f"the dispatch table is not the contract: no row for {sorted(missing)}, no method for {sorted(unknown)}"
            )

    async def start(self, address: str) -> int:
        """Listen on HOST:PORT with mutual TLS; the port bound. Raises: Misconfigured (in use)."""
        host, port = parse_host_port(address)
        if port:
            check_bindable(host, port)
        credentials = grpc.ssl_server_credentials(
            [(self._credentials.key_pem, self._credentials.chain_pem)],
            root_certificates=self._credentials.root_pem,
            require_client_auth=True,
        )
        server = self._server(local=False)
        try:
            bound = server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise Misconfigured(
                f"port {port} on {host} cannot be listened on", "it may be in use; choose another"
            ) from error
        await server.start()
        self._servers.append(server)
        return bound

    async def start_unix(self, path: Path) -> None:
        """Listen on the home's Unix socket, 0600. Raises: Misconfigured."""
        if len(os.fsencode(path)) > 100:
            raise Misconfigured(f"the path {path} is too long for a socket", "choose a home with a shorter path")
        path.unlink(missing_ok=True)
        server = self._server(local=True)
        before = os.umask(0o177)  # the socket is made inside add_insecure_port; nothing else runs meanwhile
        try:
            server.add_insecure_port(f"unix:{path}")
        except RuntimeError as error:
            raise Misconfigured(f"the socket {path} cannot be made", "is its folder there and writable?") from error
        finally:
            os.umask(before)
        await server.start()
        self._servers.append(server)

    async def stop(self, grace_seconds: float) -> None:
        """Take no more calls, give those under way a moment, end."""
        await asyncio.gather(*(server.stop(grace_seconds) for server in self._servers))
        self._servers.clear()

    def _server(self, *, local: bool) -> grpc.aio.Server:
        server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=CALLS_AT_ONCE)
        by_service: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
        for name, method in contract_methods().items():
            _, service, short = name.split("/")
            by_service.setdefault(service, {})[short] = self._handler(self._rows[name], method, local=local)
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(service, handlers) for service, handlers in by_service.items()]
        )
        return server

    def _handler(self, row: Row, method: MethodDescriptor, *, local: bool) -> grpc.RpcMethodHandler[Any, Any]:
        request_type = message_factory.GetMessageClass(method.input_type)

        async def unary(request: Message, context: grpc.aio.ServicerContext[Any, Any]) -> Message:
            try:
                answer: Message = await row.handler(self._caller(row, context, local=local), request)
            except CollectiveError as error:
                await _abort(context, error)
                raise
            except Exception as error:
                await self._unexpected(row, context, error)
                raise
            return answer

        async def stream(request: Message, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Message]:
            try:
                caller = self._caller(row, context, local=local)
                async with contextlib.aclosing(row.handler(caller, request)) as answers:
                    async for answer in answers:
                        if not local:
                            self._caller(row, context, local=False)
                        yield answer
            except CollectiveError as error:
                await _abort(context, error)
            except Exception as error:
                await self._unexpected(row, context, error)

        def serialize(message: Message) -> bytes:
            return message.SerializeToString()

        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(
                stream,
                request_deserializer=request_type.FromString,
                response_serializer=serialize,
            )
        return grpc.unary_unary_rpc_method_handler(
            unary,
            request_deserializer=request_type.FromString,
            response_serializer=serialize,
        )

    def _caller(self, row: Row, context: grpc.aio.ServicerContext[Any, Any], *, local: bool) -> Caller:
        """Judge who calls. Raises: Refused with the reason."""
        said = {key: value for key, value in context.invocation_metadata() or () if key == VERSIONS_KEY}
        CONTROL.check_written(str(said.get(VERSIONS_KEY, FIRST_VERSIONS)))
        if local:
            if not row.local:
                raise Refused(f"{row.method} is not answered on the local socket")
            return Caller(None)
        shown = context.auth_context()
        leaf = b"".join(shown.get("x509_pem_cert", ()))
        if not leaf:
            raise Refused("the caller showed no certificate")
        certificate, *intermediates = _certificates(leaf, b"".join(shown.get("x509_pem_cert_chain", ())))
        identity = self._trust.verify(
            certificate, intermediates, level=row.level, now=self._clock.wall(), kinds=row.kinds
        )
        if row.capability and row.capability not in identity.capabilities:
            raise Refused(f"{identity.address} is not enrolled for {row.capability}")
        return Caller(identity)

    async def _unexpected(self, row: Row, context: grpc.aio.ServicerContext[Any, Any], error: Exception) -> None:
        if isinstance(error, grpc.aio.AbortError):
            return
        self._observer.event("rpc.handler_failed", method=row.method, error=f"{type(error).__name__}: {error}")
        await _abort(context, CollectiveError("internal error at the other side"))


@lru_cache(maxsize=256)
def _certificates(leaf_pem: bytes, chain_pem: bytes) -> tuple[x509.Certificate, ...]:
    """The leaf and what it was sent with (the TLS library repeats the leaf in the chain); the same for every call."""
    leaf = x509.load_pem_x509_certificate(leaf_pem)
    chain = x509.load_pem_x509_certificates(chain_pem) if chain_pem else []
    return leaf, *(certificate for certificate in chain if certificate != leaf)


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: CollectiveError) -> None:
    """The error's kind, message and hint, for the caller to raise again."""
    parts = [type(error).__name__, error.message[:2000], error.hint[:500]]
    codes = {code.value[0]: code for code in grpc.StatusCode}
    await context.abort(
        codes[codes_of(error).grpc_status],
        error.message[:500].encode("ascii", "replace").decode(),
        trailing_metadata=((ERROR_KEY, "\0".join(parts).encode()),),
    )
