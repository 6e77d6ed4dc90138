"""The audit chain: every change of it is found."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from sqlalchemy import text

from outrider.fleet import audit
from outrider.fleet.db import Database

COUNT = 5


@pytest.fixture
def chain(database: Database) -> Database:
    with database.session() as session:
        for number in range(COUNT):
            audit.record(session, actor="key:admin", action="do", subject=f"s{number}", detail={"n": 0.1}, now=1.0)
    return database


def _change(database: Database, statement: str) -> None:
    with database.session() as session:
        session.execute(text(statement))


def test_an_untouched_chain_is_intact(chain: Database) -> None:
    with chain.read() as session:
        report = audit.verify(session)
        assert report.intact
        assert report.entries == COUNT
        assert audit.verify(session, known_head=report.head).intact


def test_an_empty_chain_is_intact(database: Database) -> None:
    with database.read() as session:
        report = audit.verify(session)
    assert (report.intact, report.entries, report.head) == (True, 0, audit.GENESIS)


@pytest.mark.parametrize("column", ["actor", "action", "subject", "detail", "at", "hash", "prev_hash"])
def test_a_changed_field_is_found(chain: Database, column: str) -> None:
    value = {"at": "2.0", "detail": "'{\"n\": 1}'"}.get(column, f"'{'1' * 64}'")
    _change(chain, f"update audit set {column} = {value} where id = 3")
    with chain.read() as session:
        report = audit.verify(session)
    assert (report.intact, report.broken_at) == (False, 3)


def test_a_removed_entry_is_found(chain: Database) -> None:
    _change(chain, "delete from audit where id = 3")
    with chain.read() as session:
        assert audit.verify(session).broken_at == 4


def test_swapped_entries_are_found(chain: Database) -> None:
    _change(chain, "update audit set id = id + 100 where id in (2, 3)")
    _change(chain, "update audit set id = 5 - (id - 100) where id > 100")
    with chain.read() as session:
        assert not audit.verify(session).intact


def test_a_cut_off_end_is_found_by_who_kept_a_head(chain: Database) -> None:
    with chain.read() as session:
        head = audit.verify(session).head
    _change(chain, f"delete from audit where id = {COUNT}")
    with chain.read() as session:
        assert audit.verify(session).intact
        report = audit.verify(session, known_head=head)
    assert (report.intact, report.problem) == (False, "the known head is not in the log")


def test_a_failed_deed_leaves_no_entry(chain: Database) -> None:
    def fail() -> None:
        with chain.session() as session:
            audit.record(session, actor="a", action="b", subject="c", now=1.0)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with chain.read() as session:
        assert audit.verify(session).entries == COUNT


def test_many_writers_make_one_chain(database: Database) -> None:
    def write() -> None:
        for _ in range(5):
            with database.session() as session:
                audit.record(session, actor="a", action="b", subject="c", now=1.0)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as session:
        report = audit.verify(session)
    assert (report.intact, report.entries) == (True, 20)


def test_the_log_over_http(web: Any) -> None:
    web.enrol()
    entries = web.client.audit()
    assert [entry.action for entry in entries] == ["token.create", "device.enrol"]
    assert web.client.audit(limit=1) == entries[-1:]
    report = web.client.verify_audit(known_head=entries[0].hash)
    assert (report.intact, report.head) == (True, entries[-1].hash)
    assert not web.client.verify_audit(known_head="0" * 63 + "1").intact
    _change(web.state.database, "update audit set actor = 'me'")
    assert web.client.verify_audit().broken_at == entries[0].id
