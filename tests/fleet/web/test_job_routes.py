"""Triggers and Jobs over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from outrider.runtime.api_client import FleetClient, TriggerSpec
from outrider.runtime.errors import BadInputError, BadMessageError, ConflictError, NotFoundError


def test_a_trigger_gets_its_defaults(web: Any) -> None:
    spec = TriggerSpec(name="floor", model="fraud", kind="accuracy", settings={"floor": 0.9})
    info = web.client.create_trigger(spec)
    assert info.settings["floor"] == 0.9
    assert len(info.settings) > 1
    assert info.enabled
    assert web.client.triggers() == [info]
    assert web.client.audit()[-1].action == "trigger.create"
    with pytest.raises(ConflictError):
        web.client.create_trigger(spec)


def test_triggers_that_make_no_sense(web: Any) -> None:
    with pytest.raises(NotFoundError):
        web.client.create_trigger(TriggerSpec(name="t", model="fraud", kind="weather"))
    with pytest.raises(BadInputError):
        web.client.create_trigger(TriggerSpec(name="t", model="fraud", kind="accuracy", settings={"flor": 0.9}))
    with pytest.raises(BadInputError):
        web.client.create_trigger(TriggerSpec(name="t", model="fraud", kind="accuracy", settings={"floor": 2.0}))
    with pytest.raises(BadMessageError):
        web.client.create_trigger(TriggerSpec(name="a b", model="fraud", kind="accuracy"))
    assert web.client.triggers() == []


def test_a_job_from_claim_to_finish(web: Any) -> None:
    release = web.published().release
    assert web.client.claim_job("w1") is None
    opened = web.client.open_job("fraud", "new data")
    assert (opened.state, opened.reason["reason"]) == ("OPEN", "new data")
    with pytest.raises(ConflictError, match="unfinished"):
        web.client.open_job("fraud")
    assert web.client.claim_job("w1", model="other") is None
    claimed = web.client.claim_job("w1")
    assert (claimed.id, claimed.state, claimed.worker) == (opened.id, "CLAIMED", "w1")
    assert claimed.lease_until == web.clock.at + web.state.settings.lease_s
    assert web.client.claim_job("w1") is None
    web.clock.at += 10
    beat = web.client.heartbeat_job(opened.id, "train", "epoch 3")
    assert (beat.stage, beat.detail) == ("train", "epoch 3")
    assert beat.lease_until == web.clock.at + web.state.settings.lease_s
    done = web.client.finish_job(opened.id, "DONE", run_id="run-2", release=release)
    assert (done.state, done.run_id, done.release, done.finished) == ("DONE", "run-2", release, web.clock.at)
    assert web.client.job(opened.id) == done
    assert web.client.jobs() == [done]
    assert [entry.action for entry in web.client.audit() if entry.action.startswith("job.")][-1] == "job.finish"


def test_a_silent_worker_loses_its_job(web: Any) -> None:
    web.published()
    job = web.client.open_job("fraud").id
    other = FleetClient(web.url, web.key)
    web.client.claim_job("w1")
    assert other.claim_job("w2") is None
    web.clock.at += web.state.settings.lease_s
    taken = other.claim_job("w2")
    assert taken is not None
    assert taken.worker == "w2"
    with pytest.raises(ConflictError):
        web.client.heartbeat_job(job, "train")
    with pytest.raises(ConflictError):
        web.client.finish_job(job, "DONE")
    assert other.finish_job(job, "FAILED", "no data").state == "FAILED"


def test_jobs_that_are_not_there(web: Any) -> None:
    for call in (web.client.job, lambda job: web.client.heartbeat_job(job, "x")):
        with pytest.raises(NotFoundError):
            call(7)
    with pytest.raises(NotFoundError):
        web.client.open_job("fraud")
