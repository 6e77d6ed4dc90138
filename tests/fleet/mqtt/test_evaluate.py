"""Windows and labels into drift events and retrain Jobs: each counted once, also when the manager starts afresh."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from outrider.fleet.db import (
    AuditRow,
    BundleRow,
    Database,
    DeploymentRow,
    DeviceRow,
    DriftEventRow,
    DriftStateRow,
    JobRow,
    PredictionRow,
    ReleaseRow,
    RolloutRow,
    TriggerRow,
    WindowRow,
)
from outrider.fleet.drift import MonitorState
from outrider.fleet.manager import drift as drift_module
from outrider.fleet.manager.apply import Known, apply_predictions, apply_stat
from outrider.fleet.manager.catalogue import Catalogue
from outrider.fleet.manager.drift import FIRST_DEVICES, DriftEvaluator, streams_of
from outrider.fleet.manager.retrain import champion_of, step_triggers
from outrider.fleet.predictions import store_labels
from outrider.fleet.settings import FleetSettings
from outrider.runtime.bundle import Manifest
from outrider.runtime.messages import Prediction, Predictions, Stat
from outrider.runtime.profile import Baseline, Counter, encode_baseline, encode_window, learn_baseline
from outrider.runtime.target import Target

RNG = np.random.default_rng(3)
BASELINE = learn_baseline(RNG.normal(size=(20_000, 2)).astype(np.float32), ("amount", "hour"), None)
HOST = Target(name="host", arch="x86_64", triple="x86_64-linux-gnu")
_numbers = itertools.count()


class World:
    """A database with devices, releases and what they sent; a new evaluator each time, as after a restart."""

    def __init__(self, database: Database, manifest: Callable[..., Manifest]) -> None:
        self.database = database
        self.manifest = manifest
        self.now = 1000.0
        for name in ("a", "b", "c"):
            with database.session() as session:
                session.add(
                    DeviceRow(
                        id=name, tenant="t", name=name, group="g", secret_hash=name, created=0.0,
                        target=msgspec.to_builtins(HOST),
                    )
                )  # fmt: skip

    def release(self, version: str, *, state: str = "RUNNING", baseline: Baseline = BASELINE) -> str:
        sha256 = version.rjust(64, "0")
        with self.database.session() as session:
            release = ReleaseRow(name="fraud", version=version, created=0.0)
            session.add(release)
            session.flush()
            session.add(
                BundleRow(
                    sha256=sha256, size=1, name="fraud", version=version, target="host", envelope="{}", path="x",
                    manifest=msgspec.to_builtins(self.manifest("fraud", version, "host")), release=release.number,
                    baseline=encode_baseline(baseline), created=0.0,
                )
            )  # fmt: skip
            session.add(
                RolloutRow(
                    release=release.number, group="g", canary=0, state=state, settings={}, seed="", created=self.now
                )
            )
        return sha256

    def give(self, bundle: str, device: str) -> None:
        with self.database.session() as session:
            release = session.get_one(BundleRow, bundle).release
            rollout = session.scalars(select(RolloutRow.id).filter_by(release=release)).one()
            session.add(
                DeploymentRow(
                    rollout=rollout, device=device, bundle=bundle, wave=0, state="COMMITTED", created=0.0, updated=0.0
                )
            )

    def window(
        self,
        bundle: str,
        device: str,
        *,
        shift: float = 0.0,
        rows: int = 1000,
        bad: bool = False,
        baseline: Baseline = BASELINE,
    ) -> None:
        counter = Counter(baseline)
        values = RNG.normal(size=(rows, 2)).astype(np.float32)
        values[:, 0] += shift
        counter.observe(values, None)
        number = next(_numbers)
        payload = b"\x01broken" if bad else encode_window(counter.take(self.now, self.now + 60), baseline)
        with self.database.session() as session:
            session.add(
                WindowRow(
                    device=device, bundle=bundle, boot_id="b", seq=number, start=self.now, end=self.now + 60,
                    rows=rows, payload=payload, received=self.now,
                )
            )  # fmt: skip

    def label(self, bundle: str, *, correct: int, total: int, device: str = "a") -> None:
        with self.database.session() as session:
            for i in range(total):
                label = "1" if i < correct else "0"
                session.add(
                    PredictionRow(
                        id=f"p{next(_numbers)}", device=device, bundle=bundle, score_bin=1, prediction="1",
                        at=0.0, label=label, labelled_at=self.now,
                    )
                )  # fmt: skip

    def trigger(self, kind: str = "accuracy", **settings: Any) -> int:
        with self.database.session() as session:
            row = TriggerRow(
                name=f"{kind}-{next(_numbers)}", model="fraud", kind=kind, settings=settings, enabled=True, created=0.0
            )
            session.add(row)
            session.flush()
            return row.id

    def evaluate(self) -> None:
        evaluator = DriftEvaluator(self.database, FleetSettings(), Catalogue())
        while evaluator.step(now=self.now):
            pass

    def judge(self) -> list[JobRow]:
        with self.database.session() as session:
            step_triggers(session, now=self.now)
        with self.database.read() as session:
            return list(session.scalars(select(JobRow).order_by(JobRow.id)))

    def states(self) -> dict[tuple[str, str], MonitorState]:
        with self.database.read() as session:
            rows = session.scalars(select(DriftStateRow).filter_by(kind="windows").where(DriftStateRow.bundle != ""))
            return {(row.scope, row.bundle): msgspec.msgpack.decode(row.state, type=MonitorState) for row in rows}

    def events(self) -> list[DriftEventRow]:
        with self.database.read() as session:
            return list(session.scalars(select(DriftEventRow).order_by(DriftEventRow.id)))


@pytest.fixture
def world(database: Database, manifest: Callable[..., Manifest]) -> World:
    return World(database, manifest)


# Drift ----------------------------------------------------------------------------------------------------------


def test_every_window_is_evaluated_once_for_its_device_and_once_for_the_fleet(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift_module, "WINDOWS_A_STEP", 4)
    bundle = world.release("1")
    for _ in range(3):
        for device in ("a", "b", "c"):
            world.window(bundle, device, rows=100)
    world.window(bundle, "a", bad=True)
    world.window("f" * 64, "a", rows=100)  # of a bundle that nobody published
    world.evaluate()
    world.window(bundle, "b", rows=50)
    world.evaluate()
    world.evaluate()
    rows = {scope: state.total.rows for (scope, _), state in world.states().items()}
    assert rows == {"fleet": 950, "a": 300, "b": 350, "c": 300}
    assert world.events() == []


def test_a_step_that_fails_before_its_commit_is_made_again_whole(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = world.release("1")
    world.window(bundle, "a", rows=100)

    def fails(*_: object) -> None:
        raise RuntimeError("power cut")

    with monkeypatch.context() as broken:
        broken.setattr(drift_module, "_save", fails)
        with pytest.raises(RuntimeError):
            world.evaluate()
    world.evaluate()
    assert world.states()["fleet", bundle].total.rows == 100


def test_a_baseline_that_cannot_be_tested_does_not_hold_up_the_others(world: World) -> None:
    values = RNG.normal(size=(20_000, 2)).astype(np.float32)
    odd = learn_baseline(values, ("amount", "(score)"), RNG.random(20_000))  # the name of the score's own test
    untested, tested = world.release("1", baseline=odd), world.release("2")
    for _ in range(2):
        world.window(untested, "a", baseline=odd)
        world.window(tested, "a", rows=100)
        world.evaluate()
    rows = {scope: state.total.rows for scope, state in world.states().items()}
    assert rows == {("fleet", tested): 200, ("a", tested): 200}


def test_drift_is_one_event_a_feature_and_names_since_when_and_how_large(world: World) -> None:
    bundle = world.release("1")
    for _ in range(3):
        for device in ("a", "b", "c"):
            world.window(bundle, device)
        world.evaluate()
        world.now += 60
    assert world.events() == []
    began = world.now
    for _ in range(4):
        for device in ("a", "b", "c"):
            world.window(bundle, device, shift=0.5)
        world.evaluate()
        world.now += 60
    fleet_wide = [event for event in world.events() if event.scope == "fleet"]
    [event] = fleet_wide
    assert (event.feature, event.model, event.bundle) == ("amount", "fraud", bundle)
    assert began - 60 <= event.since <= began + 60
    assert 0.1 < event.effect < 0.4
    assert event.e_value >= event.threshold
    assert {(e.scope, e.feature) for e in world.events()} == {(s, "amount") for s in ("fleet", "a", "b", "c")}
    with world.database.read() as session:
        entries = session.scalars(select(AuditRow).filter_by(action="drift.detect")).all()
    assert len(entries) == 4
    assert {entry.detail["feature"] for entry in entries} == {"amount"}


@given(st.integers(1, 50), st.integers(1, 2000))
def test_all_scopes_together_stay_within_alpha(features: int, devices: int) -> None:
    spent = features / streams_of(features, None)
    spent += sum(features / streams_of(features, device) for device in range(devices))
    assert spent <= 1.0
    assert streams_of(features, 0) == 2 * features * FIRST_DEVICES * 2


# Retraining -----------------------------------------------------------------------------------------------------


def test_a_tested_breach_opens_one_job_that_says_why(world: World) -> None:
    bundle = world.release("1")
    trigger = world.trigger(floor=0.93)
    world.label(bundle, correct=470, total=500)  # 94 %
    assert world.judge() == []
    world.label(bundle, correct=70, total=100)
    [job] = world.judge()
    assert (job.state, job.trigger, job.model) == ("OPEN", trigger, "fraud")
    assert job.reason["kind"] == "accuracy"
    assert job.reason["floor"] == 0.93
    assert job.reason["e_value"] >= job.reason["threshold"] == pytest.approx(100.0)
    assert job.reason["accuracy"] < 0.93
    assert job.reason["labels"] > 0
    assert job.reason["release"] == 1
    with world.database.read() as session:
        assert session.scalars(select(AuditRow).filter_by(action="job.open")).one().detail["e_value"] > 0
    world.label(bundle, correct=0, total=100)
    assert len(world.judge()) == 1  # one unfinished Job a model


def test_each_label_counts_once_for_every_trigger(world: World) -> None:
    bundle = world.release("1")
    first, second = world.trigger(floor=0.9), world.trigger(floor=0.5)
    world.label(bundle, correct=9, total=10)
    for _ in range(3):
        world.judge()
    world.label(bundle, correct=5, total=5)
    world.judge()
    with world.database.read() as session:
        for trigger in (first, second):
            row = session.get_one(DriftStateRow, (f"trigger:{trigger}", "release:1", "accuracy"))
            state = msgspec.msgpack.decode(row.state)
            assert (state["test"]["labels"], state["test"]["correct"]) == (15, 14)


def test_labels_and_predictions_join_in_whatever_order(world: World) -> None:
    bundle = world.release("1")
    world.give(bundle, "a")
    world.trigger(floor=0.9, min_labels=1)
    batch = Predictions(
        v=1,
        boot_id="b",
        seq=1,
        slot="main",
        bundle=bundle,
        predictions=tuple(Prediction(id=f"x{i}", score_bin=1, prediction=1, at=0.0) for i in range(60)),
    )
    labels: dict[str, int | float | str] = {f"x{i}": 0 for i in range(60)}
    early = dict(list(labels.items())[:30])
    unknown = msgspec.structs.replace(batch, bundle="e" * 64)
    with world.database.session() as session:
        known = Known(session, [("a", batch), ("a", unknown)])
        store_labels(session, early, now=1.0)
        for message in (batch, batch, unknown):
            apply_predictions(known, known.devices["a"], message, now=2.0)
        store_labels(session, labels, now=3.0)
    [job] = world.judge()
    assert job.reason["labels"] == 60


def test_a_device_is_believed_only_about_bundles_that_it_was_given(world: World) -> None:
    """One device must not pass judgement on what others run."""
    bundle = world.release("1")
    world.give(bundle, "a")
    stat = Stat(v=1, boot_id="b", seq=1, slot="main", bundle=bundle, start=1.0, end=2.0, rows=3, window=b"x")
    told = Prediction(id="x", score_bin=1, prediction=1, at=0.0)
    batch = Predictions(v=1, boot_id="b", seq=2, slot="main", bundle=bundle, predictions=(told,))
    for device, count in (("b", 0), ("a", 1)):
        with world.database.session() as session:
            known = Known(session, [(device, stat), (device, batch)])
            apply_stat(known, known.devices[device], stat, now=1.0)
            apply_predictions(known, known.devices[device], batch, now=1.0)
        with world.database.read() as session:
            assert len(session.scalars(select(WindowRow)).all()) == count
            assert len(session.scalars(select(PredictionRow)).all()) == count


def test_a_superseded_release_opens_no_further_job(world: World) -> None:
    old = world.release("1")
    world.trigger(floor=0.93, cooldown_s=0)
    world.label(old, correct=0, total=200)
    [job] = world.judge()
    with world.database.session() as session:
        session.get_one(JobRow, job.id).state = "DONE"
    new = world.release("2")
    world.label(old, correct=0, total=500)
    assert len(world.judge()) == 1
    with world.database.read() as session:
        champion = champion_of(session, "fraud")
        assert champion is not None
        assert champion.bundles == (new,)
        assert champion_of(session, "other") is None
    # Where the new release is aborted, the old one is the champion again, and its labels count.
    with world.database.session() as session:
        session.get_one(RolloutRow, 2).state = "ABORTED"
    assert len(world.judge()) == 2


def test_a_failed_job_is_followed_by_another_only_after_its_pause_and_more_evidence(world: World) -> None:
    bundle = world.release("1")
    world.trigger(floor=0.93, cooldown_s=100, min_labels=50)
    world.label(bundle, correct=0, total=100)
    [job] = world.judge()
    with world.database.session() as session:
        row = session.get_one(JobRow, job.id)
        row.state, row.finished = "FAILED", world.now
    world.now += 200
    assert len(world.judge()) == 1
    world.label(bundle, correct=0, total=60)
    assert len(world.judge()) == 2


def test_drift_opens_a_job_where_a_trigger_says_so(world: World) -> None:
    bundle = world.release("1")
    for _ in range(3):
        for device in ("a", "b", "c"):
            world.window(bundle, device, shift=0.8)
    world.evaluate()
    assert world.events()
    assert world.judge() == []
    world.trigger("drift", features="hour")
    assert world.judge() == []
    world.trigger("drift", features="amount")
    [job] = world.judge()
    assert (job.reason["kind"], job.reason["features"]) == ("drift", ["amount"])


def test_a_trigger_that_cannot_be_read_does_not_stop_the_others(world: World) -> None:
    bundle = world.release("1")
    world.trigger("accuracy", nonsense=1)
    world.trigger("accuracy", floor=0.93)
    world.label(bundle, correct=0, total=200)
    assert len(world.judge()) == 1


@pytest.mark.system
def test_windows_predictions_and_labels_over_mqtt_open_a_job(fleet: Any, wait: Callable[..., Any]) -> None:
    device = fleet.enrol("a").start()
    bundle = fleet.publish("1")
    rollout = fleet.rollout("1", canary=1)
    wait(lambda: fleet.state(rollout) == "DONE")
    with fleet.database.session() as session:
        session.add(
            TriggerRow(
                name="floor", model="fraud", kind="accuracy", settings={"floor": 0.93}, enabled=True, created=0.0
            )
        )
        baseline_bytes = session.get_one(BundleRow, bundle).baseline
    from outrider.runtime.profile import decode_baseline

    baseline = decode_baseline(baseline_bytes)
    for _ in range(6):
        counter = Counter(baseline)
        counter.observe((RNG.normal(size=(500, 2)) + 1.0).astype(np.float32), None)
        now = time.time()
        window = counter.take(now - 10, now)
        stat = Stat(
            v=1, boot_id=device.boot_id, seq=device.next_seq(), slot="main", bundle=bundle, start=window.start,
            end=window.end, rows=window.rows, window=encode_window(window, baseline),
        )  # fmt: skip
        device.send("stat", stat)
    predictions = tuple(Prediction(id=f"tx-{i}", score_bin=2, prediction=1, at=0.0) for i in range(200))
    device.send(
        "pred",
        Predictions(
            v=1, boot_id=device.boot_id, seq=device.next_seq(), slot="main", bundle=bundle, predictions=predictions
        ),
    )
    with fleet.database.session() as session:
        store_labels(session, {f"tx-{i}": i % 2 for i in range(200)}, now=time.time())
    fleet.manager.wake()

    def rows(kind: type[Any]) -> list[Any]:
        with fleet.database.read() as session:
            return list(session.scalars(select(kind)))

    [job] = wait(lambda: rows(JobRow), what="the Job")
    assert job.reason["labels"] == 200
    assert job.reason["accuracy"] == 0.5
    wait(lambda: {event.feature for event in rows(DriftEventRow) if event.scope == "fleet"} == {"amount", "hour"})
