"""Feature steps: one table, run by the same code in training and on the device.

A recipe declares raw columns and steps (`FeaturePlan`); training learns what a step needs to know (a vocabulary, a
centre) with `fit_plan`; the fitted plan travels in the manifest; `compute` runs it anywhere:

```python
plan = fit_plan(declared, raw_train)
x = compute(plan, {"amount": np.array([120.0]), "country": np.array(["NA"])})   # float32 [1, features]
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from outrider.runtime.features.plan import ColumnKind, FeaturePlan, FeatureStep, RawColumn

if TYPE_CHECKING:
    from outrider.runtime.features.columns import RawTable, check_raw
    from outrider.runtime.features.transform import Transform, compute, fit_plan

#: op -> "module:class" of a `Step` (see `outrider.runtime.features.base`).
STEPS: dict[str, str] = {
    "number": "outrider.runtime.features.numeric:Number",
    "log1p": "outrider.runtime.features.numeric:Log1p",
    "ratio": "outrider.runtime.features.numeric:Ratio",
    "difference": "outrider.runtime.features.numeric:Difference",
    "hour": "outrider.runtime.features.times:Hour",
    "weekday": "outrider.runtime.features.times:Weekday",
    "age_years": "outrider.runtime.features.times:AgeYears",
    "haversine": "outrider.runtime.features.places:Haversine",
    "distance_from": "outrider.runtime.features.places:DistanceFrom",
    "category": "outrider.runtime.features.categories:Category",
    "in_set": "outrider.runtime.features.categories:InSet",
}

_LAZY = {
    "RawTable": "columns",
    "check_raw": "columns",
    "Transform": "transform",
    "compute": "transform",
    "fit_plan": "transform",
}

__all__ = [
    "STEPS",
    "ColumnKind",
    "FeaturePlan",
    "FeatureStep",
    "RawColumn",
    "RawTable",
    "Transform",
    "check_raw",
    "compute",
    "fit_plan",
]


def __getattr__(name: str) -> Any:  # lazy: the manifest needs the plan's records, not numpy
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
