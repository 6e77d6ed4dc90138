"""Rollouts and the steps of their deployments."""

from __future__ import annotations

import secrets
from typing import Annotated

import msgspec
from fastapi import Query
from sqlalchemy import select
from sqlalchemy.orm import Session

from outrider.fleet import audit
from outrider.fleet.auth import Principal
from outrider.fleet.db import EventRow, JobRow, RolloutRow
from outrider.fleet.lineage import find_release
from outrider.fleet.routes.wire import Count, Number, Operator, Records, State, json_body
from outrider.fleet.state import FleetState
from outrider.fleet.views import event_info, rollout_infos
from outrider.runtime.api_client.types import EventInfo, ReasonRequest, RolloutInfo, RolloutRequest, RolloutState
from outrider.runtime.errors import ConflictError, NotFoundError

api = Records("rollouts")

Reason = Annotated[ReasonRequest, json_body(ReasonRequest)]


@api.post("/rollouts", status=201)
def create_rollout(
    body: Annotated[RolloutRequest, json_body(RolloutRequest)], state: State, caller: Operator
) -> RolloutInfo:
    """Roll a release out to a group, the canary first. Devices that join the group later get it too."""
    now = state.now()
    with state.database.session() as session:
        release = find_release(session, body.name, body.version)
        if body.job is not None and session.get(JobRow, body.job) is None:
            raise NotFoundError(f"there is no job {body.job}")
        row = RolloutRow(
            release=release.number,
            group=body.group,
            canary=body.canary,
            state="PENDING",
            settings=msgspec.to_builtins(body.settings()),
            seed=secrets.token_hex(8),
            created=now,
            job_id=body.job,
        )
        session.add(row)
        session.flush()
        audit.record(
            session,
            actor=caller.actor,
            action="rollout.create",
            subject=f"rollout:{row.id}",
            detail={"release": f"{body.name}:{body.version}", "group": body.group, "canary": body.canary},
            now=now,
        )
        answer = rollout_infos(session, [row])[0]
    state.manager.wake()
    return answer


@api.get("/rollouts")
def list_rollouts(state: State) -> list[RolloutInfo]:
    """All rollouts, newest first, without their deployments."""
    with state.database.read() as session:
        return rollout_infos(session, list(session.scalars(select(RolloutRow).order_by(RolloutRow.id.desc()))))


@api.get("/rollouts/{rollout}")
def get_rollout(rollout: Number, state: State) -> RolloutInfo:
    """One rollout with its deployments."""
    with state.database.read() as session:
        return rollout_infos(session, [_find(session, rollout)], deployments=True)[0]


@api.post("/rollouts/{rollout}/pause")
def pause_rollout(rollout: Number, body: Reason, state: State, caller: Operator) -> RolloutInfo:
    """Give no further device the bundle. Devices under way go on."""
    return _move(state, caller, rollout, (("PENDING", "RUNNING"), "PAUSED"), body.reason)


@api.post("/rollouts/{rollout}/resume")
def resume_rollout(rollout: Number, body: Reason, state: State, caller: Operator) -> RolloutInfo:
    """Go on with a paused rollout."""
    return _move(state, caller, rollout, (("PAUSED",), "RUNNING"), body.reason)


@api.post("/rollouts/{rollout}/abort")
def abort_rollout(rollout: Number, body: Reason, state: State, caller: Operator) -> RolloutInfo:
    """End a rollout for good."""
    return _move(state, caller, rollout, (("PENDING", "RUNNING", "PAUSED"), "ABORTED"), body.reason)


@api.get("/events")
def list_events(
    state: State,
    device: str | None = None,
    rollout: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None,
    after: Annotated[int, Query(ge=0, le=2**63 - 1)] = 0,
    limit: Count = 1000,
) -> list[EventInfo]:
    """Steps of updates in the order in which they arrived, from the one after the id `after` on."""
    query = select(EventRow).where(EventRow.id > after).order_by(EventRow.id).limit(limit)
    if device is not None:
        query = query.where(EventRow.device == device)
    if rollout is not None:
        query = query.where(EventRow.job == str(rollout))
    with state.database.read() as session:
        return [event_info(row) for row in session.scalars(query)]


def _move(
    state: FleetState, caller: Principal, rollout: int, move: tuple[tuple[RolloutState, ...], RolloutState], reason: str
) -> RolloutInfo:
    now = state.now()
    sources, to = move
    with state.database.session() as session:
        row = _find(session, rollout)
        if row.state not in sources:
            raise ConflictError(f"rollout {rollout} is {row.state}, so it cannot become {to}")
        detail = {"from": row.state, "to": to, "reason": reason}
        row.state, row.reason = to, reason or None
        if to == "ABORTED":
            row.finished = now
        audit.record(
            session,
            actor=caller.actor,
            action="rollout.move",
            subject=f"rollout:{rollout}",
            detail=detail,
            now=now,
        )
        answer = rollout_infos(session, [row], deployments=True)[0]
    state.manager.wake()
    return answer


def _find(session: Session, rollout: int) -> RolloutRow:
    row = session.get(RolloutRow, rollout)
    if row is None:
        raise NotFoundError(f"there is no rollout {rollout}")
    return row
