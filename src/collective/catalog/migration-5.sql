-- A store's tree stands under a number of its own, so that it can be made anew beside the one that shows.

ALTER TABLE feeds ADD COLUMN tree INTEGER NOT NULL DEFAULT 0;  -- in tables by `store` or `tree`; other feeds': their id
UPDATE feeds SET tree = id;
CREATE UNIQUE INDEX feeds_by_tree ON feeds (tree);

-- ids absorbed, also by trees that do not show
CREATE TABLE absorbed (
    writer TEXT NOT NULL,
    random BLOB NOT NULL,
    tree INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    PRIMARY KEY (writer, random, tree)
) STRICT, WITHOUT ROWID;
INSERT INTO absorbed SELECT writer, random, feed, seq FROM operations;
DROP TABLE operations;
CREATE VIEW operations AS
    SELECT a.writer, a.random, f.id AS feed, a.seq FROM absorbed a JOIN feeds f ON f.tree = a.tree;

CREATE TABLE refused (
    tree INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    number INTEGER NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (tree, seq, number)
) STRICT, WITHOUT ROWID;
INSERT INTO refused SELECT feed, seq, number, reason FROM refused_operations;
DROP TABLE refused_operations;
CREATE VIEW refused_operations AS
    SELECT f.id AS feed, r.seq, r.number, r.reason FROM refused r JOIN feeds f ON f.tree = r.tree;

-- ------------------------------------------------------------ this home's own

-- trees that no feed shows: in the making, or left over
CREATE TABLE loose_trees (number INTEGER PRIMARY KEY) STRICT;
