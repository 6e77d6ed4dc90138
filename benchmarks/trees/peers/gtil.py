"""GTIL, Treelite's reference interpreter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks.trees.peers import Order, Peer, Predict

if TYPE_CHECKING:
    from benchmarks.trees.models import Case


def treelite_model(case: Case) -> Any:
    """The case as a Treelite model."""
    import treelite
    import treelite.sklearn

    if case.spec.framework == "xgboost":
        return treelite.frontend.from_xgboost(case.model)
    if case.spec.framework == "lightgbm":
        return treelite.frontend.from_lightgbm(case.model)
    return treelite.sklearn.import_model(case.model)


class Gtil(Peer):
    """`treelite.gtil.predict` on one thread; models of float64 are given float64 rows."""

    packages: ClassVar[tuple[str, ...]] = ("treelite",)
    modules: ClassVar[tuple[str, ...]] = ("treelite", "treelite.gtil")
    call: ClassVar[str] = "treelite.gtil.predict(model, rows, nthread=1)"

    def export(self, order: Order) -> Path:
        """A Treelite checkpoint."""
        path = order.folder / "model.treelite"
        treelite_model(order.case).serialize(path)
        return path

    def open(self, path: Path) -> Predict:
        """The model in the interpreter."""
        import treelite
        import treelite.gtil

        model = treelite.Model.deserialize(path)
        dtype = model.input_type

        def predict(rows: Any) -> Any:
            return treelite.gtil.predict(model, rows.astype(dtype, copy=False), nthread=1)

        return predict
