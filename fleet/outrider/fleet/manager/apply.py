"""What each message from a device changes in the database. Every function may be given the same message again.

Events, windows and predictions are known by (device, boot_id, seq) or by the prediction's id; reported state replaces
older reported state. What a batch of messages concerns is read at once (`Known`), not message by message.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from outrider.fleet import audit
from outrider.fleet.db import DeploymentRow, DeviceBootRow, DeviceRow, EventRow, WindowRow
from outrider.fleet.desired import MAIN_SLOT
from outrider.fleet.predictions import store_predictions
from outrider.fleet.rollouts import advances
from outrider.runtime.messages import TERMINAL_STATES, Event, Predictions, Reported, Stat

log = logging.getLogger(__name__)

AS_REPORTED = "as reported"  # a detail to be replaced by that of the event, should it still come
MAX_WINDOW_BYTES = 64 * 1024
MAX_ROLLOUT_ID = 2**31 - 1
_AUDITED = {"COMMITTED": "deployment.commit", "ROLLED_BACK": "deployment.roll-back"}


class Known:
    """The rows that a batch of messages concerns. It lives as long as the transaction."""

    def __init__(self, session: Session, items: Sequence[tuple[str, msgspec.Struct]]) -> None:
        """`items` are (device id, message)."""
        self.session = session
        names = list({device for device, _ in items})
        self.devices = {row.id: row for row in session.scalars(select(DeviceRow).where(DeviceRow.id.in_(names)))}
        jobs = {job for _, message in items for job in _jobs(message)}
        found = select(DeploymentRow).where(DeploymentRow.device.in_(names), DeploymentRow.rollout.in_(jobs))
        self.deployments = {(row.device, row.rollout): row for row in session.scalars(found)} if jobs else {}
        self.events = _numbers(session, EventRow, [(d, m.seq) for d, m in items if isinstance(m, Event)])
        self.windows = _numbers(session, WindowRow, [(d, m.seq) for d, m in items if isinstance(m, Stat)])

    def deployment(self, device: str, job: str) -> DeploymentRow | None:
        """The deployment that a device's job string names."""
        rollout = _rollout(job)
        return None if rollout is None else self.deployments.get((device, rollout))


def apply_reported(known: Known, device: DeviceRow, reported: Reported, *, now: float) -> None:
    """Keep the device's whole state, and let it move deployments on whose events were lost."""
    boot = known.session.get(DeviceBootRow, (device.id, reported.boot_id))
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
            deployment = known.deployment(device.id, slot.job)
            if deployment is not None and deployment.attempt == slot.attempt:
                _advance(known.session, deployment, slot.state, reason="", detail=AS_REPORTED, now=now)


def apply_event(known: Known, device: DeviceRow, event: Event, *, now: float) -> None:
    """Record one step of an update, and move its deployment on."""
    key = (device.id, event.boot_id, event.seq)
    if key in known.events:
        return
    known.events.add(key)
    known.session.add(
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
    deployment = known.deployment(device.id, event.job)
    if deployment is None or (deployment.attempt, deployment.bundle) != (event.attempt, event.bundle):
        return
    _advance(known.session, deployment, event.to_state, reason=event.reason, detail=event.detail, now=now)
    if event.trials:
        deployment.trials = msgspec.to_builtins(event.trials)
    if deployment.state == event.to_state and deployment.detail == AS_REPORTED:
        deployment.reason, deployment.detail = event.reason or None, event.detail or None


def apply_stat(known: Known, device: DeviceRow, stat: Stat, *, now: float) -> None:
    """Keep one window of counts for the drift tests."""
    if len(stat.window) > MAX_WINDOW_BYTES or not _was_given(known.session, device.id, stat.bundle):
        log.warning("dropped a window of %s: too large, or of a bundle that it was not given", device.id)
        return
    key = (device.id, stat.boot_id, stat.seq)
    if key in known.windows:
        return
    known.windows.add(key)
    known.session.add(
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


def apply_predictions(known: Known, device: DeviceRow, batch: Predictions, *, now: float) -> None:
    """Keep predictions, joined with the labels that came first."""
    if not _was_given(known.session, device.id, batch.bundle):
        log.warning("dropped predictions of %s by a bundle that it was not given", device.id)
        return
    store_predictions(known.session, device.id, batch, now=now)


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


def _jobs(message: msgspec.Struct) -> list[int]:
    """The rollouts that a message speaks of."""
    if isinstance(message, Event):
        named: list[str | None] = [message.job]
    elif isinstance(message, Reported):
        named = [slot.job for slot in message.slots.values()]
    else:
        return []
    return [rollout for job in named if job is not None and (rollout := _rollout(job)) is not None]


def _rollout(job: str) -> int | None:
    if not job.isdecimal() or not job.isascii() or int(job) > MAX_ROLLOUT_ID:
        return None
    return int(job)


def _numbers(
    session: Session, table: type[EventRow | WindowRow], wanted: list[tuple[str, int]]
) -> set[tuple[str, str, int]]:
    """Which (device, boot_id, seq) of these devices and numbers are stored."""
    if not wanted:
        return set()
    rows = session.execute(
        select(table.device, table.boot_id, table.seq).where(
            table.device.in_({device for device, _ in wanted}), table.seq.in_({seq for _, seq in wanted})
        )
    )
    return {(device, boot_id, seq) for device, boot_id, seq in rows}


def _was_given(session: Session, device: str, bundle: str) -> bool:
    """Whether a rollout ever gave the device this bundle: of others it can know nothing, whatever it says."""
    given = select(DeploymentRow.id).filter_by(device=device, bundle=bundle).limit(1)
    return session.scalars(given).first() is not None
