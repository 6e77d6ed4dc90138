"""The drift test: no page without drift, a page soon after it, and what a page says."""

from __future__ import annotations

import itertools

import msgspec
import numpy as np
import pytest

from outrider.fleet.drift import DriftSignal, FeatureMonitor, MonitorState, rank
from outrider.fleet.drift.limits import NULLS, OUTSIDE, make_limits
from outrider.fleet.drift.starts import MAX_STARTS
from outrider.runtime.errors import BadDataError
from outrider.runtime.profile import Baseline, Counter, Window, learn_baseline, merge

ROWS = 1000
HOUR = 3600.0


def learn(rows: np.ndarray, scores: np.ndarray | None = None, blocks: int | None = None) -> Baseline:
    names = [f"f{i}" for i in range(rows.shape[1])]
    return learn_baseline(rows.astype(np.float32), names, scores, blocks=blocks)


def window(baseline: Baseline, rows: np.ndarray, t: int, scores: np.ndarray | None = None) -> Window:
    counter = Counter(baseline)
    counter.observe(rows.astype(np.float32), scores)
    return counter.take(t * HOUR, (t + 1) * HOUR)


def first_pages(state: MonitorState, windows: list[Window]) -> dict[str, tuple[int, DriftSignal]]:
    pages: dict[str, tuple[int, DriftSignal]] = {}
    for t, each in enumerate(windows):
        state, signals = FeatureMonitor.update(state, each)
        for signal in signals:
            assert signal.feature not in pages, "a feature is signalled once"
            pages[signal.feature] = (t, signal)
    return pages


def test_no_page_in_null_streams() -> None:
    """1,600 streams of 24 windows, each set against its own finite reference, at a threshold of only 1/0.01."""
    rng = np.random.default_rng(20)
    for reference_rows in (400, 2000, 20_000, 20_000):
        baseline = learn(rng.normal(size=(reference_rows, 400)))
        state = FeatureMonitor.new_state(baseline, alpha=0.01, streams=1)
        for t in range(24):
            state, signals = FeatureMonitor.update(state, window(baseline, rng.normal(size=(500, 400)), t))
            assert signals == []


@pytest.mark.parametrize(
    ("shift", "within", "at_least"), [(0.5, 1, 1.0), (0.3, 2, 0.9), (0.2, 5, 0.85)], ids=["0.5", "0.3", "0.2"]
)
def test_a_shift_is_found_at_one_in_a_million(shift: float, within: int, at_least: float) -> None:
    """1,000 rows a window, shifted from the third window on, in the same test as unshifted features."""
    rng = np.random.default_rng(21)
    features, before = 60, 2
    baseline = learn(rng.normal(size=(20_000, features)))
    state = FeatureMonitor.new_state(baseline, alpha=0.01, streams=10_000)
    offset = np.where(np.arange(features) < 40, shift, 0.0)
    windows = [
        window(baseline, rng.normal(size=(ROWS, features)) + offset * (t >= before), t) for t in range(before + within)
    ]
    pages = first_pages(state, windows)
    assert all(int(name[1:]) < 40 for name in pages)
    assert len(pages) >= at_least * 40
    for t, signal in pages.values():
        assert t >= before
        assert signal.since >= (before - 1) * HOUR
        assert 0 < signal.effect < 0.3
        assert signal.e_value >= signal.threshold == pytest.approx(1e6)
        assert (signal.kind, signal.rows % ROWS) == ("values", 0)


def test_a_wider_spread_is_found_in_one_window() -> None:
    rng = np.random.default_rng(22)
    baseline = learn(rng.normal(size=(20_000, 20)))
    state = FeatureMonitor.new_state(baseline, alpha=0.01, streams=10_000)
    assert len(first_pages(state, [window(baseline, 1.5 * rng.normal(size=(ROWS, 20)), 0)])) >= 17


def test_nulls_unseen_values_and_scores_are_tested() -> None:
    rng = np.random.default_rng(23)
    rows = np.stack([rng.normal(size=8000), rng.integers(0, 5, 8000), rng.normal(size=8000)], 1)
    baseline = learn(rows, rng.beta(1, 3, 8000))
    state = FeatureMonitor.new_state(baseline)
    live = rows[:1500].copy()
    live[rng.random(1500) < 0.2, 0] = np.nan
    live[rng.random(1500) < 0.1, 1] = 7
    pages = first_pages(state, [window(baseline, live, 0, rng.beta(1, 2, 1500))])
    assert {name: signal.kind for name, (_, signal) in pages.items()} == {
        "f0": "nulls",
        "f1": "outside",
        "(score)": "values",
    }
    assert pages["f0"][1].effect == pytest.approx(0.2, abs=0.05)


def test_a_long_history_does_not_hide_a_change() -> None:
    rng = np.random.default_rng(24)
    baseline = learn(rng.normal(size=(20_000, 5)))
    state = FeatureMonitor.new_state(baseline, alpha=0.01, streams=10_000)
    for t in range(300):
        state, signals = FeatureMonitor.update(state, window(baseline, rng.normal(size=(200, 5)), t))
        assert signals == []
    size = len(msgspec.msgpack.encode(state))
    assert len(state.starts) == MAX_STARTS
    windows = [window(baseline, rng.normal(size=(ROWS, 5)) + 0.5, 300 + t) for t in range(2)]
    pages = first_pages(state, windows)
    assert len(pages) == 5
    assert all(signal.since >= 299 * HOUR for _, signal in pages.values())
    assert size < 20_000


def test_the_state_survives_being_stored() -> None:
    rng = np.random.default_rng(25)
    baseline = learn(rng.normal(size=(5000, 4)), rng.random(5000), blocks=20)
    kept = stored = FeatureMonitor.new_state(baseline)
    for t in range(25):
        each = window(baseline, rng.normal(size=(300, 4)) + 0.02 * t, t, rng.random(300))
        kept, signals = FeatureMonitor.update(kept, each)
        stored, again = FeatureMonitor.update(stored, each)
        assert signals == again
        stored = msgspec.msgpack.decode(msgspec.msgpack.encode(stored), type=MonitorState)
        assert stored == kept
    assert kept.paged
    assert rank(kept.evidence, 0.01)[0].discovered


def test_time_of_day_raises_no_alarm_where_the_baseline_knows_it() -> None:
    """Rows in order of time: hours come one after the other, so no window looks like the whole."""
    rng = np.random.default_rng(26)
    n = 48_000
    hour = (np.arange(n) // 100) % 24
    rows = np.stack([hour, rng.normal(size=n) + 0.3 * np.sin(hour / 24 * 2 * np.pi), rng.normal(size=n)], 1)
    train, live = rows[:24_000], rows[24_000:]

    def run(baseline: Baseline, live: np.ndarray) -> dict[str, tuple[int, DriftSignal]]:
        parts = [window(baseline, live[i : i + 700], i // 700) for i in range(0, len(live) - 700, 700)]
        return first_pages(FeatureMonitor.new_state(baseline), parts)

    assert {"f0", "f1"} <= run(learn(train), live).keys()
    knowing = learn(train, blocks=40)
    assert run(knowing, live) == {}
    shifted = live + np.array([0, 0, 0.5])
    assert {name: t for name, (t, _) in run(knowing, shifted).items()} == {"f2": 0}
    lasting = live.copy()
    lasting[:, 1] += 1.0
    assert set(run(knowing, lasting)) == {"f1"}


def test_merged_devices_do_not_look_like_a_longer_time() -> None:
    """Three devices see the same hours at once: three times the rows are not three times the day."""
    rng = np.random.default_rng(27)
    hour = (np.arange(24_000) // 100) % 24
    baseline = learn(np.stack([hour, rng.normal(size=24_000)], 1), blocks=40)

    def live(t: int) -> Window:
        now = (np.arange(t * 600, (t + 1) * 600) // 100) % 24
        return window(baseline, np.stack([now, rng.normal(size=600)], 1), t)

    unaware = aware = FeatureMonitor.new_state(baseline)
    heard = []
    for t in range(12):
        fleet = merge(merge(live(t), live(t)), merge(live(t), live(t)))
        unaware, signals = FeatureMonitor.update(unaware, fleet)
        heard += signals
        aware, signals = FeatureMonitor.update(aware, fleet, sources=4)
        assert signals == []
    assert [signal.feature for signal in heard] == ["f0"]


def test_extra_margin_silences_one_feature() -> None:
    rng = np.random.default_rng(28)
    baseline = learn(rng.normal(size=(5000, 2)))
    state = FeatureMonitor.new_state(baseline, extra={"f0": 0.3})
    windows = [window(baseline, rng.normal(size=(ROWS, 2)) + 0.5, t) for t in range(5)]
    assert set(first_pages(state, windows)) == {"f1"}


def test_empty_windows_change_nothing() -> None:
    baseline = learn(np.random.default_rng(0).normal(size=(500, 2)))
    state = FeatureMonitor.new_state(baseline)
    after, signals = FeatureMonitor.update(state, Counter(baseline).take(0, 1))
    assert after == state
    assert signals == []


def test_tiny_windows_share_a_start() -> None:
    rng = np.random.default_rng(29)
    baseline = learn(rng.normal(size=(5000, 2)))
    state = FeatureMonitor.new_state(baseline)
    for t in range(100):
        state, _ = FeatureMonitor.update(state, window(baseline, rng.normal(size=(5, 2)), t))
    assert state.opened == 5


def test_a_baseline_of_constants_and_nulls_can_be_monitored() -> None:
    rows = np.stack([np.full(1000, 2.0), np.full(1000, np.nan)], 1)
    baseline = learn(rows)
    state = FeatureMonitor.new_state(baseline)
    assert first_pages(state, [window(baseline, rows, 0)]) == {}
    pages = first_pages(state, [window(baseline, np.ones((500, 2)), 0)])
    assert {name: signal.kind for name, (_, signal) in pages.items()} == {"f0": "outside", "f1": "nulls"}


def test_limits_follow_the_formula() -> None:
    rng = np.random.default_rng(30)
    baseline = learn(rng.normal(size=(100_000, 1)))
    limits = make_limits(baseline, alpha=0.01, margin=0.015, extra={"f0": 0.01})
    lower, upper = limits.at(0)
    shares = limits.share_array()
    error = np.sqrt(shares[0, :15] * (1 - shares[0, :15]) / 100_000)
    np.testing.assert_allclose(upper[0, :15], shares[0, :15] + 0.025 + 2.5 * error, rtol=1e-3)
    np.testing.assert_allclose(lower[0, :15], np.maximum(shares[0, :15] - 0.025 - 2.5 * error, 0), rtol=1e-3)
    assert lower[0, NULLS] == lower[0, OUTSIDE] == 0
    assert 0.025 < upper[0, NULLS] <= upper[0, OUTSIDE] < 0.03
    small = make_limits(learn(rng.normal(size=(200, 1))), alpha=0.01, margin=0.015, extra={}).at(0)[1]
    assert small[0, 7] - 0.5 > 0.1, "a small reference decides by its exact limits"


@pytest.mark.parametrize(
    "arguments",
    [{"alpha": 0.0}, {"margin": 0.0}, {"streams": 0}, {"extra": {"nope": 0.1}}, {"extra": {"f0": 2.0}}],
)
def test_bad_settings_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(BadDataError):
        FeatureMonitor.new_state(learn(np.ones((10, 1))), **arguments)


def test_windows_of_another_baseline_or_time_are_refused() -> None:
    one, other = (learn(np.random.default_rng(seed).normal(size=(100, 1))) for seed in (1, 2))
    state = FeatureMonitor.new_state(one)
    with pytest.raises(BadDataError, match="another baseline"):
        FeatureMonitor.update(state, window(other, np.ones((5, 1)), 0))
    for arguments in ({"sources": 0}, {"start": 5.0, "end": 4.0}):
        with pytest.raises(BadDataError):
            FeatureMonitor.update(state, window(one, np.ones((5, 1)), 0), **arguments)


def test_pages_are_the_same_however_devices_are_merged() -> None:
    rng = np.random.default_rng(31)
    baseline = learn(rng.normal(size=(2000, 3)))
    parts = [window(baseline, rng.normal(size=(200, 3)) + 0.4, 0) for _ in range(3)]
    states = set()
    for a, b, c in itertools.permutations(parts):
        _, signals = FeatureMonitor.update(FeatureMonitor.new_state(baseline), merge(merge(a, b), c))
        states.add(tuple(signals))
    assert len(states) == 1
