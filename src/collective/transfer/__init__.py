"""Moving entries and chunks between members; each module moves one thing one way.

*gossiping*: news to and from peers as the gossip engine says, over *gossip_view* of the catalogue. *sync*: ranges of
entries. *serve*: entries and tickets to peers. *push*: plain bytes of a file into sealed chunks on a
node. *fetch*: sealed chunks from holders into plain bytes. *serve_node*: what a node answers. *copies* and *repair*: a
version's second home, taken and given. *commands*: what a member's own people ask. Modules are imported by name.
"""

__all__ = [
    "commands",
    "copies",
    "events",
    "fetch",
    "gossip_view",
    "gossiping",
    "holders",
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
