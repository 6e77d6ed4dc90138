"""Goals: what a caller asks of the artifact, `p99<=15ms`, `size<=5MB`, `rss<=100MB`, `accuracy>=base-0.01`.

| metric | is | units |
| --- | --- | --- |
| `p50`, `p99` | wall time of a call of one row on this machine, from Python | ns, us, ms, s |
| `size` | bytes of the artifact | B, KB, MB, GB, KiB, MiB, GiB |
| `rss` | resident memory of a fresh process that runs the artifact, beyond Python and numpy | as of `size` |
| quality: `accuracy`, `top5`, `l2`, … | see `metrics.py`; `base` is the source model's | none, % |
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from outrider.compiler.metrics import RELATIONS, Quality, Relation, relation_of
from outrider.runtime.bundle import GoalRecord
from outrider.runtime.errors import UsageError

_RELATIONS: dict[str, Relation] = {"p50": "<=", "p99": "<=", "size": "<=", "rss": "<="}
_TIMES = {"ns": 1e-6, "us": 1e-3, "ms": 1.0, "s": 1e3}
_SIZES = {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
_UNITS: dict[str, dict[str, float]] = {"p50": _TIMES, "p99": _TIMES, "size": _SIZES, "rss": _SIZES}
_SHARES: dict[str, float] = {"": 1.0, "%": 0.01}
_CANONICAL = {"p50": "ms", "p99": "ms", "size": "B", "rss": "B"}
_SLACK = 1e-12  # of rounding, where base - 0.01 is added up
_NUMBER = r"[0-9.]*(?:(?<=[0-9.])[eE][+-]?[0-9]+)?"
_GOAL = re.compile(rf"\s*([A-Za-z0-9_.@]+)\s*(<=|>=)\s*(base\b)?\s*([+-]?)\s*({_NUMBER})\s*([A-Za-z%]*)\s*")


@dataclass(frozen=True)
class Goal:
    """One parsed goal. `value` is in ms, bytes or as a share; `relative`: it is added to the source model's."""

    text: str
    metric: str
    relation: Relation
    value: float
    relative: bool

    @property
    def on_quality(self) -> bool:
        """Whether it is about outputs, not about time or size."""
        return self.metric not in _RELATIONS


@dataclass(frozen=True)
class Facts:
    """What was measured of one candidate, in ms and bytes; None: not measured."""

    p50: float | None = None
    p99: float | None = None
    size: int | None = None
    rss: int | None = None
    quality: Quality = field(default_factory=Quality)


def parse_goals(texts: Sequence[str], *, own: bool = False) -> tuple[Goal, ...]:
    """Parse goals; `own`: the caller's evaluation gives metrics of other names.

    Raises UsageError for one that says nothing, naming what is known.
    """
    return tuple(_parse(text, own) for text in texts)


def check_goal(goal: Goal, facts: Facts) -> GoalRecord:
    """The goal against what was measured; `met` is None where nothing was."""
    measured: float | None
    measured = facts.quality.values.get(goal.metric) if goal.on_quality else getattr(facts, goal.metric)
    bound = goal.value + (facts.quality.base.get(goal.metric, 0.0) if goal.relative else 0.0)
    met = None
    if measured is not None:
        met = measured <= bound + _SLACK if goal.relation == "<=" else measured >= bound - _SLACK
    return GoalRecord(
        text=goal.text,
        metric=goal.metric,
        relation=goal.relation,
        bound=bound,
        unit=_CANONICAL.get(goal.metric, ""),
        measured=measured,
        met=met,
    )


def shortfall(record: GoalRecord) -> float:
    """How far beyond its bound a goal was missed, as a share of the bound; 0 where nothing was measured."""
    return 0.0 if record.measured is None else abs(record.measured - record.bound) / max(abs(record.bound), 1e-30)


def _parse(text: str, own: bool) -> Goal:
    match = _GOAL.fullmatch(text)
    if match is None:
        raise UsageError(f"the goal {text!r} cannot be parsed", hint="for example p99<=15ms, accuracy>=base-0.01")
    metric, relation, base, sign, number, unit = match.groups()
    expected = _RELATIONS.get(metric) or relation_of(metric)
    pointing: Relation = "<=" if relation == "<=" else ">="
    if expected is None and not own:
        known = ", ".join((*_RELATIONS, *RELATIONS, "top5"))
        raise UsageError(f"the goal {text!r} names an unknown metric", hint=f"known are {known}, and those of --eval")
    if expected not in (None, relation):
        raise UsageError(f"the goal {text!r} points the wrong way", hint=f"write {metric}{expected}…")
    if base and metric in _RELATIONS:
        raise UsageError(f"the goal {text!r} compares with the source model, which is for quality only")
    if (base and number and not sign) or (not base and not number):
        raise UsageError(f"the goal {text!r} cannot be parsed", hint="for example accuracy>=base-0.01")
    units = _UNITS.get(metric, _SHARES)
    if number and unit not in units:
        raise UsageError(f"the goal {text!r} needs a unit", hint=f"one of {', '.join(filter(None, units))}")
    try:
        value = float(number or "0") * units[unit if number else next(iter(units))]
    except ValueError as e:
        raise UsageError(f"the goal {text!r} holds {number!r}, which is no number") from e
    return Goal(
        text=text.strip(),
        metric=metric,
        relation=pointing,
        value=-value if sign == "-" else value,
        relative=bool(base),
    )
