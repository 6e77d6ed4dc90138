"""What the compiler's tests share: a forest next to its source, built and run or read only, and rows for it."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from outrider.compiler.backends import Candidate, Order, backend
from outrider.compiler.frontends import ReadOptions, read_model
from outrider.compiler.model import Model
from outrider.compiler.trees.forest import LEAF, NUMERIC, CategorySplit, Forest, sort_key
from outrider.compiler.trees.narrow import Narrowing, narrow
from outrider.compiler.trees.rows import double_rows_from_thresholds, rows_from_thresholds
from outrider.compiler.verify import ATOL, RTOL
from outrider.runtime.engines import open_engine
from outrider.targets import get_target

Array = np.ndarray
Agree = Callable[..., None]


def _adversarial(model: Model, seed: int = 0) -> Array:
    assert isinstance(model.payload, Forest)
    return rows_from_thresholds(model.payload, seed=seed, nan=model.accepts_nan, inf=model.accepts_inf, max_rows=1024)


def _assert_close(found: Array, wanted: Array) -> None:
    assert found.shape == wanted.shape
    assert np.array_equal(np.isnan(found), np.isnan(wanted))
    error = np.nan_to_num(np.abs(found.astype(np.float64) - wanted.astype(np.float64)))
    assert (error <= ATOL + RTOL * np.abs(np.nan_to_num(wanted))).all(), float(error.max())


@pytest.fixture(scope="session")
def agree() -> Agree:
    """Check that the compiled model gives the source's results, on adversarial rows and in batches of every size."""

    def check(
        source: Any, *rows: Array, lanes: int = 8, expected: Callable[[Array], Array] | None = None, **options: Any
    ) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = read_model(source, ReadOptions(**options))
        made = backend("native").build(
            Order(model, get_target("host")), Candidate("native", options={"lanes": str(lanes)})
        )
        given, output = model.signature.inputs[0].name, model.computed[0]
        with closing(open_engine(made.entry, made.data, model.signature)) as engine:
            for batch in (*rows, _adversarial(model)):
                data = np.ascontiguousarray(batch, np.float32)
                found = engine.run({given: data})[output]
                _assert_close(found, model.reference({given: data})[output])
                if expected is not None:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        _assert_close(found, np.asarray(expected(data)))
                for size in (0, 1, 63, 64, 65):
                    part = engine.run({given: np.ascontiguousarray(data[:size])})[output]
                    assert np.array_equal(part, found[:size], equal_nan=True)

    return check


@pytest.fixture(scope="session")
def agree_on_doubles() -> Callable[..., Narrowing]:
    """Check that the compiled model gives the source's results for float64 rows, in batches of every size.

    Rows from thresholds come beside the given ones, of models that decide in float64. What comes back is how rows are
    narrowed.
    """

    def check(source: Any, *rows: Array, expected: Callable[[Array], Array]) -> Narrowing:
        model = read_model(source)
        assert isinstance(model.payload, Forest)
        if model.decides_in == "float64":
            given = {"nan": model.accepts_nan, "inf": model.accepts_inf, "max_rows": 1100}
            rows = (*rows, double_rows_from_thresholds(model.payload, seed=0, **given))
        made = backend("native").build(Order(model, get_target("host")), Candidate("native", options={"lanes": "8"}))
        name, output = model.signature.inputs[0].name, model.computed[0]
        with closing(open_engine(made.entry, made.data, model.signature)) as engine:
            for batch in rows:
                assert batch.dtype == np.float64
                found = engine.run({name: np.ascontiguousarray(batch)})[output]
                _assert_close(found, model.reference({name: batch})[output])
                _assert_close(found, np.asarray(expected(batch)).reshape(found.shape))
                for size in (0, 1, 63, 64, 65):
                    part = engine.run({name: np.ascontiguousarray(batch[:size])})[output]
                    assert np.array_equal(part, found[:size], equal_nan=True)
        return narrow(model.payload, model.decides_in)

    return check


def _beside(name: str) -> ModuleType:
    """A module that lies in this folder."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def forests() -> ModuleType:
    """The module `kernel_forests`: random forests for kernels, and what runs them."""
    return _beside("kernel_forests")


@pytest.fixture(scope="session")
def source_models() -> ModuleType:
    """The module `source_models`: models of every source library from short recipes, and rows for them."""
    return _beside("source_models")


@pytest.fixture(scope="session")
def torch_nets(require_package: Callable[[str], None]) -> ModuleType:
    """The module `torch_nets`: small torch modules, and torch."""
    for name in ("torch", "onnxscript"):
        require_package(name)
    return _beside("torch_nets")


@pytest.fixture(scope="session")
def sums() -> Callable[[Forest, Array], Array]:
    """Sums of a forest [n, outputs], float64, before the transform: the IR as its docstrings say, in numpy.

    float32 rows are decided by `bound`, float64 rows by `threshold`.
    """

    def evaluate(forest: Forest, rows: Array) -> Array:
        found = np.zeros((len(rows), forest.outputs))
        tiny = np.abs(rows) <= np.float32(1e-35)
        missing = np.isnan(rows) | (tiny & (forest.missing == "zero"))
        read = np.where(tiny & forest.tiny_is_zero, rows.dtype.type(0), rows)
        for tree in forest.trees:
            at = np.zeros(len(rows), np.int64)
            while (tree.kind[at] != LEAF).any():
                for node in np.unique(at[tree.kind[at] != LEAF]).tolist():
                    here, column = at == node, tree.feature[node]
                    if tree.kind[node] == NUMERIC:
                        x = read[here, column]
                        single = x.dtype == np.float32
                        right = sort_key(x) >= tree.bound[node] if single else ~(x <= tree.threshold[node])
                        right = np.where(missing[here, column], tree.missing_right[node], right)
                    else:
                        split = tree.categories[tree.payload[node]]
                        right = np.array([_category_right(forest, split, x) for x in rows[here, column].tolist()])
                    at[here] = np.where(right, tree.right[node], tree.left[node])
            found[:, slice(None) if tree.output is None else [tree.output]] += tree.values[tree.payload[at]]
        return found + forest.base if forest.divisor is None else found / forest.divisor + forest.base

    return evaluate


def _category_right(forest: Forest, split: CategorySplit, x: float) -> bool:
    if np.isnan(x):
        return split.missing_right
    lowest = x > -1 if forest.negative_fraction_is_zero else x >= 0
    if not lowest or x >= 1 << 24 or (forest.exact_categories and x != int(x)):
        return split.other_right
    return int(x) in split.right or (int(x) not in split.left and split.other_right)


def _result(forest: Forest, x: Array) -> Array:
    """The result of float64 sums [n, outputs], as finish.h computes it."""
    scale = forest.scale
    with np.errstate(over="ignore"):
        if forest.transform == "argmax":
            return x.argmax(axis=1)
        if forest.transform == "softmax":
            shares = np.exp(x - x.max(axis=1, keepdims=True))
            return shares / shares.sum(axis=1, keepdims=True)
        if forest.transform == "softmax_zero":
            takes_part = np.abs(x) > np.float32(1e-7)
            shares = np.where(takes_part, np.exp(x - x.max(axis=1, keepdims=True)), 0)
            with np.errstate(invalid="ignore"):
                return shares / shares.sum(axis=1, keepdims=True)
        found: Array = {
            "identity": lambda: x,
            "sigmoid": lambda: 1 / (1 + np.exp(-scale * x)),
            "exponential": lambda: np.exp(x),
            "hinge": lambda: (x > 0) * 1.0,
            "signed_square": lambda: np.sign(x) * x * x,
            "log_one_plus_exp": lambda: np.logaddexp(0, x),
            "exponential_ratio": lambda: 2 ** (-x / scale),
            "isolation": lambda: -(2 ** (-x / scale)),
        }[forest.transform]()
    return np.concatenate([1 - found, found], axis=1) if forest.complement else found


@pytest.fixture(scope="session")
def reads(sums: Callable[[Forest, Array], Array]) -> Callable[..., Model]:
    """Check that the IR of a model gives the source's results, on adversarial rows too; nothing is built."""

    def check(source: Any, *rows: Array, **options: Any) -> Model:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = read_model(source, ReadOptions(**options))
        assert isinstance(model.payload, Forest)
        for batch in (*rows, _adversarial(model)):
            data = np.ascontiguousarray(batch, np.float32)
            wanted = model.reference({model.signature.inputs[0].name: data})[model.computed[0]]
            found = _result(model.payload, sums(model.payload, data)).reshape(wanted.shape)
            _assert_close(found.astype(np.float32), wanted)
        return model

    return check


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture(scope="session")
def table() -> tuple[Array, Array]:
    """400 rows of 6 features with missing values, and a noisy target in three classes."""
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(400, 6)).astype(np.float32)
    rows[:, 3] = np.round(rows[:, 3])
    rows[rng.random(rows.shape) < 0.1] = np.nan
    filled = np.nan_to_num(rows)
    target = np.digitize(filled[:, 0] + filled[:, 1] * filled[:, 2] + 0.3 * rng.normal(size=400), [-0.5, 0.5])
    return rows, target
