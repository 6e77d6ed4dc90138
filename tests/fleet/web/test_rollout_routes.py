"""Rollouts, their events, and the lineage of what they carry."""

from __future__ import annotations

from typing import Any

import pytest

from outrider.fleet.db import DeploymentRow, DeviceRow, EventRow, JobRow, RolloutRow
from outrider.runtime.api_client import RolloutRequest
from outrider.runtime.errors import BadMessageError, ConflictError, NotFoundError


def _deploy(web: Any, rollout: int, device: str, bundle: str, state: str = "COMMITTED") -> None:
    with web.state.database.session() as session:
        session.add(
            DeploymentRow(rollout=rollout, device=device, bundle=bundle, wave=0, state=state, created=1.0, updated=2.0)
        )


def test_a_rollout_is_created(web: Any) -> None:
    web.published()
    info = web.client.create_rollout(
        RolloutRequest(name="fraud", version="1", group="tills", canary=2, soak_s=1.5, p99_ms=20, abort_percent=10)
    )
    assert (info.state, info.group, info.canary, info.name, info.version) == ("PENDING", "tills", 2, "fraud", "1")
    assert (info.settings.soak_s, info.settings.p99_ms, info.settings.abort_percent) == (1.5, 20, 10)
    assert web.client.rollouts() == [info]
    assert web.client.rollout(info.id) == info
    assert web.manager.woken == 1
    assert web.client.audit()[-1].subject == f"rollout:{info.id}"
    with web.state.database.read() as session:
        assert session.get_one(RolloutRow, info.id).seed


def test_a_rollout_of_nothing(web: Any) -> None:
    with pytest.raises(NotFoundError, match="no release"):
        web.client.create_rollout(RolloutRequest(name="fraud", version="1"))
    web.published()
    with pytest.raises(NotFoundError, match="no job"):
        web.client.create_rollout(RolloutRequest(name="fraud", version="1", job=7))
    with pytest.raises(NotFoundError):
        web.client.rollout(1)


@pytest.mark.parametrize(
    "wrong", [{"canary": -1}, {"soak_s": -1.0}, {"abort_percent": 101.0}, {"attempts": 0}, {"group": "a/b"}]
)
def test_settings_out_of_range_are_refused(web: Any, wrong: dict[str, Any]) -> None:
    web.published()
    with pytest.raises(BadMessageError):
        web.client.create_rollout(RolloutRequest(name="fraud", version="1", **wrong))
    assert web.client.rollouts() == []


def test_a_rollout_is_paused_resumed_and_aborted(web: Any) -> None:
    web.published()
    rollout = web.client.create_rollout(RolloutRequest(name="fraud", version="1")).id
    assert web.client.pause_rollout(rollout, "lunch").state == "PAUSED"
    with pytest.raises(ConflictError, match="is PAUSED"):
        web.client.pause_rollout(rollout)
    assert web.client.resume_rollout(rollout).state == "RUNNING"
    with pytest.raises(ConflictError):
        web.client.resume_rollout(rollout)
    aborted = web.client.abort_rollout(rollout, "bad")
    assert (aborted.state, aborted.reason, aborted.finished) == ("ABORTED", "bad", web.clock.at)
    for call in (web.client.pause_rollout, web.client.resume_rollout, web.client.abort_rollout):
        with pytest.raises(ConflictError):
            call(rollout)
    moves = [entry.detail["to"] for entry in web.client.audit() if entry.action == "rollout.move"]
    assert moves == ["PAUSED", "RUNNING", "ABORTED"]
    with pytest.raises(NotFoundError):
        web.client.pause_rollout(99)


def test_deployments_are_counted_and_listed(web: Any) -> None:
    bundle = web.published().sha256
    rollout = web.client.create_rollout(RolloutRequest(name="fraud", version="1")).id
    for device, state in (("a", "COMMITTED"), ("b", "COMMITTED"), ("c", "SOAKING")):
        web.enrol(device)
        _deploy(web, rollout, device, bundle, state)
    info = web.client.rollout(rollout)
    assert info.counts == {"COMMITTED": 2, "SOAKING": 1}
    assert [(item.device, item.attempt) for item in info.deployments] == [("a", 1), ("b", 1), ("c", 1)]
    assert web.client.rollouts()[0].deployments == ()


def test_events_by_device_and_rollout(web: Any) -> None:
    for device in ("a", "b"):
        web.enrol(device)
    with web.state.database.session() as session:
        for seq, (device, job) in enumerate([("a", "1"), ("b", "1"), ("a", "2")]):
            session.add(
                EventRow(
                    device=device,
                    boot_id="boot",
                    seq=seq,
                    at=1.0,
                    received=2.0,
                    payload={"detail": "fine", "bundle": "f" * 64},
                    job=job,
                    attempt=1,
                    from_state=None,
                    to_state="OFFERED",
                    reason="",
                )
            )
    everything = web.client.events()
    assert [event.seq for event in everything] == [0, 1, 2]
    assert everything[0].detail == "fine"
    assert [event.seq for event in web.client.events(device="a")] == [0, 2]
    assert [event.seq for event in web.client.events(rollout=1)] == [0, 1]
    assert [event.seq for event in web.client.events(after=everything[0].id, limit=1)] == [1]
    with pytest.raises(BadMessageError):
        web.client.events(limit=0)


def test_lineage_links_data_run_bundle_rollout_and_devices(web: Any) -> None:
    bundle = web.published()
    device = web.enrol().device
    with web.state.database.session() as session:
        job = JobRow(model="fraud", state="DONE", reason={}, release=bundle.release, created=1.0, run_id="run-1")
        session.add(job)
        session.flush()
        number = job.id
        session.get_one(DeviceRow, device).active_bundle = bundle.sha256
    rollout = web.client.create_rollout(RolloutRequest(name="fraud", version="1", job=number)).id
    _deploy(web, rollout, device, bundle.sha256)
    lineage = web.client.lineage("fraud", "1")
    assert (lineage.run_id, lineage.data_digest) == ("run-1", "d" * 64)
    assert lineage.job is not None
    assert lineage.job.id == number
    assert [item.sha256 for item in lineage.bundles] == [bundle.sha256]
    assert [(item.id, item.job, item.devices) for item in lineage.rollouts] == [
        (rollout, number, {device: "COMMITTED"})
    ]
    assert lineage.running_on == (device,)
    with pytest.raises(NotFoundError):
        web.client.lineage("fraud", "2")
    with pytest.raises(NotFoundError):
        web.client.lineage("a/../b", "1")
