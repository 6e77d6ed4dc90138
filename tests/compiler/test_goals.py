"""Parsing goals and holding measurements against them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.compiler.goals import Facts, check_goal, parse_goals
from outrider.runtime.errors import UsageError

FACTS = Facts(p50=0.5, p99=2.0, size=1000, accuracy=0.93, base_accuracy=0.935)


@pytest.mark.parametrize(
    ("text", "bound", "met"),
    [
        ("p99<=15ms", 15.0, True),
        ("p99 <= 1.5 ms", 1.5, False),
        ("p50<=600us", 0.6, True),
        ("p50<=1e3ns", 1e-3, False),
        ("size<=1KB", 1000, True),
        ("size<=0.5KiB", 512, False),
        ("accuracy>=0.93", 0.93, True),
        ("accuracy>=94%", 0.94, False),
        ("accuracy>=base-0.01", 0.925, True),
        ("accuracy>=base", 0.935, False),
        ("accuracy>=base - 1%", 0.925, True),
    ],
)
def test_goals(text, bound, met):
    record = check_goal(parse_goals([text])[0], FACTS)
    assert record.bound == pytest.approx(bound)
    assert record.met is met


@pytest.mark.parametrize(
    "text",
    [
        "",
        "p99",
        "p99<15ms",
        "p99>=15ms",
        "p99<=15",
        "p99<=ms",
        "p99<=base",
        "p99<=15kg",
        "speed<=1ms",
        "accuracy<=0.9",
        "accuracy>=base0.1",
        "accuracy>=",
        "size<=1.2.3MB",
        "size<=5MB and p99<=1ms",
    ],
)
def test_goals_that_say_nothing(text):
    with pytest.raises(UsageError):
        parse_goals([text])


def test_what_was_not_measured_is_neither_met_nor_missed():
    goal = parse_goals(["p99<=1ms"])[0]
    assert check_goal(goal, Facts(p50=None, p99=None, size=1, accuracy=None, base_accuracy=None)).met is None


@given(st.text())
def test_any_text_is_a_goal_or_a_usage_error(text):
    with contextlib.suppress(UsageError):
        parse_goals([text])
