"""LightGBM's own prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from benchmarks.trees.peers import NotSupported, Order, Peer, Predict


class LightGBM(Peer):
    """`Booster.predict`, whose Python interface has no shorter way for one row."""

    packages: ClassVar[tuple[str, ...]] = ("lightgbm",)
    modules: ClassVar[tuple[str, ...]] = ("lightgbm",)
    call: ClassVar[str] = "booster.predict(rows, num_threads=1)"

    def export(self, order: Order) -> Path:
        """The model file itself."""
        if order.case.spec.framework != "lightgbm":
            raise NotSupported("another library's model")
        return order.case.path

    def open(self, path: Path) -> Predict:
        """A booster on one thread."""
        import lightgbm

        booster = lightgbm.Booster(params={"num_threads": 1}, model_file=str(path))

        def predict(rows: Any) -> Any:
            return booster.predict(rows, num_threads=1)

        return predict
