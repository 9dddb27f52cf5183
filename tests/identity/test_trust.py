"""The trust store: whom to believe, how far, and how a change of trust is felt at once."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from cryptography import x509

from collective.core.address import parse_address
from collective.core.errors import Refused
from collective.identity import (
    ComponentKind,
    Level,
    MemberAuthority,
    RootAuthority,
    TrustStore,
    fingerprint,
    generate_leaf_key,
    generate_signing_key,
    trust,
)
from collective.identity.certificates import federation_extensions

DAY = 86400.0
LEVELS = list(Level)


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses for which a chain was really checked, in order: what the cache did not answer."""
    seen: list[str] = []
    real = TrustStore._verify_chain

    def counting(self: TrustStore, leaf: Any, authorities: Any, identity: Any, now: float) -> Any:
        seen.append(str(identity.address))
        return real(self, leaf, authorities, identity, now)

    monkeypatch.setattr(trust.TrustStore, "_verify_chain", counting)
    return seen


class TestTrustStore:
    """The plan's scenario: a root, three member CAs, and who accepts whom."""

    def test_root_and_three_members(self, federation: Any) -> None:
        """Loaded, the three are known."""
        store = federation.trust()
        assert store.members() == ["alice.collective.local", "bob.collective.local", "carol.collective.local"]
        assert store.federation_domain == "collective.local"

    def test_alice_against_her_own_ca(self, federation: Any) -> None:
        identity = federation.trust().verify(federation.leaf("alice"), level=Level.LOCAL, now=federation.now)
        assert str(identity.address) == "coord@alice.collective.local"
        assert identity.member_domain == "alice.collective.local"
        assert identity.federation_domain == "collective.local"
        assert identity.kind is ComponentKind.COORDINATOR
        assert identity.capabilities == {"read", "write", "peer"}

    def test_bob_against_the_root_by_his_intermediate(self, federation: Any) -> None:
        """A store that knows no CA of bob's takes the one he presents, since the root signed it."""
        store = federation.trust("alice", "alice")
        presented = [federation.members["bob"].certificate]
        identity = store.verify(federation.leaf("bob"), presented, level=Level.FEDERATED, now=federation.now)
        assert identity.member_domain == "bob.collective.local"

    def test_every_member_accepts_every_other(self, federation: Any) -> None:
        """Cross-member acceptance, each leaf at each member."""
        for own in federation.members:
            store = federation.trust(own)
            for other in federation.members:
                leaf = federation.leaf(other, "node-01", ComponentKind.NODE)
                for level in (Level.STRICT, Level.FEDERATED):
                    assert store.verify(leaf, level=level, now=federation.now).kind is ComponentKind.NODE

    @pytest.mark.parametrize("level", LEVELS)
    def test_expired_and_not_yet_valid(self, federation: Any, level: Level) -> None:
        """A leaf counts from its first to its last second, by the clock of whoever judges."""
        store, leaf, now = federation.trust(), federation.leaf("alice"), federation.now
        for moment in (now, now + 89 * DAY, leaf.not_valid_after_utc.timestamp() - 1, now - 3000):
            assert store.verify(leaf, level=level, now=moment)
        for moment in (leaf.not_valid_after_utc.timestamp() + 1, now + 91 * DAY, now + 1000 * DAY):
            with pytest.raises(Refused, match="expired"):
                store.verify(leaf, level=level, now=moment)
        for moment in (now - 2 * 3600, now - 1000 * DAY):
            with pytest.raises(Refused, match="not yet valid"):
                store.verify(leaf, level=level, now=moment)

    def test_the_ca_expires_too(self, federation: Any) -> None:
        """A chain is as old as its oldest link, also when the leaf says it lives on."""
        store, ca = federation.trust(), federation.members["alice"].certificate
        late = ca.not_valid_after_utc.timestamp() + 1
        with pytest.raises(Refused, match="expired"):
            store.verify(federation.leaf("alice"), level=Level.STRICT, now=late)

    @pytest.mark.parametrize("level", LEVELS)
    def test_unknown_cas(self, federation: Any, level: Level) -> None:
        """A CA of the same names under another root is nobody's, presented or not."""
        stranger = RootAuthority.create("collective.local", federation.now)
        key, request = MemberAuthority.create_request("alice.collective.local")
        authority = MemberAuthority(
            stranger.sign_member("alice.collective.local", request, federation.now), key, stranger.certificate
        )
        leaf = authority.issue(ComponentKind.COORDINATOR, "coord", generate_leaf_key().public_key(), federation.now)
        store = federation.trust()
        store.set_peers(["alice.collective.local"])
        for presented in ([], [authority.certificate], [authority.certificate, stranger.certificate]):
            with pytest.raises(Refused, match="not trusted"):
                store.verify(leaf, presented, level=level, now=federation.now)
        with pytest.raises(Refused, match="not signed by the root"):
            store.add_member(authority.certificate)

    def test_no_ca_at_all(self, federation: Any) -> None:
        store = federation.trust("alice", "alice")
        with pytest.raises(Refused, match="unknown"):
            store.verify(federation.leaf("bob"), level=Level.FEDERATED, now=federation.now)

    def test_another_federation(self, federation: Any) -> None:
        other = RootAuthority.create("other.example", federation.now)
        key, request = MemberAuthority.create_request("mallory.other.example")
        ca = other.sign_member("mallory.other.example", request, federation.now)
        leaf = MemberAuthority(ca, key, other.certificate).issue(
            ComponentKind.CLIENT, "client", generate_leaf_key().public_key(), federation.now
        )
        with pytest.raises(Refused, match=r"federation other\.example, not collective\.local"):
            federation.trust().verify(leaf, [ca], level=Level.FEDERATED, now=federation.now)
        with pytest.raises(Refused, match=r"other\.example"):
            federation.trust().add_member(ca)

    def test_removal_and_validation_again(self, federation: Any) -> None:
        """A removed member is believed at no level, whatever it presents; taken in again, it is."""
        store, leaf = federation.trust("bob"), federation.leaf("bob")
        store.set_peers(["bob.collective.local"])
        presented = [federation.members["bob"].certificate]
        for level in LEVELS:
            assert store.verify(leaf, presented, level=level, now=federation.now)
        store.remove_member("bob.collective.local")
        assert store.is_removed("bob.collective.local")
        assert "bob.collective.local" not in store.members()
        for level in LEVELS:
            with pytest.raises(Refused, match="was removed"):
                store.verify(leaf, presented, level=level, now=federation.now)
        assert store.verify(federation.leaf("carol"), level=Level.STRICT, now=federation.now)
        store.add_member(presented[0])
        for level in LEVELS:
            assert store.verify(leaf, level=level, now=federation.now)

    def test_rotation(self, federation: Any) -> None:
        """Beside the old CA the new one counts; with the old one gone, only what the new one issued does."""
        store, before, old = federation.trust(), federation.leaf("bob"), federation.members["bob"].certificate
        new = federation.admit("bob").certificate
        after = federation.leaf("bob")
        store.add_member(new)
        assert store.members().count("bob.collective.local") == 1
        for leaf in (before, after):
            assert store.verify(leaf, level=Level.STRICT, now=federation.now)
        store.remove_authority(old)
        assert store.verify(after, level=Level.STRICT, now=federation.now)
        for presented in ([], [old], [old, new]):
            with pytest.raises(Refused, match="not trusted"):
                store.verify(before, presented, level=Level.FEDERATED, now=federation.now)
        store.add_member(old)
        assert store.verify(before, level=Level.STRICT, now=federation.now)

    def test_a_roster_ends_a_rotation(self, federation: Any) -> None:
        """The CA in the roster takes the old one's place at once; a restarted store does not take the old one back."""
        running = federation.trust()
        before, old = federation.leaf("bob"), federation.members["bob"].certificate
        assert running.verify(before, level=Level.FEDERATED, now=federation.now)
        federation.now += 60
        new = federation.admit("bob").certificate
        after = federation.leaf("bob")
        assert running.verify(after, [new], level=Level.FEDERATED, now=federation.now), "before the roster tells of it"
        cuts: list[int] = []
        running.subscribe(lambda: cuts.append(1))
        restarted = TrustStore(federation.root.certificate, "alice.collective.local")
        roster = [("bob.collective.local", new, False)]
        for store in (running, restarted):
            store.set_roster(roster)
            assert store.verify(after, level=Level.STRICT, now=federation.now)
            for presented in ([], [old], [new, old]):
                for level in (Level.STRICT, Level.FEDERATED):
                    with pytest.raises(Refused, match="not trusted"):
                        store.verify(before, presented, level=level, now=federation.now)
        assert cuts, "open connections are judged again"
        cuts.clear()
        running.set_roster(roster)
        assert not cuts, "the same roster again changes nothing"
        running.set_roster([("bob.collective.local", new, True)])
        with pytest.raises(Refused, match="removed"):
            running.verify(after, [new], level=Level.FEDERATED, now=federation.now)

    def test_revoked(self, federation: Any) -> None:
        """One leaf is void, the member's others are not."""
        store, lost, kept = federation.trust(), federation.leaf("bob"), federation.leaf("bob")
        assert store.verify(lost, level=Level.FEDERATED, now=federation.now)
        store.revoke(fingerprint(lost))
        with pytest.raises(Refused, match="revoked"):
            store.verify(lost, level=Level.FEDERATED, now=federation.now)
        assert store.verify(kept, level=Level.FEDERATED, now=federation.now)


class TestTrustStoreLevels:
    """How far trust reaches."""

    @pytest.mark.parametrize(
        ("level", "who", "reason"),
        [
            (Level.LOCAL, "alice", ""),
            (Level.LOCAL, "bob", "not a component of alice"),
            (Level.PEER, "alice", ""),
            (Level.PEER, "bob", ""),
            (Level.PEER, "carol", "not one of the configured peers"),
            (Level.FEDERATED, "alice", ""),
            (Level.FEDERATED, "carol", ""),
            (Level.FEDERATED, "dave", ""),
            (Level.STRICT, "carol", ""),
            (Level.STRICT, "dave", "not in the roster"),
        ],
    )
    def test_levels(self, federation: Any, level: Level, who: str, reason: str) -> None:
        """Alice, with bob for a peer, knows carol; dave was admitted and she has not heard of it."""
        store = federation.trust("alice")
        store.set_peers(["bob.collective.local"])
        federation.admit("dave")
        presented = [federation.members[who].certificate]
        if reason:
            with pytest.raises(Refused, match=reason):
                store.verify(federation.leaf(who), presented, level=level, now=federation.now)
        else:
            identity = store.verify(federation.leaf(who), presented, level=level, now=federation.now)
            assert identity.member_domain == f"{who}.collective.local"

    @pytest.mark.parametrize("kind", list(ComponentKind))
    def test_kinds(self, federation: Any, kind: ComponentKind) -> None:
        """A component of another kind is refused, also when the cache knows it; a signing key is for no connection."""
        store = federation.trust()
        key = generate_signing_key() if kind is ComponentKind.SIGNING else generate_leaf_key()
        leaf = federation.members["bob"].issue(kind, "coord", key.public_key(), federation.now)
        others = frozenset(ComponentKind) - {kind}
        for _ in range(2):
            assert store.verify(leaf, level=Level.STRICT, now=federation.now, kinds=frozenset({kind})).kind is kind
            with pytest.raises(Refused, match=f"is a {kind}, this is for a "):
                store.verify(leaf, level=Level.STRICT, now=federation.now, kinds=others)
        if kind is ComponentKind.SIGNING:
            with pytest.raises(Refused, match="is a signing"):
                store.verify(leaf, level=Level.STRICT, now=federation.now)


class TestTrustStoreConstraints:
    """A CA speaks for its own member, whatever it writes."""

    @staticmethod
    def claim(federation: Any, address_text: str, names: list[x509.GeneralName] | None = None) -> x509.Certificate:
        """A leaf by bob's CA whose extensions claim `address_text`; its names too, unless given."""
        address = parse_address(address_text)
        extensions = federation_extensions(
            "collective.local", address.domain, ComponentKind.COORDINATOR, address, {"admin"}
        )
        if names is None:
            names = [x509.RFC822Name(str(address)), x509.DNSName(address.dns_name())]
        return federation.forge(federation.members["bob"], names, extensions)

    @pytest.mark.parametrize("level", [Level.STRICT, Level.FEDERATED, Level.LOCAL])
    def test_bobs_ca_signs_alices_name(self, federation: Any, level: Level) -> None:
        leaf = self.claim(federation, "coord@alice.collective.local")
        for presented in ([], [federation.members["bob"].certificate]):
            with pytest.raises(Refused):
                federation.trust().verify(leaf, presented, level=level, now=federation.now)
        with pytest.raises(Refused, match="permitted subtree violation"):
            federation.trust().verify(
                leaf, [federation.members["bob"].certificate], level=Level.FEDERATED, now=federation.now
            )

    def test_our_own_check_stands_alone(self, federation: Any) -> None:
        """Without OpenSSL's look at names, ours refuses the same."""
        leaf = self.claim(federation, "coord@alice.collective.local")
        identity = trust.read_identity(leaf)
        with pytest.raises(Refused, match=r"CA of bob\.collective\.local issued a certificate for coord@alice"):
            trust.check_constraints(identity, federation.members["bob"].certificate)

    def test_names_that_disagree(self, federation: Any) -> None:
        """What the extensions say and what TLS libraries read must be one; nothing else may be named."""
        mail = x509.RFC822Name("coord@alice.collective.local")
        own_mail, own_dns = x509.RFC822Name("coord@bob.collective.local"), x509.DNSName("coord.bob.collective.local")
        cases = [
            ("coord@alice.collective.local", [own_mail, own_dns], "e-mail name"),
            ("coord@bob.collective.local", [mail, own_dns], "e-mail name"),
            ("coord@bob.collective.local", [own_mail, x509.DNSName("coord.alice.collective.local")], "DNS name"),
            ("coord@bob.collective.local", [own_mail, own_dns, mail], "other names"),
            ("coord@bob.collective.local", [own_mail, own_dns, x509.DNSName("x.example")], "other names"),
            ("coord@bob.collective.local", [], "no alternative names"),
        ]
        for address, names, reason in cases:
            with pytest.raises(Refused, match=reason):
                federation.trust().verify(
                    self.claim(federation, address, names), level=Level.FEDERATED, now=federation.now
                )

    def test_not_a_component(self, federation: Any) -> None:
        """A leaf without the federation's extensions, a member CA, the root: none is a component."""
        bare = federation.forge(federation.members["bob"], [x509.DNSName("coord.bob.collective.local")])
        for certificate in (bare, federation.members["bob"].certificate, federation.root.certificate):
            with pytest.raises(Refused, match="not a component"):
                federation.trust().verify(certificate, level=Level.FEDERATED, now=federation.now)

    def test_extensions_that_cannot_be_read(self, federation: Any) -> None:
        """Broken DER, an unknown kind, a path for an address: refused, never another error."""
        domain = "bob.collective.local"
        names = [x509.RFC822Name(f"coord@{domain}"), x509.DNSName(f"coord.{domain}")]
        good = federation_extensions(
            "collective.local", domain, ComponentKind.NODE, parse_address(f"coord@{domain}"), {"read"}
        )
        values = (b"", b"\x0c", b"\x0c\x05ab", b"\x0c\x81\x02ab", b"\x0c\x02\xff\xfe", b"\x0c\x02zz", b"\x16\x01a")
        for index in range(4):
            for value in values:
                broken = list(good)
                broken[index] = x509.UnrecognizedExtension(good[index].oid, value)
                leaf = federation.forge(federation.members["bob"], names, broken)
                with pytest.raises(Refused):
                    federation.trust().verify(leaf, level=Level.FEDERATED, now=federation.now)

    def test_a_ca_below_a_member_ca(self, federation: Any) -> None:
        """Two intermediates are one too many."""
        bob, key = federation.members["bob"], generate_signing_key()
        below = federation.forge(bob, [x509.DNSName("x.bob.collective.local")], public_key=key.public_key(), ca=True)
        address = parse_address("coord@bob.collective.local")
        leaf = federation.forge(
            MemberAuthority(below, key, bob.root_certificate),
            [x509.RFC822Name(str(address)), x509.DNSName(address.dns_name())],
            federation_extensions("collective.local", address.domain, ComponentKind.COORDINATOR, address, {"read"}),
        )
        with pytest.raises(Refused, match="not trusted"):
            federation.trust().verify(leaf, [below, bob.certificate], level=Level.FEDERATED, now=federation.now)

    def test_a_leaf_of_the_root_itself(self, federation: Any) -> None:
        """The root signs members, not their components."""
        root = MemberAuthority(federation.root.certificate, federation.root.key, federation.root.certificate)
        address = parse_address("coord@bob.collective.local")
        leaf = federation.forge(
            root,
            [x509.RFC822Name(str(address)), x509.DNSName(address.dns_name())],
            federation_extensions("collective.local", address.domain, ComponentKind.COORDINATOR, address, {"read"}),
        )
        with pytest.raises(Refused, match="2 certificates long"):
            federation.trust().verify(leaf, level=Level.FEDERATED, now=federation.now)

    def test_a_ca_that_is_not_bound(self, federation: Any) -> None:
        """A CA rightly signed by the root, but without constraints or with wider ones, is not taken in."""
        root = MemberAuthority(federation.root.certificate, federation.root.key, federation.root.certificate)
        extensions = federation_extensions("collective.local", "bob.collective.local")
        unbound = federation.forge(root, [], extensions, public_key=generate_signing_key().public_key(), ca=True)
        with pytest.raises(Refused, match="not a member CA"):
            federation.trust().add_member(unbound)
        with pytest.raises(Refused, match="not a member CA"):
            federation.trust().add_member(federation.root.certificate)
        with pytest.raises(Refused, match="not a member CA"):
            federation.trust().add_member(federation.leaf("bob"))

    def test_a_flood_of_intermediates(self, federation: Any) -> None:
        presented = [federation.members["bob"].certificate] * 9
        with pytest.raises(Refused, match="9 intermediate"):
            federation.trust().verify(federation.leaf("bob"), presented, level=Level.FEDERATED, now=federation.now)


class TestTrustStoreCache:
    """A verdict is remembered while it holds, and dropped with every change."""

    def test_remembered_for_each_level(self, federation: Any, judged: list[str]) -> None:
        store, leaf = federation.trust(), federation.leaf("alice")
        for level in (Level.STRICT, Level.LOCAL):
            for _ in range(5):
                store.verify(leaf, level=level, now=federation.now)
        assert len(judged) == 2

    def test_not_remembered_past_its_time(self, federation: Any, judged: list[str]) -> None:
        """The cache judges time anew on each question."""
        store, leaf = federation.trust(), federation.leaf("alice")
        store.verify(leaf, level=Level.STRICT, now=federation.now)
        for moment in (federation.now + 91 * DAY, federation.now - 3 * 3600):
            with pytest.raises(Refused):
                store.verify(leaf, level=Level.STRICT, now=moment)
        assert len(judged) == 3

    def test_dropped_on_every_change(self, federation: Any, judged: list[str]) -> None:
        store, leaf = federation.trust(), federation.leaf("alice")
        told: list[int] = []
        store.subscribe(lambda: told.append(1))
        changes = [
            lambda: store.add_member(federation.admit("dave").certificate),
            lambda: store.remove_member("bob.collective.local"),
            lambda: store.set_peers(["carol.collective.local"]),
            lambda: store.revoke(bytes(32)),
            lambda: store.remove_authority(federation.members["carol"].certificate),
        ]
        for count, change in enumerate(changes, start=1):
            store.verify(leaf, level=Level.STRICT, now=federation.now)
            change()
            assert len(told) == count
            store.verify(leaf, level=Level.STRICT, now=federation.now)
            assert len(judged) == count + 1

    def test_what_changes_nothing_tells_nobody(self, federation: Any, judged: list[str]) -> None:
        """Members known already are taken in again without effect: a refresh cuts no connection."""
        store, leaf = federation.trust(), federation.leaf("alice")
        store.remove_member("dave.collective.local")
        store.verify(leaf, level=Level.STRICT, now=federation.now)
        told: list[int] = []
        store.subscribe(lambda: told.append(1))
        for authority in federation.members.values():
            store.add_member(authority.certificate)
        store.remove_member("dave.collective.local")
        store.verify(leaf, level=Level.STRICT, now=federation.now)
        assert (told, len(judged)) == ([], 1)

    def test_a_verdict_reached_across_a_change_is_not_kept(
        self, federation: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Bob is removed while his chain is being checked: the next question is refused."""
        store, leaf = federation.trust(), federation.leaf("bob")
        real = TrustStore._verify_chain

        def removing(self: TrustStore, *arguments: Any) -> Any:
            chain = real(self, *arguments)
            self.remove_member("bob.collective.local")
            return chain

        monkeypatch.setattr(TrustStore, "_verify_chain", removing)
        store.verify(leaf, level=Level.STRICT, now=federation.now)
        with pytest.raises(Refused, match="was removed"):
            store.verify(leaf, level=Level.STRICT, now=federation.now)

    def test_listeners_leave(self, federation: Any) -> None:
        store, told = federation.trust(), []

        def listener() -> None:
            told.append(1)

        store.subscribe(listener)
        store.unsubscribe(listener)
        store.unsubscribe(listener)
        store.set_peers([])
        assert told == []

    def test_a_listener_may_ask(self, federation: Any) -> None:
        """Whoever is told of a change judges its connections at once, by the new state."""
        store, leaf, verdicts = federation.trust(), federation.leaf("bob"), []

        def ask() -> None:
            try:
                store.verify(leaf, level=Level.STRICT, now=federation.now)
            except Refused as error:
                verdicts.append(error.message)

        store.subscribe(ask)
        store.remove_member("bob.collective.local")
        assert verdicts == ["bob.collective.local was removed from the federation"]

    def test_several_threads(self, federation: Any) -> None:
        """Questions and changes from several threads: no other error, and the last change counts everywhere."""
        store, errors = federation.trust(), []
        leaves = [federation.leaf(name) for name in federation.members]

        def ask() -> None:
            for turn in range(60):
                try:
                    store.verify(leaves[turn % 3], level=Level.FEDERATED, now=federation.now)
                except Refused:
                    continue
                except Exception as error:
                    errors.append(error)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            store.remove_member("bob.collective.local")
            store.add_member(federation.members["bob"].certificate)
        store.remove_member("bob.collective.local")
        for thread in threads:
            thread.join()
        assert errors == []
        with pytest.raises(Refused, match="was removed"):
            store.verify(leaves[1], level=Level.FEDERATED, now=federation.now)
