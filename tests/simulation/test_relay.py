"""Messages and entries cross an untrusted relay unharmed, or are refused: whole stories told through one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import pytest
from simulation.bugs import BUGS
from simulation.homes import CheapKeys
from simulation.ledgers import Template
from simulation.relay import ENTRY_TRICKS, MESSAGE_TRICKS, Relay
from simulation.story import Story, StoryFailed

from collective.transfer.gossip_view import MemberKeys

SEEDS = range(4)
MORE_SEEDS = range(20)  # within which a bug is found


def tell(seed: int, template: Template, room: Path) -> Story:
    """A story in which all that passes between members passes through hands that mean harm. Raises: StoryFailed."""
    story = Story(seed, template, room / str(seed), network_class=partial(Relay, chance=Random(seed)))
    story.run()
    return story


def test_stories_through_an_untrusted_relay_end_well(template: Template, room: Path) -> None:
    """Whatever it alters, repeats, withholds, or brings to or from somebody else: all checkers hold at every step, no
    member is taken for dead once it stopped, and nobody was led to believe that anybody signed two histories."""
    done: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for seed in SEEDS:
        story = tell(seed, template, room)
        assert isinstance(story.street.network, Relay)
        done += story.street.network.done
        for home in story.homes:
            seen += home.witness.counts
    assert {f"message {trick}" for trick in MESSAGE_TRICKS} | {f"entry {trick}" for trick in ENTRY_TRICKS} == set(done)
    assert seen["gossip.refused"] + seen["wire.unreadable"] > done["message flip"] + done["message noise"]
    assert seen["sync.entry_refused"] >= done["entry flip"]


def _messages_are_not_verified(patch: pytest.MonkeyPatch) -> None:
    for keys in (MemberKeys, CheapKeys):
        patch.setattr(keys, "verify", lambda self, domain, data, signature, certificates: None)


@pytest.mark.long
@pytest.mark.parametrize("plant", [_messages_are_not_verified, BUGS["signatures_are_not_verified"]])
def test_a_member_that_believes_the_relay_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], template: Template, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the check of signatures, of messages or of entries, the same stories end badly."""
    plant(monkeypatch)
    with pytest.raises(StoryFailed) as caught:
        [tell(seed, template, room) for seed in MORE_SEEDS]
    print(str(caught.value).splitlines()[0])
