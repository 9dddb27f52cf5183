"""What befalls homes and the lines between them: each call is one mishap, or the end of one, drawn from the seed."""

from __future__ import annotations

from random import Random

from simulation.homes import Home
from simulation.street import Street

__all__ = ["Mishaps"]

FULL_SECONDS = 10.0  # until somebody made room


class Mishaps:
    """Happens to the homes of one street, and writes down what happened."""

    def __init__(self, street: Street, random: Random) -> None:
        self.street = street
        self.random = random
        self.homes = list(street.homes.values())
        self.events: list[str] = []

    def log(self, what: str) -> None:
        self.events.append(f"{self.street.now:8.2f}  {what}")

    def running(self) -> list[Home]:
        return [home for home in self.homes if home.life is not None]

    def somebody(self) -> Home | None:
        running = self.running()
        return self.random.choice(running) if running else None

    # ------------------------------------------------------------ the network

    def part(self) -> None:
        names = [home.domain for home in self.homes]
        self.random.shuffle(names)
        cut = self.random.randrange(1, len(names))
        self.street.network.block(names[:cut], names[cut:])
        self.log(f"parted: {names[:cut]} from {names[cut:]}")

    def one_way(self) -> None:
        one, other = self.random.sample([home.domain for home in self.homes], 2)
        self.street.network.block([one], [other], one_way=True)
        self.log(f"{one} no longer reaches {other}")

    def heal(self) -> None:
        self.street.network.heal()
        self.log("network healed")

    # ------------------------------------------------------------ machines

    def crash(self) -> None:
        if len(self.running()) > 1:
            home = self.random.choice(self.running())
            home.end()
            if self.random.random() < 0.3:  # gossip's state and the book are not synced
                home.gossip_state = b""
            self.log(f"{home.label} crashed{'' if home.gossip_state else ' and lost its gossip state'}")

    def start(self) -> None:
        for home in self.homes:
            if home.life is None:
                home.start()
                self.log(f"{home.label} started")
                return

    def flap(self) -> None:
        home = self.somebody()
        if home is None:
            return
        for number in range(4):
            self.street.loop.call_later(0.5 * number, home.end)
            self.street.loop.call_later(0.5 * number + 0.25, lambda: home.life or home.start())
        self.log(f"{home.label} flaps")

    def leave(self) -> None:
        if len(self.running()) > 2:
            home = self.random.choice(self.running())
            assert home.life is not None
            home.life.leave()
            self.street.run(0.6)
            home.end()
            self.log(f"{home.label} left")

    def move(self) -> None:
        """A member comes back under another address."""
        home = self.somebody()
        if home is not None:
            home.end()
            home.place = f"10.0.0.{self.random.randrange(1, 250)}:8001"
            home.start()
            self.log(f"{home.label} moved to {home.place}")

    def fill_disk(self) -> None:
        home = self.somebody()
        if home is not None:
            home.fill_disk(True)
            life = home.life
            self.street.loop.call_later(FULL_SECONDS, lambda: home.life is life and home.fill_disk(False))
            self.log(f"the disk of {home.label} is full for a while")

    def die_before_keeping(self) -> None:
        home = self.somebody()
        if home is not None:
            home.dies_before_keeping = True
            self.log(f"{home.label} will die between its next commit and its head")

    def keep_copy(self) -> None:
        home = self.random.choice(self.homes)
        home.keep_copy()
        self.log(f"{home.label} keeps a copy of its database")
