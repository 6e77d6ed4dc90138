"""Goals: what a caller asks of the artifact, `p99<=15ms`, `size<=5MB`, `accuracy>=base-0.01`.

| metric | is | units |
| --- | --- | --- |
| `p50`, `p99` | wall time of a call of one row on this machine, from Python | ns, us, ms, s |
| `size` | bytes of the artifact | B, KB, MB, GB, KiB, MiB, GiB |
| `accuracy` | share of calibration rows whose label is right; `base` is the source model's | none, % |
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from outrider.runtime.bundle import GoalRecord
from outrider.runtime.errors import UsageError

Relation = Literal["<=", ">="]

_RELATIONS: dict[str, Relation] = {"p50": "<=", "p99": "<=", "size": "<=", "accuracy": ">="}
_TIMES = {"ns": 1e-6, "us": 1e-3, "ms": 1.0, "s": 1e3}
_SIZES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_UNITS: dict[str, dict[str, float]] = {"p50": _TIMES, "p99": _TIMES, "size": {**_SIZES}, "accuracy": {"": 1, "%": 0.01}}
_CANONICAL = {"p50": "ms", "p99": "ms", "size": "B", "accuracy": ""}
_GOAL = re.compile(r"\s*([a-z0-9_]+)\s*(<=|>=)\s*(base\b)?\s*([+-]?)\s*([0-9.eE]*)\s*([A-Za-z%]*)\s*")


@dataclass(frozen=True)
class Goal:
    """One parsed goal. `value` is in ms, bytes or as a share; `relative`: it is added to the source model's."""

    text: str
    metric: str
    relation: Relation
    value: float
    relative: bool


@dataclass(frozen=True)
class Facts:
    """What was measured of one candidate, in ms, bytes and shares; None: not measured."""

    p50: float | None
    p99: float | None
    size: int
    accuracy: float | None
    base_accuracy: float | None


def parse_goals(texts: Sequence[str]) -> tuple[Goal, ...]:
    """Parse goals. Raises UsageError for one that says nothing, naming what is known."""
    return tuple(_parse(text) for text in texts)


def check_goal(goal: Goal, facts: Facts) -> GoalRecord:
    """The goal against what was measured; `met` is None where nothing was."""
    measured: float | None = getattr(facts, goal.metric)
    base = facts.base_accuracy or 0.0
    bound = goal.value + (base if goal.relative else 0.0)
    met = None
    if measured is not None:
        met = measured <= bound if goal.relation == "<=" else measured >= bound
    return GoalRecord(
        text=goal.text,
        metric=goal.metric,
        relation=goal.relation,
        bound=bound,
        unit=_CANONICAL[goal.metric],
        measured=measured,
        met=met,
    )


def _parse(text: str) -> Goal:
    match = _GOAL.fullmatch(text)
    if match is None:
        raise UsageError(f"the goal {text!r} cannot be parsed", hint="for example p99<=15ms, accuracy>=base-0.01")
    metric, relation, base, sign, number, unit = match.groups()
    if metric not in _RELATIONS:
        raise UsageError(f"the goal {text!r} names an unknown metric", hint=f"known are {', '.join(_RELATIONS)}")
    if relation != _RELATIONS[metric]:
        raise UsageError(f"the goal {text!r} points the wrong way", hint=f"write {metric}{_RELATIONS[metric]}…")
    if base and metric != "accuracy":
        raise UsageError(f"the goal {text!r} compares with the source model, which is for accuracy only")
    if (base and number and not sign) or (not base and not number):
        raise UsageError(f"the goal {text!r} cannot be parsed", hint="for example accuracy>=base-0.01")
    units = _UNITS[metric]
    if number and unit not in units:
        raise UsageError(f"the goal {text!r} needs a unit", hint=f"one of {', '.join(filter(None, units))}")
    try:
        value = float(number or "0") * units[unit if number else next(iter(units))]
    except ValueError as e:
        raise UsageError(f"the goal {text!r} holds {number!r}, which is no number") from e
    return Goal(
        text=text.strip(),
        metric=metric,
        relation=_RELATIONS[metric],
        value=-value if sign == "-" else value,
        relative=bool(base),
    )
