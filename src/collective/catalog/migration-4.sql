-- What lies inline in a row goes behind all other columns: a listing never reads it, nor the pages it fills.

CREATE TABLE inodes_anew (
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
    creator TEXT NOT NULL DEFAULT '',        -- member domain of who made it
    content_change INTEGER NOT NULL DEFAULT 0,   -- seq * 1024 + place in the entry
    content_actor TEXT NOT NULL DEFAULT '',
    provisional INTEGER NOT NULL DEFAULT 0,
    content BLOB,                            -- serialized Content
    PRIMARY KEY (store, number)
) STRICT;
INSERT INTO inodes_anew (store, number, mode, uid, gid, rdev, link_count, size_bytes, mtime_ns, ctime_ns, atime_ns,
    symlink_target, version_id, creator, content_change, content_actor, provisional, content)
    SELECT store, number, mode, uid, gid, rdev, link_count, size_bytes, mtime_ns, ctime_ns, atime_ns,
    symlink_target, version_id, creator, content_change, content_actor, provisional, content FROM inodes;
DROP TABLE inodes;
ALTER TABLE inodes_anew RENAME TO inodes;
CREATE INDEX inodes_by_version ON inodes (version_id) WHERE version_id IS NOT NULL;
