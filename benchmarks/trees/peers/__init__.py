"""The rivals: one class a peer behind a small interface. A new one is a module here and a line in `PEERS`."""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

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


class NotSupported(Exception):  # an outcome to show, not an error
    """The peer cannot run this model; the message says why."""


@dataclass(frozen=True)
class Order:
    """What a peer is asked to make its file of, where to put it, and how long that may take."""

    case: Case
    folder: Path
    patience_s: float


class Peer(ABC):
    """One way to run a forest, on one thread.

    `packages` are the distributions whose versions are shown, the first one decides whether the peer is installed;
    `modules` is what a process imports before it can load a model; `call` says how one prediction is called.
    """

    packages: ClassVar[tuple[str, ...]]
    modules: ClassVar[tuple[str, ...]]
    call: ClassVar[str]
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

    @classmethod
    def version(cls) -> str | None:
        """The versions of its packages; None where one is not installed."""
        try:
            return ", ".join(f"{package} {metadata.version(package)}" for package in cls.packages)
        except metadata.PackageNotFoundError:
            return None


def peer(name: str) -> Peer:
    """The peer of that name, made anew."""
    made: Peer = pkgutil.resolve_name(PEERS[name])()
    return made


def is_ours(name: str) -> bool:
    """Whether a name of the table is Outrider's."""
    return name.startswith("outrider")
