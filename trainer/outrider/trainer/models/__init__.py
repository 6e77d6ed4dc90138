"""Kinds of models that can be trained: one table, each kind one file."""

from __future__ import annotations

#: kind -> "module:class" of a `ModelKind` (see `outrider.trainer.models.base`).
MODELS: dict[str, str] = {
    "xgboost": "outrider.trainer.models.xgboost:XGBoost",
}
