"""Messages and entries cross an untrusted relay unharmed, or are refused: whole stories told through one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import pytest
from simulation.ledgers import Template
from simulation.relay import ENTRY_TRICKS, MESSAGE_TRICKS, Relay
from simulation.story import Story, failing_seed

SEEDS = 4


def through_a_relay(seed: int, template: Template, folder: Path) -> Story:
    """A story in which all that passes between members passes through hands that mean harm."""
    return Story(seed, template, folder, network_class=partial(Relay, chance=Random(seed)))


def test_stories_through_an_untrusted_relay_end_well(template: Template, tmp_path: Path) -> None:
    """Whatever it alters, repeats, withholds, or brings to or from somebody else: all checkers hold at every step, no
    member is taken for dead once it stopped, and nobody was led to believe that anybody signed two histories."""
    done: Counter[str] = Counter()
    refused = 0
    for seed in range(SEEDS):
        story = through_a_relay(seed, template, tmp_path / str(seed))
        story.run()
        assert isinstance(story.world.network, Relay)
        done += story.world.network.done
        refused += sum(len(member.refusals) for member in story.members)
    assert {f"message {trick}" for trick in MESSAGE_TRICKS} | {f"entry {trick}" for trick in ENTRY_TRICKS} == set(done)
    assert refused > done["message flip"] + done["message noise"]


def believe_every_message(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("simulation.world.stand_in_verify", lambda domain, data, signature, certificates: None)


def believe_every_entry(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("collective.catalog.applier.verify_signature", lambda entry, key: None)


@pytest.mark.long
@pytest.mark.parametrize("plant", [believe_every_message, believe_every_entry])
def test_a_member_that_believes_the_relay_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], template: Template, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the check of signatures the same stories end badly."""
    plant(monkeypatch)
    assert failing_seed(lambda seed: through_a_relay(seed, template, tmp_path / str(seed)), range(20)) is not None
