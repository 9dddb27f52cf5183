"""TLS as this house speaks it: 1.3 only, no session tickets, both sides with certificates.

OpenSSL checks that a chain leads to the federation's root (and its name constraints and dates); who the peer is and
whether it may is then judged by `identity.TrustStore` on the same certificates, never by host name or address.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any, cast

from cryptography import x509

from collective.core.errors import CollectiveError, Refused, Unreachable
from collective.identity import Credentials

__all__ = ["client_context", "handshake_error", "keep_alive", "load_chain", "peer_chain", "server_context"]


def server_context(credentials: Credentials) -> ssl.SSLContext:
    """For the answering side. A client certificate is asked for but may be missing (the caller must check)."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, credentials)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.num_tickets = 0
    return context


def client_context(credentials: Credentials) -> ssl.SSLContext:
    """For the asking side. Host names are not compared: a peer is known by its certificate's federated address."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, credentials)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def _context(protocol: int, credentials: Credentials) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.sslobject_class = _QuickObject
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.load_verify_locations(cadata=credentials.root_pem.decode("ascii"))
    load_chain(context, credentials)
    return context


class _QuickObject(ssl.SSLObject):
    """What a connection calls for every record of 16 KiB, without a Python call in between. Asking OpenSSL what is left
    of a record gives up the interpreter's lock, so it is asked only when something can be left (4 % of receiving).
    """

    @classmethod
    def _create(cls, *arguments: Any, **settings: Any) -> ssl.SSLObject:
        made: Any = super()._create(*arguments, **settings)  # type: ignore[misc]
        inner = made._sslobj
        filled = True

        def read(size_bytes: int = 1024, buffer: Any = None) -> Any:
            nonlocal filled
            if buffer is None:
                filled = True
                return inner.read(size_bytes)
            got = inner.read(size_bytes, buffer)
            filled = got == size_bytes
            return got

        made.read, made.write = read, inner.write
        made.pending = lambda: inner.pending() if filled else 0
        return cast(ssl.SSLObject, made)


def load_chain(context: ssl.SSLContext, credentials: Credentials) -> None:
    """Use these credentials for connections that begin from now on.

    The ssl module reads keys from files only; an anonymous file in memory keeps the key off every disk.
    """
    descriptor = os.memfd_create("chain", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "wb") as memory:
        memory.write(credentials.chain_pem + credentials.key_pem)
        memory.flush()
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")


def peer_chain(ssl_object: ssl.SSLObject) -> tuple[x509.Certificate, Sequence[x509.Certificate]] | None:
    """The peer's leaf and the intermediates it sent, or None when it showed no certificate. Raises: Refused."""
    if ssl_object.getpeercert(binary_form=True) is None:
        return None
    public: Callable[[], Sequence[bytes]] | None = getattr(ssl_object, "get_unverified_chain", None)
    if public is not None:  # Python 3.13 and later
        ders = list(public())
    else:
        inner: Any = ssl_object._sslobj  # type: ignore[attr-defined]
        ders = [ssl.PEM_cert_to_DER_cert(entry.public_bytes()) for entry in inner.get_unverified_chain()]
    try:
        leaf, *intermediates = (x509.load_der_x509_certificate(der) for der in ders)
    except ValueError as error:
        raise Refused(f"a certificate cannot be read: {error}") from error
    return leaf, intermediates


def keep_alive(transport: asyncio.BaseTransport) -> None:
    """Have the kernel notice a machine that is gone: probes after 15 s of silence, given up after 30 s."""
    connection = transport.get_extra_info("socket")
    if connection is None:
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)  # milliseconds, for unsent bytes


def handshake_error(error: Exception, who: str) -> CollectiveError:
    """The kind of a failed connection attempt to `who` (address and place, for people)."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return Refused(f"{who} shows a certificate that is not of this federation: {error.verify_message}")
    if isinstance(error, ssl.SSLError) and error.reason and ("ALERT" in error.reason or "CERT" in error.reason):
        return Refused(f"{who} refused the connection: {error.reason.lower().replace('_', ' ')}")
    if isinstance(error, TimeoutError):
        return Unreachable(f"{who} did not answer in time")
    if isinstance(error, ConnectionRefusedError):
        return Unreachable(f"nothing listens at {who}")
    return Unreachable(f"cannot reach {who}: {error if str(error) else type(error).__name__}")
