"""The same API over a real PostgreSQL: what depends on the database's dialect."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from outrider.fleet import audit
from outrider.fleet.db import Database, DeploymentRow, PredictionRow
from outrider.fleet.predictions import store_labels, store_predictions
from outrider.runtime.api_client import EnrolRequest, FleetClient, LabelItem, RolloutRequest, TriggerSpec
from outrider.runtime.errors import ConflictError
from outrider.runtime.messages import Predictions
from outrider.runtime.target import Target

pytestmark = pytest.mark.system
HOST = Target(name="host", arch="x86_64", triple="x86_64-linux-gnu")


@pytest.fixture
def on_postgres(postgres: str) -> Iterator[Database]:
    database = Database(postgres)
    database.migrate()
    yield database
    database.close()


def test_the_api_works_on_postgresql(
    on_postgres: Database, serve: Callable[[Database], Any], predictions: Callable[..., Predictions]
) -> None:
    web = serve(on_postgres)
    bundle = web.published()
    assert web.published() == bundle
    with pytest.raises(ConflictError):
        web.published(artifact=b"other")
    device = web.enrol().device
    rollout = web.client.create_rollout(RolloutRequest(name="fraud", version="1")).id
    with on_postgres.session() as session:
        session.add(
            DeploymentRow(
                rollout=rollout, device=device, bundle=bundle.sha256, wave=0, state="SOAKING", created=1.0, updated=1.0
            )
        )
        store_predictions(session, device, predictions(bundle.sha256, ("a", 1), ("b", 0)), now=1.0)
    assert web.client.rollout(rollout).counts == {"SOAKING": 1}
    web.client.post_labels([LabelItem(id="a", label=1), LabelItem(id="b", label=1), LabelItem(id="c", label=1)])
    (performance,) = web.client.performance("fraud")
    assert (performance.labelled, performance.correct) == (2, 1)
    assert web.client.drift("fraud").profiles[0].rows == 0
    web.client.create_trigger(TriggerSpec(name="floor", model="fraud", kind="accuracy"))
    job = web.client.open_job("fraud").id
    claimed = web.client.claim_job("w")
    assert claimed is not None
    assert claimed.id == job
    web.client.finish_job(job, "DONE", release=bundle.release)
    assert web.client.lineage("fraud", "1").rollouts[0].devices == {device: "SOAKING"}
    assert web.client.verify_audit().intact


def test_many_writers_make_one_chain(on_postgres: Database) -> None:
    def write() -> None:
        for _ in range(10):
            with on_postgres.session() as session:
                audit.record(session, actor="a", action="b", subject="c", detail={"x": 0.1}, now=1.1)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with on_postgres.read() as session:
        assert audit.verify(session).intact


def test_two_uploads_of_the_same_bundle_at_once(
    on_postgres: Database, serve: Callable[[Database], Any], make_bundle: Callable[..., Path]
) -> None:
    web = serve(on_postgres)
    path = make_bundle(name="twice")
    barrier, answers = threading.Barrier(3), []

    def upload() -> None:
        barrier.wait()
        answers.append(web.publish(path).release)

    threads = [threading.Thread(target=upload) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 3
    assert len(set(answers)) == 1


def test_a_label_and_its_prediction_at_the_same_moment_are_joined(
    on_postgres: Database, serve: Callable[[Database], Any], predictions: Callable[..., Predictions]
) -> None:
    """Neither transaction sees what the other has not committed yet."""
    web = serve(on_postgres)
    bundle, device = web.published(name="moment"), web.enrol("till-moment").device
    ids = [f"moment-{number}" for number in range(20)]
    for number, identifier in enumerate(ids):
        stored, labelled = threading.Event(), threading.Event()

        batch = predictions(bundle.sha256, (identifier, 1), seq=number)

        def store(batch: Predictions = batch, stored: Any = stored, labelled: Any = labelled) -> None:
            with on_postgres.session() as session:
                store_predictions(session, device, batch, now=1.0)
                stored.set()
                labelled.wait(0.1)

        writer = threading.Thread(target=store)
        writer.start()
        stored.wait()
        with on_postgres.session() as session:
            store_labels(session, {identifier: 1}, now=2.0)
        labelled.set()
        writer.join()
    with on_postgres.read() as session:
        rows = session.scalars(select(PredictionRow).where(PredictionRow.id.in_(ids))).all()
    assert [row.label for row in rows] == ["1"] * len(ids)


def test_a_model_gets_one_job_and_a_name_one_device_however_many_ask_at_once(
    on_postgres: Database, serve: Callable[[Database], Any]
) -> None:
    web = serve(on_postgres)
    web.published(name="contended")
    barrier, jobs, devices = threading.Barrier(6), [], []
    tokens = [web.client.create_enrolment_token() for _ in range(6)]

    def ask(token: str) -> None:
        barrier.wait()
        request = EnrolRequest(token=token, name="till-contended", target=HOST)
        devices.append(FleetClient(web.url).enrol(request).device)
        with contextlib.suppress(ConflictError):
            jobs.append(web.client.open_job("contended").id)

    threads = [threading.Thread(target=ask, args=(token,)) for token in tokens]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(jobs) == 1
    assert len(set(devices)) == 6
