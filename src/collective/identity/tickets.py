"""Tickets: what a coordinator lets a member do at its own nodes, signed with its feed key.

A node needs no policy: it checks the signature, who bears it (by TLS), until when, and under which policy epoch.
"""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from google.protobuf.message import DecodeError

from collective.core.errors import Refused
from collective.wire import ticket_pb2

__all__ = ["mint_read_ticket", "mint_upload_ticket", "verify_ticket"]

_TAG = b"collective ticket 1\0"
FORMAT = 1
NONCE_BYTES = 16


def mint_read_ticket(
    signing_key: Ed25519PrivateKey,
    *,
    issuer: str,
    bearer: str,
    layout_hash: bytes,
    expires_milliseconds: int,
    policy_epoch: int,
) -> bytes:
    """A SignedTicket to read the chunks of one layout. Domains name members; time since 1970."""
    ticket = ticket_pb2.Ticket(
        format=FORMAT,
        issuer=issuer,
        bearer=bearer,
        read=ticket_pb2.ReadScope(layout_hash=layout_hash),
        expires_milliseconds=expires_milliseconds,
        policy_epoch=policy_epoch,
        nonce=os.urandom(NONCE_BYTES),
    )
    return _sign(signing_key, ticket)


def mint_upload_ticket(
    signing_key: Ed25519PrivateKey,
    *,
    issuer: str,
    bearer: str,
    store_id: bytes,
    upload_id: bytes,
    byte_limit: int,
    expires_milliseconds: int,
    policy_epoch: int,
) -> bytes:
    """A SignedTicket to write up to `byte_limit` sealed bytes for one DataStore."""
    ticket = ticket_pb2.Ticket(
        format=FORMAT,
        issuer=issuer,
        bearer=bearer,
        upload=ticket_pb2.UploadScope(store_id=store_id, upload_id=upload_id, byte_limit=byte_limit),
        expires_milliseconds=expires_milliseconds,
        policy_epoch=policy_epoch,
        nonce=os.urandom(NONCE_BYTES),
    )
    return _sign(signing_key, ticket)


def _sign(signing_key: Ed25519PrivateKey, ticket: ticket_pb2.Ticket) -> bytes:
    raw = ticket.SerializeToString()
    return ticket_pb2.SignedTicket(ticket=raw, signature=signing_key.sign(_TAG + raw)).SerializeToString()


def verify_ticket(
    signed: bytes,
    *,
    signing_public_key: Ed25519PublicKey,
    issuer: str,
    bearer: str,
    policy_epoch: int,
    now: float,
) -> ticket_pb2.Ticket:
    """The ticket, if it is from `issuer`, for `bearer`, and counts at `now` (seconds). Raises: Refused."""
    try:
        envelope = ticket_pb2.SignedTicket.FromString(signed)
        signing_public_key.verify(envelope.signature, _TAG + envelope.ticket)
        ticket = ticket_pb2.Ticket.FromString(envelope.ticket)
    except (DecodeError, InvalidSignature) as error:
        raise Refused("the ticket was not signed by this node's coordinator") from error
    if ticket.format != FORMAT:
        raise Refused(f"the ticket has form {ticket.format}, this version reads form {FORMAT}")
    if ticket.issuer != issuer:
        raise Refused(f"the ticket is for nodes of {ticket.issuer}, not of {issuer}")
    if ticket.bearer != bearer:
        raise Refused(f"the ticket is for {ticket.bearer}, not for {bearer}")
    if ticket.expires_milliseconds <= now * 1000:
        raise Refused("the ticket has ended", "ask the coordinator for a new one")
    if ticket.policy_epoch < policy_epoch:
        raise Refused("the ticket is older than the coordinator's policy", "ask the coordinator for a new one")
    if ticket.WhichOneof("scope") is None:
        raise Refused("the ticket opens nothing")
    return ticket
