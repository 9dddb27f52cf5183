"""Calls and bytes between components: who is at the other end is proved, what is carried is not known here.

Words of this room:

- **lane**: the byte wire; one TLS connection with calls and byte ranges, either side may ask (`lane`).
- **frame**: one header, one head (a small message), one body (raw bytes) on the lane (`lane_frames`).
- **row**: one method of the control wire with who may call it; all rows together are the dispatch table (`rpc`).
- **channel**: the asking end of the control wire (`channels`).
- **spoken**: the versions of a wire that one side speaks (`versions`).
- **endpoint**: a place to dial, `HOST:PORT`, or `TYPE:HOST:PORT` with its path kind (`endpoints`).

The gRPC adapters (`net.rpc`, `net.channels`) are imported by name, never from here: they are slow to load.
"""

import os

# The gRPC library reads these when it is loaded: without them every child process makes it complain on stderr.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

# TLS 1.3 only. The library has no setting for it in Python, and its suites for 1.3 are not in this list: of those for
# 1.2 it leaves one that needs an RSA certificate, which nobody here has, so that a 1.2 handshake finds no common one.
os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES256-GCM-SHA384"

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
