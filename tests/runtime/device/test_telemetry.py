"""Windows and predictions on their way to the outbox."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from outrider.runtime.errors import EngineFault, StorageFullError, TrustError
from outrider.runtime.messages import Predictions, Stat, decode
from outrider.runtime.models import Models
from outrider.runtime.probe import host_target
from outrider.runtime.profile import decode_window, learn_baseline, merge
from outrider.runtime.serving import FAULTS_IN_A_ROW, Serving
from outrider.runtime.telemetry import MAX_WAITING_PREDICTIONS, PREDICTIONS_PER_MESSAGE, Telemetry
from outrider.runtime.trust import TrustStore, generate_key

SHA = "ab" * 32
X = np.random.default_rng(0).normal(size=(2000, 3)).astype(np.float32)
BASELINE = learn_baseline(X, ["a", "b", "c"], np.full(2000, 0.25))


class Spool:
    """An outbox in memory, which can be full."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, bytes]] = []
        self.full = False

    def put(self, kind: str, payload: bytes) -> None:
        if self.full:
            raise StorageFullError
        self.messages.append((kind, payload))

    def stats(self) -> list[Stat]:
        return [decode(payload, Stat) for kind, payload in self.messages if kind == "stat"]

    def predictions(self) -> list[Predictions]:
        return [decode(payload, Predictions) for kind, payload in self.messages if kind == "pred"]


class Clock:
    """A time of day and a monotonic clock that move only when told to."""

    def __init__(self) -> None:
        self.wall, self.mono = 1_000_000.0, 0.0

    def forward(self, seconds: float) -> None:
        self.wall += seconds
        self.mono += seconds


def make(spool: Spool, clock: Clock, *, predictions: bool = True) -> Telemetry:
    return Telemetry(
        spool,
        boot_id="boot",
        next_seq=itertools.count(1).__next__,
        window_s=60.0,
        predictions=predictions,
        clock=lambda: clock.wall,
        monotonic=lambda: clock.mono,
    )


def test_a_window_is_sent_when_it_is_due_and_empty_ones_are_not() -> None:
    spool, clock = Spool(), Clock()
    telemetry = make(spool, clock)
    meter = telemetry.attach("main", SHA, BASELINE)
    meter.observe(X[:100], {"score": np.full(100, 0.5, np.float32)})
    assert telemetry.tick() <= 60
    assert spool.messages == []
    clock.forward(60)
    telemetry.tick()
    clock.forward(60)
    telemetry.tick()
    (stat,) = spool.stats()
    assert (stat.rows, stat.bundle, stat.slot, stat.end - stat.start) == (100, SHA, "main", 60.0)
    assert decode_window(stat.window, BASELINE).rows == 100


def test_every_row_is_in_exactly_one_window() -> None:
    spool, clock = Spool(), Clock()
    telemetry = make(spool, clock)
    meter = telemetry.attach("main", SHA, BASELINE)
    for part in np.array_split(X, 7):
        meter.observe(part, {"score": np.full(len(part), 0.5, np.float32)})
        clock.forward(60)
        telemetry.tick()
    telemetry.detach(meter)
    windows = [decode_window(stat.window, BASELINE) for stat in spool.stats()]
    total = windows[0]
    for window in windows[1:]:
        total = merge(total, window)
    assert total.rows == len(X)
    assert all(a.end == b.start for a, b in itertools.pairwise(windows))
    assert [stat.seq for stat in spool.stats()] == list(range(1, len(windows) + 1))


def test_a_clock_that_jumps_back_makes_no_negative_window() -> None:
    spool, clock = Spool(), Clock()
    telemetry = make(spool, clock)
    meter = telemetry.attach("main", SHA, BASELINE)
    meter.observe(X[:1], {"score": np.array([0.5], np.float32)})
    clock.wall -= 10 * 365 * 86_400
    telemetry.flush()
    (stat,) = spool.stats()
    assert stat.end == stat.start


def test_predictions_are_sent_in_bounded_messages() -> None:
    spool, clock = Spool(), Clock()
    telemetry = make(spool, clock)
    meter = telemetry.attach("main", SHA, None)
    rows = PREDICTIONS_PER_MESSAGE + 10
    outputs: dict[str, Any] = {
        "score": np.full(rows, 0.99, np.float32),
        "label": np.array(["fraud"] * rows),
    }
    telemetry.record(meter, [f"r{row}" for row in range(rows)], outputs, "score")
    clock.forward(5)
    telemetry.tick()
    first, second = spool.predictions()
    assert (len(first.predictions), len(second.predictions)) == (PREDICTIONS_PER_MESSAGE, 10)
    one = first.predictions[0]
    assert (one.id, one.prediction, one.score_bin, one.at) == ("r0", "fraud", 31, 1_000_000.0)


@pytest.mark.parametrize(
    ("outputs", "prediction", "score_bin"),
    [
        ({"score": np.array([0.5], np.float32), "label": np.array([1])}, 1, 16),
        ({"probabilities": np.array([[0.1, 0.7, 0.2]]), "label": np.array(["b"], object)}, "b", 22),
        ({"probabilities": np.array([[0.1, 0.7, 0.2]])}, 1, 22),
        ({"value": np.array([123.5])}, 123.5, 0),
        ({"value": np.array([[7.5]])}, 7.5, 0),
        ({"flag": np.array([True])}, 1, 0),
    ],
)
def test_what_a_prediction_says(outputs: dict[str, Any], prediction: object, score_bin: int) -> None:
    spool = Spool()
    telemetry = make(spool, Clock())
    meter = telemetry.attach("main", SHA, None)
    telemetry.record(meter, ["a"], outputs, next(iter(outputs)))
    telemetry.flush()
    (one,) = spool.predictions()[0].predictions
    assert (one.prediction, one.score_bin) == (prediction, score_bin)


def test_nothing_is_kept_without_ids_or_when_switched_off() -> None:
    spool = Spool()
    outputs = {"score": np.array([0.5], np.float32)}
    telemetry = make(spool, Clock())
    telemetry.record(telemetry.attach("main", SHA, None), [], outputs, "score")
    telemetry.flush()
    silent = make(spool, Clock(), predictions=False)
    silent.record(silent.attach("main", SHA, None), ["a"], outputs, "score")
    silent.flush()
    assert spool.messages == []


def test_a_full_disk_and_a_flood_lose_counts_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool()
    telemetry = make(spool, Clock())
    meter = telemetry.attach("main", SHA, BASELINE)
    outputs = {"score": np.full(1000, 0.5, np.float32)}
    for _ in range(MAX_WAITING_PREDICTIONS // 1000 + 2):
        telemetry.record(meter, [f"i{row}" for row in range(1000)], outputs, "score")
    assert len(meter.predictions) == MAX_WAITING_PREDICTIONS
    assert meter.predictions_lost == 2000
    meter.observe(X[:10], {"score": np.full(10, 0.5, np.float32)})
    spool.full = True
    telemetry.flush()
    spool.full = False
    telemetry.record(meter, ["z"], {"score": np.array([0.5], np.float32)}, "score")
    telemetry.flush()
    assert [p.id for m in spool.predictions() for p in m.predictions] == ["z"]


def test_rows_that_do_not_fit_the_baseline_are_served_uncounted() -> None:
    spool = Spool()
    telemetry = make(spool, Clock())
    meter = telemetry.attach("main", SHA, BASELINE)
    meter.observe(np.zeros((1, 9), np.float32), {"score": np.array([0.5], np.float32)})
    telemetry.flush()
    assert spool.stats() == []


# Serving: a bundle's way into its slot -----------------------------------------------------------------------------


def serve(maker: Any, spool: Spool, unhealthy: list[str], trust: TrustStore | None = None) -> tuple[Models, Serving]:
    models = Models()
    serving = Serving(
        models,
        make(spool, Clock()),
        trust=trust or maker.trust(),
        target=host_target(),
        on_unhealthy=lambda slot, _sha, reason, _detail: unhealthy.append(f"{slot}: {reason}"),
    )
    return models, serving


def test_a_swap_sends_the_last_window_of_the_old_bundle(maker: Any) -> None:
    spool = Spool()
    models, serving = serve(maker, spool, [])
    first, second = maker.make("1"), maker.make("2", divisor=20.0)
    serving.activate("main", first.path)
    serving.activate("main", first.path)
    with models.lease("main") as live:
        live.session.run({"features": np.ones((5, 2), np.float32)})
        serving.activate("main", second.path)
        assert spool.stats() == []
    assert [(stat.bundle, stat.rows) for stat in spool.stats()] == [(first.sha256, 5)]
    assert models.sha256("main") == second.sha256
    serving.activate("main", None)
    assert models.slots() == ()


def test_an_untrusted_bundle_does_not_replace_a_good_one(maker: Any) -> None:
    models, serving = serve(maker, Spool(), [])
    serving.activate("main", maker.make("1").path)
    stranger = TrustStore({purpose: [generate_key().public] for purpose in TrustStore.FOLDERS.values()})
    _, distrusting = serve(maker, Spool(), [], stranger)
    with pytest.raises(TrustError):
        distrusting.activate("main", maker.make("1").path)
    assert models.slots() == ("main",)
    models.close()


def test_faults_in_a_row_make_a_bundle_unhealthy_once(maker: Any) -> None:
    unhealthy: list[str] = []
    models, serving = serve(maker, Spool(), unhealthy)
    serving.activate("main", maker.make("1").path)
    with models.lease("main") as live:
        for _ in range(FAULTS_IN_A_ROW - 1):
            serving.failed(live, EngineFault("7"))
        serving.served(live, [], {})
        for _ in range(FAULTS_IN_A_ROW + 2):
            serving.failed(live, EngineFault("7"))
        stale: Any = SimpleNamespace(slot="main", sha256="other")
        serving.failed(stale, EngineFault("7"))
    assert unhealthy == ["main: engine-fault"]
    models.close()
