"""How models do in the field: labels, performance and drift."""

from __future__ import annotations

from typing import Annotated

from sqlalchemy import ColumnElement, case, func, select
from sqlalchemy.orm import Session

from outrider.fleet.db import BundleRow, DriftEventRow, PredictionRow, WindowRow
from outrider.fleet.predictions import store_labels
from outrider.fleet.routes.wire import Records, State, json_body
from outrider.fleet.views import drift_event_info
from outrider.runtime.api_client.types import (
    BundleProfileInfo,
    DriftEventInfo,
    DriftInfo,
    LabelsInfo,
    LabelsRequest,
    PerformanceInfo,
)
from outrider.runtime.errors import BadDataError, NotFoundError

api = Records("models")


@api.post("/labels")
def post_labels(body: Annotated[LabelsRequest, json_body(LabelsRequest, batch=True)], state: State) -> LabelsInfo:
    """Say what the truth of predictions turned out to be. Labels may come before their predictions."""
    labels = {item.id: item.label for item in body.labels}
    if len(labels) != len(body.labels):
        raise BadDataError("the batch labels one prediction twice")
    with state.database.session() as session:
        joined = store_labels(session, labels, now=state.now())
    state.manager.wake()
    return LabelsInfo(accepted=len(labels), joined=joined)


@api.get("/models/{model}/performance")
def get_performance(model: str, state: State) -> list[PerformanceInfo]:
    """Accuracy on delayed labels, a bundle at a time, newest first."""
    with state.database.read() as session:
        bundles = _bundles(session, model)
        counts = {
            row.bundle: row
            for row in session.execute(
                select(
                    PredictionRow.bundle,
                    func.count().label("predictions"),
                    func.count(PredictionRow.label).label("labelled"),
                    func.coalesce(func.sum(_one_if(PredictionRow.prediction == PredictionRow.label)), 0).label("right"),
                )
                .where(PredictionRow.bundle.in_([bundle.sha256 for bundle in bundles]))
                .group_by(PredictionRow.bundle)
            )
        }
    answer = []
    for bundle in bundles:
        _, predictions, labelled, correct = counts.get(bundle.sha256, (None, 0, 0, 0))
        answer.append(_performance(bundle, predictions, labelled, int(correct)))
    return answer


@api.get("/models/{model}/drift")
def get_drift(model: str, state: State) -> DriftInfo:
    """Profiles that have come in, and the drift events they raised."""
    with state.database.read() as session:
        bundles = _bundles(session, model)
        spans = {
            row.bundle: row
            for row in session.execute(
                select(
                    WindowRow.bundle,
                    func.count().label("windows"),
                    func.coalesce(func.sum(WindowRow.rows), 0).label("rows"),
                    func.min(WindowRow.start).label("start"),
                    func.max(WindowRow.end).label("end"),
                )
                .where(WindowRow.bundle.in_([bundle.sha256 for bundle in bundles]))
                .group_by(WindowRow.bundle)
            )
        }
        events = _drift_events(session, model)
    profiles = []
    for bundle in bundles:
        _, windows, rows, start, end = spans.get(bundle.sha256, (None, 0, 0, None, None))
        profiles.append(
            BundleProfileInfo(
                bundle=bundle.sha256,
                version=bundle.version,
                target=bundle.target,
                windows=windows,
                rows=int(rows),
                start=start,
                end=end,
            )
        )
    return DriftInfo(model=model, profiles=tuple(profiles), events=tuple(events))


@api.get("/drift-events")
def list_drift_events(state: State, model: str | None = None) -> list[DriftEventInfo]:
    """Drift events, oldest first, of one model where it is named."""
    with state.database.read() as session:
        return _drift_events(session, model)


def _drift_events(session: Session, model: str | None) -> list[DriftEventInfo]:
    query = select(DriftEventRow).order_by(DriftEventRow.id)
    rows = session.scalars(query if model is None else query.where(DriftEventRow.model == model))
    return [drift_event_info(row) for row in rows]


def _bundles(session: Session, model: str) -> list[BundleRow]:
    rows = session.scalars(
        select(BundleRow).where(BundleRow.name == model).order_by(BundleRow.release.desc(), BundleRow.target)
    ).all()
    if not rows:
        raise NotFoundError(f"no bundle of the model {model!r} is published")
    return list(rows)


def _one_if(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return case((condition, 1), else_=0)


def _performance(bundle: BundleRow, predictions: int, labelled: int, correct: int) -> PerformanceInfo:
    return PerformanceInfo(
        model=bundle.name,
        version=bundle.version,
        target=bundle.target,
        bundle=bundle.sha256,
        predictions=predictions,
        labelled=labelled,
        correct=correct,
        accuracy=correct / labelled if labelled else None,
    )
