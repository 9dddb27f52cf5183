"""Calls and bytes between components: who is at the other end is proved, what is carried is not known here.

Words of this room:

- **lane**: the byte wire; one TLS connection with calls and byte ranges, either side may ask (`lane`).
- **frame**: one header, one head (a small message), one body (raw bytes) on the lane (`lane_frames`).
- **row**: one method of the control wire with who may call it; all rows together are the dispatch table (`rpc`).
- **channel**: the asking end of the control wire (`channels`).
- **endpoint**: a place to dial, `HOST:PORT`, or `TYPE:HOST:PORT` with its path kind (`endpoints`).

The gRPC adapters (`net.rpc`, `net.channels`) are imported by name, never from here: they are slow to load.
"""

import os

# The gRPC library reads these when it is loaded: without them every child process makes it complain on stderr.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

from collective.net.endpoints import NetworkEndpoint, free_port, parse_endpoint, parse_host_port
from collective.net.lane import (
    LaneCaller,
    LaneConnection,
    LaneHandler,
    LaneLimits,
    LaneReply,
    LaneServer,
    connect_lane,
)

__all__ = [
    "LaneCaller",
    "LaneConnection",
    "LaneHandler",
    "LaneLimits",
    "LaneReply",
    "LaneServer",
    "NetworkEndpoint",
    "connect_lane",
    "free_port",
    "parse_endpoint",
    "parse_host_port",
]
