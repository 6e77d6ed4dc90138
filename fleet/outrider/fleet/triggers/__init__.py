"""Triggers: rules that open a retrain Job. A table of kinds, and the interface of one.

A kind is pure: it folds evidence into a state and says, from the state alone, whether its reason stands. The manager
keeps the states, one a trigger and release, and gives each piece of evidence once.
"""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar, cast

import msgspec

from outrider.runtime.errors import BadInputError, NotFoundError

TRIGGERS: Mapping[str, str] = {
    "accuracy": "outrider.fleet.triggers.accuracy:AccuracyTrigger",
    "drift": "outrider.fleet.triggers.drift:DriftTrigger",
}

S = TypeVar("S", bound=msgspec.Struct)
M = TypeVar("M", bound=msgspec.Struct)


class DriftEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """A drift event: `scope` is `fleet` or a device, `since` in seconds since the epoch, `effect` a share."""

    scope: str
    feature: str
    since: float
    effect: float
    e_value: float
    threshold: float


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What has become known about one release since the last look; each label and event appears once.

    Of `labels` new labels, `correct` agree with the prediction.
    """

    correct: int = 0
    labels: int = 0
    drift: tuple[DriftEvidence, ...] = ()


class Trigger(ABC, Generic[S, M]):
    """One kind of trigger over its settings S, with state M. Methods are pure; `load_trigger` makes one."""

    settings_type: ClassVar[type[msgspec.Struct]]
    state_type: ClassVar[type[msgspec.Struct]]

    def __init__(self, settings: S) -> None:
        self.settings = settings

    @abstractmethod
    def begin(self) -> M:
        """The state for a release of which nothing is known yet."""

    @abstractmethod
    def observe(self, state: M, evidence: Evidence) -> M:
        """Fold new evidence in."""

    @abstractmethod
    def reason(self, state: M) -> dict[str, Any] | None:
        """Why a Job should be opened now, as JSON for the Job and the audit log; None: there is no reason."""

    @abstractmethod
    def opened(self, state: M) -> M:
        """The state after a Job was opened for its reason: it takes more evidence to give one again."""

    @property
    @abstractmethod
    def cooldown_s(self) -> float:
        """No Job within so many seconds of the end of the last one for the model."""


def load_trigger(kind: str, settings: Mapping[str, Any]) -> Trigger[Any, Any]:
    """A trigger of a kind over checked settings.

    Raises NotFoundError for an unknown kind, BadInputError naming the setting that is wrong.
    """
    if kind not in TRIGGERS:
        raise NotFoundError(f"there is no kind of trigger {kind!r}", hint=f"kinds are {', '.join(sorted(TRIGGERS))}")
    implementation = cast("type[Trigger[Any, Any]]", pkgutil.resolve_name(TRIGGERS[kind]))
    wanted = implementation.settings_type
    try:
        return implementation(msgspec.convert(dict(settings), wanted))
    except msgspec.ValidationError as e:
        known = ", ".join(wanted.__struct_fields__)
        raise BadInputError(f"settings of a trigger of kind {kind!r}: {e}", hint=f"known keys are {known}") from e


__all__ = ["TRIGGERS", "DriftEvidence", "Evidence", "Trigger", "load_trigger"]
