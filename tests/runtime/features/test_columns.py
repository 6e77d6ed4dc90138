"""Raw columns: what is taken, what is refused and how it is named."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.runtime.errors import BadDataError, BadRecipeError
from outrider.runtime.features import FeaturePlan, FeatureStep, RawColumn, check_raw, compute, fit_plan
from outrider.runtime.features.columns import clean_column, parse_time

PLAN = FeaturePlan(
    columns=(
        RawColumn(name="amount", kind="number"),
        RawColumn(name="at", kind="time"),
        RawColumn(name="country", kind="string"),
    ),
    steps=(
        FeatureStep(op="log1p", inputs=("amount",), output="log_amount"),
        FeatureStep(op="hour", inputs=("at",), output="hour"),
        FeatureStep(op="category", inputs=("country",), output="code", params={"values": ("US", "NA")}),
        FeatureStep(op="ratio", inputs=("log_amount", "hour"), output="both"),
    ),
    outputs=("both", "amount", "code"),
)


def raw(**columns: object) -> dict:
    return {
        "amount": np.array([1.0, 2.0]),
        "at": np.array(["2019-01-01 05:00:00", "2019-01-01T06:00:00"]),
        "country": np.array(["NA", "US"]),
        **columns,
    }


def test_steps_build_on_steps_and_outputs_keep_their_order():
    check_raw(PLAN, raw())
    x = compute(PLAN, raw())
    np.testing.assert_allclose(x, [[np.log(2) / 5, 1, 1], [np.log(3) / 6, 2, 0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"amount": np.array(["1", "2"])}, r"'amount' is <U1, expected numbers"),
        ({"amount": np.array([1.0, "x"], dtype=object)}, r"'amount' holds 'x', expected numbers"),
        ({"amount": np.array([10**400, 1], dtype=object)}, r"'amount' holds an integer beyond float64"),
        ({"amount": np.array([1.0])}, r"'at' has 2 rows, expected 1"),
        ({"amount": np.ones((2, 1))}, r"'amount' has shape \(2, 1\)"),
        ({"amount": np.array([1 + 2j, 0])}, r"'amount' is complex128"),
        ({"country": np.array([1, 2])}, r"'country' is int64, expected strings"),
        ({"country": np.array([b"US", b"NA"])}, r"'country' is .S2, expected strings"),
        ({"country": np.array(["US", 7], dtype=object)}, r"'country' holds 7 in row 1, expected strings"),
        ({"at": np.array(["2019-01-01", "now"])}, r"'at' holds 'now' in row 1, expected times"),
        ({"at": np.array(["2019-13-01 00:00:00", "2019-01-01 00:00:00"])}, r"'at' holds '2019-13-01"),
        ({"at": np.array([True, None], dtype=object)}, r"'at' holds True in row 0"),
        ({"extra": np.array([1, 2])}, r"no raw column 'extra'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, message):
    with pytest.raises(BadDataError, match=message):
        check_raw(PLAN, raw(**change))


def test_a_missing_column_is_refused_with_the_expected_ones():
    given_ = raw()
    del given_["country"]
    with pytest.raises(BadDataError, match=r"'country' is missing \(expected amount, at, country\)"):
        compute(PLAN, given_)


def test_missing_values_have_one_meaning_in_every_form():
    strings = [np.array(["", "US"]), np.array([None, "US"], dtype=object), np.array([np.nan, "US"], dtype=object)]
    amounts = [np.array([np.nan, 1]), np.array([None, 1], dtype=object), np.array([np.nan, 1], dtype=np.float32)]
    assert len({compute(PLAN, raw(country=country)).tobytes() for country in strings}) == 1
    assert len({compute(PLAN, raw(amount=amount)).tobytes() for amount in amounts}) == 1
    times = np.array(["", None, np.nan, "2019-01-01"], dtype=object)
    np.testing.assert_array_equal(clean_column("at", "time", times), [np.nan, np.nan, np.nan, 1546300800.0])
    nat = np.array(["NaT", "2019-01-01"], dtype="datetime64[s]")
    np.testing.assert_array_equal(clean_column("at", "time", nat), [np.nan, 1546300800.0])


MOMENTS = st.datetimes(datetime(1700, 1, 1), datetime(2200, 1, 1)).map(lambda t: t.replace(tzinfo=timezone.utc))


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(MOMENTS, st.sampled_from(["space", "T", "Z", "zone", "micro", "date"])), max_size=6))
def test_times_are_read_alike_in_every_spelling(moments):
    spelled, wanted = [], []
    for moment, style in moments:
        plain = moment.replace(tzinfo=None)
        whole = plain.replace(microsecond=0)
        text, value = {
            "space": (str(whole), whole),
            "T": (whole.isoformat(), whole),
            "Z": (plain.isoformat() + "Z", plain),
            "zone": (moment.astimezone(timezone(timedelta(hours=-7, minutes=30))).isoformat(), plain),
            "micro": (plain.isoformat(timespec="microseconds"), plain),
            "date": (plain.date().isoformat(), datetime.combine(plain.date(), datetime.min.time())),
        }[style]
        spelled.append(text)
        wanted.append((value - datetime(1970, 1, 1)) // timedelta(microseconds=1) / 1e6)
    together = clean_column("at", "time", np.array(spelled, dtype=np.str_))
    alone = [clean_column("at", "time", np.array([text])) for text in spelled]
    assert together.tolist() == wanted
    assert [float(value[0]) for value in alone] == wanted


def test_parse_time_names_what_it_was_given():
    assert parse_time("2019-05-01") == 1556668800.0
    for text in ("soon", ""):
        with pytest.raises(BadDataError, match=f"the cutoff '{text}' is not a time"):
            parse_time(text, what="the cutoff")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": ()}, "at least one column"),
        ({"columns": (*PLAN.columns, RawColumn(name="at", kind="time"))}, "'at' is declared twice"),
        ({"steps": (*PLAN.steps, PLAN.steps[0])}, "'log_amount' is declared twice"),
        ({"steps": PLAN.steps[::-1]}, "no column and no earlier feature"),
        ({"outputs": ("nothing",)}, "no step makes it"),
        ({"outputs": ("country",)}, "cannot be a feature without a step"),
        ({"outputs": ("amount", "amount")}, "an output twice"),
        ({"steps": (FeatureStep(op="hour", inputs=("country",), output="h"),)}, "reads 'country', a string, but takes"),
    ],
)
def test_a_plan_that_cannot_run_is_refused(change, message):
    import msgspec

    with pytest.raises(BadRecipeError, match=message):
        fit_plan(msgspec.structs.replace(PLAN, **change), raw())
