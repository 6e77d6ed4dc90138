"""Every step of the table keeps the same promises; and each computes what it says."""

from __future__ import annotations

import pkgutil

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.runtime.errors import BadDataError, BadRecipeError, UnsupportedError
from outrider.runtime.features import STEPS, FeaturePlan, FeatureStep, RawColumn, compute, fit_plan
from outrider.runtime.features.base import Step

EDGES = [0.0, -0.0, 1.0, -1.0, 0.5, 90.0, -180.0, 1e-300, -1e-300, 1e300, -1e300, np.inf, -np.inf, np.nan]
numbers = st.one_of(st.sampled_from(EDGES), st.floats(allow_nan=True, allow_infinity=True))
times = st.one_of(st.sampled_from([np.nan, np.inf, -np.inf, -1e-300, 1e300]), st.floats(-6e10, 2e11))
strings = st.one_of(st.none(), st.just(""), st.sampled_from(["NA", "US", "é", "a b"]), st.text(max_size=8))
VALUES = {"number": numbers, "time": times, "string": strings}
DTYPES = {"number": np.float64, "time": np.float64, "string": object}


def step_class(op: str) -> type[Step]:
    return pkgutil.resolve_name(STEPS[op])


def plan_of(op: str, **params: object) -> FeaturePlan:
    columns = tuple(RawColumn(name=f"c{i}", kind=kind) for i, kind in enumerate(step_class(op).takes))
    step = FeatureStep(op=op, inputs=tuple(c.name for c in columns), output="f", params=params)
    return FeaturePlan(columns=columns, steps=(step,), outputs=("f",))


def column(kind: str, values: list) -> np.ndarray:
    array = np.empty(len(values), dtype=DTYPES[kind])
    array[:] = values
    return array


def sample(op: str, rows: int = 12) -> dict[str, np.ndarray]:
    plain = {"number": np.linspace(-60, 60, rows), "time": np.linspace(-1e9, 2e9, rows)}
    words = column("string", [f"v{i % 3}" for i in range(rows)])
    return {f"c{i}": plain.get(kind, words) for i, kind in enumerate(step_class(op).takes)}


def fitted(op: str) -> FeaturePlan:
    return fit_plan(plan_of(op), sample(op), np.tile([1.0, 0.0, 0.0], 4))


def one(op: str, *columns: list, **params: object) -> list[float]:
    kinds = step_class(op).takes
    raw = {f"c{i}": column(kind, values) for i, (kind, values) in enumerate(zip(kinds, columns, strict=True))}
    return compute(plan_of(op, **params), raw)[:, 0].tolist()


@pytest.mark.parametrize("op", STEPS)
class TestEveryStep:
    def test_explains_itself(self, op):
        assert step_class(op).__doc__
        assert step_class(op).takes

    def test_gives_float32_and_the_same_again_after_a_round_trip(self, op):
        plan = fitted(op)
        again = msgspec.json.decode(msgspec.json.encode(plan), type=FeaturePlan)
        first, second = compute(plan, sample(op)), compute(again, sample(op))
        assert first.dtype == np.float32
        assert first.shape == (12, 1)
        assert first.flags.c_contiguous
        assert first.tobytes() == second.tobytes()

    def test_fitting_a_fitted_plan_changes_nothing(self, op):
        plan = fitted(op)
        assert fit_plan(plan, sample(op, rows=3)) == plan

    def test_no_rows_give_no_rows(self, op):
        empty = {name: values[:0] for name, values in sample(op).items()}
        assert compute(fitted(op), empty).shape == (0, 1)

    def test_missing_input_gives_nan(self, op):
        plan = fitted(op)
        for name, kind in zip(sample(op), step_class(op).takes, strict=True):
            missing = {**sample(op, 1), name: column(kind, [None if kind == "string" else np.nan])}
            assert np.isnan(compute(plan, missing)).all()

    def test_refuses_an_unknown_parameter_and_names_the_known_ones(self, op):
        with pytest.raises(BadRecipeError, match=r"wrong parameter.*colour") as caught:
            fit_plan(plan_of(op, colour="red"), sample(op))
        assert all(name in str(caught.value) for name in step_class(op).__struct_fields__)

    def test_refuses_another_number_of_inputs(self, op):
        plan = plan_of(op)
        more = msgspec.structs.replace(plan.steps[0], inputs=(*plan.steps[0].inputs, "c0"))
        with pytest.raises(BadRecipeError, match="takes"):
            compute(msgspec.structs.replace(plan, steps=(more,)), sample(op))

    @settings(deadline=None, max_examples=30)
    @given(data=st.data())
    def test_a_row_alone_gives_the_same_bits_as_among_others(self, op, data):
        plan, kinds = fitted(op), step_class(op).takes
        rows = data.draw(st.lists(st.tuples(*(VALUES[kind] for kind in kinds)), min_size=1, max_size=9))
        raw = {f"c{i}": column(kind, [row[i] for row in rows]) for i, kind in enumerate(kinds)}
        together = compute(plan, raw)
        alone = [compute(plan, {name: values[i : i + 1] for name, values in raw.items()}) for i in range(len(rows))]
        assert together.tobytes() == np.concatenate(alone).tobytes()


def test_an_unknown_step_is_refused_by_name():
    plan = plan_of("number")
    odd = msgspec.structs.replace(plan, steps=(msgspec.structs.replace(plan.steps[0], op="magic"),))
    with pytest.raises(UnsupportedError, match=r"magic.*known steps: number"):
        compute(odd, sample("number"))


def test_number_takes_booleans():
    assert compute(plan_of("number"), {"c0": np.array([True, False])}).tolist() == [[1.0], [0.0]]


def test_log1p_keeps_the_sign_or_calls_negatives_missing():
    assert one("log1p", [0.0, np.e - 1, 1 - np.e]) == pytest.approx([0.0, 1.0, -1.0])
    assert one("log1p", [3.0], negative="missing") == pytest.approx([np.log(4)])
    assert np.isnan(one("log1p", [-3.0], negative="missing"))
    with pytest.raises(BadRecipeError, match="negative"):
        one("log1p", [1.0], negative="maybe")


def test_ratio_by_zero_is_missing_or_what_is_declared():
    assert one("ratio", [3.0, -1.0], [2.0, 4.0]) == [1.5, -0.25]
    assert np.isnan(one("ratio", [1.0, 0.0], [0.0, -0.0])).all()
    assert one("ratio", [1.0], [0.0], zero=7.0) == [7.0]
    assert np.isnan(one("ratio", [np.nan], [0.0], zero=7.0)).all()


def test_difference_hour_weekday_age():
    assert one("difference", [5.0], [7.5]) == [-2.5]
    monday_noon = 1_546_862_400.0  # 2019-01-07T12:00:00Z
    assert one("hour", [monday_noon, monday_noon - 1]) == [12.0, 11.0]
    assert one("hour", [monday_noon], utc_offset_h=-13) == [23.0]
    assert one("hour", [-1e-300]) == [0.0]
    assert one("weekday", [monday_noon, monday_noon - 86_400]) == [0.0, 6.0]
    assert one("weekday", [0.0]) == [3.0]
    assert one("age_years", [0.0], [365.2425 * 86_400 * 30]) == pytest.approx([30.0])


def test_haversine_knows_real_distances():
    berlin, paris = (52.52, 13.405), (48.8566, 2.3522)
    assert one("haversine", [berlin[0]], [berlin[1]], [paris[0]], [paris[1]]) == pytest.approx([877.5], abs=1.0)
    assert one("haversine", [0.0], [179.5], [0.0], [-179.5]) == pytest.approx([111.2], abs=0.1)
    assert one("distance_from", [paris[0]], [paris[1]], lat=berlin[0], lng=berlin[1]) == pytest.approx([877.5], abs=1)


def test_distance_from_learns_a_centre_across_the_date_line():
    raw = {"c0": np.array([10.0, 10.0, np.nan]), "c1": np.array([170.0, -170.0, 3.0])}
    params = fit_plan(plan_of("distance_from"), raw).steps[0].params
    assert abs(params["lng"]) == pytest.approx(180.0, abs=1e-3)
    with pytest.raises(BadDataError, match="both lat and lng"):
        fit_plan(plan_of("distance_from", lat=3.0), raw)
    with pytest.raises(BadDataError, match="no row"):
        fit_plan(plan_of("distance_from"), {"c0": np.array([np.nan]), "c1": np.array([1.0])})
    with pytest.raises(BadDataError, match="no place"):
        compute(plan_of("distance_from"), raw)


def test_category_learns_by_frequency_and_states_the_code_of_the_unseen():
    raw = {"c0": column("string", ["b", "a", "b", "c", "c", None])}
    plan = fit_plan(plan_of("category", max_values=2), raw)
    assert plan.steps[0].params["values"] == ("b", "c")
    assert plan.steps[0].params["unseen"] == 2.0
    got = compute(plan, {"c0": column("string", ["c", "b", "a", "zzz", None, ""])})[:, 0]
    np.testing.assert_array_equal(got, np.array([1, 0, 2, 2, np.nan, np.nan], dtype=np.float32))
    assert one("category", ["x", "y"], values=("y",), unseen=-1.0) == [-1.0, 0.0]
    with pytest.raises(BadDataError, match="vocabulary"):
        fit_plan(plan_of("category", min_rows=9), raw)


def test_in_set_learns_from_labels_alone():
    raw = {"c0": column("string", ["bad", "bad", "good", "good", "once", None])}
    plan = fit_plan(plan_of("in_set"), raw, np.array([1.0, 1.0, 1.0, 0.0, 1.0, 1.0]))
    assert plan.steps[0].params["values"] == ("bad",)
    assert compute(plan, {"c0": column("string", ["bad", "good", "new"])})[:, 0].tolist() == [1.0, 0.0, 0.0]
    with pytest.raises(BadDataError, match="labels"):
        fit_plan(plan_of("in_set"), raw)
    assert one("in_set", ["a"], values=()) == [0.0]
    with pytest.raises(BadDataError, match="no set"):
        compute(plan_of("in_set"), raw)
