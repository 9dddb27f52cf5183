"""The plan's five cases and the laws of dissemination and failure detection, on the engine in virtual time."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation.world import MemoryFeeds, Network, World, acquainted, memory_world

from collective.gossip import LAN, WAN, GossipSettings, State
from collective.gossip.antientropy import WAIT_SECONDS, AntiEntropy
from collective.gossip.dissemination import Interval, divide

FEED = b"F" * 32
SECRET = b"S" * 32


def everybody_has(world: World, feed: bytes = FEED, count: int = 1) -> bool:
    return all(len(member.feeds.feeds.get(feed, ())) == count for member in world.members.values())


def write(world: World, number: int, feed: bytes = FEED, content: bytes = b"news") -> None:
    member = list(world.members.values())[number]
    member.feeds.append(feed, content)
    member.changed()


def all_alive(world: World) -> bool:
    running = [member for member in world.members.values() if member.engine is not None]
    return all(one.thinks(other.name) is State.ALIVE for one in running for other in running if one is not other)


def in_rounds(settings_: GossipSettings = LAN) -> GossipSettings:
    """Every hop takes one round, and nothing but dissemination is at work."""
    return replace(settings_, round_seconds=1.0, heartbeat_seconds=1e6, gossip_seconds=1e6, probe_seconds=1e5)


def rounds_until_everybody_has_it(count: int, loss: float, seed: int) -> tuple[int, World]:
    world = memory_world(seed, count, in_rounds(), Network(loss=loss, least_delay=0.999, most_delay=1.0))
    acquainted(world)
    write(world, seed % count)
    return round(world.run_until(lambda: everybody_has(world), 100, step=1.0)), world


class TestGossip:
    @pytest.mark.parametrize("seed", range(10))
    @pytest.mark.parametrize("count", [3, 10, 60])
    def test_messages_propagate_to_all_peers(self, count: int, seed: int) -> None:
        """Without loss everybody has an entry within ceil(log2 n) + 3 rounds, and gets its bytes about once."""
        rounds, world = rounds_until_everybody_has_it(count, 0.0, seed)
        assert rounds <= math.ceil(math.log2(count)) + 3
        assert world.network.entry_bytes == 0, "a push needs no pull"

    @pytest.mark.parametrize("seed", range(10))
    @pytest.mark.parametrize("count", [10, 60])
    def test_messages_propagate_although_some_are_lost(self, count: int, seed: int) -> None:
        """At 20 % loss it takes at most twice that."""
        rounds, _ = rounds_until_everybody_has_it(count, 0.2, seed)
        assert rounds <= 2 * (math.ceil(math.log2(count)) + 3)

    def test_new_members_are_discovered(self) -> None:
        """Each newcomer knows one member; in seconds all know all, and where they are."""
        world = World(7)
        names = [f"m{number}.media.collective" for number in range(6)]
        for number, name in enumerate(names):
            known = {name, names[0], *([] if number else names[:1])}
            world.add(name, MemoryFeeds(sorted(known))).start()
        for member in world.members.values():
            feeds = member.feeds
            assert isinstance(feeds, MemoryFeeds)
            feeds.secret = {}
        world.run_until(lambda: all(len(m.engine.members()) == 5 for m in world.members.values()), 5)
        world.run_until(lambda: all_alive(world), 5)
        for member in world.members.values():
            assert set(member.learned) == set(names) - {member.name}

    @pytest.mark.parametrize("seed", range(5))
    def test_a_partition_is_survived_and_healed(self, seed: int) -> None:
        """Both sides go on, take each other for dead, and are level again soon after it heals."""
        world = memory_world(seed, 6)
        for member in world.members.values():
            member.start()
        world.run_until(lambda: all_alive(world), 5)
        names = list(world.members)
        world.network.block(names[:3], names[3:])
        world.run(20)
        one, other = world.members[names[0]], world.members[names[4]]
        assert one.thinks(other.name) is State.DEAD
        assert one.thinks(names[1]) is State.ALIVE
        for _ in range(50):
            write(world, 0, FEED)
            write(world, 4, b"G" * 32)
        world.run(1)
        world.network.heal()
        took = world.run_until(
            lambda: everybody_has(world, FEED, 50) and everybody_has(world, b"G" * 32, 50) and all_alive(world), 10
        )
        assert took <= 10

    @pytest.mark.parametrize("seed", range(5))
    def test_anti_entropy_converges(self, seed: int) -> None:
        """Different halves of many feeds at each member: after a few exchanges all have everything."""
        world = memory_world(seed, 5, network=Network(loss=0.1))
        for number, member in enumerate(world.members.values()):
            for feed in range(40):
                for _ in range(world.random.randrange(30) if feed % 5 == number else 0):
                    member.feeds.append(bytes([feed]) * 32, b"entry")
        for member in world.members.values():
            member.start()
        first, *others = world.members.values()
        world.run_until(lambda: all(other.feeds.feeds == first.feeds.feeds for other in others), 60)

    @pytest.mark.parametrize("seed", range(5))
    def test_a_difference_is_looked_at_again_soon(self, seed: int) -> None:
        """What a short cut kept from somebody shows in one heartbeat, and is there before the next."""
        heartbeat_seconds = 60.0
        world = memory_world(seed, 2, replace(LAN, heartbeat_seconds=heartbeat_seconds, gossip_seconds=1e6))
        acquainted(world)
        prober, other = world.members.values()
        assert other.engine is not None
        other.engine.membership._next_heartbeat = math.inf  # so that the next look is the prober's alone
        world.network.block([prober.name], [other.name])
        write(world, 0)
        world.run(5)
        world.network.heal()
        assert not everybody_has(world)
        world.run_until(lambda: everybody_has(world), heartbeat_seconds + 2)

    @pytest.mark.parametrize("seed", range(5))
    def test_a_suspect_heard_again_is_compared_with(self, seed: int) -> None:
        """What was missed under suspicion is there as soon as it ends, not after the next heartbeat."""
        world = memory_world(seed, 2, replace(LAN, heartbeat_seconds=30.0))
        acquainted(world)
        first, second = world.members.values()
        world.network.block([first.name], [second.name])
        write(world, 0)
        world.run_until(lambda: first.thinks(second.name) is State.SUSPECT, 40)
        world.run(2)  # until it is told on no longer
        world.network.heal()
        world.run_until(lambda: everybody_has(world), 2 * LAN.second_look_seconds)

    def test_more_than_ten_peers(self) -> None:
        """Twenty members, entries written everywhere at once, some messages lost: all get all."""
        world = memory_world(3, 20, network=Network(loss=0.05, duplication=0.05))
        for member in world.members.values():
            member.start()
        world.run(5)
        for number in range(20):
            write(world, number, bytes([number]) * 32)
        world.run_until(lambda: all(everybody_has(world, bytes([n]) * 32) for n in range(20)), 30)
        assert not any(member.refusals for member in world.members.values())


class TestSecrets:
    def test_a_feed_reaches_only_its_followers(self) -> None:
        """Neither entries nor heads of a feed come to a member that may not follow it; a relay that may, helps."""
        world = memory_world(5, 5)
        names = list(world.members)
        for member in world.members.values():
            member.feeds.secret = {SECRET: frozenset(names[:3])}
        sent: list[tuple[str, bytes]] = []
        carry = world.carry
        world.network.block([names[0]], [names[2]])
        for member in world.members.values():
            member.start()
        original = type(world.members[names[0]])._send

        def spy(self, peer: str, raw: bytes) -> None:
            sent.append((peer, raw))
            original(self, peer, raw)

        type(world.members[names[0]])._send = spy
        try:
            world.run(3)
            write(world, 0, SECRET)
            world.run(60)
        finally:
            type(world.members[names[0]])._send = original
        assert carry is not None
        assert [SECRET in member.feeds.feeds for member in world.members.values()] == [True, True, True, False, False]
        assert not [peer for peer, raw in sent if SECRET in raw and peer in names[3:]]

    def test_a_right_that_comes_later_brings_the_feed(self) -> None:
        """The moment somebody may follow a feed, who has it tells."""
        world = memory_world(6, 3)
        names = list(world.members)
        for member in world.members.values():
            member.feeds.secret = {SECRET: frozenset(names[:1])}
            member.start()
        world.run(3)
        write(world, 0, SECRET)
        world.run(3)
        assert SECRET not in world.members[names[1]].feeds.feeds
        for member in world.members.values():
            assert member.engine is not None
            member._carry_out(member.engine.rights_changed(member._time()))
            member.feeds.secret = {SECRET: frozenset(names[:2])}
            member._carry_out(member.engine.rights_changed(member._time()))
        world.run_until(lambda: SECRET in world.members[names[1]].feeds.feeds, 1)
        world.run(30)
        assert SECRET not in world.members[names[2]].feeds.feeds


class TestDetection:
    @pytest.mark.parametrize("profile", [LAN, WAN], ids=["lan", "wan"])
    @pytest.mark.parametrize("refuses", [True, False], ids=["refused", "silent"])
    @pytest.mark.parametrize("count", [2, 3, 10])
    @pytest.mark.parametrize("seed", range(4))
    def test_the_dead_are_known_dead_in_time(
        self, seed: int, count: int, refuses: bool, profile: GossipSettings
    ) -> None:
        """In under 15 s at everybody, whether the host refuses connections or swallows them."""
        world = memory_world(seed, count, profile, Network(refuses=refuses))
        for member in world.members.values():
            member.start()
        world.run_until(lambda: all_alive(world), 8)
        world.run(world.random.uniform(0, 10))
        *others, victim = world.members.values()
        victim.crash()
        world.run_until(lambda: all(m.thinks(victim.name) is State.DEAD for m in others), 15)
        world.run(120)
        victim.start()
        world.run_until(lambda: all_alive(world), profile.last_backoff_seconds + 1)

    def test_nobody_is_falsely_dead(self) -> None:
        """Two simulated hours at 10 % loss (24 in the simulation): suspicions come and are answered, nobody dies."""
        world = memory_world(11, 5, network=Network(loss=0.1, duplication=0.02, most_delay=0.3))
        for member in world.members.values():
            member.start()
        world.run_until(lambda: all_alive(world), 20)
        world.states.clear()
        world.run(2 * 3600)
        assert any(state is State.SUSPECT for *_, state in world.states), "the test must be hard enough"
        assert not [change for change in world.states if change[3] is State.DEAD]

    def test_one_way_links_do_not_kill(self) -> None:
        """A cannot reach B, everybody else can: helpers vouch for B."""
        world = memory_world(12, 5)
        names = list(world.members)
        for member in world.members.values():
            member.start()
        world.run_until(lambda: all_alive(world), 8)
        world.network.block(names[:1], names[1:2], one_way=True)
        world.states.clear()
        world.run(300)
        assert not [change for change in world.states if change[3] is State.DEAD]

    def test_who_doubts_itself_no_longer_probes_as_often_as_others(self) -> None:
        """A time of losses stretches the next heartbeat; answers to the probes of one shorten it again."""
        world = acquainted(memory_world(5, 4))
        member = next(iter(world.members.values()))
        engine = member.engine
        assert engine is not None
        engine.membership.health = LAN.most_health
        world.run(LAN.heartbeat_seconds + 1)
        assert engine.membership.health == 0
        assert 0 < engine.membership._next_heartbeat - member._time() <= LAN.heartbeat_seconds

    def test_leaving_is_not_dying(self) -> None:
        """Who says LEAVE is left at once everywhere, not suspected, and alive again when it comes back."""
        world = memory_world(13, 4)
        for member in world.members.values():
            member.start()
        world.run_until(lambda: all_alive(world), 8)
        *others, leaver = world.members.values()
        assert leaver.engine is not None
        leaver._carry_out(leaver.engine.leave(leaver._time()))
        world.run(1)
        leaver.crash()
        world.states.clear()
        world.run(60)
        assert all(member.thinks(leaver.name) is State.LEFT for member in others)
        assert not world.states
        leaver.start()
        world.run_until(lambda: all_alive(world), 8)

    def test_a_suspect_answers_with_a_higher_incarnation(self) -> None:
        """An accusation makes a new statement, not a death."""
        world = memory_world(14, 4)
        for member in world.members.values():
            member.start()
        world.run_until(lambda: all_alive(world), 8)
        one, suspect = list(world.members.values())[:2]
        assert one.engine is not None
        assert suspect.engine is not None
        before = suspect.engine.statements.incarnation
        actions = one.engine.membership._suspect(one.engine.membership.peers[suspect.name], [one.name], one._time())
        one.engine._do(actions, one._time())
        one._carry_out(one.engine._finish())
        world.run(3)
        assert suspect.engine.statements.incarnation > before
        assert all_alive(world)


def test_a_member_away_for_a_year() -> None:
    """A home comes back after a year on its old state, while others restarted and wrote: level and alive in seconds."""
    day = 86400.0
    unhurried = replace(LAN, heartbeat_seconds=day / 4, gossip_seconds=day, last_backoff_seconds=day)
    world = memory_world(15, 4, unhurried)
    acquainted(world)
    *others, away = world.members.values()
    away.crash()
    for month in range(12):
        write(world, month % 3, content=b"month %d" % month)
        restarted = others[(month + 1) % 3]
        restarted.crash()
        world.run(day)
        restarted.start()
        world.run(29 * day)
    assert all(member.thinks(away.name) is State.DEAD for member in others)
    assert not away.feeds.heads()
    away.start()
    took = world.run_until(lambda: all_alive(world) and everybody_has(world, count=12), 60)
    assert took <= 30, "by what its own first messages bring, not by the others' next round"


def test_who_waits_for_a_pull_that_never_ends_is_pulled_from_beside_it() -> None:
    """And whoever was, waits anew for the next one."""
    entropy = AntiEntropy(LAN, lambda member, feed: True, "me")
    assert entropy.begin_pull("slow", [FEED, SECRET], 0.0) == [FEED, SECRET]
    assert entropy.begin_pull("good", [FEED], 1.0) == []
    assert entropy.due() == 1.0 + WAIT_SECONDS
    assert entropy.begin_pull("good", [FEED], WAIT_SECONDS) == []
    assert entropy.begin_pull("good", [FEED], 1.0 + WAIT_SECONDS) == [FEED]
    assert entropy.end_pull("good", 20.0) == {FEED}
    assert entropy.begin_pull("good", [FEED], 20.0) == []
    assert entropy.begin_pull("other", [SECRET], 20.0) == []
    assert entropy.begin_pull("good", [FEED], 20.0 + WAIT_SECONDS) == [], "two wait, each for twice as long"
    assert entropy.begin_pull("good", [FEED], 20.0 + 2 * WAIT_SECONDS) == [FEED]


NUMBERS = st.integers(0, 99)


@given(st.sets(NUMBERS, max_size=30), NUMBERS, NUMBERS, st.integers(1, 5), st.integers())
@settings(max_examples=300, deadline=None)
def test_dividing_loses_nobody(members: set[int], after: int, up_to: int, fanout: int, seed: int) -> None:
    """Passing on by parts reaches everybody in the interval exactly once."""
    ring = [f"{number:02d}" for number in sorted(members)]
    whole = Interval(f"{after:02d}", f"{up_to:02d}")
    if after < up_to:
        inside = {name for name in ring if whole.after < name <= whole.up_to}
    else:
        inside = {name for name in ring if name > whole.after or name <= whole.up_to}
    random, told, waiting = Random(seed), [], [(ring, whole)]
    while waiting:
        known, interval = waiting.pop()
        for part in divide(known, interval, fanout, random):
            told.append(part.target)
            waiting.append(([name for name in ring if name not in told], part.interval))
    assert sorted(told) == sorted(inside)
