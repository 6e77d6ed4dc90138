"""Retrain Jobs: opened by triggers, worked on by workers that are processes of their own."""

from __future__ import annotations

from typing import Annotated

from sqlalchemy import select

from outrider.fleet import jobs
from outrider.fleet.db import BundleRow, JobRow
from outrider.fleet.routes.wire import Number, Operator, Records, State, json_body
from outrider.fleet.views import job_info
from outrider.runtime.api_client.types import ClaimRequest, FinishRequest, HeartbeatRequest, JobInfo, JobRequest
from outrider.runtime.errors import ConflictError, NotFoundError

api = Records("retraining")


@api.post("/jobs", status=201)
def open_job(body: Annotated[JobRequest, json_body(JobRequest)], state: State, caller: Operator) -> JobInfo:
    """Open a retrain Job by hand. A model has one unfinished Job at most."""
    with state.database.session() as session:
        if session.scalars(select(BundleRow.sha256).filter_by(name=body.model).limit(1)).first() is None:
            raise NotFoundError(f"no bundle of the model {body.model!r} is published")
        reason = {"kind": "manual", "by": caller.actor, "reason": body.reason}
        row = jobs.open_job(session, trigger=None, model=body.model, reason=reason, now=state.now())
        if row is None:
            raise ConflictError(f"the model {body.model!r} has an unfinished Job already")
        return job_info(row)


@api.get("/jobs")
def list_jobs(state: State) -> list[JobInfo]:
    """All Jobs, newest first."""
    with state.database.read() as session:
        return [job_info(row) for row in session.scalars(select(JobRow).order_by(JobRow.id.desc()))]


@api.get("/jobs/{job}")
def get_job(job: Number, state: State) -> JobInfo:
    """One Job."""
    with state.database.read() as session:
        row = session.get(JobRow, job)
        if row is None:
            raise NotFoundError(f"there is no job {job}")
        return job_info(row)


@api.post("/jobs/claim")
def claim_job(body: Annotated[ClaimRequest, json_body(ClaimRequest)], state: State) -> JobInfo | None:
    """Take the oldest open Job, or one whose worker has fallen silent; 204 where there is none."""
    with state.database.session() as session:
        row = jobs.claim_job(
            session, worker=body.worker, now=state.now(), lease_s=state.settings.lease_s, model=body.model
        )
        return None if row is None else job_info(row)


@api.post("/jobs/{job}/heartbeat")
def heartbeat_job(job: Number, body: Annotated[HeartbeatRequest, json_body(HeartbeatRequest)], state: State) -> JobInfo:
    """Say that the worker still works, and prolong its lease."""
    with state.database.session() as session:
        row = jobs.heartbeat_job(
            session,
            job,
            worker=body.worker,
            stage=body.stage,
            detail=body.detail,
            now=state.now(),
            lease_s=state.settings.lease_s,
        )
        return job_info(row)


@api.post("/jobs/{job}/finish")
def finish_job(job: Number, body: Annotated[FinishRequest, json_body(FinishRequest)], state: State) -> JobInfo:
    """End a Job and link what it made to it."""
    with state.database.session() as session:
        row = jobs.finish_job(
            session,
            job,
            worker=body.worker,
            outcome=body.outcome,
            detail=body.detail,
            run_id=body.run_id,
            release=body.release,
            now=state.now(),
        )
        answer = job_info(row)
    state.manager.wake()
    return answer
