"""What each message from a device changes in the database. Every function may be given the same message again.

Events, windows and predictions are known by (device, boot_id, seq) or by the prediction's id; reported state replaces
older reported state.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from outrider.fleet import audit
from outrider.fleet.db import BundleRow, DeploymentRow, DeviceBootRow, DeviceRow, EventRow, WindowRow
from outrider.fleet.desired import MAIN_SLOT
from outrider.fleet.predictions import store_predictions
from outrider.fleet.rollouts import advances
from outrider.runtime.messages import TERMINAL_STATES, Event, Predictions, Reported, Stat

log = logging.getLogger(__name__)

MAX_WINDOW_BYTES = 64 * 1024
MAX_ROLLOUT_ID = 2**31 - 1
_AUDITED = {"COMMITTED": "deployment.commit", "ROLLED_BACK": "deployment.roll-back"}


def apply_reported(session: Session, device: DeviceRow, reported: Reported, *, now: float) -> None:
    """Keep the device's whole state, and let it move deployments on whose events were lost."""
    boot = session.get(DeviceBootRow, (device.id, reported.boot_id))
    if boot is not None and boot.superseded:
        return
    before = device.reported
    if before is not None and before["boot_id"] == reported.boot_id and before["seq"] > reported.seq:
        return
    device.reported = msgspec.to_builtins(reported)
    device.revision_reported = reported.revision
    main = reported.slots.get(MAIN_SLOT)
    device.active_bundle = main.active.sha256 if main is not None and main.active is not None else None
    for slot in reported.slots.values():
        if slot.state is not None and slot.job is not None and slot.attempt is not None:
            deployment = _deployment(session, device.id, slot.job)
            if deployment is not None and deployment.attempt == slot.attempt:
                _advance(session, deployment, slot.state, reason="", detail="as reported", now=now)


def apply_event(session: Session, device: DeviceRow, event: Event, *, now: float) -> None:
    """Record one step of an update, and move its deployment on."""
    known = select(EventRow.id).filter_by(device=device.id, boot_id=event.boot_id, seq=event.seq)
    if session.scalars(known).first() is not None:
        return
    session.add(
        EventRow(
            device=device.id,
            boot_id=event.boot_id,
            seq=event.seq,
            at=event.at,
            received=now,
            payload=msgspec.to_builtins(event),
            job=event.job,
            attempt=event.attempt,
            from_state=event.from_state,
            to_state=event.to_state,
            reason=event.reason,
        )
    )
    deployment = _deployment(session, device.id, event.job)
    if deployment is None or (deployment.attempt, deployment.bundle) != (event.attempt, event.bundle):
        return
    _advance(session, deployment, event.to_state, reason=event.reason, detail=event.detail, now=now)


def apply_stat(session: Session, device: DeviceRow, stat: Stat, *, now: float) -> None:
    """Keep one window of counts for the drift tests."""
    if len(stat.window) > MAX_WINDOW_BYTES or not _is_published(session, stat.bundle):
        log.warning("dropped a window of %s: too large, or of an unknown bundle", device.id)
        return
    known = select(WindowRow.id).filter_by(device=device.id, boot_id=stat.boot_id, seq=stat.seq)
    if session.scalars(known).first() is not None:
        return
    session.add(
        WindowRow(
            device=device.id,
            bundle=stat.bundle,
            boot_id=stat.boot_id,
            seq=stat.seq,
            start=stat.start,
            end=stat.end,
            rows=stat.rows,
            payload=stat.window,
            received=now,
        )
    )


def apply_predictions(session: Session, device: DeviceRow, batch: Predictions, *, now: float) -> None:
    """Keep predictions, joined with the labels that came first."""
    if not _is_published(session, batch.bundle):
        log.warning("dropped predictions of %s by an unknown bundle", device.id)
        return
    store_predictions(session, device.id, batch, now=now)


def _advance(session: Session, deployment: DeploymentRow, state: str, *, reason: str, detail: str, now: float) -> None:
    if not advances(deployment.state, state):
        return
    deployment.state, deployment.updated = state, now
    deployment.reason, deployment.detail = reason or None, detail or None
    if state in TERMINAL_STATES:
        link: dict[str, Any] = {
            "rollout": deployment.rollout,
            "bundle": deployment.bundle,
            "attempt": deployment.attempt,
            "reason": reason,
        }
        audit.record(
            session,
            actor=f"device:{deployment.device}",
            action=_AUDITED.get(state, "deployment.end"),
            subject=deployment.device,
            detail={"state": state, **link},
            now=now,
        )


def _deployment(session: Session, device: str, job: str) -> DeploymentRow | None:
    if not job.isdecimal() or not job.isascii() or int(job) > MAX_ROLLOUT_ID:
        return None
    return session.scalars(select(DeploymentRow).filter_by(rollout=int(job), device=device)).first()


def _is_published(session: Session, bundle: str) -> bool:
    return session.get(BundleRow, bundle) is not None
