"""Opens a Job when a feature of the fleet, or of one device, has left the baseline."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from outrider.fleet.triggers import DriftEvidence, Evidence, Trigger


class DriftSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`features`: names with commas between them; empty: any. `scope`: `fleet` alone, or `any` device too.

    `min_effect`: the least |F - F0| that counts. `cooldown_s`: no Job within so many seconds of the last one's end.
    """

    features: str = ""
    scope: Literal["fleet", "any"] = "fleet"
    min_effect: Annotated[float, Meta(ge=0, le=1)] = 0.0
    cooldown_s: Annotated[float, Meta(ge=0)] = 600.0

    def names(self) -> frozenset[str]:
        """The features that count; empty: all do."""
        return frozenset(name.strip() for name in self.features.split(",") if name.strip())


class DriftState(msgspec.Struct, frozen=True, kw_only=True):
    """The drift events that no Job was opened for yet."""

    waiting: tuple[DriftEvidence, ...] = ()


class DriftTrigger(Trigger[DriftSettings, DriftState]):
    """One Job for all that drifted until it is opened."""

    settings_type: ClassVar[type[msgspec.Struct]] = DriftSettings
    state_type: ClassVar[type[msgspec.Struct]] = DriftState

    def begin(self) -> DriftState:
        """Nothing has drifted."""
        return DriftState()

    def observe(self, state: DriftState, evidence: Evidence) -> DriftState:
        """Keep the events that the settings ask for."""
        names = self.settings.names()
        counted = tuple(
            event
            for event in evidence.drift
            if (not names or event.feature in names)
            and (self.settings.scope == "any" or event.scope == "fleet")
            and event.effect >= self.settings.min_effect
        )
        return msgspec.structs.replace(state, waiting=state.waiting + counted)

    def reason(self, state: DriftState) -> dict[str, Any] | None:
        """The features, strongest first."""
        if not state.waiting:
            return None
        events = sorted(state.waiting, key=lambda event: -event.e_value)
        return {
            "kind": "drift",
            "features": [event.feature for event in events],
            "since": min(event.since for event in events),
            "effect": max(event.effect for event in events),
            "e_value": events[0].e_value,
            "threshold": events[0].threshold,
        }

    def opened(self, state: DriftState) -> DriftState:
        """Only what drifts from now on is a reason again."""
        return msgspec.structs.replace(state, waiting=())

    @property
    def cooldown_s(self) -> float:
        """As set."""
        return self.settings.cooldown_s
