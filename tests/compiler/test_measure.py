"""Timing candidates against each other: what is run how often, on what, and what is left out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from outrider.compiler import measure as module
from outrider.compiler.measure import Load, compare, measure
from outrider.runtime.calls import count_calls

ROWS = {"x": np.arange(40, dtype=np.float32).reshape(10, 4)}
Run = Callable[[Mapping[str, Any]], object]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROUNDS", 5)
    monkeypatch.setattr(module, "_MOST_ROUNDS", 9)
    monkeypatch.setattr(module, "_LOOP_NS", 50_000)
    monkeypatch.setattr(module, "_CALLS", 20)


def spinning(microseconds: float) -> Run:
    """Takes so much CPU time a row."""

    def run(inputs: Mapping[str, Any]) -> None:
        end = time.process_time_ns() + microseconds * 1000 * len(inputs["x"])
        while time.process_time_ns() < end:
            pass

    return run


def test_the_faster_one_is_found_at_every_batch_size():
    found = measure({"slow": spinning(30), "fast": spinning(10)}, Load(ROWS, sizes=(1, 16)))
    for place, batch in enumerate((1, 16)):
        slow, fast = (found[key].measured[place] for key in ("slow", "fast"))
        assert slow.batch == fast.batch == batch
        assert slow.ns_per_row_min > 2 * fast.ns_per_row_min
        assert fast.ns_per_row_min <= fast.ns_per_row_median
        assert 5 <= fast.repeats <= 9
    assert 0 < found["fast"].p50_ms <= found["fast"].p99_ms


def test_rounds_end_when_the_median_is_sure_or_time_is_up(monkeypatch):
    clock = iter(range(0, 10**12, 1000))
    monkeypatch.setattr(module.time, "process_time_ns", lambda: next(clock))
    found = measure({"steady": lambda _: None}, Load(ROWS, sizes=(1,)))
    assert found["steady"].measured[0].repeats == 5
    jumping = iter(np.random.default_rng(0).integers(1, 10**6, 10**6).cumsum().tolist())
    monkeypatch.setattr(module.time, "process_time_ns", lambda: next(jumping))
    assert measure({"noisy": lambda _: None}, Load(ROWS, sizes=(1,)))["noisy"].measured[0].repeats == 9
    monkeypatch.setattr(module, "_ROUNDS_NS", 1)
    assert measure({"noisy": lambda _: None}, Load(ROWS, sizes=(1,)))["noisy"].measured[0].repeats == 5


def test_a_batch_that_would_take_too_long_is_left_out(monkeypatch):
    monkeypatch.setattr(module, "_SLOWEST_NS", 2_000_000)
    found = compare(
        {"slow": spinning(100), "fast": spinning(5)},
        Load(ROWS),
        {"slow": (1, 64, 1024), "fast": (1, 64)},
        rounds=2,
    )
    assert set(found["slow"]) == {1}
    assert set(found["fast"]) == {1, 64}


def test_calls_bring_different_rows():
    load = Load(ROWS, sizes=(1, 4))
    assert load.batches == (1, 4)
    singles = load.parts(1)
    assert {part["x"].shape for part in singles} == {(1, 4)}
    assert np.array_equal(np.unique([part["x"][0, 0] for part in singles]), ROWS["x"][:, 0])
    for batch in (4, 64, 1024):
        parts = load.parts(batch)
        assert {part["x"].shape for part in parts} == {(batch, 4)}
        assert all(part["x"].flags.c_contiguous for part in parts)
        assert np.array_equal(parts[0]["x"], ROWS["x"][np.arange(batch) % 10])


def test_calls_of_a_model_that_is_not_batched():
    load = Load(ROWS, batched=False, rows=4)
    assert load.batches == (4,)
    parts = load.parts(4)
    assert len(parts) == count_calls(ROWS) == 10
    assert all(part["x"].shape == (4,) for part in parts)
    found = measure({"one": spinning(10)}, load)["one"]
    assert [times.batch for times in found.measured] == [4]


def test_large_calls_are_few(monkeypatch):
    monkeypatch.setattr(module, "_BYTES", 3 * 16)
    assert len(Load(ROWS, sizes=(1,)).parts(1)) == 3
    assert len(Load(ROWS, batched=False).parts(1)) == 3
    monkeypatch.setattr(module, "_BYTES", 1)
    assert len(Load(ROWS, sizes=(1,)).parts(1)) == 1


def test_what_a_run_raises_is_not_hidden():
    def broken(_: Mapping[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure({"one": broken}, Load(ROWS))
