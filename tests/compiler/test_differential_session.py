"""Sessions against the source libraries: frames whose columns come in any order, arrays however they lie in memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import lightgbm
import numpy as np
import pandas
import pytest
import xgboost
from sklearn import ensemble

from outrider.compiler import compile_model
from outrider.compiler.verify import ATOL, RTOL
from outrider.runtime import Session, load
from outrider.runtime.errors import BadDataError

Array = np.ndarray

NAMES = ["age", "amount", "balance", "code", "delay"]
MODELS: dict[str, Callable[[], Any]] = {
    "xgboost": lambda: xgboost.XGBRegressor(n_estimators=9, max_depth=5, n_jobs=1),
    "lightgbm": lambda: lightgbm.LGBMClassifier(n_estimators=9, verbose=-1, n_jobs=1),
    "forests": lambda: ensemble.RandomForestClassifier(9, max_leaf_nodes=90, random_state=0),
    "histogram": lambda: ensemble.HistGradientBoostingRegressor(max_iter=9, early_stopping=False),
}


class Loaded(NamedTuple):
    """A session, the frame that its model was trained on, and the library's own results for that."""

    session: Session
    frame: pandas.DataFrame
    wanted: Array


@pytest.fixture(scope="module", params=MODELS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    rng = np.random.default_rng(5)
    rows = rng.normal(size=(300, len(NAMES)))
    rows[:, 3] = rng.integers(0, 9, 300)
    frame = pandas.DataFrame(rows, columns=NAMES)
    target = rng.normal(size=300) + rows[:, 0] - rows[:, 4] + rows[:, 3] % 2
    model = MODELS[request.param]()
    path = tmp_path_factory.mktemp("session") / "x.orb"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(frame, np.digitize(target, [0.0, 1.0]) if hasattr(model, "predict_proba") else target)
        wanted = getattr(model, "predict_proba", model.predict)(frame)
        compile_model(model, out=path, name="x", version="1")
    with load(path) as session:
        yield Loaded(session, frame, wanted)


def assert_predicted(loaded: Loaded, given: Any, places: Any = slice(None)) -> None:
    """`given` holds the frame's rows of these places."""
    found, wanted = loaded.session.predict(given), loaded.wanted[places]
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=RTOL, atol=ATOL)


def test_columns_in_any_order(loaded: Loaded) -> None:
    for order in (NAMES, NAMES[::-1], sorted(NAMES, key=lambda name: name[-1]), NAMES[2:] + NAMES[:2]):
        assert_predicted(loaded, loaded.frame[order])
        assert_predicted(loaded, loaded.frame[order].iloc[::-3], slice(None, None, -3))
        assert_predicted(loaded, loaded.frame[order].astype({"code": "int64"}))
        assert_predicted(loaded, loaded.frame[order].astype({"code": "Int8"}).iloc[:1], slice(1))


def test_other_columns_are_refused_in_words(loaded: Loaded) -> None:
    frame = loaded.frame
    for given, message in (
        (frame.drop(columns="delay"), "the DataFrame lacks delay$"),
        (frame.drop(columns=["age", "code"]), "the DataFrame lacks age, code$"),
        (frame.assign(extra=1.0), "the DataFrame has unknown extra$"),
        (frame.rename(columns={"age": "Age"}), "the DataFrame lacks age and has unknown Age$"),
        (frame.set_axis([0, 1, 2, 3, 4], axis=1), "lacks age, amount, balance"),
        (frame[[*NAMES, "code"]], "the DataFrame has a column twice$"),
    ):
        with pytest.raises(BadDataError, match=message):
            loaded.session.predict(given)


def lying(rows: Array) -> Iterator[Array]:
    """The same rows at other places of memory: by column, with gaps, backwards, off any alignment, read-only."""
    count, columns = rows.shape
    yield np.asfortranarray(rows)
    yield np.repeat(rows, 2, axis=0)[::2]
    yield np.repeat(rows, 3, axis=1)[:, 1::3]
    yield np.ascontiguousarray(rows[::-1])[::-1]
    yield np.ascontiguousarray(rows[:, ::-1])[:, ::-1]
    yield np.pad(rows, ((1, 1), (2, 1)))[1:-1, 2:-1]
    shifted = np.zeros(rows.nbytes + 1, np.uint8)[1:].view(rows.dtype).reshape(count, columns)
    shifted[...] = rows
    yield shifted
    frozen = rows.copy()
    frozen.flags.writeable = False
    yield frozen
    yield np.broadcast_to(rows[:, None], (count, 1, columns))[:, 0]


@pytest.mark.parametrize("rows", [0, 1, 63, 64, 65, 300])
def test_arrays_however_they_lie_in_memory(loaded: Loaded, rows: int) -> None:
    wide = loaded.frame.to_numpy(np.float64)[:rows]
    single = wide.astype(np.float32)
    here = loaded.session.predict(single)
    for given in lying(wide):
        assert_predicted(loaded, given, slice(rows))
    for given in lying(single):
        assert loaded.session.predict(given).tobytes() == here.tobytes()
        assert loaded.session.run({"features": given})[loaded.session.signature.predict].tobytes() == here.tobytes()


def test_arrays_of_another_kind_are_refused_in_words(loaded: Loaded) -> None:
    rows = loaded.frame.to_numpy(np.float32)
    swapped = rows.astype(rows.dtype.newbyteorder())
    for given, message in (
        (rows[:, :-1], r"\(300, 4\)"),
        (rows.astype(np.int64), "is int64"),
        (rows.astype(np.float16), "is float16"),
        (rows[0], r"\(5,\)"),
        (swapped, ">f4|float32"),
    ):
        with pytest.raises(BadDataError, match=message):
            loaded.session.predict(given)
