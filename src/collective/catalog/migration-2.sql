-- What a mount that writes needs: where changes wait for their owner, what files were before, whose numbers are whose.
-- The derived tables of stores are made anew from the entries when the catalogue is next opened (meta: rederive).

INSERT INTO meta VALUES ('joined', 0), ('staged', 0), ('rederive', 1);

-- ------------------------------------------------------------ derived

ALTER TABLE inodes ADD COLUMN creator TEXT NOT NULL DEFAULT '';            -- member domain of who made it
ALTER TABLE inodes ADD COLUMN content_change INTEGER NOT NULL DEFAULT 0;   -- seq * 1024 + place in the entry
ALTER TABLE inodes ADD COLUMN content_actor TEXT NOT NULL DEFAULT '';
ALTER TABLE inodes ADD COLUMN provisional INTEGER NOT NULL DEFAULT 0;

ALTER TABLE versions ADD COLUMN writer TEXT NOT NULL DEFAULT '';           -- who held it by the entry

-- contents that were replaced or removed
CREATE TABLE history (
    store INTEGER NOT NULL,
    inode INTEGER NOT NULL,
    change INTEGER NOT NULL,                 -- that made it, as inodes.content_change
    content BLOB,                            -- serialized Content
    version_id BLOB,
    size_bytes INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    actor TEXT NOT NULL,
    replaced_change INTEGER NOT NULL,
    replaced_ns INTEGER NOT NULL,
    removed INTEGER NOT NULL,                -- 1: the file itself went
    PRIMARY KEY (store, inode, change)
) STRICT, WITHOUT ROWID;
CREATE INDEX history_by_version ON history (version_id) WHERE version_id IS NOT NULL;

-- where an inode stood when its last name went
CREATE TABLE gone (
    store INTEGER NOT NULL,
    inode INTEGER NOT NULL,
    parent INTEGER NOT NULL,
    name BLOB NOT NULL,
    change INTEGER NOT NULL,
    PRIMARY KEY (store, inode)
) STRICT, WITHOUT ROWID;
CREATE INDEX gone_by_name ON gone (store, parent, name);

CREATE TABLE number_leases (
    store INTEGER NOT NULL,
    first INTEGER NOT NULL,
    count INTEGER NOT NULL,
    domain TEXT NOT NULL,
    PRIMARY KEY (store, first)
) STRICT, WITHOUT ROWID;

-- ------------------------------------------------------------ this home's own

-- leased to this home and not handed out yet
CREATE TABLE number_stock (
    feed_id BLOB NOT NULL,
    first INTEGER NOT NULL,
    count INTEGER NOT NULL,
    PRIMARY KEY (feed_id, first)
) STRICT, WITHOUT ROWID;

-- changes on their way to the owner of their DataStore
CREATE TABLE staged (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    feed_id BLOB NOT NULL,
    writer TEXT NOT NULL,
    random BLOB NOT NULL,
    state TEXT NOT NULL,                     -- waiting, sent, done, refused
    reason TEXT NOT NULL DEFAULT '',
    shown INTEGER NOT NULL DEFAULT 1,        -- 0: refused, and nothing would be lost by not showing it
    since_ms INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    version_id BLOB,
    operation BLOB NOT NULL,                 -- StagedOperation; its pages are in `pages`
    UNIQUE (writer, random)
) STRICT;
CREATE INDEX staged_by_store ON staged (feed_id, state, number);
CREATE INDEX staged_by_version ON staged (version_id) WHERE version_id IS NOT NULL;

-- at the owner: what was kept elsewhere than its writer wanted, so that the writer's later changes find it
CREATE TABLE name_detours (
    feed_id BLOB NOT NULL,
    writer TEXT NOT NULL,
    parent INTEGER NOT NULL,
    name BLOB NOT NULL,
    inode INTEGER NOT NULL,
    to_parent INTEGER NOT NULL,
    to_name BLOB NOT NULL,
    at_ms INTEGER NOT NULL,
    PRIMARY KEY (feed_id, writer, parent, name, inode)
) STRICT, WITHOUT ROWID;
CREATE TABLE inode_detours (
    feed_id BLOB NOT NULL,
    writer TEXT NOT NULL,
    inode INTEGER NOT NULL,
    content BLOB NOT NULL,                   -- of the conflict file, as an expectation names it; empty: whatever it is
    to_inode INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    PRIMARY KEY (feed_id, writer, inode, content)
) STRICT, WITHOUT ROWID;

CREATE TABLE conflicts (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms INTEGER NOT NULL,
    feed_id BLOB NOT NULL,
    writer TEXT NOT NULL,
    random BLOB NOT NULL,                    -- of the operation id
    wanted BLOB NOT NULL,                    -- path within the DataStore
    kept BLOB NOT NULL,
    name BLOB NOT NULL,                      -- the last part of `kept`
    reason TEXT NOT NULL,
    UNIQUE (writer, random)
) STRICT;
