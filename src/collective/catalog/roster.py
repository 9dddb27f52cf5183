"""What root and member entries change: who is a member, their keys, cards, DataStores, grants, wraps, statements."""

from __future__ import annotations

import sqlite3
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from collective.catalog.entry import member_feed_id
from collective.core.address import parse_pattern, validate_domain
from collective.core.errors import CollectiveError, Corrupt, Refused
from collective.identity import ComponentKind, check_member_domain, read_identity
from collective.wire import feed_pb2

__all__ = ["apply_member_operation", "apply_root_operation", "cut_statements", "signing_public_key"]


def apply_root_operation(
    connection: sqlite3.Connection,
    operation: feed_pb2.RootOperation,
    seq: int,
    federation_domain: str,
    root: x509.Certificate,
) -> str:
    """Apply one operation of the root feed; "" or the reason why it was skipped."""
    match operation.WhichOneof("change"):
        case "admit_member":
            try:
                _admit(connection, operation.admit_member, seq, federation_domain, root)
            except CollectiveError as error:
                return error.message
        case "remove_member":
            connection.execute(
                "UPDATE members SET removed = 1 WHERE domain = ?", (operation.remove_member.member_domain,)
            )
        case "redemption" | "successor_root":
            return ""  # kept in the feed; invites and succession come later
        case _:
            return "an operation of a later version"
    return ""


def _admit(
    connection: sqlite3.Connection,
    change: feed_pb2.AdmitMember,
    seq: int,
    federation_domain: str,
    root: x509.Certificate,
) -> None:
    domain = validate_domain(change.member_domain)
    try:
        authority = x509.load_der_x509_certificate(change.ca_certificate)
        authority.verify_directly_issued_by(root)
    except Exception as error:
        raise Corrupt(f"the CA of {domain} is not a certificate that the root signed") from error
    row = connection.execute("SELECT generation, removed FROM members WHERE domain = ?", (domain,)).fetchone()
    if row is None:
        others = [other for (other,) in connection.execute("SELECT domain FROM members")]
        check_member_domain(domain, federation_domain, others)
        if change.member_feed_id != member_feed_id(change.ca_certificate):
            raise Corrupt(f"the member feed of {domain} is not named after its first CA")
        connection.execute(
            "INSERT INTO members VALUES (?, ?, ?, ?, ?, 0)",
            (domain, seq, change.generation, change.ca_certificate, change.member_feed_id),
        )
    elif row[1]:
        raise Refused(f"{domain} was removed")
    elif change.generation >= row[0]:
        connection.execute(
            "UPDATE members SET generation = ?, ca = ? WHERE domain = ?",
            (change.generation, change.ca_certificate, domain),
        )


SIGNING_KEYS_KEPT = 256  # many times the members of a federation, each with a new certificate now and then


@lru_cache(maxsize=SIGNING_KEYS_KEPT)
def signing_public_key(certificate_der: bytes, authority_der: bytes, domain: str) -> Ed25519PublicKey:
    """The key of a member's signing certificate, checked against its CA; its dates do not count. Raises: Corrupt.

    What was checked once is remembered: every entry asks, and the check costs four times the entry's own signature.
    """
    try:
        certificate = x509.load_der_x509_certificate(certificate_der)
        certificate.verify_directly_issued_by(x509.load_der_x509_certificate(authority_der))
        identity = read_identity(certificate)
    except CollectiveError:
        raise
    except Exception as error:
        raise Corrupt(f"the signing certificate of {domain} is not from its CA") from error
    key = certificate.public_key()
    if (
        identity.kind is not ComponentKind.SIGNING
        or identity.member_domain != domain
        or not isinstance(key, Ed25519PublicKey)
    ):
        raise Corrupt(f"the signing certificate of {domain} is for {identity.kind} of {identity.member_domain}")
    return key


def apply_member_operation(
    connection: sqlite3.Connection, domain: str, operation: feed_pb2.MemberOperation, seq: int, lamport: int
) -> str:
    """Apply one operation of a member's feed; "" or the reason why it was skipped. Only its own things change."""
    match operation.WhichOneof("change"):
        case "signing_key":
            connection.execute(
                "INSERT OR REPLACE INTO signing_keys VALUES (?, ?, ?)",
                (domain, operation.signing_key.certificate, seq),
            )
        case "card":
            connection.execute(
                "INSERT OR REPLACE INTO cards VALUES (?, ?)", (domain, operation.card.SerializeToString())
            )
        case "datastore":
            return _define(connection, domain, operation.datastore, lamport)
        case "grant":
            return _grant(connection, domain, operation.grant, seq)
        case "grant_withdrawal":
            connection.execute(
                "DELETE FROM grants WHERE id = ? AND owner = ?", (operation.grant_withdrawal.grant_id, domain)
            )
        case "key_wrap":
            return _wrap(connection, domain, operation.key_wrap)
        case "holding":
            _hold(connection, domain, operation.holding)
        case "invite" | "revocation" | "account":
            return ""  # kept in the feed; their behaviour comes later
        case _:
            return "an operation of a later version"
    return ""


def _define(connection: sqlite3.Connection, domain: str, change: feed_pb2.DataStoreDefinition, lamport: int) -> str:
    row = connection.execute("SELECT owner FROM datastores WHERE feed_id = ?", (change.feed_id,)).fetchone()
    if row is not None and row[0] != domain:
        return "another member defined that DataStore"
    if len(change.feed_id) != 32 or not change.path.startswith(b"/") or not 0 < change.inode_prefix < 1 << 24:
        return "a broken definition"
    if row is None:
        connection.execute(
            "INSERT INTO datastores VALUES (?, ?, ?, ?, ?)",
            (change.feed_id, domain, change.path, lamport, change.SerializeToString()),
        )
    else:
        connection.execute(
            "UPDATE datastores SET path = ?, definition = ? WHERE feed_id = ?",
            (change.path, change.SerializeToString(), change.feed_id),
        )
    return ""


def _grant(connection: sqlite3.Connection, domain: str, change: feed_pb2.Grant, seq: int) -> str:
    try:
        parse_pattern(change.subject)
    except Refused as error:
        return error.message
    row = connection.execute("SELECT owner FROM grants WHERE id = ?", (change.id,)).fetchone()
    if row is not None and row[0] != domain:
        return "another member's grant has that id"
    connection.execute(
        "INSERT OR REPLACE INTO grants VALUES (?, ?, ?, ?)", (change.id, domain, seq, change.SerializeToString())
    )
    return ""


def _wrap(connection: sqlite3.Connection, domain: str, change: feed_pb2.KeyWrap) -> str:
    row = connection.execute("SELECT owner FROM datastores WHERE feed_id = ?", (change.feed_id,)).fetchone()
    if row is None or row[0] != domain:
        return "a key for a DataStore that is not the writer's"
    connection.execute(
        "INSERT OR REPLACE INTO wraps VALUES (?, ?, ?, ?, ?)",
        (change.feed_id, change.key_name, change.recipient, change.recipient_key, change.wrapped),
    )
    return ""


def _hold(connection: sqlite3.Connection, domain: str, change: feed_pb2.Holding) -> None:
    reach = change.head.seq
    cut = connection.execute(
        "SELECT min(e.first_seq) - 1 FROM epochs e JOIN feeds f ON f.id = e.feed WHERE f.feed_id = ? AND e.number > ?",
        (change.feed_id, change.head.epoch_number),
    ).fetchone()
    if cut[0] is not None:
        reach = min(reach, cut[0])
    connection.execute(
        "INSERT OR REPLACE INTO holdings VALUES (?, ?, ?, ?, ?)",
        (change.feed_id, domain, reach, change.head.epoch_number, change.head.seq),
    )
    connection.execute("DELETE FROM holding_exceptions WHERE feed_id = ? AND domain = ?", (change.feed_id, domain))
    connection.executemany(
        "INSERT OR IGNORE INTO holding_exceptions VALUES (?, ?, ?)",
        [(change.feed_id, domain, version) for version in change.except_versions],
    )


def cut_statements(connection: sqlite3.Connection, feed_id: bytes, epoch_number: int, base_seq: int) -> None:
    """An epoch opened: statements made in earlier ones reach no further than its base, whichever came first."""
    connection.execute(
        "UPDATE holdings SET seq = min(seq, ?) WHERE feed_id = ? AND epoch_number < ?",
        (base_seq, feed_id, epoch_number),
    )
