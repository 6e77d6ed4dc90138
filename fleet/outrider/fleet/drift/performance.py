"""Is the accuracy still above its floor? A test, not a comparison: a true 94 % often dips below 93 % by chance."""

from __future__ import annotations

import math
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from outrider.fleet.drift.eprocess import e_value, log_evidence_below
from outrider.fleet.drift.starts import log_cash, log_weights, to_drop
from outrider.runtime.errors import BadDataError

# A start time for every so many labels: more of them would only thin out the weights.
START_LABELS = 500
# The mixture looks for accuracies within about the floor's own distance from 1, and not nearer than this.
_MIN_EXCESS = 0.05


class FloorStart(msgspec.Struct, frozen=True, kw_only=True):
    """What had been counted when the `index`-th start was opened."""

    index: int
    correct: int
    labels: int


class FloorState(msgspec.Struct, frozen=True, kw_only=True):
    """All that the test remembers; encodable with msgspec.

    `floor`: the accuracy to hold. `threshold`: the e-value at which it is held to be broken. `breached`: it was.
    """

    floor: Annotated[float, Meta(gt=0, lt=1)]
    threshold: float
    correct: int = 0
    labels: int = 0
    opened: int = 0
    starts: tuple[FloorStart, ...] = ()
    log_e: float = 0.0
    breached: bool = False


class Breach(msgspec.Struct, frozen=True, kw_only=True):
    """The floor is broken: `accuracy` over the last `labels` labels, since the most likely start."""

    e_value: float
    threshold: float
    accuracy: float
    labels: int


class FloorTest:
    """Binomial e-process for "accuracy >= floor", mixed over start times. Pure: states go in and come out.

    While the accuracy holds, the chance of ever a breach is at most alpha, whatever the number of looks.

    >>> state = FloorTest.new_state(0.93, alpha=0.05)
    >>> state, breach = FloorTest.update(state, correct=300, total=400)
    >>> breach.accuracy
    0.75
    """

    @staticmethod
    def new_state(floor: float, *, alpha: float = 0.05, streams: int = 1) -> FloorState:
        """The state before any label, for one of `streams` tests that share the error probability alpha.

        Raises BadDataError.
        """
        if not 0 < floor < 1 or not 0 < alpha < 1 or streams < 1:
            raise BadDataError("an accuracy floor and alpha lie between 0 and 1, and there is at least one test")
        return FloorState(floor=floor, threshold=streams / alpha)

    @staticmethod
    def update(state: FloorState, correct: int, total: int) -> tuple[FloorState, Breach | None]:
        """Take in `total` labels, of which `correct` agree with the prediction. A breach is returned once.

        Raises BadDataError.
        """
        if not 0 <= correct <= total:
            raise BadDataError(f"{correct} of {total} labels cannot be correct")
        if total == 0:
            return state, None
        opened, starts = state.opened, state.starts
        if not starts or state.labels - starts[-1].labels >= START_LABELS:
            opened += 1
            starts = (*starts, FloorStart(index=opened, correct=state.correct, labels=state.labels))
            drop = to_drop([start.index for start in starts], opened)
            if drop is not None:
                starts = starts[:drop] + starts[drop + 1 :]
        correct, labels = state.correct + correct, state.labels + total
        hits = correct - np.array([start.correct for start in starts])
        trials = labels - np.array([start.labels for start in starts])
        shape = 1 / max(1 - state.floor, _MIN_EXCESS)
        logs = log_weights([start.index for start in starts])
        logs = logs + log_evidence_below(hits, trials, state.floor, a=1.0, b=shape)
        log_e = float(np.logaddexp.reduce(np.append(logs, log_cash(opened))))
        breached = state.breached or log_e >= math.log(state.threshold)
        after = msgspec.structs.replace(
            state, correct=correct, labels=labels, opened=opened, starts=starts, log_e=log_e, breached=breached
        )
        if state.breached or not breached:
            return after, None
        best = int(np.argmax(logs))
        breach = Breach(
            e_value=e_value(log_e),
            threshold=state.threshold,
            accuracy=float(hits[best] / trials[best]),
            labels=int(trials[best]),
        )
        return after, breach
