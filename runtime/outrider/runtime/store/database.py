"""`device.db`: SQLite in WAL mode with synchronous=FULL, so that what is committed survives a power cut."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from outrider.runtime.durable import storage_errors
from outrider.runtime.errors import StorageError, StorageFullError

T = TypeVar("T")
log = logging.getLogger(__name__)

BALLAST_BYTES = 512 * 1024
"""Disk space held back, and given up when the disk is full, so that the journal can still be written."""

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS deployments (slot TEXT PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS journal (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, slot TEXT NOT NULL, event BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT, priority INTEGER NOT NULL, kind TEXT NOT NULL, payload BLOB NOT NULL,
    size INTEGER NOT NULL, created REAL NOT NULL, expires REAL);
CREATE INDEX IF NOT EXISTS outbox_order ON outbox (priority, id);
CREATE INDEX IF NOT EXISTS outbox_kind ON outbox (kind, id, size);
"""


class Database:
    """One connection, one writer at a time; every write is one durable transaction.

    The file is held exclusively, so that it can be opened, and read, on a disk that is full. A file that is no
    database is set aside as `device.db.damaged` and a new one begun: the slots on disk go on serving, and the fleet's
    next desired document restores the rest.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ballast = path.with_name("ballast")
        self._lock = threading.RLock()
        try:
            self._connection = self._open()
        except sqlite3.OperationalError as e:
            raise _wrapped(e) from e
        except sqlite3.DatabaseError as e:
            log.critical("%s is damaged and was set aside: %s", path.name, e)
            self._set_aside()
            self._connection = self._open()
        self.restore_ballast()

    def read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Run a query. Raises StorageError."""
        with self._lock:
            try:
                return query(self._connection)
            except sqlite3.Error as e:
                raise _wrapped(e) from e

    def write(self, change: Callable[[sqlite3.Connection], T]) -> T:
        """Run `change` in one transaction, which is on the disk when this returns.

        `change` must be repeatable: on a full disk the ballast is given up and it runs a second time.
        Raises StorageFullError or StorageError; then nothing was changed.
        """
        with self._lock:
            try:
                return self._transact(change)
            except StorageFullError:
                if not self._ballast.exists():
                    raise
                self._ballast.unlink(missing_ok=True)
                log.warning("the disk is full: gave up the ballast so that the journal can be written")
                return self._transact(change)

    def restore_ballast(self) -> None:
        """Hold space back again, where there is enough of it."""
        temporary = self._ballast.with_name(".ballast.tmp")
        try:
            if self._ballast.exists() and self._ballast.stat().st_size == BALLAST_BYTES:
                return
            with temporary.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, BALLAST_BYTES)
            temporary.replace(self._ballast)
        except OSError:
            temporary.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._connection.close()

    def _transact(self, change: Callable[[sqlite3.Connection], T]) -> T:
        connection = self._connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            result = change(connection)
            connection.execute("COMMIT")
        except sqlite3.Error as e:
            self._roll_back()
            raise _wrapped(e) from e
        except BaseException:
            self._roll_back()
            raise
        return result

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def _open(self) -> sqlite3.Connection:
        # What waits in it, predictions by id among others, is not for other users; SQLite would follow the umask, and
        # gives its other files this one's permissions.
        with storage_errors(f"open {self._path.name}"):
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(self._path, timeout=10.0, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA wal_autocheckpoint=64")
            connection.execute("PRAGMA journal_size_limit=524288")
            found = int(connection.execute("PRAGMA user_version").fetchone()[0])
            if found > _SCHEMA_VERSION:
                raise StorageError(
                    f"{self._path.name} was written by a newer release (schema {found})", hint="update Outrider"
                )
            if found < _SCHEMA_VERSION:
                connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={_SCHEMA_VERSION}; COMMIT;")
        except BaseException:
            connection.close()
            raise
        return connection

    def _set_aside(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            part = self._path.with_name(self._path.name + suffix)
            if part.exists():
                part.replace(self._path.with_name(f"{self._path.name}.damaged{suffix}"))


def _wrapped(error: sqlite3.Error) -> StorageError:
    text = str(error)
    if "full" in text:
        return StorageFullError(f"the journal cannot be written: {text}")
    return StorageError(f"the journal failed: {text}")
