"""The golden check finds what differs, and says where."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from outrider.runtime import errors, load
from outrider.runtime.bundle import encode_npy, open_bundle, write_bundle
from outrider.runtime.features.plan import FeaturePlan, RawColumn
from outrider.runtime.golden import GoldenResult, check_golden
from outrider.targets import get_target
from outrider.targets.toolchain import build_shared

MakeBundle = Callable[..., Path]
replace = msgspec.structs.replace
SCORES = np.array([0.25, 1.0, 0.5], np.float32)


def result(path: Path, **options: Any) -> GoldenResult:
    with load(path) as session:
        return check_golden(session, repeats=20, **options)


def test_sound(make_bundle: MakeBundle) -> None:
    found = result(make_bundle())
    assert found.passed
    assert found.rows == 3
    assert found.max_abs_error <= 1e-7
    assert 0 < found.p99_ms < 1000
    assert found.detail == "3 rows agree within 1e-06 + 1e-05 |value|"


def test_out_of_tolerance(make_bundle: MakeBundle) -> None:
    wrong = SCORES + np.array([0, 0.01, 0], np.float32)
    path = make_bundle(files={"golden/outputs/score.npy": encode_npy(wrong)})
    found = result(path)
    assert not found.passed
    assert found.max_abs_error == pytest.approx(0.01, rel=1e-3)
    assert found.detail == "score is out of tolerance in 1 of 3 values"
    assert result(path, max_err=0.02).passed


def test_float64_rows_are_tried_where_they_are_taken(
    make_bundle: MakeBundle, double_source: str, tmp_path: Path
) -> None:
    for divisor, passed in (("3.0", True), ("3.3", False)):
        source = {"mean.c": double_source.replace("sums[i] / 3.0)", f"sums[i] / {divisor})")}
        found = result(make_bundle(library=build_shared(source, tmp_path / "mean.so", get_target("host"))))
        assert found.passed == passed
        assert passed or found.detail == "score as float64 is out of tolerance in 3 of 3 values"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite(make_bundle: MakeBundle, value: float) -> None:
    wrong = SCORES.copy()
    wrong[1] = value
    found = result(make_bundle(files={"golden/outputs/score.npy": encode_npy(wrong)}), max_err=10.0)
    assert not found.passed or value == np.inf
    assert found.max_abs_error == np.inf


def test_another_shape(make_bundle: MakeBundle) -> None:
    found = result(make_bundle(files={"golden/outputs/score.npy": encode_npy(SCORES[:2])}))
    assert not found.passed
    assert "shape (3,), not (2,)" in found.detail


def test_unreadable_golden_files(make_bundle: MakeBundle) -> None:
    with pytest.raises(errors.BadBundleError, match=r"score\.npy"):
        result(make_bundle(files={"golden/outputs/score.npy": b"nothing"}))


def test_labels_and_raw_data(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("p", "q", "r")
    plan = FeaturePlan(columns=tuple(RawColumn(name=n, kind="number") for n in names), steps=(), outputs=names)
    rows = np.array([[0.0, 0.25, 0.5], [1.0, 1.0, 1.0], [0.5, 2.0, -1.0]])
    labels = np.array(["good", "bad", "good"])
    shift = 0.0

    def compute(given: FeaturePlan, raw: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        return np.stack([raw[name] + shift for name in given.outputs], axis=1).astype(np.float32)

    monkeypatch.setattr("outrider.runtime.features.compute", compute, raising=False)
    files = {f"golden/raw/{name}.npy": encode_npy(rows[:, i]) for i, name in enumerate(names)}
    files["golden/outputs/label.npy"] = encode_npy(labels)
    path = make_bundle(files=files, features=plan)
    bundle = open_bundle(path)
    golden = replace(
        bundle.manifest.golden,
        outputs={"score": "golden/outputs/score.npy", "label": "golden/outputs/label.npy"},
        raw={name: f"golden/raw/{name}.npy" for name in names},
    )
    contents = {name: bundle.read(name) for name in bundle.files()}
    write_bundle(path, replace(bundle.manifest, golden=golden), contents)
    assert result(path).passed
    shift = 1.0
    found = result(path)
    assert not found.passed
    assert "score from raw data is out of tolerance in 3 of 3" in found.detail
    assert "label from raw data differs in 2 of 3" in found.detail
