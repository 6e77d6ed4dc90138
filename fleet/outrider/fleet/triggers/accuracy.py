"""Opens a Job when a test, not a comparison, finds that the accuracy on delayed labels is below its floor."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from outrider.fleet.drift.performance import Breach, FloorState, FloorTest
from outrider.fleet.triggers import Evidence, Trigger


class AccuracySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`floor`: the accuracy to hold. `alpha`: the chance of ever a Job while it is held, for each release.

    `min_labels`: no Job before so many labels. `cooldown_s`: none within so many seconds of the last Job's end.
    """

    floor: Annotated[float, Meta(gt=0, lt=1)] = 0.93
    alpha: Annotated[float, Meta(gt=0, lt=1)] = 0.01
    min_labels: Annotated[int, Meta(ge=1)] = 100
    cooldown_s: Annotated[float, Meta(ge=0)] = 600.0


class AccuracyState(msgspec.Struct, frozen=True, kw_only=True):
    """The test's state, the breach that it found, and how many labels there were when a Job was opened last."""

    test: FloorState
    breach: Breach | None = None
    opened_at: int = 0


class AccuracyTrigger(Trigger[AccuracySettings, AccuracyState]):
    """A binomial e-process for "accuracy >= floor": see `outrider.fleet.drift.performance`."""

    settings_type: ClassVar[type[msgspec.Struct]] = AccuracySettings
    state_type: ClassVar[type[msgspec.Struct]] = AccuracyState

    def begin(self) -> AccuracyState:
        """No label yet."""
        return AccuracyState(test=FloorTest.new_state(self.settings.floor, alpha=self.settings.alpha))

    def observe(self, state: AccuracyState, evidence: Evidence) -> AccuracyState:
        """Count the labels."""
        if evidence.labels == 0:
            return state
        test, breach = FloorTest.update(state.test, evidence.correct, evidence.labels)
        return msgspec.structs.replace(state, test=test, breach=breach or state.breach)

    def reason(self, state: AccuracyState) -> dict[str, Any] | None:
        """The breach, once there are enough labels, and some since the Job before."""
        enough = state.test.labels >= max(self.settings.min_labels, state.opened_at + 1)
        if state.breach is None or not enough:
            return None
        breach = state.breach
        return {
            "kind": "accuracy",
            "floor": self.settings.floor,
            "accuracy": breach.accuracy,
            "labels": breach.labels,
            "e_value": breach.e_value,
            "threshold": breach.threshold,
        }

    def opened(self, state: AccuracyState) -> AccuracyState:
        """A further Job for the same release takes at least as many labels again."""
        return msgspec.structs.replace(state, opened_at=state.test.labels + self.settings.min_labels)

    @property
    def cooldown_s(self) -> float:
        """As set."""
        return self.settings.cooldown_s
