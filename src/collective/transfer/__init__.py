"""Moving entries and chunks between members; each module moves one thing one way.

*sync*: entries from peers, *serve*: entries and tickets to them. *push*: plain bytes into sealed chunks on a node
(*node_lane*: the way there). *fetch*: sealed chunks from holders into plain bytes. *serve_node*: what a node answers.
*copies* and *repair*: a version's second home, taken and given. *commands*: what a member's own people ask. Modules are
imported by name.
"""

__all__ = [
    "commands",
    "copies",
    "events",
    "fetch",
    "holders",
    "node_lane",
    "nodes",
    "peers",
    "placing",
    "push",
    "repair",
    "serve",
    "serve_events",
    "serve_node",
    "sync",
    "tickets",
]
