"""Intel's oneDAL, through scikit-learn-intelex (which holds daal4py)."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks.trees.peers import NotSupported, Order, Peer, Predict

if TYPE_CHECKING:
    from benchmarks.trees.models import Case


class OneDal(Peer):
    """Boosted trees are converted. Random forests cannot be: oneDAL trains its own, with the same settings."""

    packages: ClassVar[tuple[str, ...]] = ("scikit-learn-intelex", "daal")
    modules: ClassVar[tuple[str, ...]] = ("daal4py",)
    call: ClassVar[str] = "daal4py.mb.convert_model(booster).predict_proba(rows), daalinit(1)"

    def export(self, order: Order) -> Path:
        """Pickle oneDAL's form of the model."""
        own = order.case.spec.framework == "scikit-learn"
        self.same_model = not own
        path = order.folder / "onedal.pkl"
        path.write_bytes(pickle.dumps(_own_forest(order.case) if own else _boosted(order.case)))
        return path

    def open(self, path: Path) -> Predict:
        """The model on one thread."""
        import daal4py

        daal4py.daalinit(1)
        predict: Predict = pickle.loads(path.read_bytes()).predict_proba
        return predict


def _own_forest(case: Case) -> Any:
    from sklearnex.ensemble import RandomForestClassifier

    assert case.data is not None
    forest = RandomForestClassifier(case.spec.trees, random_state=case.spec.seed, n_jobs=1)
    return forest.fit(case.data.rows, case.data.target)


def _boosted(case: Case) -> Any:
    import daal4py.mb

    if case.data is not None and case.data.categories:
        raise NotSupported("daal4py converts no categorical splits")
    return daal4py.mb.convert_model(case.model)
