"""Federated addresses: `node-01@alice.media.collective`, `/media/movies@alice.media.collective`.

    address  = component / resource
    component = local "@" domain            ; exactly one @; folded to lower case
    resource  = path "@" domain             ; path starts with "/", split at the LAST @; kept as bytes
    domain    = label 1*("." label)         ; labels of 1-63 letters, digits and inner hyphens, 253 bytes in all
    pattern   = ("*" / local) "@" ("*." domain / domain / "*." label)

A member has two names of one thing: its domain `alice.media.collective` and its identity `alice@media.collective`
(the first label moved before the @).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from collective.core.errors import Refused

__all__ = [
    "FederatedAddress",
    "Pattern",
    "member_domain",
    "member_identity",
    "parse_address",
    "parse_pattern",
    "validate_domain",
    "validate_name",
]

MAX_DOMAIN_BYTES = 253  # RFC 1035
MAX_LABEL_BYTES = 63
MAX_LOCAL_BYTES = 63  # a local part becomes a DNS label of the component's name
MAX_NAME_BYTES = 255  # one name in a path, as file systems have it
MAX_PATH_BYTES = 4096
SHOWN_CHARACTERS = 120  # of a refused text, in its message

_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")


def _shown(text: str) -> str:
    """What was typed, for a message: quoted, and cut where it is endless."""
    return repr(text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…")


def _fold(text: str) -> str:
    """Lower case, ASCII alone: elsewhere folding makes other letters (the Kelvin sign becomes a k). Raises: Refused."""
    if not text.isascii():
        raise Refused(f"{_shown(text)} may hold ASCII letters, digits, hyphens and dots only")
    return text.lower()


def _check_label(label: str, what: str, whole: str) -> None:
    if not label:
        raise Refused(f"{_shown(whole)}: {what} has an empty part")
    if len(label) > MAX_LABEL_BYTES:
        raise Refused(
            f"{_shown(whole)}: a part of {len(label)} characters is too long, a label holds {MAX_LABEL_BYTES}"
        )
    if _LABEL.fullmatch(label) is None:
        raise Refused(f"{_shown(whole)}: {label!r} may hold letters, digits and inner hyphens only")


def validate_domain(text: str) -> str:
    """The canonical (lower case) form of a domain with at least one dot. Raises: Refused with the reason."""
    domain = _fold(text)
    if "." not in domain:
        raise Refused(
            f"{_shown(text)} is not a domain: it needs at least one dot", "write it as alice.media.collective"
        )
    if len(domain) > MAX_DOMAIN_BYTES:
        raise Refused(f"a domain of {len(domain)} characters is too long, {MAX_DOMAIN_BYTES} are allowed")
    for label in domain.split("."):
        _check_label(label, "the domain", text)
    return domain


def validate_name(name: bytes) -> None:
    """One name in a path: 1-255 bytes, no NUL, no '/', not '.' or '..'. Raises: Refused."""
    if not name:
        raise Refused("a name in a path is empty")
    if len(name) > MAX_NAME_BYTES:
        raise Refused(f"a name is {len(name)} bytes long", f"names hold up to {MAX_NAME_BYTES} bytes")
    if name in (b".", b".."):
        raise Refused(f"{name.decode()!r} is not a name in a path")
    if b"\0" in name or b"/" in name:
        raise Refused("a name holds a NUL byte or a slash")


def _check_path(path: bytes) -> bytes:
    if len(path) > MAX_PATH_BYTES:
        raise Refused(f"a path of {len(path)} bytes is too long, {MAX_PATH_BYTES} are allowed")
    if any(byte < 0x20 or byte == 0x7F for byte in path):
        raise Refused("the path of an address holds a control character")
    if path != b"/":
        for name in path[1:].split(b"/"):
            validate_name(name)
    return path


@dataclass(frozen=True, slots=True)
class FederatedAddress:
    """A component (`local_part`) or a resource (`resource`, a path) at a domain. One of the two is empty.

    Made by `parse_address`; made by hand it is not checked. `str` is the canonical form and parses back to it.
    """

    local_part: str
    domain: str
    resource: bytes = b""

    def __str__(self) -> str:
        if self.resource:
            return f"{self.resource.decode(errors='surrogateescape')}@{self.domain}"
        return f"{self.local_part}@{self.domain}"

    def is_local(self, my_domain: str) -> bool:
        """Whether it lies in the member with this domain."""
        return self.domain == my_domain.lower()

    def dns_name(self) -> str:
        """`node-01.alice.media.collective`: the name a component's certificate carries beside its address."""
        return f"{self.local_part}.{self.domain}"


@lru_cache(maxsize=1024)  # every change of a mount names the same actor
def parse_address(text: str | bytes) -> FederatedAddress:
    """A component or resource address. Raises: Refused with the reason."""
    raw = text.encode(errors="surrogateescape") if isinstance(text, str) else text
    text = raw.decode(errors="replace")
    shown = _shown(text)
    before, separator, after = raw.rpartition(b"@")
    if not separator:
        raise Refused(f"{shown} is not an address: it has no @", "write it as alice@media.collective")
    if not before:
        raise Refused(f"{shown} names nobody before the @")
    if not after:
        raise Refused(f"{shown} names no domain after the @")
    try:
        domain = validate_domain(after.decode("ascii"))
    except UnicodeDecodeError:
        raise Refused(f"{shown}: a domain holds letters, digits and hyphens only") from None
    if before.startswith(b"/"):
        return FederatedAddress("", domain, _check_path(before))
    if b"@" in before:
        raise Refused(f"{shown} has more than one @")
    try:
        local_part = before.decode("ascii").lower()
    except UnicodeDecodeError:
        raise Refused(f"{shown}: the part before the @ holds letters, digits and hyphens only") from None
    _check_label(local_part, "the part before the @", text)
    return FederatedAddress(local_part, domain)


def member_identity(domain: str) -> str:
    """`alice.media.collective` -> `alice@media.collective`. Raises: Refused when nothing is left for the domain."""
    name, _, rest = validate_domain(domain).partition(".")
    return f"{name}@{validate_domain(rest)}"


def member_domain(identity: str) -> str:
    """`alice@media.collective` -> `alice.media.collective`. Raises: Refused."""
    address = parse_address(identity)
    if address.resource:
        raise Refused(f"{_shown(identity)} is a path, not a member")
    return validate_domain(address.dns_name())


@dataclass(frozen=True, slots=True)
class Pattern:
    """Who a grant is for. `local_part` or `*`; `domain`, with `any_below` for a leading `*.` (one or more labels)."""

    local_part: str
    domain: str
    any_below: bool

    def __str__(self) -> str:
        return f"{self.local_part}@{'*.' if self.any_below else ''}{self.domain}"

    def matches(self, subject: FederatedAddress) -> bool:
        """Whether a component, or the member that it belongs to, is meant; never a resource.

        A decision about rights asks with the address in a certificate. (An identity is read as one too; where
        domains nest, `a@b.c.d` is also how a component `a` of the member `b.c.d` is written.)
        """
        if subject.resource or not subject.local_part:
            return False
        if self._matches_pair(subject.local_part, subject.domain):
            return True
        name, _, rest = subject.domain.partition(".")
        return "." in rest and self._matches_pair(name, rest)

    def _matches_pair(self, local_part: str, domain: str) -> bool:
        if self.local_part not in ("*", local_part):
            return False
        return domain.endswith("." + self.domain) if self.any_below else domain == self.domain


def parse_pattern(text: str) -> Pattern:
    """`bob@media.collective`, `*@media.collective`, `*@*.collective`. Raises: Refused."""
    local_part, separator, domain = _fold(text).partition("@")
    if not separator or "@" in domain:
        raise Refused(
            f"{_shown(text)} is not a pattern: it needs exactly one @", "write bob@media.collective or *@*.collective"
        )
    if not local_part or not domain:
        raise Refused(f"{_shown(text)} has nothing on one side of the @")
    if local_part != "*":
        _check_label(local_part, "the part before the @", text)
    any_below = domain.startswith("*.")
    rest = domain[2:] if any_below else domain
    if "*" in rest:
        raise Refused(f"{_shown(text)}: '*' stands for a whole local part, or as '*.' at the front of the domain")
    if any_below and "." not in rest:
        _check_label(rest, "the domain", text)
    else:
        validate_domain(rest)
    return Pattern(local_part, rest, any_below)
