"""Triggers."""

from __future__ import annotations

from typing import Annotated

import msgspec
from sqlalchemy import select

from outrider.fleet import audit
from outrider.fleet.db import TriggerRow
from outrider.fleet.routes.wire import Operator, Records, State, json_body
from outrider.fleet.triggers import load_trigger
from outrider.fleet.views import trigger_info
from outrider.runtime.api_client.types import TriggerInfo, TriggerSpec
from outrider.runtime.errors import ConflictError

api = Records("retraining")


@api.post("/triggers", status=201)
def create_trigger(body: Annotated[TriggerSpec, json_body(TriggerSpec)], state: State, caller: Operator) -> TriggerInfo:
    """Store a rule that opens retrain Jobs for a model. Settings that are left out get their defaults."""
    settings = msgspec.to_builtins(load_trigger(body.kind, body.settings).settings)
    now = state.now()
    with state.database.session() as session:
        if session.scalars(select(TriggerRow.id).filter_by(name=body.name)).first() is not None:
            raise ConflictError(f"there is a trigger {body.name!r} already")
        row = TriggerRow(
            name=body.name, model=body.model, kind=body.kind, settings=settings, enabled=body.enabled, created=now
        )
        session.add(row)
        audit.record(
            session,
            actor=caller.actor,
            action="trigger.create",
            subject=body.name,
            detail={"model": body.model, "kind": body.kind, "settings": settings},
            now=now,
        )
        answer = trigger_info(row)
    state.manager.wake()
    return answer


@api.get("/triggers")
def list_triggers(state: State) -> list[TriggerInfo]:
    """All triggers."""
    with state.database.read() as session:
        return [trigger_info(row) for row in session.scalars(select(TriggerRow).order_by(TriggerRow.id))]
