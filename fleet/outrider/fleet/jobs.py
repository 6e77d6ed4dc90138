"""Retrain Jobs: opened by a trigger, claimed by a worker for as long as it keeps saying that it is alive.

```
OPEN ──claim──▶ CLAIMED ──finish──▶ DONE | FAILED
                   └── lease over: claimable again
```
Every function works inside the caller's transaction, so that a Job and its audit entry happen both or neither.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from outrider.fleet import audit
from outrider.fleet.db import JobRow, ReleaseRow, RolloutRow
from outrider.runtime.api_client.types import JobOutcome
from outrider.runtime.errors import ConflictError, NotFoundError

UNFINISHED = ("OPEN", "CLAIMED")


def open_job(
    session: Session,
    *,
    trigger: int | None,
    model: str,
    reason: dict[str, Any],
    now: float,
    cooldown_s: float = 0.0,
) -> JobRow | None:
    """Open a Job for a model; None where one is unfinished, or the last one ended less than `cooldown_s` ago.

    `reason` is what the trigger saw; `trigger` its id, None for an operator.
    """
    audit.take_turns(session)
    last = session.scalars(select(JobRow).filter_by(model=model).order_by(JobRow.id.desc()).limit(1)).first()
    unfinished = session.scalars(select(JobRow.id).filter_by(model=model).where(JobRow.state.in_(UNFINISHED))).first()
    if unfinished is not None:
        return None
    if last is not None and last.finished is not None and now < last.finished + cooldown_s:
        return None
    job = JobRow(trigger=trigger, model=model, state="OPEN", reason=reason, created=now)
    session.add(job)
    session.flush()
    actor = "operator" if trigger is None else f"trigger:{trigger}"
    audit.record(
        session, actor=actor, action="job.open", subject=_subject(job), detail={"model": model, **reason}, now=now
    )
    return job


def claim_job(session: Session, *, worker: str, now: float, lease_s: float, model: str | None = None) -> JobRow | None:
    """Give the oldest claimable Job to a worker for `lease_s`, of `model` alone where that is named; None: no Job."""
    query = (
        select(JobRow)
        .where(or_(JobRow.state == "OPEN", (JobRow.state == "CLAIMED") & (JobRow.lease_until <= now)))
        .order_by(JobRow.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    job = session.scalars(query if model is None else query.where(JobRow.model == model)).first()
    if job is None:
        return None
    before = job.worker
    job.state, job.worker, job.lease_until = "CLAIMED", worker, now + lease_s
    job.stage, job.detail = "claimed", None
    detail = {"model": job.model} if before is None else {"model": job.model, "taken_from": before}
    audit.record(session, actor=f"worker:{worker}", action="job.claim", subject=_subject(job), detail=detail, now=now)
    return job


def heartbeat_job(
    session: Session, job_id: int, *, worker: str, stage: str, detail: str = "", now: float, lease_s: float
) -> JobRow:
    """Note how far a worker is, and prolong its lease. Raises ConflictError where the Job is no longer its."""
    job = _claimed_by(session, job_id, worker)
    if job.stage != stage:
        audit.record(
            session,
            actor=f"worker:{worker}",
            action="job.stage",
            subject=_subject(job),
            detail={"stage": stage},
            now=now,
        )
    job.stage, job.detail, job.lease_until = stage, detail or None, now + lease_s
    return job


def finish_job(
    session: Session,
    job_id: int,
    *,
    worker: str,
    outcome: JobOutcome,
    detail: str = "",
    run_id: str | None = None,
    release: int | None = None,
    now: float,
) -> JobRow:
    """End a Job, and link it in the audit trail: job → run → release → rollouts.

    `release` is the number of the release that it published; None: the champion stays. The same call again changes
    nothing. Raises ConflictError where the Job is no longer this worker's, NotFoundError for an unknown release.
    """
    job = _find(session, job_id)
    if (job.state, job.worker, job.run_id, job.release) == (outcome, worker, run_id, release):
        return job
    _claimed_by(session, job_id, worker)
    link: dict[str, Any] = {"outcome": outcome, "model": job.model, "trigger": job.trigger, "run_id": run_id}
    if release is not None:
        link.update(_release_link(session, job, release))
    if detail:
        link["detail"] = detail
    job.state, job.finished, job.lease_until = outcome, now, None
    job.detail, job.run_id, job.release = detail or None, run_id, release
    audit.record(session, actor=f"worker:{worker}", action="job.finish", subject=_subject(job), detail=link, now=now)
    return job


def _release_link(session: Session, job: JobRow, number: int) -> dict[str, Any]:
    release = session.get(ReleaseRow, number)
    if release is None:
        raise NotFoundError(f"there is no release {number}")
    rollouts = session.scalars(select(RolloutRow).filter_by(release=number).order_by(RolloutRow.id)).all()
    for rollout in rollouts:
        if rollout.job_id is None:
            rollout.job_id = job.id
    return {
        "release": f"{release.name}:{release.version}",
        "release_number": number,
        "rollouts": [rollout.id for rollout in rollouts if rollout.job_id == job.id],
    }


def _claimed_by(session: Session, job_id: int, worker: str) -> JobRow:
    job = _find(session, job_id)
    if job.state != "CLAIMED":
        raise ConflictError(f"job {job_id} is {job.state}, not claimed")
    if job.worker != worker:
        raise ConflictError(f"job {job_id} was taken over by {job.worker}", hint="its lease ran out; drop the work")
    return job


def _find(session: Session, job_id: int) -> JobRow:
    job = session.get(JobRow, job_id, with_for_update=True)
    if job is None:
        raise NotFoundError(f"there is no job {job_id}")
    return job


def _subject(job: JobRow) -> str:
    return f"job:{job.id}"
