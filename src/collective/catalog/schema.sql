-- The catalogue's tables (docs/protocol/database.md). Entries are what was signed; everything below the line is
-- derived from them by apply() and can be rebuilt.

CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
INSERT INTO meta VALUES ('changes', 0), ('lamport', 0);

CREATE TABLE feeds (
    id INTEGER PRIMARY KEY,
    feed_id BLOB NOT NULL UNIQUE,
    kind TEXT NOT NULL,                      -- root, member, store
    owner TEXT NOT NULL,                     -- member domain; '' for the root feed
    epoch_number INTEGER NOT NULL,
    epoch_id BLOB NOT NULL,
    seq INTEGER NOT NULL,                    -- of the head
    hash BLOB NOT NULL,
    lamport INTEGER NOT NULL,
    opened_seq INTEGER NOT NULL,             -- sealed parts are applied up to here
    forked INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE entries (
    feed INTEGER NOT NULL REFERENCES feeds(id),
    seq INTEGER NOT NULL,
    hash BLOB NOT NULL,
    entry BLOB NOT NULL,
    PRIMARY KEY (feed, seq)
) STRICT;

CREATE TABLE forks (
    feed_id BLOB NOT NULL,
    seq INTEGER NOT NULL,
    entry BLOB NOT NULL,
    PRIMARY KEY (feed_id, seq, entry)
) STRICT;

CREATE TABLE keys (name BLOB PRIMARY KEY, feed_id BLOB NOT NULL, key BLOB NOT NULL) STRICT;
CREATE TABLE pages (name BLOB PRIMARY KEY, page BLOB NOT NULL) STRICT;
CREATE TABLE held (feed_id BLOB NOT NULL, version_id BLOB NOT NULL, PRIMARY KEY (feed_id, version_id)) STRICT, WITHOUT ROWID;

-- ------------------------------------------------------------ derived

CREATE TABLE operations (
    writer TEXT NOT NULL,
    random BLOB NOT NULL,
    feed INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    PRIMARY KEY (writer, random)
) STRICT, WITHOUT ROWID;

CREATE TABLE refused_operations (
    feed INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    number INTEGER NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (feed, seq, number)
) STRICT;

CREATE TABLE members (
    domain TEXT PRIMARY KEY,
    roster_order INTEGER NOT NULL,           -- seq of the admission
    generation INTEGER NOT NULL,
    ca BLOB NOT NULL,
    feed_id BLOB NOT NULL UNIQUE,
    removed INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE signing_keys (domain TEXT PRIMARY KEY, certificate BLOB NOT NULL, seq INTEGER NOT NULL) STRICT;
CREATE TABLE cards (domain TEXT PRIMARY KEY, card BLOB NOT NULL) STRICT;

CREATE TABLE datastores (
    feed_id BLOB PRIMARY KEY,
    owner TEXT NOT NULL,
    path BLOB NOT NULL,
    lamport INTEGER NOT NULL,                -- of the first definition: who was first
    definition BLOB NOT NULL
) STRICT;

CREATE TABLE grants (
    id BLOB PRIMARY KEY,
    owner TEXT NOT NULL,
    seq INTEGER NOT NULL,
    grant_ BLOB NOT NULL
) STRICT;

CREATE TABLE wraps (
    feed_id BLOB NOT NULL,
    key_name BLOB NOT NULL,
    recipient TEXT NOT NULL,
    recipient_key BLOB NOT NULL,
    wrapped BLOB NOT NULL,
    PRIMARY KEY (feed_id, key_name, recipient, recipient_key)
) STRICT;

CREATE TABLE versions (
    feed_id BLOB NOT NULL,
    version_id BLOB NOT NULL,
    seq INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    released INTEGER NOT NULL DEFAULT 0,
    layout BLOB NOT NULL,
    PRIMARY KEY (feed_id, version_id)
) STRICT;

CREATE TABLE placements (
    feed_id BLOB NOT NULL,
    version_id BLOB NOT NULL,
    domain TEXT NOT NULL,
    rank INTEGER NOT NULL,
    PRIMARY KEY (feed_id, version_id, domain)
) STRICT, WITHOUT ROWID;
CREATE INDEX placements_by_domain ON placements (domain, feed_id);

CREATE TABLE holdings (feed_id BLOB NOT NULL, domain TEXT NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (feed_id, domain)) STRICT;
CREATE TABLE holding_exceptions (
    feed_id BLOB NOT NULL,
    domain TEXT NOT NULL,
    version_id BLOB NOT NULL,
    PRIMARY KEY (feed_id, domain, version_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE store_numbers (store INTEGER PRIMARY KEY, next_number INTEGER NOT NULL) STRICT;

CREATE TABLE inodes (
    store INTEGER NOT NULL,
    number INTEGER NOT NULL,
    mode INTEGER NOT NULL,
    uid INTEGER NOT NULL,
    gid INTEGER NOT NULL,
    rdev INTEGER NOT NULL,
    link_count INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL,
    atime_ns INTEGER NOT NULL,
    symlink_target BLOB,
    version_id BLOB,                         -- NULL: inline content, or none
    content BLOB,                            -- serialized Content
    PRIMARY KEY (store, number)
) STRICT;
CREATE INDEX inodes_by_version ON inodes (version_id) WHERE version_id IS NOT NULL;

CREATE TABLE links (
    store INTEGER NOT NULL,
    parent INTEGER NOT NULL,
    name BLOB NOT NULL,
    inode INTEGER NOT NULL,
    PRIMARY KEY (store, parent, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX links_by_inode ON links (store, inode);

CREATE TABLE xattrs (
    store INTEGER NOT NULL,
    inode INTEGER NOT NULL,
    name BLOB NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (store, inode, name)
) STRICT, WITHOUT ROWID;
