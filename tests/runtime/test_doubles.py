"""Float64 rows: which sessions take them, by which way they go, and which columns of a frame become them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from outrider.runtime import Session, load
from outrider.runtime.engines import library, native, python_call
from outrider.runtime.engines.wasm import WasmEngine
from outrider.runtime.errors import BadDataError, EngineFault
from outrider.runtime.tensors import check_inputs, frame_to_matrix

MakeBundle = Callable[..., Path]
# Rounded to float32, the first column would be off by one.
ROWS = np.array([[2.0**24 + 1, -(2.0**24), 2.0], [3, 3, 3], [1, 2, -3], [0.5, 0.25, 2.25]])
MEANS = [1.0, 3.0, 0.0, 1.0]
WAYS = ["built-in", "cffi", "ctypes", "wasm"]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the artifact is called."""
    if request.param in ("cffi", "ctypes"):
        monkeypatch.setattr(native, "python_function", lambda *given, **more: None)
    if request.param == "ctypes":
        monkeypatch.setattr(library, "_binding_class", lambda binding: library._CtypesLibrary)
    return str(request.param)


@pytest.fixture
def session(
    way: str, make_bundle: MakeBundle, double_artifacts: dict[str, bytes], make_parts: Any
) -> Iterator[Session]:
    with load(make_double(make_bundle, double_artifacts, make_parts, way)) as opened:
        yield opened


def make_double(make_bundle: MakeBundle, artifacts: dict[str, bytes], make_parts: Any, way: str = "cffi") -> Path:
    kind = "wasm" if way == "wasm" else "native"
    data = artifacts[kind]
    entry = make_parts(data)[0].artifacts[0]
    return make_bundle(library=data, artifacts=(msgspec.structs.replace(entry, format=kind),))


def test_doubles_are_not_rounded(session: Session, way: str) -> None:
    assert f"called by {'wasmtime' if way == 'wasm' else way}" in session.explain()
    assert session.takes_doubles
    for size in (1, 2, 3, 4):
        found = session.predict(ROWS[:size])
        assert (found.dtype, found.shape, found.tolist()) == (np.float32, (size,), MEANS[:size])
    outputs = session.run({"features": ROWS})
    assert outputs["score"].tolist() == MEANS
    assert outputs["label"].tolist() == ["bad", "bad", "good", "bad"]
    assert session.predict(ROWS.astype(np.float32))[0] == np.float32(2 / 3)
    many = np.random.default_rng(0).random((3000, 3))
    assert np.array_equal(session.predict(many), many.mean(axis=1).astype(np.float32))


def test_layouts_and_empty_batches(session: Session) -> None:
    wide = np.repeat(ROWS, 2, axis=1)[:, ::2]
    assert not wide.flags.c_contiguous
    assert session.predict(wide).tolist() == MEANS
    assert session.predict(np.asfortranarray(ROWS)).tolist() == MEANS
    assert session.predict(ROWS[::-1]).tolist() == MEANS[::-1]
    assert session.predict(ROWS[:0]).shape == (0,)
    assert session.run({"features": ROWS[:0]})["score"].shape == (0,)
    shifted = np.frombuffer(b"\0" + ROWS.tobytes(), np.uint8)[1:].view(np.float64).reshape(ROWS.shape)
    assert session.predict(shifted).tolist() == MEANS
    assert check_inputs({"features": shifted}, session.signature, doubles=True)["features"].flags.aligned


def test_what_still_does_not_fit(session: Session) -> None:
    halves = ROWS[1:].astype(np.float16)
    for wrong in (ROWS[:, :2], ROWS[0], ROWS.astype(">f8"), ROWS.astype(np.int64), halves, ROWS > 0):
        with pytest.raises(BadDataError, match="expected float32"):
            session.predict(wrong)
    with pytest.raises(EngineFault, match="status 8"):
        session.predict(np.full((1, 3), np.nan))
    session.close()
    with pytest.raises(EngineFault, match="closed"):
        session.predict(ROWS)


def test_large_batches_of_doubles_are_split(
    make_bundle: MakeBundle, double_artifacts: dict[str, bytes], make_parts: Any
) -> None:
    many = np.random.default_rng(0).random((5000, 3))
    with load(make_double(make_bundle, double_artifacts, make_parts), threads=3) as three:
        three._engine._threads._ns_a_row = 1e6  # type: ignore[attr-defined]  # as if rows were dear
        for _ in range(3):
            assert np.array_equal(three.predict(many), many.mean(axis=1).astype(np.float32))


def test_the_built_in_function_takes_them_itself(
    make_bundle: MakeBundle, double_artifacts: dict[str, bytes], make_parts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with load(make_double(make_bundle, double_artifacts, make_parts)) as session:
        monkeypatch.setattr(session._engine, "run", lambda inputs: pytest.fail("the long way"))
        assert session.predict(ROWS).tolist() == MEANS


def test_artifacts_without_the_functions_refuse_doubles(
    make_bundle: MakeBundle, mean_source: str, mean_module: bytes, make_parts: Any, tmp_path: Path
) -> None:
    """As those of earlier releases do."""
    from outrider.targets import get_target
    from outrider.targets.toolchain import build_shared

    source = {"mean.c": mean_source + '\n#include "python_call.h"\n'}
    built = build_shared(source, tmp_path / "mean.so", get_target("host"))
    for way, data in (("native", built), ("wasm", mean_module)):
        with load(make_double(make_bundle, {way: data}, make_parts, way)) as session:
            assert not session.takes_doubles
            assert session.predict(np.ones((1, 3), np.float32)).tolist() == [1.0]
            for call in (session.predict, lambda x, own=session: own.run({"features": x})):
                with pytest.raises(BadDataError, match=r"is float64; expected float32.*astype\(np.float32\)"):
                    call(ROWS)
            with pytest.raises(BadDataError, match="is int64"):
                session.predict(pd.DataFrame(ROWS.astype(int), columns=["a", "b", "c"]))


def test_a_function_of_an_earlier_release_is_not_told(double_artifacts: dict[str, bytes]) -> None:
    """Of this release's artifacts, an earlier runtime makes functions that leave doubles to their fallback."""
    loaded = library.load_library(double_artifacts["native"], "x", None)
    loaded.doubles = False
    made = python_call.python_function(loaded, lambda x: np.zeros(7), features=3, columns=0, most=100)
    assert made is not None
    assert made[0](ROWS).shape == (7,)
    assert made[0](ROWS.astype(np.float32)).shape == (4,)
    loaded.release()


def test_a_module_that_lacks_one_of_the_functions(make_parts: Any, mean_module: bytes) -> None:
    manifest, _ = make_parts()
    engine = WasmEngine.open(
        msgspec.structs.replace(manifest.artifacts[0], format="wasm"), mean_module, manifest.signature
    )
    assert not engine.doubles
    engine.close()


def test_the_tap_sees_float32(make_bundle: MakeBundle, double_artifacts: dict[str, bytes], make_parts: Any) -> None:
    seen: list[NDArray[np.float32]] = []

    class Tap:
        def observe(self, features: NDArray[np.float32], outputs: Mapping[str, NDArray[Any]]) -> None:
            seen.append(features)

    with load(make_double(make_bundle, double_artifacts, make_parts), tap=Tap()) as session:
        rows = np.array([[1e300, -1e300, 0.1]])
        assert session.predict(ROWS).tolist() == MEANS
        session.predict(rows)
        session.predict(np.ones((2, 3), np.float32))
    assert [features.dtype for features in seen] == [np.float32] * 3
    assert seen[1].tolist() == [[np.inf, -np.inf, np.float32(0.1)]]


# Frames -------------------------------------------------------------------------------------------------------------


def test_frames_of_doubles_are_taken_by_name(session: Session) -> None:
    frame = pd.DataFrame(ROWS, columns=["a", "b", "c"])
    assert session.predict(frame).tolist() == MEANS
    assert session.predict(frame[["c", "a", "b"]]).tolist() == MEANS
    assert session.predict(frame.astype(np.float32))[0] == np.float32(2 / 3)
    with pytest.raises(BadDataError, match="lacks c and has unknown d"):
        session.predict(frame.rename(columns={"c": "d"}))


def columns(**given: Any) -> pd.DataFrame:
    return pd.DataFrame({name: pd.Series(values, dtype=dtype) for name, (values, dtype) in given.items()})


@pytest.mark.parametrize(
    ("frame", "wanted"),
    [
        (columns(a=([1, 2], "int64"), b=([3, 4], "int8")), [[1, 3], [2, 4]]),
        (columns(a=([1.5, 2], "float32"), b=([3, 4], "int64")), [[1.5, 3], [2, 4]]),
        (columns(a=([1.5, 2], "float16"), b=([3, 4], "float16")), [[1.5, 3], [2, 4]]),
        (columns(a=([1.5, 2], "float64"), b=([True, False], "bool")), [[1.5, 1], [2, 0]]),
        (columns(a=([True, True], "bool"), b=([True, False], "bool")), [[1, 1], [1, 0]]),
        (columns(a=([1, None], "Int64"), b=([True, None], "boolean")), [[1, 1], [np.nan, np.nan]]),
        (columns(a=([1.5, None], "Float32"), b=([2.5, 4], "float32")), [[1.5, 2.5], [np.nan, 4]]),
        (columns(a=([7, 3], "category"), b=([2.5, 4], "float64")), [[7, 2.5], [3, 4]]),
        (columns(a=([7, None], "category"), b=([7, 8], "category")), [[7, 7], [np.nan, 8]]),
        (columns(a=([2**53 + 1, 1], "int64"), b=([0, 0], "int64")), [[2**53, 0], [1, 0]]),
    ],
)
def test_columns_of_numbers_and_booleans_become_doubles(frame: pd.DataFrame, wanted: Any) -> None:
    found = frame_to_matrix(frame, ("a", "b"), doubles=True)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, np.array(wanted, np.float64))


@pytest.mark.parametrize(
    "frame",
    [
        columns(a=(["1.5", "2"], "object"), b=([3, 4], "int64")),
        columns(a=(["1.5", "2"], "string"), b=([3, 4], "int64")),
        columns(a=(["x", "y"], "category"), b=([3, 4], "int64")),
        columns(a=([1, 2], "object"), b=([3, 4], "int64")),
        columns(a=([1, 2], "datetime64[ns]"), b=([3, 4], "int64")),
        columns(a=([1j, 2], "complex128"), b=([3, 4], "int64")),
    ],
)
def test_other_columns_are_refused(session: Session, frame: pd.DataFrame) -> None:
    with pytest.raises(BadDataError, match="expected float32"):
        session.predict(frame.assign(c=frame["b"]))


def test_float32_stays_what_it_is() -> None:
    frame = columns(a=([1.5, 2], "float32"), b=([3, 4], "float32"))
    assert frame_to_matrix(frame, ("a", "b"), doubles=True).dtype == np.float32
    assert frame_to_matrix(frame, ("a", "b")).dtype == np.float32


class OtherFrame:
    """Like a frame of polars: its types are no numpy types, and `to_numpy` finds a common one by itself."""

    def __init__(self, matrix: NDArray[Any]) -> None:
        self.columns, self.dtypes, self._matrix = ["a", "b", "c"], ["Int64", "Float64", "Boolean"], matrix

    def __getitem__(self, names: list[str]) -> OtherFrame:
        return self

    def to_numpy(self) -> NDArray[Any]:
        return self._matrix


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64, np.bool_])
def test_frames_that_are_not_pandas(dtype: Any) -> None:
    found = frame_to_matrix(OtherFrame(ROWS[1:].astype(dtype)), ("a", "b", "c"), doubles=True)
    assert found.dtype == (np.float32 if dtype is np.float32 else np.float64)
    assert frame_to_matrix(OtherFrame(ROWS.astype(object)), (), doubles=True).dtype == object


def test_of_several_inputs_none_may_be_double(make_parts: Any) -> None:
    signature = make_parts()[0].signature
    two = msgspec.structs.replace(
        signature, inputs=(signature.inputs[0], msgspec.structs.replace(signature.inputs[0], name="more"))
    )
    assert check_inputs({"features": ROWS}, signature, doubles=True)["features"].dtype == np.float64
    with pytest.raises(BadDataError, match="float64"):
        check_inputs({"features": ROWS, "more": ROWS}, two, doubles=True)
