"""scikit-learn's own prediction."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import ClassVar

from benchmarks.trees.peers import NotSupported, Order, Peer, Predict


class ScikitLearn(Peer):
    """`predict_proba` of the forest as it was pickled."""

    packages: ClassVar[tuple[str, ...]] = ("scikit-learn",)
    modules: ClassVar[tuple[str, ...]] = ("sklearn.ensemble",)
    call: ClassVar[str] = "forest.predict_proba(rows), n_jobs=None"

    def export(self, order: Order) -> Path:
        """The model file itself."""
        if order.case.spec.framework != "scikit-learn":
            raise NotSupported("another library's model")
        return order.case.path

    def open(self, path: Path) -> Predict:
        """The forest."""
        predict: Predict = pickle.loads(path.read_bytes()).predict_proba
        return predict
