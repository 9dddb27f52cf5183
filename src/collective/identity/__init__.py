"""Who is who: keys, certificate authorities, certificates, trust, tickets, key wrapping. Never a socket.

*Root*: the federation's CA. *Member CA*: a home's own, signed by the root, bound to its domain by name constraints.
*Leaf*: a component's certificate (coordinator, node, client), P-256. *Signing key*: the Ed25519 key of a member's
feeds. *Card key*: the X25519 key that DataStore keys are wrapped to. *Ticket*: what a coordinator lets a member do at
its nodes. *Level*: how far trust reaches.
"""

from collective.identity.authority import MemberAuthority, RootAuthority, check_member_domain
from collective.identity.certificates import (
    ComponentKind,
    PeerIdentity,
    fingerprint,
    read_authority,
    read_identity,
    root_hash,
)
from collective.identity.credentials import Credentials
from collective.identity.keys import (
    ensure_private_directory,
    generate_leaf_key,
    generate_signing_key,
    generate_wrapping_key,
    load_certificate,
    load_private_key,
    read_private,
    save_certificate,
    save_private_key,
    write_private,
)
from collective.identity.tickets import mint_read_ticket, mint_upload_ticket, verify_ticket
from collective.identity.trust import Level, TrustStore
from collective.identity.wrap import unwrap_key, wrap_key

__all__ = [
    "ComponentKind",
    "Credentials",
    "Level",
    "MemberAuthority",
    "PeerIdentity",
    "RootAuthority",
    "TrustStore",
    "check_member_domain",
    "ensure_private_directory",
    "fingerprint",
    "generate_leaf_key",
    "generate_signing_key",
    "generate_wrapping_key",
    "load_certificate",
    "load_private_key",
    "mint_read_ticket",
    "mint_upload_ticket",
    "read_authority",
    "read_identity",
    "read_private",
    "root_hash",
    "save_certificate",
    "save_private_key",
    "unwrap_key",
    "verify_ticket",
    "wrap_key",
    "write_private",
]
