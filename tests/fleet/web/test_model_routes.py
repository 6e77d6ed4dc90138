"""Labels joined with predictions, performance, drift."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select

from outrider.fleet.db import Database, DeviceRow, DriftEventRow, PredictionRow, WaitingLabelRow, WindowRow
from outrider.fleet.predictions import store_labels, store_predictions
from outrider.runtime.api_client import LabelItem
from outrider.runtime.errors import BadDataError, BadMessageError, NotFoundError
from outrider.runtime.messages import Predictions


def _labels(*pairs: tuple[str, int | float | str]) -> list[LabelItem]:
    return [LabelItem(id=key, label=label) for key, label in pairs]


def test_labels_meet_their_predictions(web: Any, predictions: Callable[..., Predictions]) -> None:
    bundle, device = web.published().sha256, web.enrol().device
    with web.state.database.session() as session:
        store_predictions(session, device, predictions(bundle, ("a", 1), ("b", 0), ("c", 1)), now=1.0)
    assert web.client.post_labels(_labels(("a", 1), ("b", 1.0), ("late", 0))) == 3
    (performance,) = web.client.performance("fraud")
    assert (performance.predictions, performance.labelled, performance.correct) == (3, 2, 1)
    assert performance.accuracy == 0.5
    with web.state.database.session() as session:
        store_predictions(session, device, predictions(bundle, ("late", 0), seq=2), now=2.0)
    (performance,) = web.client.performance("fraud")
    assert (performance.labelled, performance.correct) == (3, 2)
    with web.state.database.read() as session:
        assert session.scalars(select(WaitingLabelRow)).all() == []


def test_a_model_without_labels_has_no_accuracy(web: Any) -> None:
    web.published()
    web.published(version="2")
    performance = web.client.performance("fraud")
    assert [item.version for item in performance] == ["2", "1"]
    assert [item.accuracy for item in performance] == [None, None]


def test_models_that_are_not_there(web: Any) -> None:
    for call in (web.client.performance, web.client.drift):
        with pytest.raises(NotFoundError):
            call("fraud")


def test_a_batch_that_labels_twice_is_refused(web: Any) -> None:
    with pytest.raises(BadDataError):
        web.client.post_labels(_labels(("a", 1), ("a", 0)))
    with pytest.raises(BadMessageError):
        web.client.post_labels(_labels(("", 1)))


def test_many_labels_at_once(web: Any) -> None:
    assert web.client.post_labels(_labels(*((f"row-{i}", i % 2) for i in range(5000)))) == 5000


def test_drift_shows_profiles_and_events(web: Any) -> None:
    bundle, device = web.published().sha256, web.enrol().device
    with web.state.database.session() as session:
        for seq in range(2):
            session.add(
                WindowRow(
                    device=device,
                    bundle=bundle,
                    boot_id="b",
                    seq=seq,
                    start=10.0 * seq,
                    end=10.0 * seq + 10,
                    rows=100,
                    payload=b"x",
                    received=1.0,
                )
            )
        session.add(
            DriftEventRow(
                scope="fleet",
                model="fraud",
                bundle=bundle,
                feature="amount",
                since=5.0,
                at=20.0,
                effect=0.2,
                e_value=1e6,
                threshold=1e4,
            )
        )
    drift = web.client.drift("fraud")
    (profile,) = drift.profiles
    assert (profile.windows, profile.rows, profile.start, profile.end) == (2, 200, 0.0, 20.0)
    assert [event.feature for event in drift.events] == ["amount"]
    assert web.client.drift_events() == list(drift.events)
    assert web.client.drift_events("other") == []


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(
            st.booleans(), st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 1)), min_size=1, max_size=4)
        ),
        max_size=12,
    )
)
def test_every_order_of_arrival_joins_the_same(
    database: Database, predictions: Callable[..., Predictions], steps: list[tuple[bool, list[tuple[str, int]]]]
) -> None:
    """The join agrees with a model: the first prediction stays; the last label before it, or the first after it."""
    with database.session() as session:
        for table in (PredictionRow, WaitingLabelRow, DeviceRow):
            session.execute(delete(table))
        session.add(DeviceRow(id="d", tenant="t", name="d", group="g", secret_hash="h", target={}, created=0.0))
    made: dict[str, str] = {}
    told: dict[str, str] = {}
    for seq, (is_labels, items) in enumerate(steps):
        given_items = dict(items)
        with database.session() as session:
            if is_labels:
                joined = store_labels(session, given_items, now=1.0)
                assert joined == sum(1 for key in given_items if key in made and key not in told)
            else:
                new = store_predictions(session, "d", predictions("f" * 64, *given_items.items(), seq=seq), now=1.0)
                assert new == sum(1 for key in given_items if key not in made)
        for key, value in given_items.items():
            if not is_labels:
                made.setdefault(key, str(value))
            elif key not in made or key not in told:
                told[key] = str(value)
    with database.read() as session:
        rows = {row.id: (row.prediction, row.label) for row in session.scalars(select(PredictionRow))}
        waiting = {row.id: row.label for row in session.scalars(select(WaitingLabelRow))}
    assert rows == {key: (value, told.get(key)) for key, value in made.items()}
    assert waiting == {key: value for key, value in told.items() if key not in made}


def test_a_batch_applied_twice_counts_once(web: Any, predictions: Callable[..., Predictions]) -> None:
    device = web.enrol().device
    message = predictions("f" * 64, ("a", "yes"), ("b", 0.5))
    counts = []
    for _ in range(2):
        with web.state.database.session() as session:
            counts.append(store_predictions(session, device, msgspec.convert(message, Predictions), now=1.0))
    assert counts == [2, 0]
