"""How far and how fast news goes, and what silence costs: the gossip engine among 10, 100 and 1,000 virtual members.

    PYTHONPATH=$PWD/src:$PWD/tests python benchmarks/gossip.py [--members 10,100,1000] [--seeds N] [--json FILE]

Every hop takes one round; nothing but dissemination runs while rounds are counted. The idle figures are of a simulated
minute in which nothing is written. Signatures are stand-ins of 32 bytes: add 32 bytes per message for the real ones.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from simulation.world import MemoryFeeds, Network, World, acquainted, memory_world

from collective.gossip import LAN

FEED = b"F" * 32
ENTRY_BYTES = 300  # a small file's entry is about so large
IDLE_SECONDS = 60.0


@dataclass
class Row:
    """Rounds until everybody had an entry (`limit` is what was asked), and per member: bytes and messages it cost."""

    members: int
    loss: float
    limit: int
    median_rounds: float
    worst_rounds: int
    bytes_per_member: float
    messages_per_member: float


def one_update(members: int, loss: float, seed: int) -> tuple[int, float, float]:
    """(rounds, bytes per member, messages per member) of one entry, all it caused included."""
    settings = replace(LAN, round_seconds=1.0, heartbeat_seconds=1e6, gossip_seconds=1e6, probe_seconds=1e5)
    world = memory_world(seed, members, settings, Network(loss=loss, least_delay=0.999, most_delay=1.0))
    acquainted(world)
    writer = list(world.members.values())[seed % members]
    assert isinstance(writer.feeds, MemoryFeeds)
    writer.feeds.append(FEED, b"x" * ENTRY_BYTES)
    writer.changed()

    def everybody_has_it() -> bool:
        return all(FEED in member.feeds.heads() for member in world.members.values())

    rounds = round(world.run_until(everybody_has_it, 200, 1.0))
    world.run(60)
    return rounds, world.network.bytes / members, world.network.messages / members


def idle(members: int) -> tuple[float, float]:
    """(bytes, messages) per member and second when nothing happens."""
    world: World = acquainted(memory_world(1, members))
    world.run(20)
    world.network.bytes = world.network.messages = 0
    world.run(IDLE_SECONDS)
    return world.network.bytes / members / IDLE_SECONDS, world.network.messages / members / IDLE_SECONDS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", default="10,100,1000")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows, quiet = [], {}
    print("members  loss  rounds median/worst (limit)  bytes/member/update  messages/member/update")
    for members in map(int, options.members.split(",")):
        for loss in (0.0, 0.2):
            seeds = max(1, options.seeds // 5) if members >= 1000 else options.seeds
            runs = [one_update(members, loss, seed) for seed in range(seeds)]
            limit = (math.ceil(math.log2(members)) + 3) * (2 if loss else 1)
            rounds = [run[0] for run in runs]
            row = Row(
                members, loss, limit, statistics.median(rounds), max(rounds),
                statistics.mean(run[1] for run in runs), statistics.mean(run[2] for run in runs),
            )  # fmt: skip
            rows.append(row)
            print(
                f"{members:7}  {loss:4.0%}  {row.median_rounds:.0f}/{row.worst_rounds} ({limit})"
                f"  {row.bytes_per_member:,.0f} B  {row.messages_per_member:.1f}",
                flush=True,
            )
        quiet[members] = idle(members)
        print(f"{members:7}  idle  {quiet[members][0]:.0f} B/s, {quiet[members][1]:.2f} messages/s each", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"updates": [asdict(row) for row in rows], "idle": quiet}, indent=2))


if __name__ == "__main__":
    main()
