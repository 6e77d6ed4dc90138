"""The rivals: one class a peer behind a small interface. A new one is a module here and a line in `PEERS`."""

from __future__ import annotations

import pkgutil
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.shared.peers import Contender, NotSupported, is_ours

if TYPE_CHECKING:  # a fresh process, whose memory is measured, must not import what it does not need
    from benchmarks.trees.models import Case

#: float32 [n, f], C-contiguous -> predictions of any form, one row each.
Predict = Callable[[Any], Any]

#: name -> "module:class". Names that start with `outrider` are ours; the others are peers.
PEERS: dict[str, str] = {
    "outrider": "benchmarks.trees.peers.outrider:Outrider",
    "outrider-avx2": "benchmarks.trees.peers.outrider:OutriderAvx2",
    "xgboost": "benchmarks.trees.peers.xgboost:XGBoost",
    "lightgbm": "benchmarks.trees.peers.lightgbm:LightGBM",
    "onnxruntime": "benchmarks.trees.peers.onnxruntime:OnnxRuntime",
    "onedal": "benchmarks.trees.peers.onedal:OneDal",
    "tl2cgen": "benchmarks.trees.peers.tl2cgen:Tl2cgen",
    "gtil": "benchmarks.trees.peers.gtil:Gtil",
    "sklearn": "benchmarks.trees.peers.sklearn:ScikitLearn",
}


@dataclass(frozen=True)
class Order:
    """What a peer is asked to make its file of, where to put it, and how long that may take."""

    case: Case
    folder: Path
    patience_s: float


class Peer(Contender):
    """One way to run a forest, on one thread.

    Where one of `packages` is not installed, the peer does not take part.
    """

    #: False where the peer trains a forest of its own: its results are not compared with the source's.
    same_model: bool = True
    #: Set by `export` where it measures the making itself; otherwise it is timed from outside.
    compile_s: float | None = None
    compile_peak_mb: float | None = None
    #: Set by `open` where the file is more than the code.
    artifact_bytes: int | None = None

    @abstractmethod
    def export(self, order: Order) -> Path:
        """Write what this peer loads. Raises NotSupported, also where that would take too long."""

    @abstractmethod
    def open(self, path: Path) -> Predict:
        """Load it, in this or in a fresh process."""

    def variant(self) -> str:
        """What was chosen for the model opened last, where the peer has a choice."""
        return ""


def peer(name: str) -> Peer:
    """The peer of that name, made anew."""
    made: Peer = pkgutil.resolve_name(PEERS[name])()
    return made


__all__ = ["PEERS", "NotSupported", "Order", "Peer", "Predict", "is_ours", "peer"]
