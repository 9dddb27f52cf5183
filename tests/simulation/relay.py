"""A relay between members that nobody should trust: all that passes through it may come out as something else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random

from simulation.world import Network

__all__ = ["ENTRY_TRICKS", "MESSAGE_TRICKS", "Relay"]

MESSAGE_TRICKS = ("flip", "cut", "drop", "twice", "old", "elsewhere", "as another's", "noise")
ENTRY_TRICKS = ("flip", "cut", "drop", "twice", "swap", "backwards", "as another's")
REMEMBERED = 200  # messages that it may bring again, whenever


@dataclass
class Relay(Network):
    """Meddles with a part of what passes until `mend`; `done` counts its tricks by name."""

    with_messages: float = 0.3
    with_answers: float = 0.8  # they are few
    chance: Random = field(default_factory=lambda: Random(7))
    done: Counter[str] = field(default_factory=Counter)
    _passed: list[tuple[str, str, bytes]] = field(default_factory=list)
    _parties: set[str] = field(default_factory=set)
    _feeds: set[bytes] = field(default_factory=set)

    def mend(self) -> None:
        super().mend()
        self.with_messages = self.with_answers = 0.0

    def passing(self, source: str, target: str, raw: bytes) -> Iterable[tuple[str, str, bytes]]:
        whole = (source, target, raw)
        self._parties |= {source, target}
        self._passed = [*self._passed[-REMEMBERED:], whole]
        if self.chance.random() >= self.with_messages:
            return [whole]
        trick = self.chance.choice(MESSAGE_TRICKS)
        self.done[f"message {trick}"] += 1
        third = self.chance.choice(sorted(self._parties))
        match trick:
            case "flip":
                return [(source, target, self._flipped(raw))]
            case "cut":
                return [(source, target, raw[: self.chance.randrange(len(raw))])]
            case "drop":
                return []
            case "twice":
                return [whole, whole]
            case "old":
                return [self.chance.choice(self._passed), whole]
            case "elsewhere":
                return [(source, third, raw)] if third != source else [whole]
            case "as another's":
                return [(third, target, raw)] if third != target else [whole]
            case _:
                return [(source, target, self.chance.randbytes(self.chance.randrange(300)))]

    def answering(self, answer: list[tuple[bytes, list[bytes]]]) -> list[tuple[bytes, list[bytes]]]:
        answer = [(feed, list(entries)) for feed, entries in answer]
        filled = [number for number, (_, entries) in enumerate(answer) if entries]
        self._feeds |= {feed for feed, _ in answer}
        if not filled or self.chance.random() >= self.with_answers:
            return answer
        trick = self.chance.choice(ENTRY_TRICKS)
        self.done[f"entry {trick}"] += 1
        number = self.chance.choice(filled)
        entries = answer[number][1]
        place = self.chance.randrange(len(entries))
        match trick:
            case "flip":
                entries[place] = self._flipped(entries[place])
            case "cut":
                entries[place] = entries[place][: self.chance.randrange(len(entries[place]))]
            case "drop":
                del entries[place]
            case "twice":
                entries.insert(place, entries[place])
            case "swap":
                other = self.chance.randrange(len(entries))
                entries[place], entries[other] = entries[other], entries[place]
            case "backwards":
                answer = [(feed, each[::-1]) for feed, each in reversed(answer)]
            case _:
                answer[number] = self.chance.choice(sorted(self._feeds)), entries
        return answer

    def _flipped(self, raw: bytes) -> bytes:
        place = self.chance.randrange(len(raw))
        return raw[:place] + bytes([raw[place] ^ 1 << self.chance.randrange(8)]) + raw[place + 1 :]
