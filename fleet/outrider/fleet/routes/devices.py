"""Enrolment and devices."""

from __future__ import annotations

from typing import Annotated

from fastapi import Request
from sqlalchemy import select
from sqlalchemy.orm import Session

from outrider.fleet import audit, enrol
from outrider.fleet.db import DeviceBootRow, DeviceRow
from outrider.fleet.routes.wire import OPEN, Operator, Records, State, json_body
from outrider.fleet.views import device_infos
from outrider.runtime.api_client.types import (
    DeviceInfo,
    Enrolment,
    EnrolRequest,
    ReasonRequest,
    TokenInfo,
    TokenRequest,
)
from outrider.runtime.errors import ConflictError, NotFoundError

api = Records("devices")


@api.post("/enrolment-tokens", status=201)
def create_enrolment_token(
    body: Annotated[TokenRequest, json_body(TokenRequest)], state: State, caller: Operator
) -> TokenInfo:
    """Make a one-time token that lets one device join a group. It is shown only here."""
    return enrol.create_token(state, body, actor=caller.actor)


@api.post("/enrol", status=201, needs=OPEN)
def enrol_device(body: Annotated[EnrolRequest, json_body(EnrolRequest)], state: State, request: Request) -> Enrolment:
    """Join the fleet as a device. The one-time token in the body stands in for a key."""
    return enrol.enrol(state, body, api_url=str(request.base_url).rstrip("/"))


@api.get("/devices")
def list_devices(state: State, group: str | None = None) -> list[DeviceInfo]:
    """All devices by id, of one group where it is named."""
    query = select(DeviceRow).order_by(DeviceRow.id)
    with state.database.read() as session:
        rows = session.scalars(query if group is None else query.where(DeviceRow.group == group))
        return device_infos(session, list(rows))


@api.get("/devices/{device}")
def get_device(device: str, state: State) -> DeviceInfo:
    """One device, with what it found of the artifacts that it could run."""
    with state.database.read() as session:
        return device_infos(session, [_find(session, device)], trials=True)[0]


@api.post("/devices/{device}/resolve")
def resolve_device(
    device: str, body: Annotated[ReasonRequest, json_body(ReasonRequest)], state: State, caller: Operator
) -> DeviceInfo:
    """Clear a device's flag, so that it gets its desired state again.

    What is online now, or comes online first from now on, is taken for the device, whichever of the two it was.
    Should another machine with the same identity come back, the device is flagged anew.
    """
    now = state.now()
    with state.database.session() as session:
        row = _find(session, device)
        if row.flagged is None:
            raise ConflictError(f"the device {device} is not flagged")
        detail = {"flagged": row.flagged, "reason": body.reason}
        row.flagged = None
        if not row.online:
            row.boot_id = row.session = None
        for boot in session.scalars(select(DeviceBootRow).filter_by(device=device)):
            if boot.boot_id != row.boot_id:
                session.delete(boot)
        audit.record(session, actor=caller.actor, action="device.resolve", subject=device, detail=detail, now=now)
        answer = device_infos(session, [row])[0]
    state.manager.wake()
    return answer


def _find(session: Session, device: str) -> DeviceRow:
    row = session.get(DeviceRow, device)
    if row is None:
        raise NotFoundError(f"there is no device {device!r}")
    return row
