"""Tickets: byte-exact, for one bearer at one member's nodes, until they end or the policy changes."""

from __future__ import annotations

import os
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from collective.core.errors import Refused
from collective.identity import generate_signing_key, mint_read_ticket, mint_upload_ticket, verify_ticket
from collective.wire import ticket_pb2

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
NOW = 1_790_000_000.0
ENDS = int(NOW * 1000) + 600_000
ALICE, CAROL = "alice.collective.local", "carol.collective.local"

GOLDEN_READ = (
    "0a7108011216616c6963652e636f6c6c6563746976652e6c6f63616c1a166361726f6c2e636f6c6c6563746976652e6c"
    "6f63616c22220a204c4c4c4c4c4c4c4c4c4c4c4c4c4c4c4c4c4c4c4c4c4c4c4c4c4c4c4c4c4c4c4c30c0a7e6a28c3438"
    "0742104e4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e1240db973315bf82d11dda87489adf6684f339fe291e325fd64d211d3c"
    "b634e41ab07bcfef2dba55bf096f2692e6a7dc36c2d3ea4b73138a44368ef4c8aa46495709"
)
GOLDEN_UPLOAD = (
    "0a880108011216616c6963652e636f6c6c6563746976652e6c6f63616c1a166361726f6c2e636f6c6c6563746976652e"
    "6c6f63616c2a390a20535353535353535353535353535353535353535353535353535353535353535312105555555555"
    "5555555555555555555555188090800430c0a7e6a28c34380742104e4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e12401afda0"
    "4bbc14f8a5fb1771ad3df4e16ed11a5383563debe34cdf47e8df98827997658c703b324d377901d7296f36615651a0b9"
    "0f40bfb670fa23cf5045691e09"
)


def mint_read(**changes: Any) -> bytes:
    fields = {
        "issuer": ALICE,
        "bearer": CAROL,
        "layout_hash": b"L" * 32,
        "expires_milliseconds": ENDS,
        "policy_epoch": 7,
    }
    return mint_read_ticket(changes.pop("key", KEY), **(fields | changes))


def verify(signed: bytes, **changes: Any) -> ticket_pb2.Ticket:
    facts = {
        "signing_public_key": KEY.public_key(),
        "issuer": ALICE,
        "bearer": CAROL,
        "policy_epoch": 7,
        "now": NOW,
    }
    return verify_ticket(signed, **(facts | changes))


def resigned(tag: bytes = b"collective ticket 1\0", **fields: Any) -> bytes:
    """A ticket of any form, with a right signature under `tag`."""
    whole: dict[str, Any] = {
        "format": 1,
        "issuer": ALICE,
        "bearer": CAROL,
        "expires_milliseconds": ENDS,
        "policy_epoch": 7,
        "read": ticket_pb2.ReadScope(layout_hash=b"L" * 32),
    }
    raw = ticket_pb2.Ticket(**(whole | fields)).SerializeToString()
    return ticket_pb2.SignedTicket(ticket=raw, signature=KEY.sign(tag + raw)).SerializeToString()


class TestTicket:
    def test_golden_forms(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The bytes of docs/protocol/tickets.md; nonce and keys fixed, Ed25519 needs no randomness."""
        monkeypatch.setattr(os, "urandom", lambda count: b"N" * count)
        assert mint_read().hex() == GOLDEN_READ
        upload = mint_upload_ticket(
            KEY,
            issuer=ALICE,
            bearer=CAROL,
            store_id=b"S" * 32,
            upload_id=b"U" * 16,
            byte_limit=8_390_656,
            expires_milliseconds=ENDS,
            policy_epoch=7,
        )
        assert upload.hex() == GOLDEN_UPLOAD

    def test_what_it_opens(self) -> None:
        ticket = verify(mint_read())
        assert (ticket.issuer, ticket.bearer, ticket.policy_epoch) == (ALICE, CAROL, 7)
        assert ticket.read.layout_hash == b"L" * 32
        assert len(ticket.nonce) == 16
        assert mint_read() != mint_read(), "no two tickets are alike"

    def test_golden_upload_opens(self) -> None:
        scope = verify(bytes.fromhex(GOLDEN_UPLOAD)).upload
        assert (scope.store_id, scope.upload_id, scope.byte_limit) == (b"S" * 32, b"U" * 16, 8_390_656)

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"signing_public_key": generate_signing_key().public_key()}, "not signed"),
            ({"issuer": "bob.collective.local"}, f"for nodes of {ALICE}"),
            ({"bearer": "bob.collective.local"}, f"for {CAROL}, not for bob"),
            ({"now": NOW + 600}, "has ended"),
            ({"now": NOW + 6000}, "has ended"),
            ({"policy_epoch": 8}, "older than the coordinator's policy"),
        ],
    )
    def test_refused_with_the_reason(self, changes: dict[str, Any], reason: str) -> None:
        with pytest.raises(Refused, match=reason):
            verify(mint_read(), **changes)

    def test_the_last_moment_and_a_node_behind(self) -> None:
        """It counts until just before its end; a node that has not heard of a new epoch takes newer tickets."""
        assert verify(mint_read(), now=NOW + 599.9)
        assert verify(mint_read(), policy_epoch=6)

    @pytest.mark.parametrize(
        ("fields", "reason"),
        [({"format": 2}, "form 2"), ({"format": 0}, "form 0"), ({"read": None}, "opens nothing")],
    )
    def test_other_forms(self, fields: dict[str, Any], reason: str) -> None:
        with pytest.raises(Refused, match=reason):
            verify(resigned(**fields))

    def test_a_signature_for_something_else(self) -> None:
        """The key also signs entries: what it signed under another tag is no ticket."""
        assert verify(resigned())
        for tag in (b"", b"collective entry 1\0", b"collective ticket 1"):
            with pytest.raises(Refused, match="not signed"):
                verify(resigned(tag))

    def test_every_flipped_byte_is_refused(self) -> None:
        signed = mint_read()
        for index in range(len(signed)):
            broken = bytearray(signed)
            broken[index] ^= 1
            with pytest.raises(Refused):
                verify(bytes(broken))

    @pytest.mark.parametrize("junk", [b"", b"\x00", b"\xff" * 40, b"\x0a\x03abc", os.urandom(200)])
    def test_junk_is_refused(self, junk: bytes) -> None:
        with pytest.raises(Refused):
            verify(junk)
