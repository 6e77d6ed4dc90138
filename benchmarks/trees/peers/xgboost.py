"""XGBoost's own prediction."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from benchmarks.trees.peers import NotSupported, Order, Peer, Predict


class XGBoost(Peer):
    """`Booster.inplace_predict`, which needs no DMatrix."""

    packages: ClassVar[tuple[str, ...]] = ("xgboost",)
    modules: ClassVar[tuple[str, ...]] = ("xgboost",)
    call: ClassVar[str] = "booster.inplace_predict(rows), nthread=1"

    def export(self, order: Order) -> Path:
        """The model file itself."""
        if order.case.spec.framework != "xgboost":
            raise NotSupported("another library's model")
        return order.case.path

    def open(self, path: Path) -> Predict:
        """A booster on one thread."""
        import xgboost

        booster = xgboost.Booster({"nthread": 1}, model_file=str(path))
        booster.set_param({"nthread": 1})
        predict: Predict = booster.inplace_predict
        return predict
