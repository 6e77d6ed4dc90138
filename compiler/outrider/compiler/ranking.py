"""The written rule: in which order a device tries what a compile for another machine could not measure.

Speeds do not carry over from one processor to another, so nothing is said of them here. What is ranked first is what is
most often the fastest on processors of the kind (docs/networks.md), and the device measures all of them as it installs
the bundle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from outrider.compiler.backends import Candidate
from outrider.runtime.target import Arch

_ORDER: Mapping[Arch, tuple[str, ...]] = {
    "x86_64": ("native", "openvino", "ort", "tvm", "ncnn"),
    "aarch64": ("native", "ort", "ncnn", "tvm", "openvino"),
    "armv7": ("native", "ncnn", "tvm"),
    "riscv64": ("native", "tvm"),
    "wasm32": ("native",),
}
_PRECISIONS = ("int8", "mixed", "fp16")  # quicker than the model's own, in this order


def ranked(arch: Arch, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates in the order of the rule: by precision, by backend, and within one as it offers them."""
    order = _ORDER[arch]

    def place(candidate: Candidate) -> tuple[int, int]:
        precision, backend = candidate.precision, candidate.backend
        return (
            _PRECISIONS.index(precision) if precision in _PRECISIONS else len(_PRECISIONS),
            order.index(backend) if backend in order else len(order),
        )

    return sorted(candidates, key=place)
