-- Waking up: the epochs of each feed, what was un-applied, which own feeds are in doubt.

-- ------------------------------------------------------------ derived

-- the epochs on the chain as it stands here
CREATE TABLE epochs (
    feed INTEGER NOT NULL REFERENCES feeds(id),
    number INTEGER NOT NULL,
    epoch_id BLOB NOT NULL,
    first_seq INTEGER NOT NULL,
    PRIMARY KEY (feed, number)
) STRICT, WITHOUT ROWID;
INSERT INTO epochs SELECT id, epoch_number, epoch_id, 1 FROM feeds WHERE seq > 0;

-- seq is what the statement reaches on the chain as it stands here: a later epoch that was based before it cuts it
ALTER TABLE holdings ADD COLUMN epoch_number INTEGER NOT NULL DEFAULT 1;
ALTER TABLE holdings ADD COLUMN head_seq INTEGER NOT NULL DEFAULT 0;  -- as it was stated
UPDATE holdings SET head_seq = seq;

-- the newest snapshots that entries point to
CREATE TABLE snapshots (
    feed INTEGER NOT NULL REFERENCES feeds(id),
    base_seq INTEGER NOT NULL,
    seq INTEGER NOT NULL,                    -- of the entry that carries the pointer
    public_version BLOB NOT NULL,
    sealed_version BLOB NOT NULL,
    PRIMARY KEY (feed, base_seq)
) STRICT, WITHOUT ROWID;

-- ------------------------------------------------------------ this home's own

-- entries up to here are dropped; the blocks of the snapshot with that base stand for them
ALTER TABLE feeds ADD COLUMN dropped_seq INTEGER NOT NULL DEFAULT 0;
CREATE TABLE snapshot_blocks (
    feed_id BLOB NOT NULL,
    base_seq INTEGER NOT NULL,
    sealed INTEGER NOT NULL,                 -- 0: the public snapshot, 1: the sealed one
    number INTEGER NOT NULL,
    block BLOB NOT NULL,                     -- SnapshotBlock
    PRIMARY KEY (feed_id, base_seq, sealed, number)
) STRICT;

-- entries that a later epoch left behind; kept as evidence, handed to the feed's owner, replayed by the owner
CREATE TABLE abandoned (
    feed_id BLOB NOT NULL,
    epoch_number INTEGER NOT NULL,
    epoch_id BLOB NOT NULL,
    seq INTEGER NOT NULL,
    hash BLOB NOT NULL,
    entry BLOB NOT NULL,
    handed_epoch INTEGER NOT NULL DEFAULT 0, -- the feed's epoch when they were handed over; again at every later one
    replayed INTEGER NOT NULL DEFAULT 0,     -- at the owner
    PRIMARY KEY (feed_id, epoch_number, seq, hash)
) STRICT, WITHOUT ROWID;

INSERT INTO meta VALUES ('pages_wanted', 0);   -- 1: after a lost database pages are had back from other holders

-- own feeds on which nothing is signed until everybody told what they have
CREATE TABLE doubts (feed_id BLOB PRIMARY KEY, reason TEXT NOT NULL) STRICT, WITHOUT ROWID;
