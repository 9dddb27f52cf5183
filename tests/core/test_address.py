"""Addresses: what is one, its one written form, who is meant by a pattern."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collective.core.address import (
    FederatedAddress,
    member_domain,
    member_identity,
    parse_address,
    parse_pattern,
    validate_domain,
    validate_name,
)
from collective.core.errors import Refused

# made right at once rather than drawn and thrown away: under load hypothesis gives up on the latter
LABEL_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789-"
NAME_BYTES = [byte for byte in range(0x20, 0x100) if byte not in (0x2F, 0x7F)]
labels = st.text(LABEL_LETTERS, max_size=22).map(lambda text: text.strip("-") or "0")
domains = st.lists(labels, min_size=2, max_size=6).map(".".join)
names = st.lists(st.sampled_from(NAME_BYTES), min_size=1, max_size=40).map(
    lambda name: bytes(name) if bytes(name) not in (b".", b"..") else b"..."
)
components = st.builds(FederatedAddress, labels, domains)
resources = st.builds(
    lambda parts, domain: FederatedAddress("", domain, b"/" + b"/".join(parts)), st.lists(names, max_size=5), domains
)

FORMATS = [
    ("node-01@alice.collective.local", "node-01", "alice.collective.local", b""),
    ("coord@bob.collective.local", "coord", "bob.collective.local", b""),
    ("client@carol.house.collective", "client", "carol.house.collective", b""),
    ("alice@home.collective", "alice", "home.collective", b""),
    ("7@a.b", "7", "a.b", b""),
    ("node-01@a.b.c.d.e.f.example", "node-01", "a.b.c.d.e.f.example", b""),
    ("x--y@xn--bcher-kva.example", "x--y", "xn--bcher-kva.example", b""),
    (f"{'n' * 63}@{'d' * 63}.local", "n" * 63, f"{'d' * 63}.local", b""),
    ("/files/data.txt@carol.collective.local", "", "carol.collective.local", b"/files/data.txt"),
    ("/media/movies@carol.house.collective", "", "carol.house.collective", b"/media/movies"),
    ("/@alice.media.collective", "", "alice.media.collective", b"/"),
    ("/logo@2x.png@alice.media.collective", "", "alice.media.collective", b"/logo@2x.png"),
    ("/a b/Ünïcode – 1.mkv@a.b", "", "a.b", "/a b/Ünïcode – 1.mkv".encode()),
    ("/.hidden/...@a.b", "", "a.b", b"/.hidden/..."),
    (b"/not-utf8-\xff\xfe@a.b", "", "a.b", b"/not-utf8-\xff\xfe"),
    (f"/{'n' * 255}@a.b", "", "a.b", b"/" + b"n" * 255),
]

INVALID = [
    ("alice", "no @"),
    ("", "no @"),
    ("@domain", "nobody before"),
    ("@a.b", "nobody before"),
    ("user@", "no domain after"),
    ("user@domain", "at least one dot"),
    ("a@b@c.d", "more than one @"),
    ("a@b.c@d.e", "more than one @"),
    ("user@.b", "empty part"),
    ("user@a..b", "empty part"),
    ("user@a.b.", "empty part"),
    (f"user@{'a' * 64}.b", "64 characters"),
    (f"{'a' * 64}@a.b", "64 characters"),
    ("user@" + ".".join(["abcdefgh"] * 29), "too long"),
    ("user@-a.b", "inner hyphens"),
    ("user@a-.b", "inner hyphens"),
    ("user@a_b.c", "inner hyphens"),
    ("user@a b.c", "inner hyphens"),
    ("user@a.b:8001", "inner hyphens"),
    ("user@a.b\n", "inner hyphens"),
    ("us\ner@a.b", "inner hyphens"),
    ("user\0@a.b", "inner hyphens"),
    ("*@a.b", "inner hyphens"),
    ("user@*.a.b", "inner hyphens"),
    ("bücher@a.b", "letters, digits and hyphens only"),
    ("user@bücher.example", "letters, digits and hyphens only"),
    ("user@\u212aelvin.example", "letters, digits and hyphens only"),
    ("media/movies@a.b", "inner hyphens"),
    ("/a/../b@a.b", "'..' is not a name"),
    ("/..@a.b", "'..' is not a name"),
    ("/./a@a.b", "'.' is not a name"),
    ("/a//b@a.b", "empty"),
    ("/a/@a.b", "empty"),
    ("/a\0b@a.b", "control character"),
    ("/a\nb@a.b", "control character"),
    ("/a\x7fb@a.b", "control character"),
    (f"/{'n' * 256}@a.b", "256 bytes"),
    (f"/{'ü' * 128}@a.b", "256 bytes"),
    ("/" + "a/" * 2100 + "a@a.b", "too long"),
    ("/a@b", "at least one dot"),
]


class TestAddress:
    """The grammar, the canonical form, what lies in one's own member."""

    @pytest.mark.parametrize(("text", "local_part", "domain", "resource"), FORMATS)
    def test_formats(self, text: str | bytes, local_part: str, domain: str, resource: bytes) -> None:
        """Each form is taken apart, and written it is what was read."""
        address = parse_address(text)
        assert address == FederatedAddress(local_part, domain, resource)
        assert str(address).encode(errors="surrogateescape") == (text if isinstance(text, bytes) else text.encode())

    @pytest.mark.parametrize(("text", "reason"), INVALID)
    def test_invalid_formats_are_refused_with_the_reason(self, text: str, reason: str) -> None:
        with pytest.raises(Refused) as refusal:
            parse_address(text)
        assert reason in refusal.value.message
        assert len(refusal.value.message) < 400, "a message repeats no endless text"

    def test_case_is_folded_in_names_and_kept_in_paths(self) -> None:
        """Domains and local parts have one case; a path is bytes and means what it says."""
        assert str(parse_address("Node-01@Alice.Media.COLLECTIVE")) == "node-01@alice.media.collective"
        assert str(parse_address("/Media/Film.MKV@Alice.Media.Collective")) == "/Media/Film.MKV@alice.media.collective"

    def test_is_local(self) -> None:
        """Local is the member's very domain, not one above or below it."""
        address = parse_address("/files/data.txt@carol.collective.local")
        assert address.is_local("carol.collective.local")
        assert address.is_local("Carol.Collective.Local")
        assert parse_address("node-01@carol.collective.local").is_local("carol.collective.local")
        for other in ("alice.collective.local", "collective.local", "x.carol.collective.local", "x.local"):
            assert not address.is_local(other)

    @given(components)
    def test_components_round_trip(self, address: FederatedAddress) -> None:
        assert parse_address(str(address)) == address
        assert parse_address(str(address).upper()) == address

    @given(resources)
    def test_resources_round_trip(self, address: FederatedAddress) -> None:
        """Whatever bytes a path holds, its written form is read back to the same bytes."""
        assert parse_address(str(address)) == address
        assert parse_address(address.resource + b"@" + address.domain.encode()) == address

    @given(st.one_of(st.text(max_size=80), st.binary(max_size=80)))
    def test_anything_is_an_address_or_refused(self, text: str | bytes) -> None:
        """No input ends in another error, and what is taken is canonical after one reading."""
        try:
            address = parse_address(text)
        except (Refused, UnicodeEncodeError):  # a str of lone surrogates is no text of any terminal
            return
        assert parse_address(str(address)) == address

    @given(domains)
    def test_domains_are_canonical(self, domain: str) -> None:
        assert validate_domain(domain.upper()) == domain

    def test_a_domain_of_253_characters_is_the_longest(self) -> None:
        longest = ".".join(["a" * 63] * 3 + ["b" * 61])
        assert len(longest) == 253
        assert validate_domain(longest) == longest
        with pytest.raises(Refused, match="254"):
            validate_domain(longest + "b")

    def test_letters_that_fold_to_ascii_are_refused(self) -> None:
        """The Kelvin sign is a k in lower case: two written domains would be one."""
        for text in ("\u212aelvin.example", "a.\u0130b"):
            with pytest.raises(Refused, match="ASCII"):
                validate_domain(text)
        with pytest.raises(Refused, match="ASCII"):
            parse_pattern("\u212a@a.b")

    @pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0b", b"n" * 256])
    def test_names_that_no_file_system_has(self, name: bytes) -> None:
        with pytest.raises(Refused):
            validate_name(name)

    def test_names_keep_their_bytes(self) -> None:
        """A name in the tree may hold what a disk's names may hold, control characters too."""
        for name in (b"...", b"\xff\xfe", b"a\nb", b"n" * 255):
            validate_name(name)


class TestAddressOfMember:
    """A member's domain and identity are two forms of one name."""

    @pytest.mark.parametrize(
        ("identity", "domain"),
        [
            ("alice@media.collective", "alice.media.collective"),
            ("bob@garage.collective", "bob.garage.collective"),
            ("alice@home.collective", "alice.home.collective"),
            ("a@b.c.d.e", "a.b.c.d.e"),
        ],
    )
    def test_both_ways(self, identity: str, domain: str) -> None:
        assert member_domain(identity) == domain
        assert member_identity(domain) == identity

    @given(labels, domains)
    def test_round_trip(self, name: str, domain: str) -> None:
        assert member_domain(member_identity(f"{name}.{domain}")) == f"{name}.{domain}"
        assert member_identity(member_domain(f"{name}@{domain}")) == f"{name}@{domain}"

    def test_what_is_no_member(self) -> None:
        for text in ("media.collective", "alice", "a..b.c"):
            with pytest.raises(Refused):
                member_identity(text)
        for text in ("/media@media.collective", "alice@collective", "alice", "a@b@c.d", f"a@{'a' * 63 + '.'}" * 4):
            with pytest.raises(Refused):
                member_domain(text)


class TestAddressPattern:
    """Who a grant is for."""

    @pytest.mark.parametrize(
        ("pattern", "subject", "matches"),
        [
            ("bob@media.collective", "coord@bob.media.collective", True),
            ("bob@media.collective", "node-01@bob.media.collective", True),
            ("bob@media.collective", "bob@media.collective", True),
            ("bob@media.collective", "coord@alice.media.collective", False),
            ("bob@media.collective", "coord@bob.garage.collective", False),
            ("bob@media.collective", "coord@bob.media.collective.evil.example", False),
            ("bob@media.collective", "bob@evil.media.collective", False),
            ("client@bob.media.collective", "client@bob.media.collective", True),
            ("client@bob.media.collective", "coord@bob.media.collective", False),
            ("*@media.collective", "client@bob.media.collective", True),
            ("*@media.collective", "carol@media.collective", True),
            ("*@media.collective", "client@bob.garage.collective", False),
            ("*@media.collective", "client@x.bob.media.collective", False),
            ("*@bob.media.collective", "client@bob.media.collective", True),
            ("*@*.collective", "coord@bob.garage.collective", True),
            ("*@*.collective", "coord@bob.media.collective", True),
            ("*@*.collective", "coord@bob.deep.er.media.collective", True),
            ("*@*.collective", "coord@bob.collectives", False),
            ("*@*.collective", "coord@bob.notcollective", False),
            ("*@*.collective", "coord@bob.collective.example", False),
            ("bob@*.collective", "coord@bob.garage.collective", True),
            ("bob@*.collective", "coord@alice.garage.collective", False),
            ("*@*.media.collective", "coord@bob.media.collective", True),
            ("*@*.media.collective", "bob@media.collective", False),
            ("BOB@Media.Collective", "coord@bob.media.collective", True),
        ],
    )
    def test_matching(self, pattern: str, subject: str, matches: bool) -> None:
        assert parse_pattern(pattern).matches(parse_address(subject)) is matches

    @given(domains)
    def test_a_resource_is_nobody(self, domain: str) -> None:
        address = parse_address(f"/media@{domain}")
        assert not parse_pattern(f"*@{domain}").matches(address)
        assert not parse_pattern(f"*@*.{domain.rpartition('.')[2]}").matches(address)

    @given(labels, components)
    def test_a_member_is_meant_with_all_its_components(self, member: str, above: FederatedAddress) -> None:
        """A grant to an identity reaches every component of that member and none of a member with another name."""
        identity = f"{member}@{above.domain}"
        assert parse_pattern(identity).matches(parse_address(f"coord@{member}.{above.domain}"))
        assert not parse_pattern(identity).matches(parse_address(f"coord@{member}x.{above.domain}"))

    @pytest.mark.parametrize("text", ["bob@media.collective", "*@media.collective", "bob@*.collective", "*@*.a.b"])
    def test_written_as_read(self, text: str) -> None:
        assert str(parse_pattern(text)) == text
        assert str(parse_pattern(text.upper())) == text

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("bob", "exactly one @"),
            ("a@b@c.d", "exactly one @"),
            ("@media.collective", "nothing on one side"),
            ("bob@", "nothing on one side"),
            ("bo*@media.collective", "inner hyphens"),
            ("**@media.collective", "inner hyphens"),
            ("*bob@media.collective", "inner hyphens"),
            ("bob@*", "stands for a whole"),
            ("bob@media.*", "stands for a whole"),
            ("bob@me*.collective", "stands for a whole"),
            ("bob@a.*.collective", "stands for a whole"),
            ("bob@*.*.collective", "stands for a whole"),
            ("bob@*media.collective", "stands for a whole"),
            ("bob@*.", "empty part"),
            ("bob@*..collective", "empty part"),
            ("bob@collective", "at least one dot"),
            ("/media@media.collective", "inner hyphens"),
            ("bob\n@media.collective", "inner hyphens"),
            (f"{'b' * 64}@media.collective", "64 characters"),
        ],
    )
    def test_a_wildcard_elsewhere_is_refused(self, text: str, reason: str) -> None:
        with pytest.raises(Refused) as refusal:
            parse_pattern(text)
        assert reason in refusal.value.message
