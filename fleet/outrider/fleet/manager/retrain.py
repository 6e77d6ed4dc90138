"""Labels and drift events into the triggers, and what the triggers find into retrain Jobs.

Only the champion is judged: predictions of a release that a newer one is taking the place of open no further Job.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import msgspec
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from outrider.fleet import jobs
from outrider.fleet.db import (
    BundleRow,
    DriftEventRow,
    DriftStateRow,
    PredictionRow,
    ReleaseRow,
    RolloutRow,
    TriggerRow,
)
from outrider.fleet.triggers import DriftEvidence, Evidence, load_trigger
from outrider.runtime.errors import BadInputError

log = logging.getLogger(__name__)

LABELS_A_STEP = 5000
_CHUNK = 500
_SEEN = "drift-seen"


@dataclass(frozen=True)
class Champion:
    """The release of a model that is out, or on its way out, with its bundles."""

    release: int
    model: str
    version: str
    bundles: tuple[str, ...]


def step_triggers(session: Session, *, now: float) -> bool:
    """Give every enabled trigger what is new, and open the Jobs for which they give reasons. True: there is more."""
    rows = session.scalars(select(TriggerRow).filter_by(enabled=True).order_by(TriggerRow.id)).all()
    more = False
    for model in dict.fromkeys(row.model for row in rows):
        champion = champion_of(session, model)
        if champion is None:
            continue
        labels = _take_labels(session, champion)
        more = more or labels.labels == LABELS_A_STEP
        for row in rows:
            if row.model == model:
                _judge(session, row, champion, labels, now)
    return more


def champion_of(session: Session, model: str) -> Champion | None:
    """The newest release of a model with a rollout that was not aborted."""
    release = session.scalars(
        select(ReleaseRow)
        .join(RolloutRow, RolloutRow.release == ReleaseRow.number)
        .where(ReleaseRow.name == model, RolloutRow.state != "ABORTED")
        .order_by(RolloutRow.id.desc())
        .limit(1)
    ).first()
    if release is None:
        return None
    bundles = session.scalars(select(BundleRow.sha256).filter_by(release=release.number).order_by(BundleRow.sha256))
    return Champion(release=release.number, model=model, version=release.version, bundles=tuple(bundles))


def _take_labels(session: Session, champion: Champion) -> Evidence:
    """Labelled predictions of the champion that no step has counted yet; they are counted with this transaction.

    Both texts are canonical (`predictions.canonical`), so equal texts are equal values.
    """
    rows = session.execute(
        select(PredictionRow.id, PredictionRow.prediction, PredictionRow.label)
        .where(
            PredictionRow.bundle.in_(champion.bundles),
            PredictionRow.counted.is_(False),
            PredictionRow.labelled_at.is_not(None),
        )
        .order_by(PredictionRow.labelled_at, PredictionRow.id)
        .limit(LABELS_A_STEP)
    ).all()
    for start in range(0, len(rows), _CHUNK):
        chunk = [row.id for row in rows[start : start + _CHUNK]]
        session.execute(update(PredictionRow).where(PredictionRow.id.in_(chunk)).values(counted=True))
    return Evidence(labels=len(rows), correct=sum(row.prediction == row.label for row in rows))


def _judge(session: Session, row: TriggerRow, champion: Champion, labels: Evidence, now: float) -> None:
    try:
        trigger = load_trigger(row.kind, row.settings)
    except BadInputError as e:
        log.error("trigger %s is skipped: %s", row.name, e)
        return
    key = (f"trigger:{row.id}", f"release:{champion.release}", row.kind)
    stored = session.get(DriftStateRow, key)
    state = trigger.begin() if stored is None else msgspec.msgpack.decode(stored.state, type=trigger.state_type)
    evidence = msgspec.structs.replace(labels, drift=_new_drift(session, row, champion))
    state = trigger.observe(state, evidence)
    reason = trigger.reason(state)
    if reason is not None:
        opened = jobs.open_job(
            session,
            trigger=row.id,
            model=champion.model,
            reason={"trigger": row.name, "release": champion.release, "version": champion.version, **reason},
            now=now,
            cooldown_s=trigger.cooldown_s,
        )
        if opened is not None:
            log.warning("trigger %s opened job %d for %s: %s", row.name, opened.id, champion.model, reason)
            state = trigger.opened(state)
    encoded = msgspec.msgpack.encode(state)
    if stored is None or stored.state != encoded:
        session.merge(DriftStateRow(scope=key[0], bundle=key[1], kind=key[2], state=encoded))


def _new_drift(session: Session, row: TriggerRow, champion: Champion) -> tuple[DriftEvidence, ...]:
    """Drift events of the champion that this trigger has not seen."""
    key = (f"trigger:{row.id}", f"release:{champion.release}", _SEEN)
    stored = session.get(DriftStateRow, key)
    seen = 0 if stored is None else msgspec.msgpack.decode(stored.state, type=int)
    events = session.scalars(
        select(DriftEventRow)
        .where(DriftEventRow.id > seen, DriftEventRow.bundle.in_(champion.bundles))
        .order_by(DriftEventRow.id)
    ).all()
    if not events:
        return ()
    last = msgspec.msgpack.encode(events[-1].id)
    session.merge(DriftStateRow(scope=key[0], bundle=key[1], kind=key[2], state=last))
    return tuple(
        DriftEvidence(
            scope=event.scope,
            feature=event.feature,
            since=event.since,
            effect=event.effect,
            e_value=event.e_value,
            threshold=event.threshold,
        )
        for event in events
    )
