"""Slots, journal and outbox on disk."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outrider.runtime.errors import BadInputError, ConflictError, StorageError
from outrider.runtime.messages import KINDS
from outrider.runtime.store import Outbox, Store
from outrider.runtime.store.database import Database
from outrider.runtime.store.outbox import DROP_ORDER

A, B, C = "a" * 64, "b" * 64, "c" * 64


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "state")
    yield store
    store.close()


def _stage(store: Store, *bundles: str) -> None:
    for sha256 in bundles:
        store.slots.part_path(sha256).write_bytes(b"x")
        store.slots.stage(sha256, b"{}")


def test_a_folder_has_one_owner(store: Store) -> None:
    with pytest.raises(ConflictError, match="another process"):
        Store(store.folder)


def test_a_closed_store_can_be_opened_again(tmp_path: Path) -> None:
    for _ in range(3):
        Store(tmp_path).close()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError):
        Store(tmp_path / "file" / "state")


def test_what_waits_for_the_fleet_is_not_for_other_users(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        store = Store(tmp_path / "state")
        store.outbox.put("pred", b"a prediction")
        modes = {path.name: path.stat().st_mode & 0o777 for path in store.folder.glob("device.db*")}
        store.close()
    finally:
        os.umask(before)
    assert modes == {"device.db": 0o600, "device.db-wal": 0o600}


def test_a_journal_of_a_newer_release_is_left_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store._database.write(lambda connection: connection.execute("PRAGMA user_version=99"))
    store.close()
    with pytest.raises(StorageError, match="newer release"):
        Store(tmp_path)


def test_swap_and_restore(store: Store) -> None:
    slots = store.slots
    assert (slots.names(), slots.current("main"), slots.previous("main")) == ([], None, None)
    _stage(store, A, B)
    slots.swap("main", A, None)
    slots.swap("main", B, A)
    slots.swap("main", B, A)
    assert (slots.names(), slots.current("main"), slots.previous("main")) == (["main"], B, A)
    assert slots.bundle_path(B).read_bytes() == b"x"
    for _ in range(2):
        slots.restore("main", A)
        assert (slots.current("main"), slots.previous("main")) == (A, None)
    slots.restore("main", None)
    assert slots.current("main") is None


def test_only_a_staged_bundle_becomes_current(store: Store) -> None:
    with pytest.raises(StorageError, match="not staged"):
        store.slots.swap("main", A, None)
    with pytest.raises(StorageError, match="is gone"):
        store.slots.restore("main", A)
    with pytest.raises(StorageError, match="is gone"):
        store.slots.stage(A, b"{}")


@pytest.mark.parametrize("name", ["..", "a/b", "", ".x", "x" * 65])
def test_slot_names_stay_in_their_folder(store: Store, name: str) -> None:
    with pytest.raises(BadInputError):
        store.slots.current(name)


def test_a_link_to_nothing_is_an_empty_slot(store: Store) -> None:
    _stage(store, A)
    store.slots.swap("main", A, None)
    store.slots.discard(A)
    assert store.slots.current("main") is None


def test_garbage_is_what_nothing_links_or_keeps(store: Store) -> None:
    slots = store.slots
    _stage(store, A, B, C)
    slots.swap("main", A, None)
    slots.swap("main", B, A)
    slots.part_path("d" * 64).write_bytes(b"x")
    slots.map_path("e" * 64).write_bytes(b"x")
    (slots.staging / f"{A}.trash").mkdir()
    slots.collect({"e" * 64})
    assert [slots.has(one) for one in (A, B, C)] == [True, True, False]
    assert [place.name for place in slots.staging.iterdir()] == [f"{'e' * 64}.map"]


def test_a_bundle_signed_anew_keeps_its_bytes(store: Store) -> None:
    _stage(store, A)
    path = store.slots.stage(A, b'{"new": 1}')
    assert path.read_bytes() == b"x"
    assert path.with_name("bundle.orb.dsse").read_bytes() == b'{"new": 1}'


def test_starts_are_counted_and_orderly_ends_noticed(tmp_path: Path) -> None:
    found = []
    for orderly in (True, False, True):
        store = Store(tmp_path)
        found.append(store.begin_boot())
        if orderly:
            store.end_boot()
        store.close()
    store = Store(tmp_path)
    assert [*found, store.begin_boot()] == [True, True, False, True]
    assert store.boots() == 4
    store.close()


def test_numbers_rise_by_one_from_every_thread(store: Store) -> None:
    numbers: list[int] = []
    threads = [threading.Thread(target=lambda: numbers.extend(store.next_seq() for _ in range(200))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 801))


class TestOutbox:
    def test_events_go_first_then_age(self, store: Store) -> None:
        for kind, payload in (("stat", b"1"), ("pred", b"2"), ("evt", b"3"), ("rsp", b"4"), ("evt", b"5")):
            store.outbox.put(kind, payload)
        assert [message.payload for message in store.outbox.pending()] == [b"3", b"5", b"4", b"1", b"2"]
        assert [message.payload for message in store.outbox.pending(2)] == [b"3", b"5"]

    def test_done_is_forgotten_and_the_rest_survives_a_restart(self, tmp_path: Path) -> None:
        store = Store(tmp_path)
        for n in range(4):
            store.outbox.put("evt", b"%d" % n)
        ids = [message.id for message in store.outbox.pending()]
        store.outbox.done(ids[1])
        store.outbox.done(ids[0], 999_999)
        store.close()
        again = Store(tmp_path)
        assert [(message.id, message.payload) for message in again.outbox.pending()] == [(ids[2], b"2"), (ids[3], b"3")]
        again.close()

    def test_expiry_is_that_of_the_kind(self, store: Store) -> None:
        store.outbox.put("stat", b"")
        store.outbox.put("evt", b"")
        event, stat = store.outbox.pending()
        assert event.expires is None
        assert stat.expires is not None
        assert stat.expires - stat.created == KINDS["stat"].expiry_s

    def test_listeners_hear_of_each_message(self, store: Store) -> None:
        heard: list[int] = []
        store.outbox.listen(lambda: heard.append(len(store.outbox.pending())))
        store.outbox.put("evt", b"")
        store.outbox.put("stat", b"")
        assert heard == [1, 2]

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        messages=st.lists(st.tuples(st.sampled_from(["evt", "stat", "pred", "rsp"]), st.integers(0, 60)), max_size=40)
    )
    def test_the_budget_is_kept_by_the_stated_order(
        self, messages: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        database = Database(tmp_path_factory.mktemp("outbox") / "device.db")
        try:
            outbox, budget = Outbox(database, 200), 200
            for n, (kind, size) in enumerate(messages):
                outbox.put(kind, b"%02d" % n + b"x" * size)
            left = outbox.pending(1000)
        finally:
            database.close()
        sent = {b"%02d" % n: kind for n, (kind, _) in enumerate(messages)}
        events = [message for message in left if message.kind == "evt"]
        assert len(events) == sum(kind == "evt" for kind in sent.values())
        spent = sum(len(message.payload) for message in left)
        assert spent <= budget or all(message.kind == "evt" for message in left)
        assert sum(outbox.dropped.values()) == len(messages) - len(left)
        for kind in DROP_ORDER:
            offered = [key for key, of in sent.items() if of == kind]
            kept = [message.payload[:2] for message in left if message.kind == kind]
            assert kept == offered[len(offered) - len(kept) :]
