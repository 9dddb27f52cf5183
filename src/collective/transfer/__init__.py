"""Moving entries and chunks between members; each module moves one thing one way.

*sync*: entries from peers, *serve*: entries and tickets to them. *push*: plain bytes of a file into sealed chunks on a
node. *fetch*: sealed chunks from holders into plain bytes. *serve_node*: what a node answers. *copies* and *repair*: a
version's second home, taken and given. *refetch*: chunks that own disks lost. *shown* and *relay*: what a ticket opens,
at a node and at the coordinator in its place. *commands*: what a member's own people ask. Modules are imported by name.
"""

__all__ = [
    "commands",
    "copies",
    "events",
    "fetch",
    "holders",
    "node_heads",
    "nodes",
    "peers",
    "placing",
    "push",
    "refetch",
    "relay",
    "repair",
    "serve",
    "serve_events",
    "serve_node",
    "shown",
    "sync",
    "tickets",
]
