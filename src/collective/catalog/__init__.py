"""What the federation knows, as one home has it: feeds, the tree, members, grants, placements. The only SQL.

*Entry*: one signed link of a *feed*; its name is (epoch, seq, hash). *Root feed*: who is a member. *Member feed*: a
member's card, DataStores, grants, wrapped keys, holding statements. *Store feed*: a DataStore's layouts, and sealed,
its tree. *Position*: an entry's name. *Head*: the newest entry's. *Wrap*: a DataStore key sealed to a member's card.
*Holding*: a member's word that what was placed on it is there. *Operation*: one change of a tree. *Expectation*: what
its writer saw. *Staged*: kept here until its owner's entry came back. *Overlay*: a tree with changes on top that its
database does not show yet. *Conflict*: a change that was kept beside, under a name that tells. *Plan*: a command by
path as operations.
"""

from collective.catalog.catalog import Catalog
from collective.catalog.entry import key_name_of, member_feed_id, position_in, root_feed_id
from collective.catalog.feed import Fork, Gap
from collective.catalog.folding import public_snapshot_key
from collective.catalog.handing import Parcel
from collective.catalog.heads import FolderHeadKeeper, HeadKeeper
from collective.catalog.ledger import OwnKeys
from collective.catalog.models import DataStore, HeldHere, Inline, Member, Node, VersionReference
from collective.catalog.offers import Offer
from collective.catalog.overlay import Overlay, located
from collective.catalog.permissions import Verdict
from collective.catalog.planning import Plan
from collective.catalog.reader import Reader
from collective.catalog.receiving import GoesBack
from collective.catalog.roster import signing_public_key
from collective.catalog.staged import Pending, StagedRow
from collective.catalog.staging import Conflict
from collective.wire.feed_pb2 import Position

__all__ = [
    "Catalog",
    "Conflict",
    "DataStore",
    "FolderHeadKeeper",
    "Fork",
    "Gap",
    "GoesBack",
    "HeadKeeper",
    "HeldHere",
    "Inline",
    "Member",
    "Node",
    "Offer",
    "Overlay",
    "OwnKeys",
    "Parcel",
    "Pending",
    "Plan",
    "Position",
    "Reader",
    "StagedRow",
    "Verdict",
    "VersionReference",
    "key_name_of",
    "located",
    "member_feed_id",
    "position_in",
    "public_snapshot_key",
    "root_feed_id",
    "signing_public_key",
]
