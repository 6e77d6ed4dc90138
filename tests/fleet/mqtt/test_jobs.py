"""Jobs and their leases, and the triggers that open them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from outrider.fleet import audit, jobs
from outrider.fleet.db import AuditRow, Database, ReleaseRow, RolloutRow
from outrider.fleet.triggers import TRIGGERS, DriftEvidence, Evidence, load_trigger
from outrider.runtime.errors import BadInputError, ConflictError, NotFoundError

REASON = {"kind": "accuracy", "e_value": 123.0}


def open_one(database: Database, *, now: float = 0.0, cooldown_s: float = 0.0) -> int | None:
    with database.session() as session:
        job = jobs.open_job(session, trigger=None, model="fraud", reason=REASON, now=now, cooldown_s=cooldown_s)
        return None if job is None else job.id


def claim(database: Database, worker: str, now: float, model: str | None = None) -> int | None:
    with database.session() as session:
        job = jobs.claim_job(session, worker=worker, now=now, lease_s=10.0, model=model)
        return None if job is None else job.id


def test_one_open_job_a_model_and_a_pause_after_it(database: Database) -> None:
    first = open_one(database)
    assert first is not None
    assert open_one(database) is None
    assert claim(database, "w", 1.0) == first
    assert open_one(database) is None
    with database.session() as session:
        jobs.finish_job(session, first, worker="w", outcome="FAILED", detail="no data", now=5.0)
    assert open_one(database, now=14.0, cooldown_s=10.0) is None
    assert open_one(database, now=15.0, cooldown_s=10.0) is not None


def test_a_lease_that_ran_out_is_given_to_another(database: Database) -> None:
    job = open_one(database)
    assert claim(database, "a", 0.0, model="other") is None
    assert claim(database, "a", 0.0) == job
    assert claim(database, "b", 9.0) is None
    with database.session() as session:
        assert job is not None
        jobs.heartbeat_job(session, job, worker="a", stage="train", detail="epoch 3", now=9.0, lease_s=10.0)
    assert claim(database, "b", 18.0) is None
    assert claim(database, "b", 19.0) == job
    with database.session() as session, pytest.raises(ConflictError, match="taken over by b"):
        jobs.heartbeat_job(session, job, worker="a", stage="train", now=19.0, lease_s=10.0)
    with database.session() as session, pytest.raises(ConflictError, match="taken over by b"):
        jobs.finish_job(session, job, worker="a", outcome="DONE", now=19.0)


def test_finishing_links_job_run_release_and_rollout(database: Database) -> None:
    job = open_one(database)
    assert job is not None
    claim(database, "w", 0.0)
    with database.session() as session:
        session.add(ReleaseRow(number=4, name="fraud", version="2", created=0.0))
        session.flush()
        session.add(
            RolloutRow(release=4, group="g", canary=1, state="PENDING", settings={}, seed="s", created=0.0, job_id=None)
        )
    with database.session() as session, pytest.raises(NotFoundError, match="release 99"):
        jobs.finish_job(session, job, worker="w", outcome="DONE", release=99, now=3.0)
    for _ in range(2):  # a worker whose answer was lost says it again
        with database.session() as session:
            row = jobs.finish_job(session, job, worker="w", outcome="DONE", run_id="run-1", release=4, now=3.0)
            assert (row.state, row.finished, row.release) == ("DONE", 3.0, 4)
    with database.read() as session:
        [entry] = session.scalars(select(AuditRow).filter_by(action="job.finish")).all()
        assert session.scalars(select(RolloutRow.job_id)).one() == job
        assert audit.verify(session).intact
    assert entry.detail["run_id"] == "run-1"
    assert entry.detail["release"] == "fraud:2"
    assert entry.detail["rollouts"] == [1]
    with database.session() as session, pytest.raises(ConflictError, match="DONE, not claimed"):
        jobs.finish_job(session, job, worker="w", outcome="FAILED", now=4.0)
    with database.session() as session, pytest.raises(NotFoundError):
        jobs.heartbeat_job(session, 99, worker="w", stage="x", now=0.0, lease_s=1.0)


# Triggers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(TRIGGERS))
def test_every_kind_keeps_its_contract(kind: str) -> None:
    trigger = load_trigger(kind, {})
    state = trigger.begin()
    assert trigger.reason(state) is None
    assert trigger.observe(state, Evidence()) == state
    strong = Evidence(correct=0, labels=5000, drift=(event("amount"),))
    broken = trigger.observe(state, strong)
    reason = trigger.reason(broken)
    assert reason is not None
    assert reason["kind"] == kind
    assert reason["e_value"] >= reason["threshold"]
    msgspec.json.encode(reason)
    encoded = msgspec.msgpack.encode(broken)
    assert msgspec.msgpack.decode(encoded, type=trigger.state_type) == broken
    assert trigger.reason(trigger.opened(broken)) is None, "one reason opens one Job"
    assert trigger.reason(trigger.observe(trigger.opened(broken), strong)) is not None
    assert trigger.cooldown_s > 0
    with pytest.raises(BadInputError, match="known keys are"):
        load_trigger(kind, {"flor": 0.9})


def test_an_unknown_kind_names_those_there_are() -> None:
    with pytest.raises(NotFoundError, match="accuracy, drift"):
        load_trigger("moon", {})


@pytest.mark.parametrize("bad", [{"floor": 1.5}, {"floor": "high"}, {"alpha": 0}, {"min_labels": 0}])
def test_accuracy_settings_are_checked(bad: dict[str, Any]) -> None:
    with pytest.raises(BadInputError):
        load_trigger("accuracy", bad)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=30))
def test_an_accuracy_at_the_floor_gives_no_reason(batches: list[int]) -> None:
    trigger = load_trigger("accuracy", {"floor": 0.9})
    state = trigger.begin()
    for labels in batches:
        state = trigger.observe(state, Evidence(correct=-(-labels * 9 // 10), labels=labels))
    assert trigger.reason(state) is None


def test_a_breach_before_enough_labels_waits_for_them() -> None:
    trigger = load_trigger("accuracy", {"floor": 0.9, "min_labels": 50})
    state = trigger.observe(trigger.begin(), Evidence(correct=0, labels=40))
    assert state.breach is not None
    assert trigger.reason(state) is None
    state = trigger.observe(state, Evidence(correct=5, labels=10))
    reason = trigger.reason(state)
    assert reason is not None
    assert (reason["labels"], reason["accuracy"], reason["floor"]) == (40, 0.0, 0.9)


def event(feature: str, *, scope: str = "fleet", effect: float = 0.2, e_value: float = 1e6) -> DriftEvidence:
    return DriftEvidence(scope=scope, feature=feature, since=10.0, effect=effect, e_value=e_value, threshold=1e3)


def test_the_drift_trigger_counts_what_it_is_told_to() -> None:
    def reason(settings: dict[str, Any], *events: DriftEvidence) -> dict[str, Any] | None:
        trigger = load_trigger("drift", settings)
        return trigger.reason(trigger.observe(trigger.begin(), Evidence(drift=events)))

    one = {"features": "amount, hour"}
    assert reason(one, event("merchant")) is None
    assert reason(one, event("merchant"), event("hour")) is not None
    assert reason({}, event("amount", scope="till-7")) is None
    assert reason({"scope": "any"}, event("amount", scope="till-7")) is not None
    assert reason({"min_effect": 0.3}, event("amount")) is None
    both = reason({}, event("a", e_value=2e3), event("b", e_value=5e3, effect=0.4))
    assert both is not None
    assert (both["features"], both["effect"], both["e_value"]) == (["b", "a"], 0.4, 5e3)
