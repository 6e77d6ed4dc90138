"""Kinds of models that can be trained: one table, each kind one file."""

from __future__ import annotations

import os

# OpenMP's threads spin while they wait for each other. On a machine whose cores are busy with something else a
# training of 0.6 s then takes 26 s (XGBoost, 2 threads on 2 cores, 2 other processes); threads that sleep cost nothing.
# It is read when a library with OpenMP is first loaded, and a value of the user's own stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

#: kind -> "module:class" of a `ModelKind` (see `outrider.trainer.models.base`).
MODELS: dict[str, str] = {
    "xgboost": "outrider.trainer.models.xgboost:XGBoost",
}
