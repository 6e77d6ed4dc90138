"""Parsing goals and holding measurements against them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.compiler.goals import Facts, check_goal, parse_goals
from outrider.compiler.metrics import Quality
from outrider.runtime.errors import UsageError

FACTS = Facts(
    p50=0.5,
    p99=2.0,
    size=1000,
    rss=5000,
    quality=Quality({"accuracy": 0.93, "l2": 0.01, "f1": 0.8}, {"accuracy": 0.935}),
)


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
        ("rss<=4KB", 4000, False),
        ("l2<=1%", 0.01, True),
        ("l2<=1e-1", 0.1, True),
        ("l2 <= 1E-3", 1e-3, False),
        ("p50<=5e-4s", 0.5, True),
        ("size<=1e+3B", 1000, True),
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
        "f1>=0.5",
        "top0>=0.5",
        "l2>=0.1",
        "rss<=base",
        "l2<=e-3",
        "l2<=1e-",
        "l2<=.",
        "Accuracy>=0.5",
    ],
)
def test_goals_that_say_nothing(text):
    with pytest.raises(UsageError):
        parse_goals([text])


def test_metrics_of_the_callers_own_point_either_way():
    assert check_goal(parse_goals(["f1>=0.75"], own=True)[0], FACTS).met
    assert check_goal(parse_goals(["f1<=0.75"], own=True)[0], FACTS).met is False


@pytest.mark.parametrize("name", ["mAP", "recall@5", "mAP@.5", "F1", "e1", "base"])
def test_names_of_the_callers_own_metrics(name):
    (goal,) = parse_goals([f"{name}>=base-0.1"], own=True)
    assert (goal.metric, goal.value, goal.relative) == (name, -0.1, True)


def test_what_was_not_measured_is_neither_met_nor_missed():
    goal = parse_goals(["p99<=1ms"])[0]
    assert check_goal(goal, Facts(size=1)).met is None


@given(st.text())
def test_any_text_is_a_goal_or_a_usage_error(text):
    with contextlib.suppress(UsageError):
        parse_goals([text])
