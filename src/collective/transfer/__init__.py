"""Moving entries and chunks between members; each module moves one thing one way.

*gossiping*: news to and from peers as the gossip engine says, over *gossip_view* of the catalogue. *sync*: ranges of
entries. *serve*: entries and tickets to peers. *push*: plain bytes into sealed chunks on a node, over *node_lane*.
*fetch*: sealed chunks from holders into plain bytes. *serve_node*: what a node answers. *copies* and *repair*: a
version's second home, taken and given. *refetch*: chunks that own disks lost. *shown* and *relay*: what a ticket opens,
at a node and at the coordinator in its place. *submit*: changes taken in, from mounts (*serve_mounts*), commands
(*commits*) and other members (*serve_changes*); *forward*: staged changes to their owners; *leases*: who may change a
directory from memory. *introducing*: who is who, at each meeting. *waking*: answers to a home in doubt, and entries
handed back; *pages* had back with them. *snapshots*: feeds folded into versions, and started from. *commands*: what a
member's own people ask. Modules are imported by name.
"""

__all__ = [
    "asking",
    "commands",
    "commits",
    "copies",
    "events",
    "fetch",
    "forward",
    "gossip_view",
    "gossiping",
    "holders",
    "introducing",
    "leases",
    "node_heads",
    "node_lane",
    "nodes",
    "numbers",
    "pages",
    "peers",
    "placing",
    "push",
    "refetch",
    "relay",
    "repair",
    "serve",
    "serve_changes",
    "serve_leases",
    "serve_mounts",
    "serve_node",
    "shown",
    "snapshots",
    "submissions",
    "submit",
    "sync",
    "tickets",
    "uploads",
    "waking",
]
