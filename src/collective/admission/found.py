"""Founding: a root, a first member, and the first entries of their feeds, all in one home."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from collective.admission.household import Household, furnish, open_household
from collective.catalog import Catalog, member_feed_id
from collective.identity import (
    MemberAuthority,
    RootAuthority,
    ensure_private_directory,
    load_certificate,
    save_certificate,
    save_private_key,
)
from collective.wire import feed_pb2

__all__ = ["admit", "first_entries", "found_federation", "operation_id"]

OpenCatalog = Callable[[Household, x509.Certificate], Catalog]


def operation_id(writer: str) -> feed_pb2.OperationId:
    """A fresh id; nothing with it applies twice."""
    return feed_pb2.OperationId(writer=writer, random=os.urandom(16))


def admit(writer: str, member_domain: str, ca: x509.Certificate) -> feed_pb2.RootOperation:
    """The root-feed operation that makes a member."""
    ca_der = ca.public_bytes(Encoding.DER)
    return feed_pb2.RootOperation(
        id=operation_id(writer),
        admit_member=feed_pb2.AdmitMember(
            member_domain=member_domain,
            ca_certificate=ca_der,
            generation=1,
            member_feed_id=member_feed_id(ca_der),
        ),
    )


def first_entries(household: Household, endpoints: Iterable[feed_pb2.Endpoint]) -> list[feed_pb2.MemberOperation]:
    """What a member feed begins with: the signing certificate, then the card."""
    keys = household.keys
    return [
        feed_pb2.MemberOperation(
            id=operation_id(keys.member_domain),
            signing_key=feed_pb2.SigningKey(certificate=keys.signing_certificate.public_bytes(Encoding.DER)),
        ),
        feed_pb2.MemberOperation(
            id=operation_id(keys.member_domain),
            card=feed_pb2.Card(
                wrapping_key=keys.wrapping_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw),
                endpoints=endpoints,
            ),
        ),
    ]


def found_federation(
    directory: Path,
    federation_domain: str,
    member_domain: str,
    endpoints: Iterable[feed_pb2.Endpoint],
    now: float,
    open_catalog: OpenCatalog,
    root_directory: Path | None = None,
) -> Household:
    """Make root and first member in the identity `directory`; write the first entries. `now` in seconds.

    `root_directory` names a folder with an existing root-ca.crt and .key to found upon. Raises: Misconfigured.
    """
    ensure_private_directory(directory)
    if root_directory is None:
        root = RootAuthority.create(federation_domain, now)
    else:
        root = RootAuthority.load(root_directory / "root-ca.crt", root_directory / "root-ca.key")
    ca_key, request = MemberAuthority.create_request(member_domain)
    ca = root.sign_member(member_domain, request, now)
    furnish(directory, MemberAuthority(ca, ca_key, root.certificate), now)
    save_certificate(directory / "root-ca.crt", root.certificate)
    save_private_key(directory / "root-ca.key", root.key)
    save_certificate(directory / "member-ca.crt", ca)
    save_private_key(directory / "member-ca.key", ca_key)
    household = open_household(directory)
    catalog = open_catalog(household, load_certificate(directory / "root-ca.crt"))
    try:
        catalog.append_root([admit(member_domain, member_domain, ca)])
        catalog.append_member(first_entries(household, endpoints))
    finally:
        catalog.close()
    return household
