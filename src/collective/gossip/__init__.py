"""How news travels between members and how they notice each other's death: a brain without I/O.

*Engine*: what one member does about a message or a moment, told as *effects*. *Statement*: a JOIN, UPDATE or LEAVE that
a member signed about itself. *Heartbeat*: a message for one recipient. *Push*: new entries on their way down a tree.
*Notice*: how far a feed has got somewhere. *Digest*: all of that, for comparing. *Suspicion*: a member did not answer.
*Incarnation*: a member's count of its starts and of suspicions it answered.
"""

from collective.gossip.antientropy import MayFollow
from collective.gossip.dissemination import Head
from collective.gossip.effects import Deliver, Effect, Learned, MemberView, Persist, Pull, Send, StateChanged
from collective.gossip.engine import Engine
from collective.gossip.membership import REACHABLE, State
from collective.gossip.messages import MAX_MESSAGE_BYTES, Versions
from collective.gossip.settings import LAN, WAN, GossipSettings
from collective.gossip.statements import Self

__all__ = [
    "LAN",
    "MAX_MESSAGE_BYTES",
    "REACHABLE",
    "WAN",
    "Deliver",
    "Effect",
    "Engine",
    "GossipSettings",
    "Head",
    "Learned",
    "MayFollow",
    "MemberView",
    "Persist",
    "Pull",
    "Self",
    "Send",
    "State",
    "StateChanged",
    "Versions",
]
