"""How often, how many, how long: the figures of gossip, for homes on one network and for homes far apart."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LAN", "WAN", "GossipSettings"]


@dataclass(frozen=True)
class GossipSettings:
    """Times in seconds. A death is known after at most heartbeat + 2 probes + suspicion, under 15 s in both profiles.

    `fanout`: how many peers hear news from one. `gossip_seconds`: how often heads are compared with somebody.
    `heartbeat_seconds`: how often each member probes. `round_seconds`: how often what is still new is told on.
    `probe_seconds`: the wait for an answer, direct and again through others. `helpers`: how many others are asked.
    `suspicion_least_seconds`, `suspicion_most_seconds`: how long a suspect may answer, with all accusers and with one.
    `accusers`: how many confirm a suspicion fully. `second_look_seconds`: how often a suspect is probed meanwhile.
    `most_health`: how far a member that doubts itself stretches its own times (factor 1 + most_health).
    `first_backoff_seconds`, `last_backoff_seconds`: between attempts to reach somebody, for ever.
    """

    fanout: int = 3
    gossip_seconds: float = 30.0
    heartbeat_seconds: float = 5.0
    round_seconds: float = 0.2
    probe_seconds: float = 1.0
    helpers: int = 3
    suspicion_least_seconds: float = 4.0
    suspicion_most_seconds: float = 6.0
    accusers: int = 3
    second_look_seconds: float = 1.0
    most_health: int = 2
    first_backoff_seconds: float = 0.2
    last_backoff_seconds: float = 5.0


LAN = GossipSettings()
WAN = GossipSettings(
    round_seconds=0.5,
    probe_seconds=1.5,
    suspicion_least_seconds=4.5,
    suspicion_most_seconds=6.0,
    second_look_seconds=1.5,
)
