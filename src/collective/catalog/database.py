"""The database file: opening, settings, migrations.

WAL, so that readers in other processes never wait for the writer; synchronous FULL, since a commit is an
acknowledgement; STRICT tables. `user_version` counts the migrations applied; a newer file is refused.
"""

from __future__ import annotations

import sqlite3
from importlib import resources
from pathlib import Path

from collective.core.errors import CollectiveError, Corrupt, Full, Misconfigured

__all__ = ["SCHEMA_VERSION", "database_error", "open_for_reading", "open_for_writing"]

SCHEMA_VERSION = 5
BUSY_MILLISECONDS = 10_000
CACHE_KIB = 32_768
WAL_PAGES = 4000  # of 4 KiB, then they go to the file: ids are random, a large entry changes as many pages as it has
# Each migration is one SQL script that takes the file from its number to the next; the first is schema.sql.
MIGRATIONS: tuple[str, ...] = ("schema.sql", "migration-2.sql", "migration-3.sql", "migration-4.sql", "migration-5.sql")


def open_for_writing(path: Path) -> sqlite3.Connection:
    """The one connection that changes the file; made and migrated when needed. Raises: Misconfigured, Corrupt."""
    try:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        path.chmod(0o600)
        _settings(connection)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {WAL_PAGES}")
        connection.execute("PRAGMA foreign_keys = ON")
        _migrate(connection, path)
    except (sqlite3.Error, OSError) as error:
        raise database_error(error, path) from error
    return connection


def open_for_reading(path: Path) -> sqlite3.Connection:
    """A connection that cannot write. Raises: Misconfigured, Corrupt."""
    try:
        # not mode=ro: a reader of a WAL file whose writer died must be able to make the shared memory file
        connection = sqlite3.connect(f"file:{path}?mode=rw", uri=True, isolation_level=None, check_same_thread=False)
        _settings(connection)
        connection.execute("PRAGMA query_only = ON")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    except sqlite3.Error as error:
        raise database_error(error, path) from error
    if version != SCHEMA_VERSION:
        connection.close()
        raise Misconfigured(
            f"{path} has schema {version}, this version reads {SCHEMA_VERSION}", "start the coordinator"
        )
    return connection


def _settings(connection: sqlite3.Connection) -> None:
    connection.execute(f"PRAGMA busy_timeout = {BUSY_MILLISECONDS}")
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise Misconfigured(f"{path} has schema {version}, this version knows {SCHEMA_VERSION}", "update Collective")
    for number in range(version, SCHEMA_VERSION):
        script = resources.files("collective.catalog").joinpath(MIGRATIONS[number]).read_text()
        connection.executescript(f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {number + 1};\nCOMMIT;")


def database_error(error: sqlite3.Error | OSError, path: Path) -> CollectiveError:
    """SQLite's refusal in our words."""
    text = str(error)
    if "disk is full" in text or "disk I/O" in text:
        return Full(f"the database {path} cannot be written: {text}", "make room on its disk")
    if "malformed" in text or "not a database" in text:
        return Corrupt(
            f"the database {path} is broken: {text}", "restore it; the feeds are still with the other members"
        )
    return Misconfigured(f"the database {path} cannot be used: {text}")
