"""Windows: exact merging, a small and strict encoding."""

from __future__ import annotations

import functools
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.runtime.errors import BadDataError, BadMessageError, OutriderError
from outrider.runtime.profile import (
    Baseline,
    Counter,
    Window,
    decode_window,
    encode_window,
    learn_baseline,
    merge,
)
from outrider.runtime.profile.varint import decode_varints, encode_varints


@functools.cache
def make_baseline(features: int = 5, scored: bool = True) -> Baseline:
    rng = np.random.default_rng(11)
    rows = rng.normal(size=(5000, features)).astype(np.float32)
    rows[:, 0] = np.round(rows[:, 0])
    rows[::7, -1] = np.nan
    return learn_baseline(rows, [f"f{i}" for i in range(features)], rng.beta(0.5, 3, 5000) if scored else None)


def make_window(seed: int, rows: int, baseline: Baseline | None = None) -> Window:
    baseline = baseline or make_baseline()
    rng = np.random.default_rng(seed)
    features = (rng.normal(size=(rows, len(baseline.features))) * rng.choice([0.1, 1, 3])).astype(np.float32)
    features[rng.random(features.shape) < 0.05] = np.nan
    counter = Counter(baseline)
    counter.observe(features, rng.random(rows))
    start = float(rng.uniform(0, 2e9))
    return counter.take(start, start + float(rng.uniform(0, 1e5)))


windows = st.builds(make_window, st.integers(0, 2**32 - 1), st.integers(0, 1500))


@settings(deadline=None, max_examples=40)
@given(windows, windows, windows)
def test_merging_is_exact_in_any_order_and_grouping(a: Window, b: Window, c: Window) -> None:
    assert merge(a, b) == merge(b, a)
    assert merge(merge(a, b), c) == merge(a, merge(b, c))
    total = merge(a, b)
    np.testing.assert_array_equal(total.bins, a.bins + b.bins)
    assert total.rows == a.rows + b.rows
    assert total.bins.dtype == np.int64


def test_merging_devices_equals_counting_everything() -> None:
    baseline = make_baseline()
    rng = np.random.default_rng(0)
    features, scores = rng.normal(size=(900, 5)).astype(np.float32), rng.random(900)
    whole, parts = Counter(baseline), [Counter(baseline) for _ in range(3)]
    whole.observe(features, scores)
    for i, counter in enumerate(parts):
        counter.observe(features[i::3], scores[i::3])
    assert functools.reduce(merge, (counter.take(1.0, 2.0) for counter in parts)) == whole.take(1.0, 2.0)


def test_windows_of_different_baselines_do_not_merge() -> None:
    with pytest.raises(BadDataError):
        merge(make_window(1, 10), make_window(1, 10, make_baseline(3)))
    with pytest.raises(BadDataError):
        encode_window(make_window(1, 10), make_baseline(3))


@settings(deadline=None, max_examples=60)
@given(windows, st.booleans())
def test_round_trip(window: Window, scored: bool) -> None:
    assert decode_window(encode_window(window, make_baseline()), make_baseline()) == window
    bare = make_baseline(2, scored)
    other = make_window(3, 100, bare)
    assert decode_window(encode_window(other, bare), bare) == other


def test_a_huge_merged_window_round_trips() -> None:
    window = functools.reduce(merge, [make_window(9, 1500)] * 3)
    for _ in range(30):
        window = merge(window, window)
    assert decode_window(encode_window(window, make_baseline()), make_baseline()) == window


def test_size_of_100_features_and_1000_rows_in_distribution() -> None:
    rng = np.random.default_rng(2)
    baseline = learn_baseline(
        rng.normal(size=(20_000, 100)).astype(np.float32), [f"f{i}" for i in range(100)], rng.beta(0.5, 3, 20_000)
    )
    for _ in range(5):
        counter = Counter(baseline)
        counter.observe(rng.normal(size=(1000, 100)).astype(np.float32), rng.beta(0.5, 3, 1000))
        assert len(encode_window(counter.take(1.7e9, 1.7e9 + 3600), baseline)) <= 1100


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=300))
def test_garbage_is_refused(data: bytes) -> None:
    for candidate in (data, b"\x01" + data, b"\x01" + zlib.compress(data)):
        with pytest.raises(BadMessageError):
            decode_window(candidate, make_baseline())


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 50), st.data())
def test_a_changed_body_is_refused_or_consistent(seed: int, data: st.DataObject) -> None:
    """Any bytes in the right frame: either an OutriderError, or counts that add up."""
    baseline = make_baseline()
    body = bytearray(zlib.decompress(encode_window(make_window(seed, 50), baseline)[1:]))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(4, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        window = decode_window(b"\x01" + zlib.compress(bytes(body)), baseline)
    except OutriderError:
        return
    assert min(window.rows, window.bins.min(), window.nulls.min(), window.outside.min(), window.scores.min()) >= 0
    assert np.all(window.bins.sum(axis=1) + window.nulls == window.rows)
    assert np.all(window.outside <= window.rows - window.nulls)
    assert window.scores.sum() <= window.rows
    assert window.start <= window.end


def test_a_zip_bomb_is_not_inflated() -> None:
    bomb = b"\x01" + zlib.compress(b"\0" * 50_000_000, 9)
    with pytest.raises(BadMessageError, match="length"):
        decode_window(bomb, make_baseline())


def test_another_baseline_is_refused() -> None:
    data = encode_window(make_window(1, 10), make_baseline())
    other = learn_baseline(np.ones((4, 5), np.float32), list("abcde"))
    with pytest.raises(BadMessageError, match="another baseline"):
        decode_window(data, other)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=50))
def test_varints_round_trip(values: list[int]) -> None:
    array = np.array(values, np.int64)
    np.testing.assert_array_equal(decode_varints(encode_varints(array), len(array)), array)


@pytest.mark.parametrize(
    ("data", "count"),
    [(b"\x80", 1), (b"", 1), (b"\x01\x01", 1), (b"\x01", 0), (b"\xff" * 10 + b"\x01", 1), (b"\xff" * 9 + b"\x02", 1)],
)
def test_bad_varints_are_refused(data: bytes, count: int) -> None:
    with pytest.raises(BadMessageError):
        decode_varints(data, count)


def test_small_integers_take_one_byte() -> None:
    assert encode_varints(np.array([0, -1, 1, -64, 63], np.int64)) == bytes([0, 1, 2, 127, 126])
