"""Addresses from before there was a federation: `alice` for `alice@media.collective`, at the command line alone.

They are translated here, with a deprecation note, and go no further: configurations, feeds and calls know full
addresses only. With `federation_only` in the home's configuration they are refused.
"""

from __future__ import annotations

from collective.cli.words import note
from collective.core.address import member_identity, validate_domain
from collective.core.errors import CollectiveError, Refused
from collective.daemon.client import read_members
from collective.daemon.home import Home

__all__ = ["full_address"]


def full_address(home: Home, text: str) -> str:
    """The federated address that a person typed, whole or as a bare name; "" and patterns as they are.

    A bare name is the one member in the roster whose name it is, or, when nobody bears it yet, a member of that name
    directly under the federation's domain. Raises: Refused (`federation_only`; several members bear the name).
    """
    if not text or "@" in text or "." in text or "*" in text:
        return text
    name = text.lower()
    federation = home.config().federation
    bearing = [row.identity for row in read_members(home) if row.domain.partition(".")[0] == name]
    known = bearing or _unknown_yet(name, federation.domain)
    if not known:
        return text  # no name at all: whoever asked says what is wrong with it
    if federation.federation_only:
        raise Refused(
            f"{text!r} is an address of the old form, and this home is set to federation_only",
            f"write {' or '.join(known)}",
        )
    if len(known) > 1:
        raise Refused(f"several members are called {text!r}", f"write {' or '.join(known)}")
    note(f"the address {text!r} is deprecated and will be refused one day; write {known[0]}")
    return known[0]


def _unknown_yet(name: str, federation_domain: str) -> list[str]:
    try:
        return [member_identity(validate_domain(f"{name}.{federation_domain}"))] if federation_domain else []
    except CollectiveError:
        return []
