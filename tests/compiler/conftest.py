"""What the compiler's tests share: a forest built and run next to its source, and adversarial rows for it."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from outrider.compiler.backends import Candidate, backend
from outrider.compiler.frontends import ReadOptions, read_model
from outrider.compiler.model import Model
from outrider.compiler.trees.forest import Forest
from outrider.compiler.trees.rows import rows_from_thresholds
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
    error = np.abs(found.astype(np.float64) - wanted.astype(np.float64))
    assert (error <= ATOL + RTOL * np.abs(wanted)).all(), float(error.max())


@pytest.fixture(scope="session")
def agree() -> Agree:
    """Check that the compiled model gives the source's results, on adversarial rows and in batches of every size."""

    def check(
        source: Any, *rows: Array, lanes: int = 8, expected: Callable[[Array], Array] | None = None, **options: Any
    ) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = read_model(source, ReadOptions(**options))
        made = backend("native").build(model, Candidate("native", options={"lanes": str(lanes)}), get_target("host"))
        output = model.computed[0]
        with closing(open_engine(made.entry, made.data, model.signature)) as engine:
            for batch in (*rows, _adversarial(model)):
                data = np.ascontiguousarray(batch, np.float32)
                found = engine.run({"features": data})[output]
                _assert_close(found, model.reference({"features": data})[output])
                if expected is not None:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        _assert_close(found, np.asarray(expected(data)))
                for size in (0, 1, 63, 64, 65):
                    part = engine.run({"features": np.ascontiguousarray(data[:size])})[output]
                    assert np.array_equal(part, found[:size], equal_nan=True)

    return check


@pytest.fixture(scope="session")
def forests() -> ModuleType:
    """The module `kernel_forests`, which lies beside: random forests for kernels, and what runs them."""
    spec = importlib.util.spec_from_file_location("kernel_forests", Path(__file__).with_name("kernel_forests.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
