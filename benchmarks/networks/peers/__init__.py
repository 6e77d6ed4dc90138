"""The rivals: one class a peer behind a small interface, each as its user would run it, on one thread.

A new one is a module here and a line in `PEERS`. All of it runs in processes of its own (`worker.py`), so that no
library meets another, a crash is one peer's outcome, and memory is a fresh process's.
"""

from __future__ import annotations

import pkgutil
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Literal

import msgspec
from benchmarks.networks.records import Candidate
from benchmarks.shared.peers import Contender, NotSupported, is_ours

#: One call: input name -> array with a batch axis of 1, to the outputs in the order of the net.
Call = Callable[[Mapping[str, Any]], Sequence[Any]]
Precision = Literal["fp32", "int8", "any"]

#: name -> "module:class". Names that start with `outrider` are ours; the others are peers.
PEERS: dict[str, str] = {
    "outrider": "benchmarks.networks.peers.outrider:Outrider",
    "outrider-fp32": "benchmarks.networks.peers.outrider:OutriderFp32",
    "onnxruntime": "benchmarks.networks.peers.onnxruntime:OnnxRuntime",
    "onnxruntime-int8": "benchmarks.networks.peers.onnxruntime:OnnxRuntimeInt8",
    "openvino": "benchmarks.networks.peers.openvino:OpenVino",
    "openvino-int8": "benchmarks.networks.peers.openvino:OpenVinoInt8",
    "litert": "benchmarks.networks.peers.litert:LiteRt",
    "ncnn": "benchmarks.networks.peers.ncnn:Ncnn",
    "torch": "benchmarks.networks.peers.torch:Torch",
    "torch-compile": "benchmarks.networks.peers.torch:TorchCompile",
    "tvm-default": "benchmarks.networks.peers.tvm:TvmDefault",
}
#: Those that a quick run leaves out: they take long to make their code, or to run it.
SLOW = ("torch-compile", "tvm-default")


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What a peer is asked to run, all of it as files: it crosses into other processes.

    `calibration` is an `.npz` of the inputs, [n, ...] each, and `label` where there are true ones. `shapes` are those
    of one call. `folder` is the peer's own. `again`: compile a second time,
    which a cache makes fast. `tune_s`: what may be spent on tuning.
    """

    net: str
    onnx: str
    calibration: str
    shapes: dict[str, tuple[int, ...]]
    folder: str
    has_module: bool
    has_labels: bool
    again: bool = False
    tune_s: float = 0.0


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """What a peer made of an order: the file that it loads, and how it was made.

    `engine` are the distributions that run it. Of ours, `chosen` is the artifact, `candidates` all that was tried, and
    `seconds_cached` the time of the same compile once more.
    """

    path: str
    file_bytes: int
    engine: tuple[str, ...]
    seconds: float = 0.0
    seconds_cached: float | None = None
    chosen: str = ""
    candidates: tuple[Candidate, ...] = ()


class Peer(Contender):
    """One way to run a network.

    `packages` make and run it; where one is not installed the peer does not take part. `engine` are those needed to
    run it.
    """

    engine: ClassVar[tuple[str, ...]]
    precision: ClassVar[Precision] = "fp32"
    #: Whether it is one of the backends that an artifact can be held against; the others are shown beside.
    backend: ClassVar[bool] = True

    @abstractmethod
    def export(self, order: Order) -> Made:
        """Write what this peer loads. Raises NotSupported."""

    @abstractmethod
    def open(self, path: Path, order: Order) -> Call:
        """Load it, in a fresh process."""

    def overhead_us(self, feed: Mapping[str, Any]) -> float | None:
        """CPU time that the call opened last adds to its engine's own, where the peer is ours."""
        return None

    def made(self, *files: Path) -> Made:
        """The record of these files, the first of which is loaded."""
        return Made(path=str(files[0]), file_bytes=sum(file.stat().st_size for file in files), engine=self.engine)


def peer(name: str) -> Peer:
    """The peer of that name, made anew."""
    made: Peer = pkgutil.resolve_name(PEERS[name])()
    return made


def installed_bytes(distribution: str) -> int | None:
    """What a distribution takes on disk, without those that it depends on; None where it is not installed."""
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        return None
    paths = [Path(str(file.locate())) for file in files if file.suffix != ".pyc"]
    return sum(path.stat().st_size for path in paths if path.is_file())


__all__ = [
    "PEERS",
    "SLOW",
    "Call",
    "Made",
    "NotSupported",
    "Order",
    "Peer",
    "Precision",
    "installed_bytes",
    "is_ours",
    "peer",
]
