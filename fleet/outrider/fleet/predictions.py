"""Predictions and their labels, joined whichever comes first.

A label may arrive months after its prediction, or before it, where a device was offline. Both sides therefore go
through here: labels without a prediction wait in a table of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import delete, insert, select, text
from sqlalchemy.orm import Session

from outrider.fleet.db import PredictionRow, WaitingLabelRow
from outrider.runtime.messages import Predictions

_CHUNK = 500  # identifiers a query, well under SQLite's limit on variables


def store_predictions(session: Session, device: str, message: Predictions, *, now: float) -> int:
    """Store a batch, joining labels that came first; returns how many predictions are new.

    An id that is known already is left as it is, so a batch may be applied twice.
    """
    _take_turns(session)
    fresh = {item.id: item for item in message.predictions}
    for known in _chunks(list(fresh)):
        for identifier in session.scalars(select(PredictionRow.id).where(PredictionRow.id.in_(known))):
            del fresh[identifier]
    labels = _take_waiting(session, list(fresh))
    rows = [
        {
            "id": item.id,
            "device": device,
            "bundle": message.bundle,
            "score_bin": item.score_bin,
            "prediction": canonical(item.prediction),
            "at": item.at,
            "label": labels.get(item.id),
            "labelled_at": now if item.id in labels else None,
            "counted": False,
        }
        for item in fresh.values()
    ]
    if rows:
        session.execute(insert(PredictionRow), rows)
    return len(rows)


def store_labels(session: Session, labels: Mapping[str, int | float | str], *, now: float) -> int:
    """Store labels by prediction id; returns how many were joined at once. The others wait.

    A second label for the same prediction is ignored once the first is joined, and replaces a waiting one.
    """
    _take_turns(session)
    joined = 0
    waiting: dict[str, str] = {key: canonical(label) for key, label in labels.items()}
    for chunk in _chunks(list(waiting)):
        for row in session.scalars(select(PredictionRow).where(PredictionRow.id.in_(chunk))):
            label = waiting.pop(row.id)
            if row.label is None:
                row.label, row.labelled_at = label, now
                joined += 1
    _take_waiting(session, list(waiting))
    if waiting:
        session.execute(
            insert(WaitingLabelRow),
            [{"id": key, "label": label, "received": now} for key, label in waiting.items()],
        )
    return joined


def canonical(value: int | float | str) -> str:
    """A prediction or label as stored: equal ones have equal text, so `1` and `1.0` are both `1`."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _take_turns(session: Session) -> None:
    """Let no two transactions join at once: neither would see what the other has not committed yet."""
    if session.get_bind().dialect.name == "postgresql":  # SQLite's write lock is held already
        session.execute(text("LOCK TABLE waiting_labels IN SHARE ROW EXCLUSIVE MODE"))


def _take_waiting(session: Session, identifiers: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for chunk in _chunks(identifiers):
        rows = session.execute(
            delete(WaitingLabelRow)
            .where(WaitingLabelRow.id.in_(chunk))
            .returning(WaitingLabelRow.id, WaitingLabelRow.label)
        )
        found.update((row.id, row.label) for row in rows)
    return found


def _chunks(items: Sequence[str]) -> list[Sequence[str]]:
    return [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
