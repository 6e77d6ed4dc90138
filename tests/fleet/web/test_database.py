"""Tables, transactions and migrations, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import select, text

from outrider.fleet.db import Base, Database, ReleaseRow, TriggerRow, WaitingLabelRow
from outrider.runtime.errors import BadConfigError, BadDataError, ConflictError, UnavailableError


def _differences(database: Database) -> list[object]:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, Base.metadata))


def test_migrations_and_models_agree(database: Database) -> None:
    assert _differences(database) == []


def test_migrating_twice_changes_nothing(database: Database) -> None:
    with database.session() as session:
        session.add(ReleaseRow(name="fraud", version="1", created=1.0))
    database.migrate()
    with database.read() as session:
        assert session.scalars(select(ReleaseRow.name)).all() == ["fraud"]


@pytest.mark.system
def test_migrations_and_models_agree_on_postgresql(postgres: str) -> None:
    database = Database(postgres)
    try:
        database.migrate()
        assert _differences(database) == []
        with database.session() as session:
            session.add(TriggerRow(name="t", model="fraud", kind="drift", settings={"x": 1}, enabled=True, created=1.0))
            session.add(ReleaseRow(name="fraud", version="1", created=1234567890.123456))
        with database.read() as session:
            assert session.scalars(select(TriggerRow.settings)).one() == {"x": 1}
            assert session.scalars(select(ReleaseRow.created)).one() == 1234567890.123456
        with pytest.raises(ConflictError), database.session() as session:
            session.add(ReleaseRow(name="fraud", version="1", created=2.0))
        with pytest.raises(BadDataError), database.session() as session:
            session.add(ReleaseRow(name="fr\0aud", version="2", created=2.0))
        database.migrate()
    finally:
        database.close()


def test_an_exception_rolls_back(database: Database) -> None:
    def fail_half_way() -> None:
        with database.session() as session:
            session.add(ReleaseRow(name="fraud", version="1", created=1.0))
            session.flush()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    with database.read() as session:
        assert session.scalars(select(ReleaseRow)).all() == []


def test_values_that_fit_no_column_are_bad_data(database: Database) -> None:
    with pytest.raises(BadDataError), database.session() as session:
        session.add(ReleaseRow(number=2**70, name="fraud", version="1", created=1.0))


def test_constraints_are_conflicts(database: Database) -> None:
    with database.session() as session:
        session.add(ReleaseRow(name="fraud", version="1", created=1.0))
    with pytest.raises(ConflictError), database.session() as session:
        session.add(ReleaseRow(name="fraud", version="1", created=1.0))


def test_foreign_keys_hold(database: Database) -> None:
    with pytest.raises(ConflictError), database.session() as session:
        session.execute(
            text("insert into device_boots(device, boot_id, first_seen, superseded) values ('none', 'b', 0, 0)")
        )


def test_sqlite_is_set_up_for_concurrent_use(database: Database) -> None:
    with database.read() as session:
        assert session.execute(text("pragma journal_mode")).scalar() == "wal"
        assert session.execute(text("pragma foreign_keys")).scalar() == 1
        assert session.execute(text("pragma synchronous")).scalar() == 2


def test_readers_do_not_wait_for_a_writer(database: Database) -> None:
    with database.session() as writer:
        writer.add(ReleaseRow(name="fraud", version="1", created=1.0))
        writer.flush()
        with database.read() as reader:
            assert reader.scalars(select(ReleaseRow)).all() == []


def test_many_threads_read_modify_write(database: Database) -> None:
    with database.session() as session:
        session.add(WaitingLabelRow(id="n", label="0", received=0.0))

    def count_up() -> None:
        for _ in range(10):
            with database.session() as session:
                row = session.get_one(WaitingLabelRow, "n")
                row.label = str(int(row.label) + 1)

    threads = [threading.Thread(target=count_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as session:
        assert session.get_one(WaitingLabelRow, "n").label == "40"


@pytest.mark.parametrize("url", ["nonsense", "sqlite://", "sqlite:///:memory:", "mysql://host/name"])
def test_unusable_urls_are_refused(url: str) -> None:
    with pytest.raises(BadConfigError):
        Database(url)


def test_a_database_that_is_away(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'missing' / 'fleet.db'}")
    with pytest.raises(UnavailableError):
        database.migrate()
    database.close()
