"""Calls side by side: rows of a batched model, whole calls of any other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from outrider.runtime.bundle.manifest import Signature, TensorSpec
from outrider.runtime.calls import count_calls, one_call, pick_calls, rows_of_call, run_calls
from outrider.runtime.errors import EngineFault

X = np.arange(24, dtype=np.float32).reshape(4, 2, 3)


def double(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {"y": inputs["x"] * 2}


def test_rows_and_calls():
    assert count_calls({"x": X, "z": X[:, 0]}) == 4
    assert count_calls({}) == 1
    assert one_call({"x": X}, 1, batched=True)["x"].shape == (1, 2, 3)
    assert one_call({"x": X}, 1, batched=False)["x"].shape == (2, 3)
    scalar = one_call({"x": np.array([1.0, 2.0])}, 1, batched=False)["x"]
    assert isinstance(scalar, np.ndarray)
    assert (scalar.shape, scalar.item()) == ((), 2.0)
    picked = pick_calls({"x": X}, np.array([3, 0]))["x"]
    assert np.array_equal(picked, X[[3, 0]])
    assert picked.flags.c_contiguous


def test_running_them():
    shapes: list[tuple[int, ...]] = []

    def run(inputs: Mapping[str, Any]) -> dict[str, Any]:
        shapes.append(inputs["x"].shape)
        return double(inputs)

    for batched, wanted in ((True, [(4, 2, 3)]), (False, [(2, 3)] * 4)):
        shapes.clear()
        assert np.array_equal(run_calls(run, {"x": X}, batched=batched)["y"], 2 * X)
        assert shapes == wanted


def test_outputs_that_fit_in_no_array():
    def positive(inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {"y": inputs["x"][inputs["x"] > 7]}

    with pytest.raises(EngineFault, match="differ in shape"):
        run_calls(positive, {"x": X}, batched=False)


def signature(*shapes: tuple[int | None, ...], batched: bool = False) -> Signature:
    specs = [TensorSpec(name=f"t{i}", dtype="float32", shape=shape) for i, shape in enumerate(shapes)]
    return Signature(inputs=tuple(specs[:-1]), outputs=tuple(specs[-1:]), predict=specs[-1].name, batched=batched)


@pytest.mark.parametrize(
    ("shapes", "batched", "rows"),
    [
        (((4, 3), (4, 2)), False, 4),
        (((1, 3), (1,)), False, 1),
        (((4, 3), (4, 3), (4, 2)), False, 4),
        (((4, 3), (1, 3), (4, 2)), False, None),  # nothing says which of them are rows
        (((4, 3), (2,)), False, None),
        (((4, 3), ()), False, None),
        (((), ()), False, None),
        (((None, 3), (None, 2)), False, None),
        (((None, 3), (None, 2)), True, None),
    ],
)
def test_how_many_rows_a_call_has(shapes, batched, rows):
    assert rows_of_call(signature(*shapes, batched=batched)) == rows
