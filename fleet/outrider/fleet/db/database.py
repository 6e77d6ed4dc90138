"""The engine and its transactions: SQLite by default, PostgreSQL by URL."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, OperationalError
from sqlalchemy.orm import Session, sessionmaker

from outrider.runtime.errors import BadConfigError, BadDataError, ConflictError, StorageFullError, UnavailableError

BUSY_TIMEOUT_MS = 15_000
MIGRATIONS = Path(__file__).parent / "migrations"
_READ = "outrider_read"


class Database:
    """One database: `url` is `sqlite:///path/to/file.db`, or `postgresql://user:password@host/name`.

    Thread-safe. SQLite runs in WAL mode with foreign keys on; a writing transaction takes the write lock at its
    start, so it waits for its turn instead of failing half-way on a stale snapshot.
    """

    def __init__(self, url: str) -> None:
        self.url = _usable(url)
        self.engine = create_engine(self.url, pool_pre_ping=not self.is_sqlite)
        if self.is_sqlite:
            _configure_sqlite(self.engine)
        self._writing = sessionmaker(self.engine, expire_on_commit=False)
        self._reading = sessionmaker(self.engine.execution_options(**{_READ: True}), expire_on_commit=False)

    @property
    def is_sqlite(self) -> bool:
        """Whether this is SQLite."""
        return self.url.get_backend_name() == "sqlite"

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A transaction: committed where the block ends, rolled back where it raises.

        Rows stay readable after it. Raises ConflictError for a violated constraint, BadDataError for a value that
        its column cannot hold, UnavailableError where the database does not answer, StorageFullError where the disk
        is full.
        """
        with _translated(), self._writing.begin() as session:
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A read-only view of one moment; it never waits for writers. Changes made in it are dropped."""
        with _translated(), self._reading() as session:
            yield session

    def migrate(self) -> None:
        """Bring the schema to the newest revision; does nothing where it is there already."""
        from alembic import command

        with _translated(), self.engine.begin() as connection:
            command.upgrade(migration_config(connection), "head")

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


def migration_config(connection: Connection) -> Any:
    """Alembic's configuration for our migrations over an open connection (an `alembic.config.Config`)."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("file_template", "r%%(rev)s_%%(slug)s")
    config.attributes["connection"] = connection
    return config


def _usable(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as e:
        raise BadConfigError(
            "the database URL cannot be parsed", hint="sqlite:///fleet.db or postgresql://user:password@host/name"
        ) from e
    if parsed.get_backend_name() == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise BadConfigError("the fleet needs a database that lasts", hint="use sqlite:///path/to/fleet.db")
        return parsed
    if parsed.get_backend_name() == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    raise BadConfigError(f"{parsed.drivername} is not supported", hint="use sqlite:// or postgresql://")


def _configure_sqlite(engine: Engine) -> None:
    """Pragmas for each connection, and our own BEGIN: the driver's would start transactions late and unlocked."""

    def connected(connection: Any, _record: object) -> None:
        connection.isolation_level = None
        for pragma in (
            f"busy_timeout={BUSY_TIMEOUT_MS}",
            "journal_mode=WAL",
            "foreign_keys=ON",
            "synchronous=FULL",
        ):
            connection.execute(f"PRAGMA {pragma}").close()

    def begun(connection: Connection) -> None:
        reading = connection.get_execution_options().get(_READ, False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", begun)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except IntegrityError as e:
        raise ConflictError(f"the database refused a change: {e.orig}") from e
    except (DataError, OverflowError) as e:  # a text with NUL, a number of more than 64 bits
        raise BadDataError(f"a value does not fit its column: {getattr(e, 'orig', e)}") from e
    except OperationalError as e:
        text = str(e.orig)
        if "disk is full" in text or "No space left" in text or getattr(e.orig, "errno", None) == errno.ENOSPC:
            raise StorageFullError(f"the database cannot grow: {text}") from e
        raise UnavailableError(f"the database does not answer: {text}") from e
    except DBAPIError as e:
        if e.connection_invalidated:
            raise UnavailableError(f"the database went away: {e.orig}") from e
        raise
